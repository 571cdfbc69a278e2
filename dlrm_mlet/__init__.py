"""DLRM with multi-layer embedding training (MLET): tables trained as W1·W2, collapsed and served as one small W.

What is here needs torch and numpy alone, but for `export`, which needs the extra `serving`, and
`find_table_learning_rate`, which needs `reporting`. The rest lies in rooms: see the README.
"""

from typing import TYPE_CHECKING, Any

from dlrm_mlet.tables.convert import collapse, convert
from dlrm_mlet.tables.layers import MLETEmbedding, MLETEmbeddingBag
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.tables.rates import parameter_groups

if TYPE_CHECKING:
    from dlrm_mlet.reporting.rates import find_table_learning_rate
    from dlrm_mlet.serving.export import export

__all__ = [
    "MLETEmbedding",
    "MLETEmbeddingBag",
    "collapse",
    "convert",
    "export",
    "find_table_learning_rate",
    "parameter_groups",
    "quantize",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`export` and `find_table_learning_rate`, imported when they are asked for: they need what the core doesn't."""
    if name == "export":
        from dlrm_mlet.serving.export import export  # noqa: PLC0415

        return export
    if name == "find_table_learning_rate":
        from dlrm_mlet.reporting.rates import find_table_learning_rate  # noqa: PLC0415

        return find_table_learning_rate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
