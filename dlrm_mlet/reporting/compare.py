"""Two arms of two tables of results -> their differences, paired by seed, at each dimension that both have."""

from pathlib import Path

from dlrm_mlet.reporting import results
from dlrm_mlet.reporting.curves import Curve, make_curves, paired_gains
from dlrm_mlet.reporting.judging import jointly
from dlrm_mlet.reporting.results import MEASURES, ResultsError


def compare(better: str, base: str) -> str:
    """A Markdown table of what the first, as <table.csv>:<arm>, gains over the second; positive is better.

    An arm of several k is named with one, as mlet:64. Raises ResultsError where there is no such table or arm, or no
    pair of runs.
    """
    first, second = _curve(better), _curve(base)
    gains = {
        ("", f"d={d}", measure): values
        for d in first.points
        if d in second.points
        for measure in MEASURES
        if (values := paired_gains(first.points[d], second.points[d], measure))
    }
    if not gains:
        raise ResultsError(f"{better}, {base}: no d and seed in common; expected runs that can be paired")
    lines = [
        f"{better} over {base}: mean difference, paired by seed; positive is better; intervals hold jointly (Holm)", "",
        "| d | measure | difference | std | 95 % interval | n |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (_, d, measure), gain in jointly(gains).items():
        lines.append(
            f"| {d.removeprefix('d=')} | {measure.replace('_', ' ')} | {gain.mean:+.4f} | {gain.std:.4f} "
            f"| {gain.low:+.4f} to {gain.high:+.4f} | {gain.n} |"
        )
    return "\n".join(lines)


def _curve(side: str) -> Curve:
    file, _, rest = side.partition(".csv")
    path, (arm, _, inner_dim) = Path(f"{file}.csv"), rest.removeprefix(":").partition(":")
    if not path.is_file():
        raise ResultsError(f"{side}: no such table; expected <table.csv>:<arm>, such as paper-grid.csv:mlet:64")
    curves = [curve for curve in make_curves(results.read(path)) if curve.arm == arm]
    chosen = [curve for curve in curves if not inner_dim or curve.inner_dim == inner_dim]
    if len(chosen) != 1:
        known = curves or make_curves(results.read(path))
        names = ", ".join(f"{c.arm}{':' if c.inner_dim else ''}{c.inner_dim}" for c in known)
        raise ResultsError(f"{side}: {len(chosen)} curves; expected one of {names}")
    return chosen[0]
