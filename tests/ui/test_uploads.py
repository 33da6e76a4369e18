"""Uploaded photos go with the server that took them, also when it was killed."""

import os
import subprocess
import sys
from pathlib import Path

from i2v.ui.mount.uploads import own_folder
from tests.conftest import ROOT

SERVER = """
import sys
from pathlib import Path
from i2v.ui.mount.uploads import own_folder
folder = own_folder(Path(sys.argv[1]))
(folder / "photo.png").write_bytes(b"a photo")
print(folder, flush=True)
sys.stdin.read()
"""


def started(root: Path) -> tuple[subprocess.Popen[str], Path]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(root)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    return server, Path(server.stdout.readline().strip())


def test_photos_of_a_killed_server_are_removed_by_the_next_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    """They stayed among the temporary files for good: only a server that ended by itself removed them."""
    killed, left = started(tmp_path)
    live, kept = started(tmp_path)
    killed.kill()
    killed.communicate(timeout=60)
    assert (left / "photo.png").exists()
    own = own_folder(tmp_path)
    assert not left.exists()
    assert (kept / "photo.png").exists()
    assert own.stat().st_mode & 0o777 == 0o700
    live.communicate(timeout=60)
    assert not kept.exists()


def test_a_link_among_the_temporary_files_leads_nowhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("stays")
    (tmp_path / "i2v-uploads-x").symlink_to(precious)
    own_folder(tmp_path)
    assert (precious / "file").exists()
    assert os.listdir(precious) == ["file"]
