"""Who fails more often: runs that diverge, or end far below the other seeds of their point."""

import statistics
from collections.abc import Sequence

from dlrm_mlet.extras import needs
from dlrm_mlet.reporting import fights, results
from dlrm_mlet.reporting.curves import make_curves
from dlrm_mlet.reporting.judging import AUC, PAPER, TUNED, Tables

with needs("reporting"):
    from scipy import stats

LATE = 0.02
"""A run counts as failed when its validation AUC is so far below the median of its point."""
PLAIN = ("paper-grid", "controls", "mechanism", "depth", "narrow", "rivals")
"""The tables that have runs of plain models at the paper's rate."""

Seeds = dict[int, float | None]
"""Validation AUC by the seed; None where it diverged, be it in one of several tables."""
Points = dict[tuple[str, object], Seeds]
"""By k, "" for the single layer, and whatever says the point."""


def table(tables: Tables) -> list[list[str]]:
    lines = [["learning rates", "model", f"diverged, or more than {LATE} below the median", "of runs"]]
    for rates, found in _both(tables).items():
        ks = sorted({int(inner_dim) for inner_dim, _ in found if inner_dim})
        single = [list(seeds.values()) for (inner_dim, _), seeds in found.items() if not inner_dim]
        mlet = [list(seeds.values()) for (inner_dim, _), seeds in found.items() if inner_dim]
        for name, mine in (("single layer", single), (f"MLET, k = {', '.join(map(str, ks))}", mlet)):
            lines.append([rates, name, str(sum(map(_failed, mine))), str(sum(map(len, mine)))])
    if len(lines) < 3:
        raise FileNotFoundError("no runs of both, at the paper's rate or tuned")
    return lines


def _both(tables: Tables) -> dict[str, Points]:
    """At the paper's rate and tuned, where there are runs of both models."""
    found = {PAPER: _at_papers_rate(tables), TUNED: _at_their_best(tables)}
    return {rates: its for rates, its in found.items() if len({bool(inner_dim) for inner_dim, _ in its}) == 2}


def _at_papers_rate(tables: Tables) -> Points:
    """The points of all tables, by k; those of one k and d are one, whichever table they are in."""
    points: Points = {}
    for experiment in (name for name in PLAIN if (tables.directory / f"{name}.csv").exists()):
        for curve in make_curves(tables.rows(experiment)):
            is_mlet = curve.arm == "mlet" and curve.inner_dim.isdigit() and experiment != "narrow"
            its = tables.curve(experiment, curve.arm, curve.inner_dim) if curve.single or is_mlet else None
            for row in tables.rows(experiment):
                if its and row.series == its.series:
                    _add(row, points.setdefault((row.inner_dim, row.embedding_dim), {}))
    return points


def _at_their_best(tables: Tables) -> Points:
    """The points of DLRM's fair fights."""
    points: Points = {}
    for experiment in (name for name in fights.DLRM if (tables.directory / f"{name}.csv").exists()):
        for row in tables.rows(experiment):
            if row.single or (row.arm == "mlet" and row.inner_dim.isdigit()):
                _add(row, points.setdefault((row.inner_dim, (experiment, row.embedding_dim)), {}))
    return points


def _add(row: results.Row, seeds: Seeds) -> None:
    if row.diverged:
        seeds[row.seed] = None
    elif AUC in row.measures:
        seeds.setdefault(row.seed, row.measures[AUC])


def _failed(values: Sequence[float | None]) -> int:
    """How many of a point's seeds diverged, or ended far below the others."""
    finished = [value for value in values if value is not None]
    late = sum(value < statistics.median(finished) - LATE for value in finished)
    return late + len(values) - len(finished)


def verdict(tables: Tables) -> str:
    _, *rows = table(tables)
    said = []
    for single, mlet, found in zip(rows[::2], rows[1::2], _both(tables).values(), strict=True):
        less, more = _sides(found)
        p = stats.binomtest(less, less + more).pvalue if less + more else 1.0
        said.append(
            f"{single[0]} single layer {single[2]} of {single[3]} runs, MLET {mlet[2]} of {mlet[3]}, and where both "
            f"have the point MLET fails less often at {less}, more often at {more} (sign test, p = {p:.2g})"
        )
    return "; ".join(said)


def _sides(found: Points) -> tuple[int, int]:
    """At how many points that both have MLET fails less often, in the mean over k, and at how many more often."""
    shares: dict[object, tuple[list[float], list[float]]] = {}
    for (inner_dim, place), seeds in found.items():
        values = list(seeds.values())
        shares.setdefault(place, ([], []))[bool(inner_dim)].append(_failed(values) / len(values))
    gaps = [statistics.fmean(mlet) - statistics.fmean(single) for single, mlet in shares.values() if single and mlet]
    return sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
