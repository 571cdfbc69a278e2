"""Records of an experiment -> one tidy table, a row a run: results/<dataset>/<experiment>.csv, and back."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm_mlet.config import Point
from dlrm_mlet.files import replacing
from dlrm_mlet.record import Record

MEASURES = ("validation_auc", "validation_log_loss", "test_auc", "test_log_loss")


class ResultsError(ValueError):
    """A table of results that can't be read: names the file, the line and what was expected."""


@dataclass(frozen=True)
class Row:
    """One run, as a report needs it."""

    series: tuple[tuple[str, str], ...]
    """What the run shares with the other points of its curve: everything that was varied, but the dimension."""
    inner_dim: str
    """k as text, 64 or 64x16 for two projections; empty for a single layer."""
    embedding_dim: int
    seed: int
    status: str
    measures: dict[str, float]
    """MEASURES, those of test only where test was read; empty where the run diverged."""
    trained_table_bytes: int
    served_table_bytes: int
    seconds: float
    provenance: dict[str, str]
    """device, torch, commit."""


def write(path: Path, runs: list[tuple[Point, Record]]) -> None:
    """Write the table, its rows in the order of the grid. Metrics are rounded to 6 decimals, far below their spread."""
    varied = list(dict.fromkeys(key for point, _ in runs for key in point.varied))
    tuned = list(dict.fromkeys(key for point, _ in runs for key in point.tuned))
    others = [key for key in varied if key not in ("inner_dim", "embedding_dim")]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["arm", "inner_dim", "embedding_dim", *others, "seed", *tuned, "status", *MEASURES, "steps",
             "trained_parameters", "served_parameters", "trained_table_bytes", "served_table_bytes", "seconds",
             "device", "torch", "commit"]
        )  # fmt: skip
        for point, run in runs:
            model, size, where = point.config.model, run.parameters, run.provenance
            writer.writerow(
                [point.arm, _text(model.inner_dims), model.embedding_dim]
                + [_text(point.varied.get(key, "")) for key in others]
                + [run.seed, *(_text(point.tuned.get(key, "")) for key in tuned), run.status]
                + [_measure(run, name) for name in MEASURES]
                + [run.steps, size["trained"], size["served"]]
                + [run.bytes["trained_tables"], run.bytes["served_tables"]]
                + [round(run.seconds, 1), where["device"], where["torch"], where["commit"]]
            )


def read(path: Path) -> list[Row]:
    """The rows of a table that `write` wrote. Raises ResultsError at a row that isn't one."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            return [_row(row) for row in reader]
        except (KeyError, ValueError, TypeError) as error:
            where = f"{path}:{reader.line_num}"
            raise ResultsError(f"{where}: not a run: {error!r}; expected the columns that a sweep writes") from None


def _row(row: dict[str, str]) -> Row:
    names = list(row)
    varied = names[names.index("embedding_dim") + 1 : names.index("seed")]
    return Row(
        series=tuple((key, row[key]) for key in ("arm", "inner_dim", *varied)),
        inner_dim=row["inner_dim"],
        embedding_dim=int(row["embedding_dim"]),
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
