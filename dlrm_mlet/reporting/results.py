"""Records of an experiment -> one tidy table, a row per run; and such a table -> what a report needs of it."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dlrm_mlet.config import Point
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.training.record import Record

T = TypeVar("T")
MEASURES = ("validation_auc", "validation_log_loss", "test_auc", "test_log_loss")
COMPANIONS = ("-trials", "-spectra", "-frequency", "-curve")
"""Endings of tables that lie beside an experiment's own."""
CLAIMS = "claims"
"""The name of the table of claims, which lies among those of experiments."""
TRAINED = ("optimizer", "batch_size", "epochs", "schedule", "learning_rate")
"""What a row says of the training of its run, in one column."""
BESIDE = ("train_log_loss", "effective_rank")
"""What some tables have of a run as well."""


class ResultsError(ValueError):
    """A table of results that can't be read: names the file, the line and what was expected."""


@dataclass(frozen=True)
class OfRun:
    """Which run something is of."""

    arm: str
    inner_dim: str
    """k as text, 64 or 64x16 for two projections; empty for a single layer."""
    embedding_dim: int
    settings: dict[str, str]
    """What else the grid varied; empty where the run's arm has none of it."""
    seed: int

    @property
    def series(self) -> tuple[str, ...]:
        """What the run shares with the other points of its curve: everything that was varied, but the dimension."""
        return (self.arm, self.inner_dim, *self.settings.values())

    @property
    def single(self) -> bool:
        """Whether it is of the plain single layer."""
        return not self.inner_dim and self.arm in ("", "single")

    @property
    def run(self) -> tuple[object, ...]:
        """The run among those of its table."""
        return (*self.series, self.embedding_dim, self.seed)


@dataclass(frozen=True)
class Row(OfRun):
    """One run, as a report needs it."""

    tuned: dict[str, str]
    """What was chosen for the point on validation."""
    status: str
    measures: dict[str, float]
    """MEASURES, those of test only where test was read, and what there is of BESIDE; empty where the run diverged."""
    trained_table_bytes: int
    served_table_bytes: int
    seconds: float
    provenance: dict[str, str]
    """device, torch, commit."""
    data: str = ""
    """The fingerprint of the columns that it was made from; tables of before 0.2.0 don't say."""
    steps: int | None = None
    """None where the table doesn't say."""
    trained: dict[str, str] = field(default_factory=dict)
    """By the keys of TRAINED; tables of before 0.2.0 don't say."""

    @property
    def diverged(self) -> bool:
        """Whether it ended so; a run that finished can lack measures, of splits that have one label alone."""
        return self.status == "diverged"


@dataclass(frozen=True)
class Spectrum(OfRun):
    """The singular values of one feature's table W at one step of a run, largest first."""

    step: int
    feature: str
    """The categorical column."""
    num_embeddings: int
    """n of its table."""
    values: tuple[float, ...]


@dataclass(frozen=True)
class Third(OfRun):
    """Validation of one run on the third of rows whose rarest id is rare, middle or frequent."""

    ids: str
    rows: int
    at_most: int
    """The largest count of a rarest id in this third."""
    auc: float
    log_loss: float


@dataclass(frozen=True)
class Look(OfRun):
    """A point of one run's validation curve."""

    step: int
    auc: float
    log_loss: float


Runs = list[tuple[Point, Record]]


def tables(runs: Runs, schema: Schema) -> dict[str, list[dict[str, str]]]:
    """The runs' rows; and those of "-spectra", "-frequency" and "-curve" of the runs that measured these."""
    others = _others(runs)
    found: dict[str, list[dict[str, Any]]] = {"": [], "-spectra": [], "-frequency": [], "-curve": []}
    for point, run in runs:
        where = _where(point, run, others)
        for at in run.spectra:
            features = zip(schema.categorical, schema.table_rows, at["singular_values"], strict=True)
            found["-spectra"] += (
                {**where, "step": at["step"], "feature": feature, "num_embeddings": n,
                 "values": " ".join(f"{value:.4g}" for value in values)}
                for feature, n, values in features
            )  # fmt: skip
        if "curve" in point.config.training.also_measure:
            found["-curve"] += (
                where | {"step": at["step"], "auc": round(at["auc"], 6), "log_loss": round(at["log_loss"], 6)}
                for at in run.curve
            )
        found["-frequency"] += (
            where | {key: third[key] for key in ("ids", "rows", "at_most")}
            | {key: round(third[key], 6) for key in ("auc", "log_loss")}
            for third in run.by_frequency
        )  # fmt: skip
    texts = {ending: [{k: as_text(v) for k, v in row.items()} for row in its] for ending, its in found.items() if its}
    return {"": rows(runs), **texts}


def _others(runs: Runs) -> list[str]:
    """What the grid varied beside the two dimensions."""
    varied = dict.fromkeys(key for point, _ in runs for key in point.varied)
    return [key for key in varied if key not in ("inner_dim", "embedding_dim")]


def _where(point: Point, run: Record, others: list[str]) -> dict[str, Any]:
    """Which run a row is of."""
    model = point.config.model
    return (
        {"arm": point.arm, "inner_dim": model.inner_dims, "embedding_dim": model.embedding_dim}
        | {key: point.varied.get(key, "") for key in others}
        | {"seed": run.seed}
    )


def read_spectra(path: Path) -> list[Spectrum]:
    """The rows of a -spectra.csv. Raises ResultsError at a row that isn't one."""
    found = _read(path, lambda row: Spectrum(
        **_of(row), step=int(row["step"]), feature=row["feature"], num_embeddings=int(row["num_embeddings"]),
        values=_values(row["values"]),
    ))  # fmt: skip
    _check_once(path, [((*row.run, row.step, row.feature), row) for row in found])
    return found


def read_thirds(path: Path) -> list[Third]:
    """The rows of a -frequency.csv. Raises ResultsError at a row that isn't one."""
    found = _read(path, lambda row: Third(
        **_of(row), ids=row["ids"], rows=int(row["rows"]), at_most=int(row["at_most"]),
        auc=_measured("auc", row["auc"]), log_loss=_measured("log_loss", row["log_loss"]),
    ))  # fmt: skip
    _check_once(path, [((*row.run, row.ids), row) for row in found])
    return found


def read_looks(path: Path) -> list[Look]:
    """The rows of a -curve.csv. Raises ResultsError at a row that isn't one."""
    found = _read(path, lambda row: Look(
        **_of(row), step=int(row["step"]),
        auc=_measured("auc", row["auc"]), log_loss=_measured("log_loss", row["log_loss"]),
    ))  # fmt: skip
    _check_once(path, [((*row.run, row.step), row) for row in found])
    return found


def rows(runs: Runs) -> list[dict[str, str]]:
    """A row for each run, in the order of the grid. Metrics are rounded to 6 decimals, far below their spread."""
    others = _others(runs)
    tuned = list(dict.fromkeys(key for point, _ in runs for key in point.tuned))
    found = []
    for point, run in runs:
        found.append(_where(point, run, others) | {key: point.tuned.get(key, "") for key in tuned})
    return [
        {name: as_text(value) for name, value in of_run.items()} | fields(run)
        for of_run, (_, run) in zip(found, runs, strict=True)
    ]


def fields(run: Record) -> dict[str, str]:
    """What a row says of its run, from the status on."""
    size, where = run.parameters, run.provenance
    found = (
        {"status": run.status}
        | dict.fromkeys(MEASURES, "")
        | _measured_of(run)
        | {"steps": run.steps, "trained_parameters": size["trained"], "served_parameters": size["served"]}
        | {"trained_table_bytes": run.bytes["trained_tables"], "served_table_bytes": run.bytes["served_tables"]}
        | {"seconds": round(run.seconds, 1), **{key: where[key] or "" for key in ("device", "torch", "commit")}}
        | {"trained": " ".join(f"{key}={run.config['training'].get(key, '')}" for key in TRAINED)}
    )
    return {name: as_text(value) for name, value in found.items()}


def _measured_of(run: Record) -> dict[str, Any]:
    """Of MEASURES none where the run diverged, and none of test where test wasn't read."""
    splits = {split: measures for split, measures in (run.metrics or {}).items() if measures}
    found = {f"{split}_{metric}": round(value, 6) for split, its in splits.items() for metric, value in its.items()}
    return {name: found[name] for name in MEASURES if name in found}


def read(path: Path) -> list[Row]:
    """The rows of a table of runs. Raises ResultsError at a row that isn't one, or is there twice.

    In a table of trials, whose name ends in -trials, a run is there with each choice that was tried.
    """
    found, is_search = _read(path, as_row), path.stem.endswith("-trials")
    if not found:
        raise ResultsError(f"{path}: has no runs; expected the columns that a sweep writes, and a row a run")
    _check_once(path, [((*row.run, *row.tuned.values()) if is_search else row.run, row) for row in found])
    return found


def _check_once(path: Path, found: Sequence[tuple[tuple[object, ...], OfRun]]) -> None:
    """Raises ResultsError where a key is there twice."""
    seen: set[tuple[object, ...]] = set()
    for key, row in found:
        if key in seen:
            raise ResultsError(
                f"{path}: has {row.arm or 'a run'} k={row.inner_dim or '-'} d={row.embedding_dim} seed {row.seed} "
                "twice; expected a row a run, or a run and what was measured of it"
            )
        seen.add(key)


def _read(path: Path, make: Callable[[dict[str, str]], T]) -> list[T]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            return [make(row) for row in reader]
        except (LookupError, ValueError, TypeError, AttributeError, csv.Error) as error:
            where = f"{path}:{reader.line_num}"
            why = f"no column {error}" if isinstance(error, KeyError) else repr(error)[:200]
            raise ResultsError(
                f"{where}: not a run: {why}; expected the columns that a sweep writes, with commas between them"
            ) from None


def as_row(row: dict[str, str]) -> Row:
    """A row of a table, as text by column."""
    names = list(row)
    if None in row or None in row.values() or row["status"] not in ("finished", "diverged"):
        raise ValueError(f"{len(row)} fields, status {row.get('status')!r}")
    if row["status"] == "diverged" and any(row[name] for name in MEASURES):
        raise ValueError("status diverged, and measures")
    tuned = names[names.index("seed") + 1 : names.index("status")]
    return Row(
        **_of(row),
        tuned={key: row[key] for key in tuned},
        status=row["status"],
        measures={name: _measured(name, row[name]) for name in MEASURES if row[name]}
        | {name: _measured(name, row[name]) for name in BESIDE if row.get(name)},
        trained_table_bytes=int(row["trained_table_bytes"]),
        served_table_bytes=int(row["served_table_bytes"]),
        seconds=float(row["seconds"]),
        provenance={key: row[key] for key in ("device", "torch", "commit")},
        data=row.get("experiment", "").rpartition("-")[2],
        steps=int(float(row["steps"])) if row.get("steps") else None,
        trained=_trained(row.get("trained", "")),
    )


def _trained(text: str) -> dict[str, str]:
    found = dict(pair.split("=") for pair in text.split())
    if not found.keys() <= set(TRAINED):
        raise ValueError(f"trained {text!r}")
    return found


def _of(row: dict[str, str]) -> dict[str, Any]:
    """The fields of OfRun."""
    names = list(row)
    settings = names[names.index("embedding_dim") + 1 : names.index("seed")]
    return {
        "arm": row["arm"],
        "inner_dim": "x".join(str(_width(width)) for width in filter(None, row["inner_dim"].split("x"))),
        "embedding_dim": _width(row["embedding_dim"]),
        "settings": {key: row[key] for key in settings},
        "seed": int(row["seed"]),
    }


def _width(text: str) -> int:
    width = int(text)
    if width < 1:
        raise ValueError(f"a dimension of {text}")
    return width


def _values(text: str) -> tuple[float, ...]:
    values = tuple(map(float, text.split()))
    if not values or not all(0 <= value < math.inf for value in values):
        raise ValueError(f"singular values {text!r}")
    return values


def _measured(name: str, text: str) -> float:
    value = float(text)
    if not 0 <= value <= (1 if name.endswith("auc") else math.inf) or value == math.inf:
        raise ValueError(f"{name} = {text}")
    return value


def as_text(value: Any) -> str:
    """A value as a cell has it: of several with an x between, nothing for None."""
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else "" if value is None else str(value)
