"""Runs at several batch sizes and table rates -> the best rate per row: how far a row moves where it occurs once.

SGD takes the mean of a batch's losses, so that a row that occurs once in a batch of B moves by rate / B times its own
gradient, and MLET's product by k/16 times as much.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dlrm_mlet.reporting.curves import labels, spread
from dlrm_mlet.reporting.results import Row, Third

SETTINGS = ("batch_size", "table_learning_rate")
AUC, LOSS = "validation_auc", "validation_log_loss"
BLOWN_UP = 2 * math.log(2)
"""A validation LogLoss twice that of a coin: such a run counts as diverged, though its numbers are finite."""

Scores = dict[float, list[float] | None]
"""Rate per row -> validation AUC of each seed at the best of the MLPs' rates; None where some seed diverged at each."""


@dataclass(frozen=True)
class Model:
    """What is looked at for each batch size: a model at one d."""

    label: str
    inner_dim: str
    embedding_dim: int


def is_one(rows: Sequence[Row]) -> bool:
    """Whether each run of a table has a batch size and a table rate of its own."""
    return all(row.settings.get(key) for row in rows for key in SETTINGS)


def larger_step(inner_dim: str) -> float:
    """By how much a product moves further than a single layer at the same rate: k/16 for each of its inner layers.

    Since the entries of W2 have variance 1/16 (paper, section 3).
    """
    return math.prod(int(k) / 16 for k in filter(None, inner_dim.split("x")))


def by_row_rate(rows: Sequence[Row]) -> dict[tuple[Model, int], Scores]:
    """The scores by model and batch size B; of several MLPs' rates (`learning_rate`) the one with the best mean.

    Arms are models of their own, but for a B at the end of their name: single-32 and single-128 are one.
    """
    models = _models(rows)
    found: dict[tuple[Model, int], Scores] = {}
    trials: dict[tuple[tuple[Model, int], float], dict[str, list[float | None]]] = {}
    for row, model in zip(rows, models, strict=True):
        size, rate = int(row.settings["batch_size"]), float(row.settings["table_learning_rate"])
        moved = float(f"{rate / size * larger_step(row.inner_dim):.6g}")
        found.setdefault((model, size), {})
        trial = trials.setdefault(((model, size), moved), {}).setdefault(row.settings.get("learning_rate", ""), [])
        trial.append(None if row.measures.get(LOSS, 0) > BLOWN_UP else row.measures.get(AUC))
    for (point, moved), tried in sorted(trials.items(), key=lambda item: item[0][1]):
        whole = [[auc for auc in trial if auc is not None] for trial in tried.values() if None not in trial]
        found[point][moved] = max(whole, key=statistics.fmean, default=None)
    return found


def _models(rows: Sequence[Row]) -> list[Model]:
    bare = []
    for row in rows:
        settings = {key: value for key, value in row.settings.items() if key not in (*SETTINGS, "learning_rate")}
        bare.append(replace(row, arm=row.arm.removesuffix(f"-{row.settings['batch_size']}"), settings=settings))
    names = labels(bare)
    return [Model(names[row.series], row.inner_dim, row.embedding_dim) for row in bare]


def best(scores: Scores) -> float | None:
    """The rate per row with the best mean; None where at each of them some seed diverged."""
    whole = {rate: statistics.fmean(values) for rate, values in scores.items() if values}
    return max(whole, key=whole.__getitem__, default=None)


def table(rows: Sequence[Row], thirds: Sequence[Third] = ()) -> list[list[str]]:
    """A row for each model and batch size, the first one being the head; `thirds` are those of the same runs."""
    by_ids: dict[str, dict[tuple[object, ...], Third]] = {}
    for third in thirds:
        by_ids.setdefault(third.ids, {})[third.run] = third
    lines = [["model", "d", "B", "best table rate", "per row", "validation AUC", "largest that never diverged",
              *(f"best for {ids} ids (at most {max(third.at_most for third in its.values())} times)"
                for ids, its in by_ids.items())]]  # fmt: skip
    of_thirds = [by_row_rate(_on(rows, its)) for its in by_ids.values()]
    for (model, size), scores in by_row_rate(rows).items():
        rate = best(scores)
        whole = [moved for moved, values in scores.items() if values]
        cells = ["none", "none", "–", "none"] if rate is None else [
            f"{rate * size / larger_step(model.inner_dim):.4g}", f"{rate:g}{_edge(rate, scores)}",
            spread(scores[rate] or []), f"{max(whole):g}{' (the largest tried)' * (max(whole) == max(scores))}",
        ]  # fmt: skip
        rare = []
        for found in of_thirds:
            its = best(found.get((model, size), {}))
            rare.append("–" if its is None else f"{its:g}")
        lines.append([model.label, str(model.embedding_dim), str(size), *cells, *rare])
    return lines


def _edge(rate: float, scores: Scores) -> str:
    """What has to be said of a best rate that has no neighbour on one side."""
    return " (the largest tried)" if rate == max(scores) else " (the smallest tried)" if rate == min(scores) else ""


def _on(rows: Sequence[Row], third: Mapping[tuple[object, ...], Third]) -> list[Row]:
    """The runs with their AUC on one third of validation."""
    return [replace(row, measures=row.measures | {AUC: third[row.run].auc} if row.run in third else {}) for row in rows]


def verdict(rows: Sequence[Row]) -> str:
    """The best rates per row of each batch size, in words."""
    found: dict[int, list[float]] = {}
    edges: set[int] = set()
    for (_, size), scores in by_row_rate(rows).items():
        rate = best(scores)
        found.setdefault(size, []).extend([] if rate is None else [rate])
        edges |= {size} if rate is not None and _edge(rate, scores) else set()
    ranges = []
    for size, rates in sorted(found.items()):
        low, high = min(rates, default=None), max(rates, default=None)
        said = "none without a divergence" if low is None else f"{low:g}" if low == high else f"{low:g} to {high:g}"
        ranges.append(f"{said}{' (an edge of what was tried)' * (size in edges)} at B = {size}")
    return f"best rate per row {', '.join(ranges)}"
