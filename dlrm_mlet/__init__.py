"""DLRM with multi-layer embedding training (MLET): tables trained as W1·W2, collapsed and served as one small W."""

from dlrm_mlet.tables.convert import collapse, convert
from dlrm_mlet.tables.layers import MLETEmbedding, MLETEmbeddingBag

__all__ = ["MLETEmbedding", "MLETEmbeddingBag", "collapse", "convert"]
