"""A finished run's model -> where another run starts: the same tables and MLPs, and fresh rows for new values."""

import torch

from dlrm_mlet.config import ModelConfig
from dlrm_mlet.data.schema import ColumnsError, Schema
from dlrm_mlet.tables.stacked import MLETTables, SingleLayerTables, right_inverse
from dlrm_mlet.training.checkpoint import CheckpointError, Served
from dlrm_mlet.training.model import DLRM

SAME = ("embedding_dim", "bottom_mlp", "top_mlp")


def check_start(config: ModelConfig, schema: Schema, served: Served) -> None:
    """Raises ColumnsError or CheckpointError where a run of this config on this data can't start from that model."""
    if served.columns.fingerprint not in (schema.fingerprint, *schema.extends):
        raise ColumnsError(
            f"{served.path}: trained on {served.columns.dataset} ({served.columns.fingerprint}), which these columns "
            f"({schema.fingerprint}) don't extend: ids would mean other values; see dlrm-mlet preprocess --extend"
        )
    for key in SAME:
        was, now = getattr(served.config.model, key), getattr(config, key)
        if was != now:
            raise CheckpointError(f"{served.path}: its {key} is {was}; expected {now}, as in model.{key}")
    if config.tables != "full" or type(served.model.tables) is not SingleLayerTables:
        raise CheckpointError(f"{served.path}: its tables, or the config's, aren't full float32 ones; expected those")
    if any(k < config.embedding_dim for k in config.inner_dims):
        raise CheckpointError(f"{served.path}: inner_dim = {config.inner_dim} can't hold its tables; expected k >= d")
    if config.start_as is not None:
        raise CheckpointError(f"{served.path}: is where the run starts, and so is start_as; expected one of both")


@torch.no_grad()
def start_from(model: DLRM, served: Served) -> None:
    """Change a new model so that it is the served one on all values that this knows; `check_start` comes first.

    W1 of these becomes W · R⁻¹Qᵀ with the model's own new W2 = Q R (paper, Theorem 2.1), so that W1 · W2 = W up to
    rounding. Rows of new values stay as they were drawn.
    """
    tables, known = model.tables, served.model.tables
    assert isinstance(tables, SingleLayerTables | MLETTables)
    assert isinstance(known, SingleLayerTables)
    inverse = right_inverse(tables.product()) if isinstance(tables, MLETTables) else None
    old, new = known.weight.split(known.table_rows), tables.weight.split(tables.table_rows)
    for f, (wanted, table) in enumerate(zip(old, new, strict=True)):
        table[: len(wanted)] = wanted if inverse is None else wanted @ inverse[f]
    for mine, its in ((model.bottom_mlp, served.model.bottom_mlp), (model.top_mlp, served.model.top_mlp)):
        mine.load_state_dict(its.state_dict())
