"""Records of an experiment -> one tidy table, a row per run; and such a table -> what a report needs of it."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from dlrm_mlet.config import Point
from dlrm_mlet.data.columns import Schema
from dlrm_mlet.training.record import Record

T = TypeVar("T")
MEASURES = ("validation_auc", "validation_log_loss", "test_auc", "test_log_loss")


class ResultsError(ValueError):
    """A table of results that can't be read: names the file, the line and what was expected."""


@dataclass(frozen=True)
class Row:
    """One run, as a report needs it."""

    arm: str
    inner_dim: str
    """k as text, 64 or 64x16 for two projections; empty for a single layer."""
    embedding_dim: int
    settings: dict[str, str]
    """What else the grid varied; empty where the run's arm has none of it."""
    seed: int
    tuned: dict[str, str]
    """What was chosen for the point on validation."""
    status: str
    measures: dict[str, float]
    """MEASURES, those of test only where test was read; empty where the run diverged."""
    trained_table_bytes: int
    served_table_bytes: int
    seconds: float
    provenance: dict[str, str]
    """device, torch, commit."""

    @property
    def series(self) -> tuple[str, ...]:
        """What the run shares with the other points of its curve: everything that was varied, but the dimension."""
        return (self.arm, self.inner_dim, *self.settings.values())


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one feature's table W at one step of a run, largest first."""

    arm: str
    inner_dim: str
    embedding_dim: int
    seed: int
    step: int
    feature: str
    """The categorical column."""
    num_embeddings: int
    """n of its table."""
    values: tuple[float, ...]


@dataclass(frozen=True)
class Third:
    """Validation of one run on the third of rows whose rarest id is rare, middle or frequent."""

    arm: str
    inner_dim: str
    embedding_dim: int
    seed: int
    ids: str
    rows: int
    at_most: int
    """The largest count of a rarest id in this third."""
    auc: float
    log_loss: float


Runs = list[tuple[Point, Record]]


def tables(runs: Runs, schema: Schema) -> dict[str, list[dict[str, str]]]:
    """The runs' rows; and those of "-spectra" and "-frequency" of the runs that measured these."""
    spectra = [
        (*_where(point, run), at["step"], feature, n, " ".join(f"{value:.4g}" for value in values))
        for point, run in runs
        for at in run.spectra
        for feature, n, values in zip(schema.categorical, schema.table_rows, at["singular_values"], strict=True)
    ]
    thirds = [
        (*_where(point, run), *(third[key] if key in ("ids", "rows", "at_most") else round(third[key], 6)
                                for key in ("ids", "rows", "at_most", "auc", "log_loss")))
        for point, run in runs
        for third in run.by_frequency
    ]  # fmt: skip
    found = {"": rows(runs)}
    for ending, lines, cls in (("-spectra", spectra, Spectrum), ("-frequency", thirds, Third)):
        if lines:
            names = [f.name for f in fields(cls)]
            found[ending] = [dict(zip(names, map(str, line), strict=True)) for line in lines]
    return found


def _where(point: Point, run: Record) -> tuple[str, str, int, int]:
    return point.arm, _text(point.config.model.inner_dims), point.config.model.embedding_dim, run.seed


def read_spectra(path: Path) -> list[Spectrum]:
    """The rows of a -spectra.csv. Raises ResultsError at a row that isn't one."""
    return _read(path, lambda row: Spectrum(
        arm=row["arm"], inner_dim=row["inner_dim"], embedding_dim=int(row["embedding_dim"]), seed=int(row["seed"]),
        step=int(row["step"]), feature=row["feature"], num_embeddings=int(row["num_embeddings"]),
        values=tuple(map(float, row["values"].split())),
    ))  # fmt: skip


def read_thirds(path: Path) -> list[Third]:
    """The rows of a -frequency.csv. Raises ResultsError at a row that isn't one."""
    return _read(path, lambda row: Third(
        arm=row["arm"], inner_dim=row["inner_dim"], embedding_dim=int(row["embedding_dim"]), seed=int(row["seed"]),
        ids=row["ids"], rows=int(row["rows"]), at_most=int(row["at_most"]), auc=float(row["auc"]),
        log_loss=float(row["log_loss"]),
    ))  # fmt: skip


def rows(runs: Runs) -> list[dict[str, str]]:
    """A row for each run, in the order of the grid. Metrics are rounded to 6 decimals, far below their spread."""
    varied = list(dict.fromkeys(key for point, _ in runs for key in point.varied))
    tuned = list(dict.fromkeys(key for point, _ in runs for key in point.tuned))
    others = [key for key in varied if key not in ("inner_dim", "embedding_dim")]
    found = []
    for point, run in runs:
        size, where = run.parameters, run.provenance
        found.append(
            {"arm": point.arm, "inner_dim": point.config.model.inner_dims}
            | {"embedding_dim": point.config.model.embedding_dim}
            | {key: point.varied.get(key, "") for key in others}
            | {"seed": run.seed, **{key: point.tuned.get(key, "") for key in tuned}, "status": run.status}
            | {name: _measure(run, name) for name in MEASURES}
            | {"steps": run.steps, "trained_parameters": size["trained"], "served_parameters": size["served"]}
            | {"trained_table_bytes": run.bytes["trained_tables"], "served_table_bytes": run.bytes["served_tables"]}
            | {"seconds": round(run.seconds, 1), **{key: where[key] or "" for key in ("device", "torch", "commit")}}
        )
    return [{name: _text(value) for name, value in row.items()} for row in found]


def read(path: Path) -> list[Row]:
    """The rows of a table of runs. Raises ResultsError at a row that isn't one."""
    return _read(path, as_row)


def _read(path: Path, make: Callable[[dict[str, str]], T]) -> list[T]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            return [make(row) for row in reader]
        except (KeyError, ValueError, TypeError) as error:
            where = f"{path}:{reader.line_num}"
            raise ResultsError(f"{where}: not a run: {error!r}; expected the columns that a sweep writes") from None


def as_row(row: dict[str, str]) -> Row:
    """A row of a table, as text by column."""
    names = list(row)
    settings = names[names.index("embedding_dim") + 1 : names.index("seed")]
    tuned = names[names.index("seed") + 1 : names.index("status")]
    return Row(
        arm=row["arm"],
        inner_dim=row["inner_dim"],
        embedding_dim=int(row["embedding_dim"]),
        settings={key: row[key] for key in settings},
        tuned={key: row[key] for key in tuned},
        seed=int(row["seed"]),
        status=row["status"],
        measures={name: float(row[name]) for name in MEASURES if row[name]},
        trained_table_bytes=int(row["trained_table_bytes"]),
        served_table_bytes=int(row["served_table_bytes"]),
        seconds=float(row["seconds"]),
        provenance={key: row[key] for key in ("device", "torch", "commit")},
    )


def _measure(run: Record, name: str) -> float | str:
    split, _, metric = name.partition("_")
    measured = (run.metrics or {}).get(split)
    return round(measured[metric], 6) if measured else ""


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
