"""Fetch a model from the Hugging Face hub: only the files that are used, never a pickle, with progress and resume.

Knows nothing of tensors. Called by `weights.py`.
"""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from i2v.engine.protocol import OnLoad
from i2v.errors import ModelUnavailable

# The snapshot of ali-vilab/i2vgen-xl that this project was built against; a branch could change under us.
PINNED = {"ali-vilab/i2vgen-xl": "39e1979ea27be737b0278c06755e321f2b4360d5"}

# What a diffusers folder needs. The repository also holds fp32 twins and pickles, which are never asked for.
PATTERNS = (
    "model_index.json",
    "i2v.json",
    "*/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "feature_extractor/preprocessor_config.json",
    "*/*.fp16.safetensors",
)

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None


def download(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    on_load: OnLoad | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the folder of the snapshot, fetching what is missing. Raises `ModelUnavailable`."""
    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision or PINNED.get(repo),
                cache_dir=cache_dir,
                local_files_only=offline,
                allow_patterns=list(PATTERNS),
                endpoint=endpoint,
            )
        )
    except Exception as error:
        raise ModelUnavailable(f"{repo} cannot be fetched from the hub: {error}") from error
