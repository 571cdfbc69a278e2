"""A finished run -> its model as ONNX, measured on validation in torch and in ONNX Runtime.

B rows of a batch; F categorical features.
"""

import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.schema import check_served
from dlrm_mlet.data.vocabulary import load_all
from dlrm_mlet.files import alone, replacing_directory
from dlrm_mlet.serving import bundle
from dlrm_mlet.serving.checking import check, run
from dlrm_mlet.serving.export import export, weights_file
from dlrm_mlet.serving.session import IDS, Session, open_session
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
    lowest: Tensor
    rows: Tensor

    def __init__(self, model: DLRM, unknown: Sequence[int] | None = None):
        super().__init__()
        self.model = model
        slots = torch.tensor(model.tables.slots)
        each = None if unknown is None else torch.tensor(unknown).repeat_interleave(slots)
        lowest, rows = model.tables.limits()
        for name, buffer in (("unknown", each), ("lowest", lowest), ("rows", rows)):
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """dense (B, .), sparse (B, F) -> (B,)."""
        if self.unknown is not None:
            sparse = torch.where((sparse < self.lowest) | (sparse >= self.rows), self.unknown, sparse)
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
    the data set doesn't have, its schema's `fallback`; its metadata says so. Raises ColumnsError where the columns
    aren't those that it was trained on, or are damaged, ExportError where ONNX Runtime differs from torch.
    """
    data = columns.load(directory)
    served.check(data)
    check_served(data.schema, directory / "schema.json")
    logits, labels = evaluation.scores(served.model, data.in_order("validation", evaluation.ROWS))
    weights = evaluation.weights_of(data, "validation")
    before = metrics.measure(logits, labels, weights)
    model = served.model if bits == 32 else quantize(served.model, bits, offset=offset, report=lambda line: None)
    whole = Probability(model, data.schema.fallback)
    start, stop = data.range("validation")
    batch = data.rows(slice(start, min(start + evaluation.ROWS, stop)))
    metadata = {
        "dlrm_mlet.dataset": served.columns.dataset,
        "dlrm_mlet.columns": served.columns.fingerprint,
        IDS: "an id outside of its table counts as the one that dlrm_mlet.unknown has for its column",
        "dlrm_mlet.unknown": json.dumps(dict(zip(data.schema.categorical, data.schema.fallback, strict=True))),
    }
    export(whole, (batch.dense, batch.sparse), path, ["dense", "sparse"], ["probability"], metadata)
    session, worst = open_session(path), 0.0
    found = []
    for batch in data.in_order("validation", evaluation.ROWS):
        worst = max(worst, check(session, whole, (batch.dense, batch.sparse)))
        found.append(torch.from_numpy(run(session, (batch.dense, batch.sparse))[0]))
    after = metrics.measure(torch.cat(found).double().logit(eps=1e-12), labels, weights)
    nbytes = sum(file.stat().st_size for file in (path, weights_file(path)) if file.exists())
    times = {rows: latency(session, data, rows) for rows in (1, min(4096, stop - start))}
    return Report(path, nbytes, model.tables.nbytes, worst, stop - start, before, after, times)


def export_bundle(served: Served, directory: Path, out: Path, bits: int = 32, offset: bool = False) -> Report:
    """A run's model and all that `predict` needs of its data set -> the directory `out`, whole or not at all.

    It holds model.onnx, schema.json, vocabulary/, and a manifest.json that says what they are. A bundle that was there
    is replaced; raises BundleError where `out` is anything else, and what `export_served` does.
    """
    with alone(out, "bundle"), replacing_directory(out, bundle.check_ours) as partial:
        report = export_served(served, directory, partial / bundle.MODEL, bits, offset)
        shutil.copyfile(directory / "schema.json", partial / "schema.json")
        shutil.copytree(directory / "vocabulary", partial / "vocabulary")
        schema = served.columns
        load_all(partial / "vocabulary", schema)
        said = {
            "dataset": schema.dataset,
            "columns": schema.fingerprint,
            "config": dataclasses.asdict(served.config),
            "bits": bits,
            "inputs": {"dense": schema.dense, "sparse": schema.categorical, "places": schema.slots},
            "unknown": dict(zip(schema.categorical, schema.fallback, strict=True)),
            "validation": {"torch": report.torch._asdict(), "onnxruntime": report.onnx._asdict()},
        }
        bundle.seal(partial, said)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return dataclasses.replace(report, path=out, nbytes=size)


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
