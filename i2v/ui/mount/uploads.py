"""The folder for uploaded photos: this process alone reads it, and it goes with the process, however that dies.

It lies among the machine's temporary files and not in the outputs folder, of which the page may serve nothing. A lock
inside says whether its server lives; the kernel drops it with the process, and the next server removes what is left.
Nothing here imports the framework: it reads the name of its folder once, while it is imported.
"""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

VARIABLE = "GRADIO_TEMP_DIR"
PREFIX = "i2v-uploads-"
STARTING = "i2v-starting-"  # its name until it is locked, so that nobody takes it for one that was left
LOCK = ".lock"


@lru_cache(maxsize=1)
def take_folder() -> Path:
    """Give the framework a folder of this process, once; to be called before anything imports it.

    Its default is `gradio` among the temporary files, one folder for all users and servers of a machine: a server that
    stops removes a photo that another one uses, and none starts where another user has made it. It takes the name from
    the environment only; a folder that stands there already holds ours. Raises OSError when that cannot be written.
    """
    given = os.environ.get(VARIABLE)
    root = Path(given or tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    folder = own_folder(root)
    os.environ[VARIABLE] = str(folder)
    return folder


def own_folder(root: Path) -> Path:
    """A new folder under `root` with mode 0700, removed at exit; those of dead servers are removed now.

    Raises OSError when `root` cannot be written.
    """
    _sweep(root)
    made = Path(tempfile.mkdtemp(prefix=STARTING, dir=root))
    lock = FileLock(made / LOCK, thread_local=False)
    lock.acquire(timeout=0)
    folder = made.rename(made.with_name(PREFIX + made.name.removeprefix(STARTING)))
    atexit.register(_remove, folder, lock)
    return folder


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):  # another's, or in use
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with FileLock(folder / LOCK).acquire(timeout=0):
                shutil.rmtree(folder)
