"""A served model and rows, raw or as columns -> the probability of a click for each row.

Needs no torch, but for a run's checkpoint and for rows that are columns on disk.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlrm_mlet.data import schema as schemas
from dlrm_mlet.data.datasets import Dataset, Format
from dlrm_mlet.data.delimited import fields_of_first_line
from dlrm_mlet.data.raw import open_raw
from dlrm_mlet.data.rows import open_rows, refuser, with_columns
from dlrm_mlet.data.schema import SPLITS, Schema, check_trained_on
from dlrm_mlet.data.spool import Labels, Weights
from dlrm_mlet.data.vocabulary import load_columns, numbers
from dlrm_mlet.extras import needs
from dlrm_mlet.files import replacing
from dlrm_mlet.serving import bundle
from dlrm_mlet.serving.session import Session, open_session

with needs("data"):
    import polars as pl
    from tqdm import tqdm

ROWS = 8192
"""Rows that are scored at once."""
MOST_UNSEEN = 0.5
"""The share of a column's values that may be unknown."""
EXAMPLES = 3
PROBABILITY = "probability"


class PredictError(ValueError):
    """Rows or a model that can't be used: names the file and what was expected."""


@dataclass(frozen=True)
class Model:
    """A model to predict with, by torch or ONNX Runtime."""

    path: Path
    dataset: str
    fingerprint: str
    """Of the columns that it was trained on."""
    probabilities: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(B, dense columns) float32 and (B, F) int32 -> (B,)."""
    data: Path | None = None
    """Where the values that it knows lie, if it brings them along."""


@dataclass
class Unseen:
    """What a column of the rows has that the data set doesn't."""

    count: int = 0
    values: int = 0
    """Of the column, known or not."""
    examples: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    """Some of the data set's values."""
    integer_mends: bool = False
    """Whether most of these are whole numbers that the data set has, written in another way."""

    @property
    def share(self) -> float:
        """Of the values."""
        return self.count / self.values if self.values else 0.0


class Quality(NamedTuple):
    """How good the probabilities are, where the rows have labels."""

    rows: int
    """With a label."""
    auc: float | None
    """None where all labels are alike."""
    log_loss: float


@dataclass(frozen=True)
class Prediction:
    """What was written."""

    rows: int
    unseen: dict[str, Unseen]
    """Of each column that has values which the data set doesn't have."""
    quality: Quality | None
    rows_per_second: float
    lacks: str | None = None
    """The label, where files without a header have a field less than the data set, and this was taken for it."""


def open_model(path: Path) -> Model:
    """A run's checkpoint, the .onnx file that `dlrm-mlet export` made of one, or the directory of a bundle.

    Raises CheckpointError, ExportError, BundleError or PredictError where it is none.
    """
    if path.is_dir():
        manifest = bundle.read(path)
        found = _by_onnx(open_session(path / bundle.MODEL))
        return Model(path, manifest["dataset"], manifest["columns"], found, path)
    if path.suffix != ".onnx":
        return _checkpoint(path)
    session = open_session(path)
    known = session.get_modelmeta().custom_metadata_map
    if "dlrm_mlet.columns" not in known:
        raise PredictError(f"{path}: doesn't say what it was trained on; expected a file that dlrm-mlet export wrote")
    return Model(path, known["dlrm_mlet.dataset"], known["dlrm_mlet.columns"], _by_onnx(session))


def _by_onnx(session: Session) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    names = {node.name for node in session.get_inputs()}

    def probabilities(dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
        fed = {name: array for name, array in (("dense", dense), ("sparse", sparse)) if name in names}
        return np.asarray(session.run(None, fed)[0])

    return probabilities


def _checkpoint(path: Path) -> Model:
    import torch  # noqa: PLC0415  a bundle and a .onnx file need none

    from dlrm_mlet.serving.finished import Probability  # noqa: PLC0415
    from dlrm_mlet.training import checkpoint  # noqa: PLC0415

    served = checkpoint.load(path)
    whole = Probability(served.model)

    @torch.no_grad()
    def by_torch(dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
        return whole(torch.from_numpy(dense), torch.from_numpy(sparse)).numpy()

    return Model(path, served.columns.dataset, served.columns.fingerprint, by_torch)


def predict(
    model: Model,
    source: Path | Sequence[Path],
    out: Path,
    data: Path | None = None,
    keep: Sequence[str] = (),
    allow_unseen: bool = False,
) -> Prediction:
    """Write <out>, a CSV file with a `probability` for each row of `source` in its order, after the columns `keep`.

    `source` is what `preprocess` reads, one or several raw files or directories of parts, with or without labels; or a
    column directory (training, validation and test rows as they lie there). The values are those of `data`, the
    columns that the model was trained on; a bundle has its own. One that the data set doesn't have counts as its
    schema's `fallback` says. Where labels are there, the probabilities are measured by them.

    Raises CheckpointError where the columns are of another data set, RawError at the first row that doesn't fit,
    ColumnsError where the vocabulary is damaged, and PredictError where there is no row, or where more than half of a
    column's values are unknown, unless that is allowed: both sides are shown then, and <out> isn't written.
    """
    paths = [source] if isinstance(source, Path) else list(source)
    keep = list(dict.fromkeys(keep))
    if PROBABILITY in keep:
        raise PredictError(f"keep = {list(keep)}: {PROBABILITY!r} is what is written; expected other columns")
    home = model.data or data
    _refuse_out(out, [*paths, model.path, *filter(None, [home])])
    if home is None:
        raise PredictError(f"{model.path}: brings no values along; expected the data set's directory (--data)")
    feed: _Feed
    if (paths[0] / "schema.json").is_file():
        if keep or len(paths) > 1:
            raise PredictError(f"{paths[0]}: holds columns, which are as they are; expected raw files")
        check_trained_on(model.path, model.dataset, model.fingerprint, schemas.load(paths[0] / "schema.json"))
        feed = _Columns(paths[0])
    else:
        schema = schemas.load(home / "schema.json")
        check_trained_on(model.path, model.dataset, model.fingerprint, schema)
        feed = _Raw(paths, schema, home, keep)
    rows, begin, scored = 0, time.perf_counter(), []
    with replacing(out) as partial, partial.open("wb") as file, tqdm(unit=" rows", disable=None) as bar:
        for dense, sparse, kept in feed:
            found = model.probabilities(dense, sparse)
            written = pl.DataFrame([*kept.get_columns(), pl.Series(PROBABILITY, found)])
            written.write_csv(file, include_header=rows == 0)
            scored.append(found)
            rows += len(found)
            bar.update(len(found))
        if not rows:
            raise PredictError(f"{paths[0]}: no rows; expected at least one to predict")
        if not allow_unseen:
            _refuse_unseen(paths[0], feed.unseen)
        quality = _quality(np.concatenate(scored), feed.labels, feed.weights)
    seconds = time.perf_counter() - begin
    unseen = {name: its for name, its in feed.unseen.items() if its.count}
    return Prediction(rows, unseen, quality, rows / seconds, feed.lacks)


def _refuse_out(out: Path, read: Sequence[Path]) -> None:
    """Raise PredictError where the file to write is, or lies in, what is read."""
    for path in read:
        if path.exists() and (out.resolve() == path.resolve() or path.resolve() in out.resolve().parents):
            what = "lies in" if path.is_dir() else "is"
            raise PredictError(f"{out}: {what} {path}, which is read; expected another --out")


class _Feed:
    """Rows as the data set's columns, batch after batch, with what is kept of them; and what was found on the way."""

    def __init__(self) -> None:
        self.unseen: dict[str, Unseen] = {}
        self.labels: list[np.ndarray] = []
        """Of each block, NaN where there is none."""
        self.weights: list[np.ndarray] = []
        self.lacks: str | None = None
        """See Prediction."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, pl.DataFrame]]:
        raise NotImplementedError


class _Columns(_Feed):
    """Rows of a column directory."""

    def __init__(self, directory: Path):
        super().__init__()
        from dlrm_mlet.data import columns  # noqa: PLC0415  it needs torch

        self.columns = columns.load(directory)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, pl.DataFrame]]:
        for split in SPLITS:
            for batch in self.columns.in_order(split, ROWS):
                self.labels.append(batch.label.numpy())
                if batch.weight is not None:
                    self.weights.append(batch.weight.numpy())
                yield batch.dense.numpy(), batch.sparse.numpy(), pl.DataFrame()


class _Raw(_Feed):
    """Rows of raw files, as the columns of a data set number them."""

    def __init__(self, paths: Sequence[Path], schema: Schema, home: Path, keep: Sequence[str]):
        super().__init__()
        self.schema, self.keep = schema, list(keep)
        self.columns, vocabularies = load_columns(home / "vocabulary", schema)
        self.vocabularies = {name: its for name, its in vocabularies.items() if its is not None}
        self.dataset = schema.as_dataset()
        format = _format_of(self.dataset, paths[0])
        self.lacks = None if format == self.dataset.format else self.dataset.label
        names = {path: open_raw(path, (), format=format).names for path in paths}
        has_label = {path: self.dataset.label in names[path] for path in paths}
        if len(set(has_label.values())) > 1:
            without = next(path for path, has in has_label.items() if not has)
            raise PredictError(f"{without}: has no column {self.dataset.label!r}, as others have; expected all or none")
        self.label = self.dataset.label if has_label[paths[0]] else None
        weighted = all(self.dataset.weight in names[path] for path in paths)
        self.weight = self.dataset.weight if weighted and self.label else None
        self._labels = Labels(self.dataset.label, Path(), self.dataset.positive)
        hexadecimal = [name for name, its in self.vocabularies.items() if its.is_hexadecimal]
        also = [*self.keep, *filter(None, [self.label, self.weight])]
        self.reader = open_rows(self.dataset, paths, hexadecimal, format, labelled=False, also=also)
        self.unseen = {
            name: Unseen(known=[str(value) for value in its.values.drop_nulls().head(EXAMPLES)])
            for name, its in self.vocabularies.items()
        }

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, pl.DataFrame]]:
        for block in self.reader.blocks():
            table = with_columns(self.dataset, block, self.reader.where)
            refusers = {name: refuser(table[name], block.first_row, self.reader.where) for name in table.columns}
            ids = []
            for name, column in self.columns.items():
                found, strangers = column.ids(table[name], refusers[name])
                ids.append(found)
                if name in self.vocabularies:
                    self._count(name, found, strangers)
            wide = np.empty((table.height, len(self.schema.dense)), np.float32)
            for i, name in enumerate(self.schema.dense):
                wide[:, i] = numbers(table[name], self.schema.transform[name], refusers[name])
            if self.label is not None:
                self.labels.append(_labels(self._labels, table[self.label], refusers[self.label]))
            if self.weight is not None:
                self.weights.append(Weights(self.weight, Path()).convert(table[self.weight], refusers[self.weight]))
            sparse, kept = np.concatenate(ids, 1), block.table.select(self.keep)
            if nested := [name for name in kept.columns if kept[name].dtype.is_nested()]:
                raise PredictError(f"keep: column {nested[0]!r} is of lists, which CSV has none of; expected others")
            for first in range(0, table.height, ROWS):
                some = slice(first, first + ROWS)
                yield wide[some], sparse[some], kept[some]

    def _count(self, name: str, ids: np.ndarray, strangers: pl.Series) -> None:
        its = self.unseen[name]
        its.values += int(np.count_nonzero(ids >= 0)) if ids.shape[1] > 1 else len(ids)
        if not len(strangers):
            return
        if ids.shape[1] > 1 and self.vocabularies[name].fallback < 0:
            its.values += len(strangers)  # which are left out
        if not its.count:
            its.integer_mends = self.vocabularies[name].would_mend(strangers)
        its.count += len(strangers)
        more = strangers.unique(maintain_order=True).head(EXAMPLES).to_list()
        its.examples = list(dict.fromkeys([*its.examples, *map(str, more)]))[:EXAMPLES]


def _format_of(dataset: Dataset, path: Path) -> Format:
    """How the file is written; where it has no header, and a field less than the data set's, that is the label."""
    format = dataset.format
    while path.is_dir():  # the first of its parts
        path = min((file for file in path.iterdir() if file.name[0] not in "._"), default=Path())
        if path == Path():
            return format
    if format.header and path.is_file() and fields_of_first_line(path, format) == len(format.header) - 1:
        return replace(format, header=tuple(name for name in format.header if name != dataset.label))
    return format


def _labels(column: Labels, values: pl.Series, refuse: Callable[[pl.Series, str], None]) -> np.ndarray:
    """(rows,) 0, 1, or NaN where there is none."""
    missing = (values.is_null() | (values == "")).to_numpy()
    found = np.full(len(values), np.nan, np.float32)
    if not missing.all():
        some = values.filter(pl.Series(~missing))

        def refuse_row(wrong: pl.Series, expected: str) -> None:
            of_row = np.zeros(len(values), bool)
            of_row[np.flatnonzero(~missing)[wrong.to_numpy()]] = True
            refuse(pl.Series(of_row), expected)

        found[~missing] = column.convert(some, refuse_row)
    return found


def _refuse_unseen(path: Path, unseen: dict[str, Unseen]) -> None:
    for name, its in unseen.items():
        if its.share > MOST_UNSEEN:
            hint = f"; a data set with integer = [{name!r}] takes 5 and 5.0 for one" if its.integer_mends else ""
            raise PredictError(
                f"{path}: {its.count:,} of {its.values:,} values of column {name!r} ({its.share:.0%}) are unknown: "
                f"there {', '.join(map(repr, its.examples))}, in training {', '.join(map(repr, its.known))}{hint}; "
                "expected the same kind of values, or --allow-unseen"
            )


def _quality(probabilities: np.ndarray, labels: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> Quality | None:
    label = np.concatenate(labels).astype(np.float64) if labels else np.full(len(probabilities), np.nan)
    known = np.isfinite(label)
    if not known.any():
        return None
    weight = np.concatenate(weights).astype(np.float64)[known] if weights else np.ones(np.count_nonzero(known))
    if not weight.sum() > 0:
        raise PredictError("all weights of rows with a label are 0; expected some above, or no column of weights")
    score, label = probabilities[known].astype(np.float64), label[known]
    bounded = np.clip(score, 1e-15, 1 - 1e-15)
    loss = -np.average(label * np.log(bounded) + (1 - label) * np.log1p(-bounded), weights=weight)
    return Quality(len(label), auc(score, label, weight), float(loss))


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float | None:
    """Area under the ROC curve of (rows,) scores, labels of 0 and 1, and weights; ties count half.

    None where all labels are alike.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    positive, negative = (np.bincount(place, weights * its, len(distinct)) for its in (labels, 1 - labels))
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else None
