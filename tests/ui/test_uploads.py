"""Uploaded photos go with the server that took them, also when it was killed."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from i2v.errors import Unavailable
from i2v.ui.form import read_photo
from i2v.ui.mount.upload_total import IN_USE_S, UploadTotal, note_use
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


@pytest.mark.fault("F9", "20 uploads of 23 MB without a job", before="460 MB lie for a day")
def test_uploads_that_no_page_reads_make_room_and_those_in_use_stay(tmp_path: Path, record_property: Any) -> None:
    now = time.monotonic()
    uploads = UploadTotal(tmp_path, total=10_000, clock=lambda: now)
    (tmp_path / ".lock").write_bytes(b"x" * 9000)

    def upload(number: int) -> Path:
        uploads.make_room(1000)
        path = tmp_path / f"hash{number}" / "photo.png"
        path.parent.mkdir()
        path.write_bytes(b"x" * 1000)
        os.utime(path, (number, number))
        uploads.arrived(1000)
        return path

    first = upload(0)
    note_use(first)
    others = [upload(number) for number in range(1, 21)]
    kept = [path for path in (first, *others) if path.exists()]
    assert kept == [first, *others[-9:]]
    assert not others[0].parent.exists()
    for path in others:
        if path.exists():
            note_use(path)
    with pytest.raises(Unavailable):
        uploads.make_room(1000)
    assert all(path.exists() for path in kept)
    now += IN_USE_S + 60
    uploads.make_room(1000)
    assert not first.exists()
    record_property("after", f"{len(kept)} of 21 kept where 10 fit, the one in use among them")


def test_one_upload_fits_into_an_empty_folder_however_large(tmp_path: Path) -> None:
    UploadTotal(tmp_path, total=10).make_room(1000)


def test_uploads_on_their_way_count(tmp_path: Path) -> None:
    uploads = UploadTotal(tmp_path, total=10_000)
    for _ in range(10):
        uploads.make_room(1000)
    with pytest.raises(Unavailable):
        uploads.make_room(1000)
    uploads.arrived(1000)
    uploads.make_room(1000)


def test_a_photo_that_the_page_reads_is_in_use(tmp_path: Path) -> None:
    read, other = tmp_path / "read.png", tmp_path / "other.png"
    for path in (read, other):
        Image.new("RGB", (32, 32)).save(path)
    assert read_photo({"path": str(read)}, 10_000) is not None
    size = other.stat().st_size
    UploadTotal(tmp_path, total=2 * size).make_room(size)
    assert (read.exists(), other.exists()) == (True, False)
