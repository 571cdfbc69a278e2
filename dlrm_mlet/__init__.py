"""DLRM with multi-layer embedding training (MLET): tables trained as W1·W2, collapsed and served as one small W.

What is here needs torch and numpy alone, but for `export`, which needs the extra `serving`, and
`find_table_learning_rate`, which needs `reporting`. The rest lies in rooms: see the README.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrm_mlet.reporting.rates import find_table_learning_rate
    from dlrm_mlet.serving.export import export
    from dlrm_mlet.tables.convert import collapse, convert
    from dlrm_mlet.tables.layers import MLETEmbedding, MLETEmbeddingBag
    from dlrm_mlet.tables.quantize import quantize
    from dlrm_mlet.tables.rates import parameter_groups

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

_HOMES = {
    "MLETEmbedding": "tables.layers",
    "MLETEmbeddingBag": "tables.layers",
    "collapse": "tables.convert",
    "convert": "tables.convert",
    "export": "serving.export",
    "find_table_learning_rate": "reporting.rates",
    "parameter_groups": "tables.rates",
    "quantize": "tables.quantize",
}


def __getattr__(name: str) -> Any:
    """What is public, imported when it is asked for: preprocessing, and serving a bundle, need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"dlrm_mlet.{_HOMES[name]}"), name)
