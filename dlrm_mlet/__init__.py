"""DLRM with multi-layer embedding training (MLET): tables trained as W1·W2, collapsed and served as one small W."""
