"""What a machine must have before the server starts, one `Check` a line. Changes nothing it looks at.

Imports torch only while it runs. Called by `i2v doctor` and by the launcher.
"""

import errno
import importlib
import importlib.metadata
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from i2v.errors import ModelUnavailable, SettingsError
from i2v.notes import say
from i2v.settings import Settings

GB = 1e9
DOWNLOAD_BYTES = 4.98e9  # the fp16 files of the published model that are fetched


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: `text` says what was found, and when not `ok` what to do."""

    name: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"[{'SUCCESS' if self.ok else 'ERROR'}] {self.name}: {self.text}"


def checks(settings: Settings) -> Iterator[Check]:
    """All checks, in the order in which a start would meet them. A check that fails to run is a failed check.

    One by one as they are done: importing torch takes seconds, and the reader should see why.
    """
    all_checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("python", check_python),
        ("torch", check_torch),
        ("device", lambda: check_device(settings)),
        ("steps", lambda: check_steps(settings)),
        ("kernels", lambda: check_kernels(settings)),
        ("ffmpeg", check_ffmpeg),
        ("outputs", lambda: check_writable("outputs", settings.outputs)),
        ("disk", lambda: check_disk(settings.outputs, settings.min_free_mb)),
        ("model", lambda: check_model(settings)),
        ("port", lambda: check_port(settings.host, settings.port)),
    )
    for name, check in all_checks:
        yield _guarded(name, check)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # the report must be whole, whatever one probe meets
        return Check(name, False, f"the check itself failed: {type(error).__name__}: {error}")


def check_python(version: tuple[int, int] = (sys.version_info[0], sys.version_info[1])) -> Check:
    """Is this a Python that the package runs on?"""
    text = ".".join(map(str, version))
    if (3, 11) <= version <= (3, 13):
        return Check("python", True, f"Python {text}")
    return Check("python", False, f"Python {text}; install 3.11, 3.12 or 3.13")


def check_torch() -> Check:
    """Can torch be imported, and was it built for CUDA?"""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a CUDA library that the driver does not match
        return Check("torch", False, f"PyTorch cannot be imported ({error}); install the package again")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check("torch", True, f"PyTorch {torch.__version__} ({cuda})")


def check_device(settings: Settings) -> Check:
    """The device that the settings name, and its free memory."""
    from i2v.engine import device_memory, source

    try:
        device = source.choose_device(settings.device)
    except ModelUnavailable as error:
        return Check("device", False, str(error))
    found = device_memory.read(device, settings.max_vram_gb)
    words = f"{found.available / 2**30:.1f} of {found.total / 2**30:.1f} GiB free"
    return Check("device", True, f"{source.device_name(device)}, {words}")


def check_steps(settings: Settings) -> Check:
    """How denoising steps will run, and whether the presets file can be read."""
    from i2v.engine import faster_steps, source
    from i2v.presets import read_presets

    try:
        read_presets(settings.presets)
        device = source.choose_device(settings.device)
        form, reason = faster_steps.choose_form(settings.accelerate, device)
    except SettingsError as error:
        return Check("steps", False, str(error))
    except ModelUnavailable:
        return Check("steps", True, "not looked at: there is no such device")
    if form is None:
        return Check("steps", True, f"plain ({reason})")
    if settings.memory == "low-vram" and device.type == "cuda":
        return Check(
            "steps", True, "plain (memory is low-vram: weights move, and a faster form needs them in one place)"
        )
    if form.name.code == "compiled" and shutil.which("c++") is None and shutil.which("g++") is None:
        return Check("steps", False, "accelerate is compile, and there is no C++ compiler; install one, or choose auto")
    return Check("steps", True, f"as {say(form.name)}, once one has been tried at a size and found equal and faster")


def check_kernels(settings: Settings) -> Check:
    """Which fused kernels will serve, each examined on the device; one that is left out costs time, no result."""
    from i2v.engine import source
    from i2v.engine.unet import fused

    try:
        device = source.choose_device(settings.device)
    except ModelUnavailable:
        return Check("kernels", True, "not looked at: there is no such device")
    if device.type != "cuda":
        return Check("kernels", True, f"native ({device.type}: the fused ones are for CUDA)")
    return Check(
        "kernels", True, "; ".join(map(str, fused.report(device, source.choose_dtype(settings.dtype, device))))
    )


def check_ffmpeg(find: Callable[[], str] | None = None) -> Check:
    """`find` gives the path of an ffmpeg binary or raises RuntimeError; by default the one imageio-ffmpeg brings."""
    if find is None:
        from imageio_ffmpeg import get_ffmpeg_exe

        find = get_ffmpeg_exe
    wanted = "install imageio-ffmpeg again, or put ffmpeg on the PATH"
    try:
        done = subprocess.run([find(), "-version"], capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return Check("ffmpeg", False, f"no ffmpeg that runs ({error}); {wanted}")
    first = done.stdout.splitlines()[0] if done.stdout else "ffmpeg"
    return Check("ffmpeg", True, first.split(" Copyright")[0])


def check_writable(name: str, folder: Path) -> Check:
    """The folder, or where it is missing its nearest existing parent, takes a new file."""
    there = _nearest(folder)
    if not there.is_dir():
        return Check(name, False, f"{there} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Check(name, False, f"{folder} cannot be written to ({error.strerror})")
    return Check(name, True, f"{folder} can be written to")


def check_disk(folder: Path, min_free_mb: int, free_bytes: int | None = None) -> Check:
    """`free_bytes` None is read from the disk that holds `folder`."""
    free = shutil.disk_usage(_nearest(folder)).free if free_bytes is None else free_bytes
    text = f"{free / GB:.1f} GB free for videos"
    if free < min_free_mb * 1e6:
        return Check("disk", False, f"{text}; the server takes no job below {min_free_mb} MB (min_free_mb)")
    return Check("disk", True, text)


def check_model(settings: Settings) -> Check:
    """Is the model on this disk whole, or can it be fetched? Asks no network."""
    if settings.model == "fake":
        return Check("model", True, "fake engine: a test pattern, no model")
    from i2v.engine import hub, source, weight_files

    try:
        folder = source.resolve(
            settings.model,
            revision=settings.revision,
            cache_dir=settings.cache_dir,
            offline=True,
            device=settings.device,
        )
        size = weight_files.check_files(folder)
        return Check("model", True, f"{folder.name}, {size / GB:.2f} GB on this disk")
    except ModelUnavailable as error:
        fetched = source.hub_source(settings.model)
        if fetched is None or settings.offline:
            return Check("model", False, str(error))
        cache = hub.cache_folder(settings.cache_dir)
    free = shutil.disk_usage(_nearest(cache)).free
    text = f"{fetched} is not on this disk yet; the first start downloads it ({DOWNLOAD_BYTES / GB:.1f} GB)"
    if free < DOWNLOAD_BYTES * 1.05:
        return Check("model", False, f"{text}, and only {free / GB:.1f} GB are free there; see cache_dir")
    return Check("model", True, text)


def check_port(host: str, port: int) -> Check:
    """Can a server listen here? Names the process that holds the port."""
    if port == 0:
        return Check("port", True, "a free port is taken at start")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no hindrance
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            who, remedy = holder(port) or ("another program", "stop it")
            return Check("port", False, f"port {port} is held by {who}; {remedy}, or name another port with --port")
        return Check("port", False, f"{host}:{port} cannot be listened on ({error.strerror or error})")
    return Check("port", True, f"nothing listens at {host}:{port}, a server can start there (--port names another)")


def holder(port: int) -> tuple[str, str] | None:
    """What listens on `port` and how to stop it: "process 12 (python server.py)", "stop it with `kill 12`".

    None when it may not be seen.
    """
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = [c.pid for c in listening if c.laddr and c.laddr.port == port and c.pid]
        if not pids:
            return None
        command = " ".join(psutil.Process(pids[0]).cmdline())
    except psutil.Error:
        return None
    shortened = command if len(command) <= 100 else f"{command[:97]}..."
    return f"process {pids[0]} ({shortened or 'unnamed'})", f"stop it with `kill {pids[0]}`"


def _nearest(folder: Path) -> Path:
    there = folder.expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return there
