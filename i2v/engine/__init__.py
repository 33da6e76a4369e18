"""Everything that touches tensors; knows nothing of HTTP, jobs or files. `Engine` is imported on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from i2v.engine.engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from i2v.engine.engine import Engine

        return Engine
    raise AttributeError(f"module 'i2v.engine' has no attribute {name!r}")
