"""A finished run -> its model as ONNX, measured on validation in torch and in ONNX Runtime.

B rows of a batch; F categorical features.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.vocabulary import load_all
from dlrm_mlet.serving.export import IDS, Session, check, export, open_session, run, weights_file
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.training import evaluation, metrics
from dlrm_mlet.training.checkpoint import Served
from dlrm_mlet.training.metrics import Metrics
from dlrm_mlet.training.model import DLRM


class Probability(nn.Module):
    """What is served: dense (B, .) float32 and sparse (B, F) ids -> (B,) probabilities of a click.

    With `unknown`, an id for each feature, one outside of its table counts as that.
    """

    unknown: Tensor | None
    rows: Tensor

    def __init__(self, model: DLRM, unknown: Sequence[int] | None = None):
        super().__init__()
        self.model = model
        self.register_buffer("unknown", None if unknown is None else torch.tensor(unknown), persistent=False)
        self.register_buffer("rows", torch.tensor(model.tables.table_rows), persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """dense (B, .), sparse (B, F) -> (B,)."""
        if self.unknown is not None:
            sparse = torch.where((sparse < 0) | (sparse >= self.rows), self.unknown, sparse)
        return torch.sigmoid(self.model(dense, sparse))


@dataclass(frozen=True)
class Report:
    """What came of an export."""

    path: Path
    nbytes: int
    """Of the model and the weights beside it."""
    table_bytes: int
    worst: float
    """The largest difference between a probability in torch and in ONNX Runtime, on `rows` rows."""
    rows: int
    torch: Metrics
    """Of the float32 model in torch, on validation."""
    onnx: Metrics
    """Of the exported model in ONNX Runtime, on validation."""
    milliseconds: dict[int, float]
    """Rows of a batch -> median time in ONNX Runtime."""


def export_served(served: Served, directory: Path, path: Path, bits: int = 32, offset: bool = False) -> Report:
    """A run's model -> ONNX: inputs `dense` and `sparse`, output `probability`; checked on all validation rows.

    `directory` is that of its data set. In the file an id outside of its table counts as `predict` takes a value that
    the data set doesn't have: as missing, or the column's most frequent one; its metadata says so. Raises
    CheckpointError where the columns aren't those that it was trained on, ColumnsError where they are damaged,
    ExportError where ONNX Runtime differs from torch.
    """
    data = columns.load(directory)
    served.check(data)
    logits, labels = evaluation.scores(served.model, data.in_order("validation", evaluation.ROWS))
    before = metrics.measure(logits, labels)
    model = served.model if bits == 32 else quantize(served.model, bits, offset=offset, report=lambda line: None)
    unknown = {name: known.unknown for name, known in load_all(directory / "vocabulary", data).items()}
    whole = Probability(model, list(unknown.values()))
    start, stop = data.range("validation")
    batch = data.rows(slice(start, min(start + evaluation.ROWS, stop)))
    metadata = {
        "dlrm_mlet.dataset": served.columns.dataset,
        "dlrm_mlet.columns": served.columns.fingerprint,
        IDS: "an id outside of its table counts as the one that dlrm_mlet.unknown has for its column",
        "dlrm_mlet.unknown": json.dumps(unknown),
    }
    export(whole, (batch.dense, batch.sparse), path, ["dense", "sparse"], ["probability"], metadata)
    session, worst = open_session(path), 0.0
    found = []
    for batch in data.in_order("validation", evaluation.ROWS):
        worst = max(worst, check(session, whole, (batch.dense, batch.sparse)))
        found.append(torch.from_numpy(run(session, (batch.dense, batch.sparse))[0]))
    after = metrics.measure(torch.cat(found).double().logit(eps=1e-12), labels)
    nbytes = sum(file.stat().st_size for file in (path, weights_file(path)) if file.exists())
    times = {rows: latency(session, data, rows) for rows in (1, min(4096, stop - start))}
    return Report(path, nbytes, model.tables.nbytes, worst, stop - start, before, after, times)


def latency(session: Session, data: Columns, rows: int, turns: int = 50) -> float:
    """Median milliseconds that a batch of validation rows takes, so many at once."""
    start, stop = data.range("validation")
    batch = data.rows(slice(start, min(start + rows, stop)))
    times = []
    for _ in range(turns):
        begin = time.perf_counter()
        run(session, (batch.dense, batch.sparse))
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)
