"""Runs at several batch sizes and table rates -> the best rate per row: how far a row moves where it occurs once.

SGD takes the mean of a batch's losses, so that a row that occurs once in a batch of B moves by rate / B times its own
gradient, and MLET's product by k/16 times as much.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlrm_mlet.reporting.curves import model_name, spread
from dlrm_mlet.reporting.results import Row, Third

SETTINGS = ("batch_size", "table_learning_rate")
AUC = "validation_auc"

Scores = dict[float, list[float] | None]
"""Rate per row -> validation AUC of each seed; None where some seed diverged."""


def is_one(rows: Sequence[Row]) -> bool:
    """Whether each run of a table has a batch size and a table rate of its own."""
    return all(row.settings.get(key) for row in rows for key in SETTINGS)


def larger_step(inner_dim: str) -> float:
    """By how much a product moves further than a single layer at the same rate: k/16 for each of its inner layers.

    Since the entries of W2 have variance 1/16 (paper, section 3).
    """
    return math.prod(int(k) / 16 for k in filter(None, inner_dim.split("x")))


def by_row_rate(rows: Sequence[Row]) -> dict[tuple[str, int, int], Scores]:
    """The scores by inner dimension, d and batch size.

    Of what else was varied, such as the MLPs' rate, the one with the best mean.
    """
    found: dict[tuple[str, int, int], Scores] = {}
    trials: dict[tuple[tuple[str, int, int], float], dict[tuple[str, ...], list[float | None]]] = {}
    for row in rows:
        others = {key: value for key, value in row.settings.items() if key not in SETTINGS}
        size, rate = int(row.settings["batch_size"]), float(row.settings["table_learning_rate"])
        point = (row.inner_dim, row.embedding_dim, size)
        moved = round(rate / size * larger_step(row.inner_dim), 6)
        found.setdefault(point, {})
        trial = trials.setdefault((point, moved), {}).setdefault((row.arm, *others.values()), [])
        trial.append(row.measures.get(AUC))
    for (point, moved), tried in sorted(trials.items(), key=lambda item: item[0][1]):
        whole = [[auc for auc in trial if auc is not None] for trial in tried.values() if None not in trial]
        found[point][moved] = max(whole, key=statistics.fmean, default=None)
    return found


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
    for point, scores in by_row_rate(rows).items():
        inner_dim, d, size = point
        rate = best(scores)
        whole = [moved for moved, values in scores.items() if values]
        edge = " (the largest tried)" if whole and max(whole) == max(scores) else ""
        cells = ["none", "none", "–", "none"] if rate is None else [
            f"{rate * size / larger_step(inner_dim):g}", f"{rate:g}", spread(scores[rate] or []),
            f"{max(whole):g}{edge}",
        ]  # fmt: skip
        rare = ["none" if (its := best(found[point])) is None else f"{its:g}" for found in of_thirds]
        lines.append([model_name("", inner_dim), str(d), str(size), *cells, *rare])
    return lines


def _on(rows: Sequence[Row], third: Mapping[tuple[object, ...], Third]) -> list[Row]:
    """The runs with their AUC on one third of validation."""
    return [replace(row, measures={AUC: third[row.run].auc} if row.run in third else {}) for row in rows]


def verdict(rows: Sequence[Row]) -> str:
    """The best rates per row of each batch size, in words."""
    found: dict[int, list[float]] = {}
    for (*_, size), scores in by_row_rate(rows).items():
        found.setdefault(size, []).extend(filter(None, [best(scores)]))
    ranges = []
    for size, rates in sorted(found.items()):
        low, high = min(rates, default=None), max(rates, default=None)
        said = "none without a divergence" if low is None else f"{low:g}" if low == high else f"{low:g} to {high:g}"
        ranges.append(f"{said} at B = {size}")
    return f"best rate per row {', '.join(ranges)}"
