"""Rows of results -> curves over the dimension d, and what sets them apart: factors, paired differences, intervals."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dlrm_mlet.extras import needs
from dlrm_mlet.reporting.results import OfRun, Row

with needs("reporting"):
    from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Curve:
    """The points of one model over the dimension d: the single layer, or MLET with one k, or another arm."""

    label: str
    arm: str
    inner_dim: str
    """As in the table: empty for a single layer."""
    settings: dict[str, str]
    """What else the grid varied."""
    single: bool
    """Whether this is the plain single layer, with which all else is compared."""
    points: dict[int, list[Row]]
    """d -> the runs that finished, by seed."""
    diverged: dict[int, int]
    """d -> how many runs diverged."""

    @property
    def series(self) -> tuple[str, ...]:
        """What its runs share: see OfRun."""
        return (self.arm, self.inner_dim, *self.settings.values())

    @property
    def runs(self) -> list[Row]:
        """Those that finished, at every d."""
        return [row for runs in self.points.values() for row in runs]

    def values(self, d: int, measure: str) -> list[float]:
        """A measure at d, a value a seed; empty where it was not taken, as on test where `read_test` is false."""
        return [row.measures[measure] for row in self.points[d] if measure in row.measures]

    def mean(self, d: int, measure: str) -> float:
        """The measure's mean over seeds at d."""
        return statistics.fmean(self.values(d, measure))


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences over n seeds, with its sample standard deviation and a confidence interval."""

    mean: float
    std: float
    low: float
    high: float
    n: int
    level: float = CONFIDENCE
    """Of the interval."""

    @property
    def interval(self) -> str:
        """As text."""
        return f"{self.low:+.4f} to {self.high:+.4f}" if math.isfinite(self.low) else "none"

    @property
    def spread(self) -> str:
        """The standard deviation as text; of a single value there is none."""
        return f"{self.std:.4f}" if self.n > 1 else "–"

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:+.4f}"
        interval = f" [{self.low:+.4f}, {self.high:+.4f}]" if math.isfinite(self.low) else ""
        return f"{self.mean:+.4f} ± {self.std:.4f}{interval}"


NO_SPREAD = 1e-12
"""A standard deviation below it is the rounding of values that are one and the same."""


def difference(values: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """Of at least one value; the interval is Student's.

    It has no bounds for a single value, and none for several that are one and the same but 0, as counts are at times:
    by these alone their spread can't be told.
    """
    mean, n = statistics.fmean(values), len(values)
    std = statistics.stdev(values) if n > 1 else math.nan
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n) if n > 1 else math.inf
    if std < NO_SPREAD and mean:
        reach = math.inf
    return Difference(mean, std, mean - reach, mean + reach, n, confidence)


def make_curves(rows: Sequence[Row]) -> list[Curve]:
    """The runs gathered by what they share, in the table's order."""
    curves = []
    for series, label in labels(rows).items():
        mine = [row for row in rows if row.series == series]
        dimensions = sorted({row.embedding_dim for row in mine})
        finished = {d: [row for row in mine if row.embedding_dim == d and row.measures] for d in dimensions}
        diverged = {d: sum(row.embedding_dim == d and row.diverged for row in mine) for d in dimensions}
        curves.append(
            Curve(
                label=label,
                arm=mine[0].arm,
                inner_dim=mine[0].inner_dim,
                settings=mine[0].settings,
                single=mine[0].single,
                points={d: found for d, found in finished.items() if found},
                diverged={d: count for d, count in diverged.items() if count},
            )
        )
    return curves


def labels(found: Sequence[OfRun]) -> dict[tuple[str, ...], str]:
    """For each series the model's name, and those settings that its arm has several of; in the order that they have."""
    series = {one.series: one for one in found}
    names = {}
    for one in series.values():
        parts = [model_name(one.arm, one.inner_dim)]
        for key, value in one.settings.items():
            if len({other.settings[key] for other in series.values() if other.arm == one.arm}) > 1:
                parts.append(f"{key.replace('_', ' ')} {value}")
        names[one.series] = ", ".join(parts)
    alike = Counter(names.values())
    return {series: name if alike[name] == 1 else f"{name} ({series[0]})" for series, name in names.items()}


def model_name(arm: str, inner_dim: str) -> str:
    """single layer, MLET k=64, or the arm's own name."""
    plain = {"": "MLET" if inner_dim else "single layer", "single": "single layer", "mlet": "MLET"}
    return plain.get(arm, arm.replace("-", " ")) + (f" k={inner_dim}" if inner_dim else "")


@dataclass(frozen=True)
class Served:
    """A point by the bytes of the tables that it serves, and a measure of its finished runs."""

    arm: str
    """In a grid without arms the model's label."""
    label: str
    embedding_dim: int
    nbytes: int
    values: tuple[float, ...]
    diverged: int
    """How many of its runs did."""

    @property
    def mean(self) -> float:
        """Over the runs that finished."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation; 0 of one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def compared_on(rows: Sequence[Row]) -> str:
    """The AUC that the models of a table are compared by: test's where they were tuned on validation's."""
    tested = all("test_auc" in row.measures for row in rows if row.measures)
    return "test_auc" if tested and any(row.tuned for row in rows) else "validation_auc"


def by_bytes(rows: Sequence[Row], measure: str) -> list[Served]:
    """Each point that has a finished run, in the order of the rows, by this measure."""
    names = labels(rows)
    points = []
    for series, d in dict.fromkeys((row.series, row.embedding_dim) for row in rows):
        mine = [row for row in rows if (row.series, row.embedding_dim) == (series, d)]
        values = tuple(row.measures[measure] for row in mine if measure in row.measures)
        diverged = sum(row.diverged for row in mine)
        if values:
            name = names[series]
            points.append(Served(mine[0].arm or name, name, d, mine[0].served_table_bytes, values, diverged))
    return points


def pareto(points: Sequence[Served]) -> list[Served]:
    """The points that no other beats in both bytes and mean, from the smallest to the largest.

    One of which a run diverged is none of them: the mean of those that are left flatters it.
    """
    front: list[Served] = []
    for point in sorted(
        (point for point in points if not point.diverged), key=lambda point: (point.nbytes, -point.mean)
    ):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    return front


def shrink_factors(curve: Curve, single: Curve, measure: str) -> dict[int, tuple[int, float] | None]:
    """For each d of the single layer: the curve's smallest d that is as good in the mean, and the factor between them.

    None where no measured d of the curve is as good. Only measured points count: nothing is interpolated.
    """
    as_good: Callable[[float, float], bool] = float.__ge__ if measure.endswith("auc") else float.__le__
    factors: dict[int, tuple[int, float] | None] = {}
    there = [d for d in curve.points if curve.values(d, measure)]
    for wide in (d for d in single.points if single.values(d, measure)):
        goal = single.mean(wide, measure)
        enough = [d for d in there if as_good(curve.mean(d, measure), goal)]
        factors[wide] = (min(enough), wide / min(enough)) if enough else None
    return factors


def paired_gains(better: Sequence[Row], base: Sequence[Row], measure: str) -> list[float]:
    """How much better the first runs are than the second, seed by seed where both have one; positive is better."""
    return list(gains_by_seed(better, base, measure).values())


def gains_by_seed(better: Sequence[Row], base: Sequence[Row], measure: str) -> dict[int, float]:
    """The same, by the seed."""
    sign = 1 if measure.endswith("auc") else -1
    known: Mapping[int, float] = {row.seed: row.measures[measure] for row in base if measure in row.measures}
    mine = {row.seed: row.measures[measure] for row in better if row.seed in known and measure in row.measures}
    return {seed: sign * (value - known[seed]) for seed, value in mine.items()}


def gains(curve: Curve, single: Curve, d: int, measure: str) -> list[float]:
    """The paired gains of a curve at d over the single layer at the same d; empty where one of them has no run."""
    return paired_gains(curve.points.get(d, []), single.points.get(d, []), measure)


def zero_cost(curves: Sequence[Curve], single: Curve, measure: str) -> list[tuple[Curve, int, int, Difference]]:
    """MLET at (k, d) against the single layer at a wider d' >= k: no larger in training, and smaller when served.

    (paper, section 4.) Curve, d, d' and the gain, where the mean gain is positive.
    """
    found = []
    for curve in curves:
        for wide in single.points if curve.inner_dim.isdigit() else ():
            for d in curve.points:
                if int(curve.inner_dim) <= wide and d < wide:
                    pairs = paired_gains(curve.points[d], single.points[wide], measure)
                    if pairs and (gain := difference(pairs)).mean > 0:
                        found.append((curve, d, wide, gain))
    return found


def spread(values: Sequence[float]) -> str:
    """mean ± sample standard deviation; without the latter for a single value, and – for none."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def as_markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines; the first row is its head."""
    head, *body = rows
    lines = (head, ["---"] * len(head), *body)
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines]
