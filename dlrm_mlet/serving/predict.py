"""A served model and rows, raw or as columns -> the probability of a click for each row."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import SPLITS, Columns
from dlrm_mlet.data.datasets import BUILT_IN, Dataset
from dlrm_mlet.data.raw import Reader, fields_of_first_line, open_raw
from dlrm_mlet.data.vocabulary import Vocabulary, load_all, numbers, refuser
from dlrm_mlet.extras import needs
from dlrm_mlet.files import replacing
from dlrm_mlet.serving.export import open_session, run
from dlrm_mlet.serving.finished import Probability
from dlrm_mlet.training import checkpoint
from dlrm_mlet.training.checkpoint import check_columns

with needs("data"):
    import polars as pl
    from tqdm import tqdm

ROWS = 8192
"""Rows that are scored at once."""


class PredictError(ValueError):
    """Rows or a model that can't be used: names the file and what was expected."""


@dataclass(frozen=True)
class Model:
    """A model to predict with, by torch or ONNX Runtime."""

    path: Path
    dataset: str
    fingerprint: str
    """Of the columns that it was trained on."""
    probabilities: Callable[[Tensor, Tensor], np.ndarray]
    """(B, dense columns) float32 and (B, F) int32 -> (B,)."""


def open_model(path: Path) -> Model:
    """A run's checkpoint, or the .onnx file that `dlrm-mlet export` made of one.

    Raises CheckpointError, ExportError or PredictError where it is none.
    """
    if path.suffix != ".onnx":
        served = checkpoint.load(path)
        whole = Probability(served.model)

        @torch.no_grad()
        def by_torch(dense: Tensor, sparse: Tensor) -> np.ndarray:
            return whole(dense, sparse).numpy()

        return Model(path, served.columns.dataset, served.columns.fingerprint, by_torch)
    session = open_session(path)
    known = session.get_modelmeta().custom_metadata_map
    if "dlrm_mlet.columns" not in known:
        raise PredictError(f"{path}: doesn't say what it was trained on; expected a file that dlrm-mlet export wrote")
    return Model(
        path,
        known["dlrm_mlet.dataset"],
        known["dlrm_mlet.columns"],
        lambda dense, sparse: run(session, (dense, sparse))[0],
    )


def predict(
    model: Model, source: Path, out: Path, data: Path, dataset: Dataset | None = None
) -> tuple[int, dict[str, int]]:
    """Write <out>, a CSV file with a `probability` for each row of `source` in its order.

    `source` is a column directory (training, validation and test rows as they lie there), or a raw file, with or
    without the label; the vocabulary is that of `data`, the columns that the model was trained on. A value that the
    data set doesn't have is taken as missing, or as the column's most frequent one where it has none missing. `dataset`
    describes a data set of one's own whose raw files have no header. Returns the number of rows and, for each column
    that had such values, how many. Raises CheckpointError where the columns are of another data set, RawError at the
    first row that doesn't fit, PredictError where there is none, ColumnsError where the vocabulary is damaged.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise PredictError(f"{out}: is the file of the rows; expected another --out")
    unseen: Counter[str] = Counter()
    trained_on = columns.load(source if source.is_dir() else data)
    check_columns(model.path, model.dataset, model.fingerprint, trained_on)
    if source.is_dir():
        batches = _of_columns(trained_on)
    else:
        schema = trained_on.schema
        dataset = dataset or BUILT_IN.get(schema.dataset)
        dataset = dataset or Dataset(
            schema.dataset,
            schema.label,
            schema.dense,
            schema.categorical,
            null_values=schema.null_values,
            integer=schema.integer,
        )
        batches = _of_raw(_open(source, dataset), trained_on, load_all(data / "vocabulary", trained_on), unseen)
    rows = 0
    with replacing(out) as partial, partial.open("wb") as file, tqdm(unit=" rows", disable=None) as bar:
        for dense, sparse in batches:
            found = pl.DataFrame({"probability": model.probabilities(dense, sparse)})
            found.write_csv(file, include_header=rows == 0)
            rows += len(found)
            bar.update(len(found))
        if not rows:
            raise PredictError(f"{source}: no rows; expected at least one to predict")
    return rows, dict(unseen)


def _of_columns(data: Columns) -> Iterator[tuple[Tensor, Tensor]]:
    for split in SPLITS:
        for batch in data.in_order(split, ROWS):
            yield batch.dense, batch.sparse


def _of_raw(
    reader: Reader, data: Columns, vocabularies: dict[str, Vocabulary], unseen: Counter[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a raw file as the columns of `data` number them; counts the values that these don't have."""
    schema = data.schema
    for block in reader.blocks():
        ids = []
        for name, vocabulary in vocabularies.items():
            values, strangers = vocabulary.ids(
                block.table[name], refuser(block.table[name], block.first_row, reader.where)
            )
            ids.append(values)
            unseen += Counter({name: strangers})
        dense = [
            numbers(block.table[n], schema.transform[n], refuser(block.table[n], block.first_row, reader.where))
            for n in schema.dense
        ]
        height = block.table.height
        wide = torch.from_numpy(np.stack(dense, 1).astype(np.float32)) if dense else torch.empty(height, 0)
        sparse = torch.from_numpy(np.stack(ids, 1))
        yield from zip(wide.split(ROWS), sparse.split(ROWS), strict=True)


def _open(source: Path, dataset: Dataset) -> Reader:
    format = dataset.format
    if format.header and source.is_file() and fields_of_first_line(source, format) == len(format.header) - 1:
        # what is to be predicted has no label
        format = replace(format, header=tuple(name for name in format.header if name != dataset.label))
    return open_raw(source, (*dataset.dense, *dataset.categorical), dataset.dense, dataset.hexadecimal, format)
