"""DLRM with multi-layer embedding training (MLET): tables trained as W1·W2, collapsed and served as one small W.

What is here needs torch and numpy alone, but for `export`, which needs the extra `serving`. The rest lies in rooms: see
the README.
"""

from typing import TYPE_CHECKING, Any

from dlrm_mlet.tables.convert import collapse, convert
from dlrm_mlet.tables.layers import MLETEmbedding, MLETEmbeddingBag
from dlrm_mlet.tables.quantize import quantize

if TYPE_CHECKING:
    from dlrm_mlet.serving.export import export

__all__ = ["MLETEmbedding", "MLETEmbeddingBag", "collapse", "convert", "export", "quantize"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`export`, imported when it is asked for."""
    if name == "export":
        from dlrm_mlet.serving.export import export  # noqa: PLC0415  it needs what the core doesn't

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
