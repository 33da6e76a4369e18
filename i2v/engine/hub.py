"""Fetch a model from the Hugging Face hub: only the files that are used, never a pickle, with progress and resume.

Knows nothing of tensors. Called by `source.py`. Large files are streamed here and put into the hub's own cache:
`huggingface_hub` 2.4 starts a file again from zero when its process ends, and checks its size but not its hash.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import httpx
from filelock import FileLock
from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, tqdm

from i2v.errors import ModelUnavailable
from i2v.notes import Note

if TYPE_CHECKING:
    from i2v.engine.interface import OnLoad

# The snapshot of ali-vilab/i2vgen-xl that this project was built against; a branch could change under us.
PINNED = {"ali-vilab/i2vgen-xl": "39e1979ea27be737b0278c06755e321f2b4360d5"}

PARTS = ("unet", "vae", "text_encoder", "image_encoder")
REQUIRED = (
    "model_index.json",
    *(f"{part}/config.json" for part in PARTS),
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "feature_extractor/preprocessor_config.json",
)
OPTIONAL = ("i2v.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20  # bytes
_ATTEMPTS = 5  # in a row without one new byte
_TIMEOUT = httpx.Timeout(30.0)
PAUSE_S = 2.0  # after an attempt that brought nothing, longer each time


def is_hub_id(source: str) -> bool:
    """True for `owner/name` as the hub writes it."""
    return _HUB_ID.fullmatch(source) is not None


def cache_folder(cache_dir: Path | None) -> Path:
    """Where the hub keeps what it fetched."""
    return Path(cache_dir or constants.HF_HUB_CACHE).expanduser()


def download(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    on_load: "OnLoad | None" = None,
    endpoint: str | None = None,
) -> Path:
    """Return the folder of the whole snapshot, fetching what is missing. Raises `ModelUnavailable`.

    A commit that is cached whole is returned without a request. A branch is looked up, and served from the cache when
    the hub cannot be reached.
    """
    revision = revision or PINNED.get(repo, "main")
    cached = _cached(repo, revision, cache_dir)
    if cached is not None and (offline or _COMMIT.fullmatch(revision)):
        return cached
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelUnavailable(
            f"{repo} at revision {revision} is not whole in the cache {cache_folder(cache_dir)}, and the hub may not "
            f"be asked (offline)"
        )
    try:
        return _fetch(repo, revision, cache_dir, on_load, endpoint)
    except ModelUnavailable:
        raise
    except Exception as error:  # of two HTTP libraries, of the hub's own tree, and of the disk
        if cached is not None:
            return cached
        raise ModelUnavailable(
            f"{repo} at revision {revision} cannot be fetched from {endpoint or constants.ENDPOINT}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error


def select(files: Sequence[str], repo: str) -> list[str]:
    """The files of a repository that are fetched: configs, and each part's fp16 weights, else its full ones.

    Raises `ModelUnavailable` when a needed file is missing or a part is there as a pickle only.
    """
    there = set(files)
    chosen = [name for name in (*REQUIRED, *OPTIONAL) if name in there]
    if missing := [name for name in REQUIRED if name not in there]:
        raise ModelUnavailable(f"{repo} is no I2VGen-XL repository in the diffusers layout: {missing[0]} is missing")
    for part in PARTS:
        safe = sorted(n for n in there if re.fullmatch(rf"{part}/[^/]+\.safetensors(\.index.*\.json)?", n))
        half = [name for name in safe if ".fp16" in name]
        if not any(name.endswith(".safetensors") for name in safe):
            raise ModelUnavailable(
                f"{repo} has no safetensors file in {part}/; other formats can run code when opened and are not fetched"
            )
        chosen += half or safe
    return chosen


@dataclass(slots=True)
class _Progress:
    """Bytes on the disk over all bytes, reported to `on_load` a few hundred times a download."""

    repo: str
    total: int
    on_load: "OnLoad | None"
    done: int = 0
    said: int = -1

    def add(self, count: int) -> None:
        self.done += count
        now = 400 * self.done // max(1, self.total)
        if self.on_load is not None and now != self.said:
            self.said = now
            self.on_load(
                Note("downloading", {"repo": self.repo, "done_gb": self.done / 1e9, "total_gb": self.total / 1e9}),
                min(1.0, self.done / max(1, self.total)),
            )


class _Silent(tqdm):
    """No bars on the terminal: progress goes to `on_load`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})


def _fetch(repo: str, revision: str, cache_dir: Path | None, on_load: "OnLoad | None", endpoint: str | None) -> Path:
    if on_load is not None:
        on_load(Note("asking_hub", {"repo": repo}), None)
    api = HfApi(endpoint=endpoint)
    commit = revision if _COMMIT.fullmatch(revision) else api.model_info(repo, revision=revision).sha
    if commit is None:
        raise ModelUnavailable(f"the hub names no commit for {repo} at revision {revision}")
    tree = {f.path: f for f in api.list_repo_tree(repo, recursive=True, revision=commit) if isinstance(f, RepoFile)}
    names = select(list(tree), repo)
    blobs = cache_folder(cache_dir) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    progress = _Progress(repo, sum(tree[name].size for name in names), on_load)
    _refuse_full_disk(blobs, [tree[name] for name in names])
    for name in names:
        if (large := tree[name].lfs) is not None:
            url = hf_hub_url(repo, name, revision=commit, endpoint=endpoint)
            with FileLock(blobs / f"{large.sha256}.i2v.lock"):  # a second process waits and finds the file there
                _fetch_blob(url, name, blobs / large.sha256, large.size, progress.add)
        else:
            progress.add(tree[name].size)
    return Path(
        snapshot_download(
            repo,
            revision=commit if _COMMIT.fullmatch(revision) else revision,
            cache_dir=cache_folder(cache_dir),
            allow_patterns=names,
            endpoint=endpoint,
            tqdm_class=_Silent,
        )
    )


def _fetch_blob(url: str, name: str, blob: Path, size: int, add: Callable[[int], None]) -> None:
    """Stream one file to `blob`, whose name is its SHA-256; an earlier part of it on the disk is continued."""
    if blob.exists() and blob.stat().st_size == size:
        add(size)
        return
    part = blob.with_name(f"{blob.name}.i2v.part")
    with part.open("a+b") as file, httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
        stream = _Stream(file, size, add)
        stream.read_what_is_there()
        idle = 0  # attempts in a row that brought nothing
        while stream.there < size and idle < _ATTEMPTS:
            before = stream.there
            try:
                stream.go_on(client, url)
            except httpx.TransportError:
                if idle + 1 == _ATTEMPTS and stream.there == before:
                    raise
            idle = 0 if stream.there > before else idle + 1
            if idle:
                time.sleep(PAUSE_S * idle)
        file.flush()
        os.fsync(file.fileno())
    if stream.there != size or stream.digest.hexdigest() != blob.name:
        part.unlink()
        raise ModelUnavailable(
            f"{name} came with {stream.there} bytes and SHA-256 {stream.digest.hexdigest()[:12]}...; {size} bytes and "
            f"{blob.name[:12]}... were expected. It was removed; start again to fetch it again"
        )
    part.replace(blob)


class _Stream:
    """A file that grows from an HTTP answer, hashed as it grows. `there` counts its bytes; `add` is told of each."""

    def __init__(self, file: BinaryIO, size: int, add: Callable[[int], None]) -> None:
        self.file, self.size, self.add = file, size, add
        self.there, self.digest = 0, hashlib.sha256()

    def read_what_is_there(self) -> None:
        self.file.seek(0)
        while chunk := self.file.read(_CHUNK):
            self._count(chunk)
        if self.there > self.size:  # not a beginning of this file
            self._begin_again()

    def go_on(self, client: httpx.Client, url: str) -> None:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={self.there}-"}
        with client.stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            if self.there and response.status_code != httpx.codes.PARTIAL_CONTENT:  # the range was ignored
                self._begin_again()
            for chunk in response.iter_bytes():
                self.file.write(chunk)
                self._count(chunk)
                if self.there > self.size:
                    return  # more than was promised; the hash will refuse it

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.there += len(chunk)
        self.add(len(chunk))

    def _begin_again(self) -> None:
        self.file.truncate(0)
        self.add(-self.there)
        self.there, self.digest = 0, hashlib.sha256()


def _cached(repo: str, revision: str, cache_dir: Path | None) -> Path | None:
    """The snapshot's folder when all that is needed is in it."""
    try:
        folder = Path(
            snapshot_download(repo, revision=revision, cache_dir=cache_folder(cache_dir), local_files_only=True,
                              allow_patterns=list(REQUIRED))
        )  # fmt: skip
    except Exception:  # not there, or not whole: then it is fetched
        return None
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]  # a dangling link is none
    try:
        select(files, repo)
    except ModelUnavailable:
        return None
    return folder


def _refuse_full_disk(blobs: Path, files: list[RepoFile]) -> None:
    wanted = 0
    for file in files:
        blob = file.lfs.sha256 if file.lfs is not None else file.blob_id
        if not (blobs / blob).exists():
            part = blobs / f"{blob}.i2v.part"
            wanted += file.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(blobs).free
    if wanted > free:
        raise ModelUnavailable(
            f"{wanted / 1e9:.2f} GB are still to be downloaded and only {free / 1e9:.2f} GB are free in {blobs}; "
            f"free some space or choose another cache_dir"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no further text"])[0]
