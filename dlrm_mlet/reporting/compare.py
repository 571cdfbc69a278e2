"""Two arms of two tables of results -> their differences, paired by seed, at each dimension that both have."""

from collections.abc import Sequence
from pathlib import Path

from dlrm_mlet.reporting import results
from dlrm_mlet.reporting.curves import Curve, make_curves, paired_gains
from dlrm_mlet.reporting.judging import jointly
from dlrm_mlet.reporting.results import COMPANIONS, MEASURES, ResultsError
from dlrm_mlet.reporting.trained import steps


def compare(better: str, base: str) -> str:
    """A Markdown table of what the first, as <table.csv>:<arm>, gains over the second; positive is better.

    An arm of several k is named with one, as mlet:64, and one of several settings with these, as
    single:batch_size=128:learning_rate=0.2. Raises ResultsError where there is no such table or arm, or no pair of
    runs.
    """
    first, second = _curve(better), _curve(base)
    sets = {side: _dataset(side) for side in (better, base)}
    if len(set(sets.values()) - {None}) > 1:
        raise ResultsError(f"{better}, {base}: of {sets[better]} and {sets[base]}; expected one data set")
    data = {row.data for curve in (first, second) for row in curve.runs if row.data}
    if len(data) > 1:
        raise ResultsError(f"{better}, {base}: made from columns {' and '.join(sorted(data))}; expected the same ones")
    lost = [f"{sum(curve.diverged.values())} of {side} diverged" for side, curve in ((better, first), (base, second))
            if curve.diverged]  # fmt: skip
    gains = {
        ("", f"d={d}", measure): values
        for d in first.points
        if d in second.points
        for measure in MEASURES
        if (values := paired_gains(first.points[d], second.points[d], measure))
    }
    if not gains:
        said = f", and {', '.join(lost)}" if lost else ""
        raise ResultsError(f"{better}, {base}: no d and seed in common{said}; expected runs that can be paired")
    lines = [
        f"{better} over {base}: mean difference, paired by seed; positive is better; "
        "the signs of those that leave 0 out hold jointly (Holm)", "",
        "| d | measure | difference | std | interval | n |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (_, d, measure), gain in jointly(gains).items():
        lines.append(
            f"| {d.removeprefix('d=')} | {measure.replace('_', ' ')} | {gain.mean:+.4f} | {gain.spread} "
            f"| {gain.interval} | {gain.n} |"
        )
    taken = [steps(curve.runs) for curve in (first, second)]
    if all(taken) and taken[0] != taken[1]:
        lines += ["", f"Not alike: runs of {taken[0]} and of {taken[1]} steps"]
    return "\n".join([*lines, "", f"Not paired: {', '.join(lost)}"] if lost else lines)


def _curve(side: str) -> Curve:
    file, _, rest = side.rpartition(".csv")
    path, (arm, *chosen) = Path(f"{file}.csv"), rest.removeprefix(":").split(":")
    if path.stem.endswith(COMPANIONS):
        raise ResultsError(f"{side}: not a table of an experiment's own runs; expected {_own(path)}")
    if not path.is_file():
        raise ResultsError(f"{side}: no such table; expected <table.csv>:<arm>, such as paper-grid.csv:mlet:64")
    curves = make_curves(results.read(path))
    mine = [curve for curve in curves if curve.arm == arm]
    found = [curve for curve in mine if set(filter(None, chosen)) <= {curve.inner_dim, *_settings(curve)}]
    if len(found) != 1:
        names = ", ".join(_name(curve, mine or curves) for curve in mine or curves)
        raise ResultsError(f"{side}: {len(found)} curves; expected one of {names}")
    return found[0]


def _own(path: Path) -> str:
    return next(path.stem.removesuffix(ending) for ending in COMPANIONS if path.stem.endswith(ending)) + ".csv"


def _dataset(side: str) -> str | None:
    """The data set of a table in results/<data set>/; None where it lies elsewhere."""
    place = Path(side.rpartition(".csv")[0]).absolute().parent
    return place.name if place.parent.name == "results" else None


def _settings(curve: Curve) -> list[str]:
    return [f"{key}={value}" for key, value in curve.settings.items()]


def _name(curve: Curve, among: Sequence[Curve]) -> str:
    """How the curve is named: its arm, its k, and the settings of which that arm has several."""
    alike = [set(_settings(other)) for other in among if other.arm == curve.arm]
    varied = [its for its in _settings(curve) if any(its not in others for others in alike)]
    return ":".join([curve.arm, *filter(None, [curve.inner_dim, *varied])]) or "no arm: the table alone"
