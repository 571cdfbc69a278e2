"""What a claim is judged by: tables of results, paired differences, and verdicts that hold jointly."""

import contextlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlrm_mlet.extras import needs
from dlrm_mlet.reporting import curves, results
from dlrm_mlet.reporting.curves import CONFIDENCE, NO_SPREAD, Curve, Difference, difference, make_curves, model_name
from dlrm_mlet.reporting.results import ResultsError, Row

with needs("reporting"):
    from scipy import stats

AUC, LOSS, TEST_AUC, TEST_LOSS = results.MEASURES
PAPER, TUNED = "at the paper's rate", "tuned"
GRID = "paper-grid"
"""The experiment that has the paper's k and d at its rate."""
MARGIN = 0.002
"""Within which AUCs count as equal, where a claim is that there is no difference."""

Gains = Mapping[tuple[str, str], Sequence[float]]
"""(point, measure) -> a paired gain a seed, positive being better."""


class UnlikeRunsError(ResultsError):
    """Runs that were trained for longer than those with which they would be compared."""


class Point(NamedTuple):
    """One comparison of a claim."""

    group: str
    name: str
    measure: str
    gain: Difference
    """With an interval at its level among the claim's points on the data set: see jointly."""
    sources: tuple[str, ...]
    """The tables it is read from."""


@dataclass(frozen=True)
class Group:
    """Some points of a claim that are judged together, such as those at the paper's rate."""

    experiments: tuple[str, ...]
    """The tables it is read from; their configs and commands have the same names."""
    gains: Callable[["Tables"], Gains]
    """Raises FileNotFoundError where an experiment wasn't run."""


@dataclass(frozen=True)
class Claim:
    """One section of docs/reproduction.md: a claim of the paper's, or a question that it leaves open."""

    name: str
    """Of its figure, and in claims.csv."""
    text: str
    paper: str
    """What the paper says of it."""
    words: str
    """How to read what came out, in at most three sentences."""
    groups: Mapping[str, Group]
    is_equality: bool = False
    """The claim is that nothing is gained: within MARGIN no difference, or a loss."""
    some: bool = False
    """The claim is that there is a point at which it is so."""
    table: Callable[["Tables"], list[list[str]]] | None = None
    """What isn't a difference, as rows of a table, the first one its head."""
    verdict: Callable[["Tables"], str] | None = None
    """Where there are no groups: what the table comes to."""
    experiments: tuple[str, ...] = ()
    """What the table is read from."""
    figure: Callable[["Tables", Path], None] | None = None
    """Draws what isn't of the groups into <path>.png and .svg, a picture a data set."""
    pictures: tuple[str, ...] = ()
    """Figures that lie beside the tables, which its section shows where they are there."""


class Tables:
    """The results of one data set, each table read when it is asked for."""

    def __init__(self, directory: Path):
        self.directory = directory

    def rows(self, experiment: str) -> list[Row]:
        """Its rows. Raises FileNotFoundError where the experiment wasn't run."""
        return results.read(self.directory / f"{experiment}.csv")

    def curve(self, experiment: str, arm: str, inner_dim: str = "") -> Curve:
        """One curve of a table, by its arm and inner dimension.

        Raises ResultsError where there are several, FileNotFoundError where there is none.
        """
        found = [its for its in make_curves(self.rows(experiment)) if (its.arm, its.inner_dim) == (arm, inner_dim)]
        if len(found) > 1:
            raise ResultsError(
                f"{self.directory / experiment}.csv: a claim needs one curve of arm {arm}, and there are {len(found)}: "
                f"{'; '.join(curve.label for curve in found)}; expected one value of each key but the dimensions"
            )
        if not found:
            raise FileNotFoundError(f"{experiment}: no arm {arm} with inner_dim {inner_dim!r}")
        return found[0]

    def inner_dims(self, experiment: str, arm: str = "mlet") -> list[str]:
        """The k of an arm that are there, smallest first."""
        found = {row.inner_dim for row in self.rows(experiment) if row.arm == arm and row.inner_dim.isdigit()}
        return sorted(found, key=int)

    def mlet(self, experiment: str, arm: str = "mlet") -> Curve:
        """The curve of MLET, or of an arm that is a kind of it, with k = 64, or where there is none, the largest k."""
        ks = self.inner_dims(experiment, arm)
        if not ks:
            raise FileNotFoundError(f"{experiment}: no arm {arm} with one inner_dim")
        return self.curve(experiment, arm, "64" if "64" in ks else ks[-1])


def check_alike(better: Sequence[Row], base: Sequence[Row]) -> None:
    """Raises UnlikeRunsError where the runs have other numbers of steps."""
    taken = [{row.steps for row in side if row.steps} for side in (better, base)]
    if all(taken) and taken[0] != taken[1]:
        said = (f"{model_name(side[0].arm, side[0].inner_dim)} d={side[0].embedding_dim} has runs of "
                f"{' and '.join(map(str, sorted(its)))} steps"
                for side, its in zip((better, base), taken, strict=True))  # fmt: skip
        raise UnlikeRunsError(f"{', '.join(said)}; expected as many: the same epochs and batch size")


def gains_by_seed(better: Sequence[Row], base: Sequence[Row], measure: str) -> dict[int, float]:
    """As curves.gains_by_seed. Raises UnlikeRunsError as check_alike."""
    check_alike(better, base)
    return curves.gains_by_seed(better, base, measure)


def paired_gains(better: Sequence[Row], base: Sequence[Row], measure: str) -> list[float]:
    """As curves.paired_gains. Raises UnlikeRunsError as check_alike."""
    return list(gains_by_seed(better, base, measure).values())


def paired(better: Curve, base: Curve, measure: str = AUC, prefix: str = "") -> dict[tuple[str, str], list[float]]:
    """The gains of the first curve over the second at each d that both have. Raises UnlikeRunsError as check_alike."""
    common = [d for d in better.points if d in base.points]
    found = {d: paired_gains(better.points[d], base.points[d], measure) for d in common}
    return {(f"{prefix}d={d}", measure): gains for d, gains in found.items() if gains}


def levels(curves: Sequence[Curve], measure: str) -> list[list[str]]:
    """A row for each curve and d: label, d, how many runs finished and how many diverged, a measure's mean and std."""
    rows = []
    for curve in curves:
        for d in sorted(curve.points.keys() | curve.diverged.keys()):
            values = curve.values(d, measure) if d in curve.points else []
            mean = f"{statistics.fmean(values):.4f}" if values else "–"
            std = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "–"
            rows.append([curve.label, str(d), str(len(values)), str(curve.diverged.get(d, 0)), mean, std])
    return rows


def points(claim: Claim, tables: Tables) -> list[Point]:
    """All comparisons of a claim that a data set has records for, whose verdicts hold jointly."""
    found: dict[tuple[str, str, str], Sequence[float]] = {}
    for name, group in claim.groups.items():
        try:
            found |= {(name, *key): values for key, values in group.gains(tables).items() if values}
        except FileNotFoundError:
            continue
    joint = jointly(found, claim.is_equality)
    return [Point(*key, gain, claim.groups[key[0]].experiments) for key, gain in joint.items()]


def was_run(claim: Claim, tables: Tables) -> bool:
    """Whether a data set has records for one of the claim's groups, be it of runs that all diverged."""
    for group in claim.groups.values():
        with contextlib.suppress(FileNotFoundError):
            group.gains(tables)
            return True
    return False


def jointly(
    found: Mapping[tuple[str, str, str], Sequence[float]], is_equality: bool = False
) -> dict[tuple[str, str, str], Difference]:
    """The differences, with intervals whose verdicts hold jointly: that one of them is wrong has a chance of 5 %.

    By Holm's step-down procedure (Holm, 1979): the i-th smallest of m p-values (Student's t, paired) is compared with
    0.05 / (m - i), i from 0. An interval has the level at which its point was compared, or where an earlier one already
    wasn't rejected, that one's, so that it lies on one side of 0 where the point is decided. These levels fall from
    1 - 0.05 / m to 95 % at most: that all intervals hold at once is a little less sure. Where a claim is that there is
    no difference, which no such p-value decides, all intervals have the first level (Bonferroni).
    """
    alone = {key: difference(values) for key, values in found.items()}
    p_values = {key: _p_value(values, alone[key]) for key, values in found.items()}
    joint: dict[tuple[str, str, str], Difference] = {}
    level, going_on = 1 - CONFIDENCE, True
    for i, key in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if going_on:
            level = (1 - CONFIDENCE) / (len(p_values) - i)
            going_on = p_values[key] <= level and not is_equality
        joint[key] = difference(found[key], 1 - level)
    return {key: joint[key] for key in found}


def _p_value(values: Sequence[float], alone: Difference) -> float:
    if len(values) < 2 or alone.std < NO_SPREAD:
        return 1.0
    return float(2 * stats.t.sf(abs(alone.mean) / (alone.std / len(values) ** 0.5), len(values) - 1))


class Counts(NamedTuple):
    """How many points speak for a claim, against it, or for neither."""

    support: int
    against: int
    undecided: int

    def __str__(self) -> str:
        return f"{self.support} / {self.against} / {self.undecided}"


def side(claim: Claim, gain: Difference) -> int:
    """1 where a point shows what is claimed, -1 where it shows the opposite, 0 where neither is decided."""
    if claim.is_equality:
        if (gain.low > -MARGIN and gain.high < MARGIN) or gain.high < -MARGIN:
            return 1
        return -1 if gain.low > MARGIN else 0
    return 1 if gain.low > 0 else -1 if gain.high < 0 else 0


def count(claim: Claim, found: Sequence[Point]) -> Counts:
    """The points by their side."""
    sides = [side(claim, point.gain) for point in found]
    return Counts(sides.count(1), sides.count(-1), sides.count(0))


def verdict(claim: Claim, found: Sequence[Point], longest: float = math.inf) -> str:
    """Shown, opposite shown, or not decided: with the widest interval's half, beyond which a mean decides.

    Points whose names take more than `longest` letters are counted.
    """
    counts = count(claim, found)
    if claim.some and counts.support:
        return f"shown at {counts.support} of {len(found)}"
    parts = [
        f"{said} at {_named(claim, found, where, longest)}" if number < len(found) else said
        for said, where, number in (("shown", 1, counts.support), ("opposite shown", -1, counts.against))
        if number
    ]
    if counts.undecided:
        reach: dict[str, float] = {}
        for point in found:
            if side(claim, point.gain) == 0:
                half = (point.gain.high - point.gain.low) / 2
                reach[point.measure] = max(half, reach.get(point.measure, 0))
        where = f" at {_named(claim, found, 0, longest)}" if parts else ""
        seen = [
            (f"±{half:.4f}" if math.isfinite(half) else "one seed, or no spread: no interval")
            + (f" {metric(measure)}" if len(reach) > 1 else "")
            for measure, half in reach.items()
        ]
        parts.append(
            f"not decided{where} ({', '.join(seen)})" if any(reach.values()) else f"no difference at all{where}"
        )
    return "; ".join(parts)


def _named(claim: Claim, found: Sequence[Point], where: int, longest: float) -> str:
    mine = [point for point in found if side(claim, point.gain) == where]
    several = len({point.measure for point in found}) > 1
    by_name: dict[str, list[str]] = {}
    for point in mine:
        by_name.setdefault(point.name, []).append(metric(point.measure))
    alike: dict[tuple[str, str], list[str]] = {}  # what stands before the dimensions, and in brackets -> these
    for name, measures in by_name.items():
        of, mark, d = name.rpartition("d=")
        said = ", ".join(filter(None, (of.removesuffix(", "), " and ".join(measures) if several else "")))
        alike.setdefault((mark, f" ({said})" if said else ""), []).append(d)
    names = ", ".join(f"{mark}{', '.join(its)}{said}" for (mark, said), its in alike.items())
    if len(names) > longest or sum(1 if mark else len(its) for (mark, _), its in alike.items()) > 4:
        return f"{len(mine)} of {len(found)} points"
    return names


def metric(measure: str) -> str:
    """What is measured, be it on validation or on test."""
    ending = measure.partition("_")[2]
    return {"auc": "AUC", "log_loss": "LogLoss"}.get(ending, measure)
