"""i2v: a self-contained inference server for the I2VGen-XL image-to-video model.

Importing this package imports neither torch nor gradio and touches nothing on disk; `Engine` is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from i2v.request import GenerateRequest

if TYPE_CHECKING:
    from i2v.engine.engine import Engine

__version__ = "0.1.0"
__all__ = ["Engine", "GenerateRequest", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from i2v.engine.engine import Engine

        return Engine
    raise AttributeError(f"module 'i2v' has no attribute {name!r}")
