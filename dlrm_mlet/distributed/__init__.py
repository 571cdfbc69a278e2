"""The same run on TorchRec: tables sharded over devices and machines; and MLET in TorchRec models of others."""

from dlrm_mlet.distributed.collapsing import load_collapsed, save_collapsed, serving_collection
from dlrm_mlet.distributed.shards import load_tables

__all__ = ["load_collapsed", "load_tables", "save_collapsed", "serving_collection"]
