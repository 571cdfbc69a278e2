"""Embedding tables: ids -> vectors, single-layer and MLET; drop-in layers, convert, collapse, int8. Needs torch."""
