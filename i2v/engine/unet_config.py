"""The UNet's config: the published `unet/config.json`, checked. `unet.py` and `blocks.py` build from it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """The published `unet/config.json`. `attention_head_dim` is the width of a head; heads = channels // it."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64
    num_attention_heads: int | None = None  # in the file, and without effect, as upstream

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not len(self.down_block_types) == len(self.up_block_types) == levels:
            raise ValueError(
                f"block_out_channels has {levels} levels, down_block_types {len(self.down_block_types)} and "
                f"up_block_types {len(self.up_block_types)}; the same number of each is wanted"
            )
        for value, known in (
            (self.down_block_types, ("DownBlock3D", "CrossAttnDownBlock3D")),
            (self.up_block_types, ("UpBlock3D", "CrossAttnUpBlock3D")),
        ):
            unknown = set(value) - set(known)
            if unknown:
                raise ValueError(f"unknown block type {sorted(unknown)[0]!r}; one of {', '.join(known)} is wanted")
        for name in ("attention_head_dim", "norm_num_groups", "layers_per_block"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)!r}; one integer for all levels is wanted")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From a config file's content. Keys that begin with `_` are its writer's; other unknown ones are refused."""
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r} in the UNet's config")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**values)
