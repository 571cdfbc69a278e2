"""Tables of results -> the paper's figures and tables for each, drawn beside it, the same bytes each time."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlrm_mlet import benchmark, results
from dlrm_mlet.files import replacing
from dlrm_mlet.results import Row

NAMES = {"auc": "AUC", "log_loss": "LogLoss (nats)"}
MARKERS = "os^Dv<>P*X"
STYLE: Any = {
    "font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "dlrm_mlet",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """The points of one model over the dimension d: the single layer, or MLET with one k."""

    label: str
    single: bool
    points: dict[int, list[Row]]
    """d -> the runs that finished, by seed."""
    diverged: dict[int, int]
    """d -> how many runs diverged."""

    def values(self, d: int, measure: str) -> list[float]:
        """A measure at d, a value a seed."""
        return [row.measures[measure] for row in self.points[d]]

    def mean(self, d: int, measure: str) -> float:
        """The measure's mean over seeds at d."""
        return statistics.fmean(self.values(d, measure))


def report(directory: Path, out: Path | None = None) -> list[Path]:
    """Draw every <dataset>/<experiment>.csv of `directory`, and benchmarks/step-*.json.

    Returns what was written, beside the tables or in `out`. Raises ResultsError where a table can't be read,
    FileNotFoundError where there is none.
    """
    tables = sorted(directory.glob("*/*.csv"))
    if not tables:
        raise FileNotFoundError(f"{directory}: no results; expected <dataset>/<experiment>.csv, as a sweep writes it")
    written: list[Path] = []
    for table in tables:
        target = out / table.parent.name if out else table.parent
        written += draw(table, target)
    for timings in sorted(directory.glob("benchmarks/step-*.json")):
        written += draw_steps(timings, out / "benchmarks" if out else timings.parent)
    return written


def draw(table: Path, target: Path) -> list[Path]:
    """The figures and the Markdown page of one table of results, written into `target`."""
    rows = results.read(table)
    curves = make_curves(rows)
    name = f"{table.parent.name}, {table.stem}"
    single = [curve for curve in curves if curve.single]
    written = []
    for figure, chosen, measures in (
        ("figure-1", single, ["validation_auc", "validation_log_loss"]),
        ("figure-2", curves, ["validation_auc"]),
        ("figure-3", curves, ["validation_log_loss"]),
    ):
        if any(curve.points for curve in chosen):
            written += _figure(chosen, measures, name, target / f"{table.stem}-{figure}")
    page = target / f"{table.stem}.md"
    with replacing(page) as partial:
        partial.write_text(markdown(rows, curves, name, table.name), encoding="utf-8")
    return [*written, page]


def draw_steps(timings: Path, target: Path) -> list[Path]:
    """The figure and the Markdown page of what `dlrm-mlet benchmark` measured (the paper's Table 2)."""
    result = json.loads(timings.read_text(encoding="utf-8"))
    page = target / f"{timings.stem}.md"
    with replacing(page) as partial:
        source = f"Measured by `make benchmark`: [{timings.name}]({timings.name})."
        lines = [f"# Table 2 of the paper on {result['device']}", "", source, "", benchmark.markdown(result), ""]
        partial.write_text("\n".join(lines), encoding="utf-8")
    points = result["points"]
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(9, 4.4), layout="constrained")
        places = range(len(points))
        looks = (("textbook", "0.75", -0.27), ("ours", "#31688e", 0.0), ("floor", "0.1", 0.27))
        for name, colour, aside in looks:
            medians = [point[f"{name}_ms"] for point in points]
            quartiles = [point[f"{name}_ms_quartiles"] for point in points]
            # a median of few rounds can lie outside of what they interpolate to by a rounding
            below = [max(m - low, 0) for m, (low, _) in zip(medians, quartiles, strict=True)]
            above = [max(high - m, 0) for m, (_, high) in zip(medians, quartiles, strict=True)]
            at = [place + aside for place in places]
            ax.bar(at, medians, 0.27, yerr=[below, above], capsize=1.5, label=name, color=colour)
        ax.set_axisbelow(True)
        ax.set_xticks(places, [f"{point['inner_dim'] or '–'}\n{point['embedding_dim']}" for point in points])
        ax.set_xlabel("inner dimension k (–: single layer), and below it the embedding dimension d")
        ax.set_ylabel("ms a step of 128 rows")
        ax.legend(frameon=False, ncols=3, loc="upper left")
        ax.set_ylim(0, 1.15 * max(point["textbook_ms_quartiles"][1] for point in points))
        figure.suptitle(f"{result['device']}: median and quartiles over {result['rounds']} rounds", fontsize=10)
        written = _save(figure, target / timings.stem)
    return [*written, page]


def make_curves(rows: Sequence[Row]) -> list[Curve]:
    """The runs gathered by what they share, in the table's order."""
    curves = []
    for series in dict.fromkeys(row.series for row in rows):
        mine = [row for row in rows if row.series == series]
        dimensions = sorted({row.embedding_dim for row in mine})
        finished = {d: [row for row in mine if row.embedding_dim == d and row.measures] for d in dimensions}
        diverged = {d: sum(row.embedding_dim == d and not row.measures for row in mine) for d in dimensions}
        curves.append(
            Curve(
                label=_label(dict(series)),
                single=not mine[0].inner_dim,
                points={d: found for d, found in finished.items() if found},
                diverged={d: count for d, count in diverged.items() if count},
            )
        )
    return curves


def _label(series: dict[str, str]) -> str:
    arm, inner_dim = series.pop("arm"), series.pop("inner_dim")
    name = f"MLET k={inner_dim}" if inner_dim else "single layer"
    # an arm is named where its name says more than which of the two it is
    parts = [name, *([arm] if arm not in ("", "single", "mlet") else []), *(f"{k}={v}" for k, v in series.items() if v)]
    return ", ".join(parts)


def shrink_factors(curve: Curve, single: Curve, measure: str) -> dict[int, tuple[int, float] | None]:
    """For each d of the single layer: the curve's smallest d that is as good in the mean, and the factor between them.

    None where no measured d of the curve is as good. Only measured points count: nothing is interpolated.
    """
    as_good: Callable[[float, float], bool] = float.__ge__ if measure.endswith("auc") else float.__le__
    factors: dict[int, tuple[int, float] | None] = {}
    for wide in single.points:
        goal = single.mean(wide, measure)
        enough = [d for d in curve.points if as_good(curve.mean(d, measure), goal)]
        factors[wide] = (min(enough), wide / min(enough)) if enough else None
    return factors


def paired_gains(curve: Curve, single: Curve, d: int, measure: str) -> list[float]:
    """How much better the curve is than the single layer at the same d, seed by seed; positive is better."""
    sign = 1 if measure.endswith("auc") else -1
    base = {row.seed: row.measures[measure] for row in single.points.get(d, [])}
    return [sign * (row.measures[measure] - base[row.seed]) for row in curve.points.get(d, []) if row.seed in base]


def markdown(rows: Sequence[Row], curves: Sequence[Curve], name: str, source: str) -> str:
    """The table of all points with mean ± standard deviation and n, and what a reader wants to know of the curves."""
    seconds = sum(row.seconds for row in rows) / 60
    where = sorted({f"{row.provenance['device']}, torch {row.provenance['torch']}" for row in rows})
    lines = [
        f"# {name}",
        "",
        f"Drawn from [{source}]({source}) by `make figures`. {len(rows)} runs, {seconds:.0f} core-minutes of training "
        f"on {'; '.join(where)}. Mean ± sample standard deviation over n seeds; d is the dimension that is served, k "
        "the inner dimension that is trained. Table bytes are float32.",
        "",
        *_points_table(curves),
    ]
    single = next((curve for curve in curves if curve.single), None)
    others = [curve for curve in curves if not curve.single]
    if single and others:
        for measure, title in (("validation_auc", "AUC"), ("validation_log_loss", "LogLoss")):
            lines += ["", f"## How much smaller d is at equal {title}", "", *_shrink_table(others, single, measure)]
        lines += ["", "## What MLET gains at equal d", "", *_gain_table(others, single)]
    return "\n".join(lines) + "\n"


def _points_table(curves: Sequence[Curve]) -> list[str]:
    lines = [
        "| model | d | n | validation AUC | validation LogLoss | test AUC | test LogLoss | KiB trained | KiB served |",
        "|---|--:|--:|---|---|---|---|--:|--:|",
    ]
    for curve in curves:
        for d in sorted(curve.points.keys() | curve.diverged.keys()):
            found = curve.points.get(d, [])
            lost = f" ({curve.diverged[d]} diverged)" if d in curve.diverged else ""
            measures = " | ".join(spread(curve.values(d, m), 4) if found else "" for m in results.MEASURES)
            kib = (
                f"{found[0].trained_table_bytes / 1024:,.0f} | {found[0].served_table_bytes / 1024:,.0f}"
                if found
                else "|"
            )
            lines.append(f"| {curve.label} | {d} | {len(found)}{lost} | {measures} | {kib} |")
    return lines


def _shrink_table(others: Sequence[Curve], single: Curve, measure: str) -> list[str]:
    lines = [
        "The smallest measured d whose mean over seeds is at least as good as the single layer's at the column's d, "
        "and the factor between the two; – where no measured d is.",
        "",
        "| model | " + " | ".join(f"single d={d}" for d in single.points) + " |",
        "|---|" + "---|" * len(single.points),
    ]
    for curve in others:
        cells = [f"d={f[0]}, {f[1]:g}x" if f else "–" for f in shrink_factors(curve, single, measure).values()]
        lines.append(f"| {curve.label} | " + " | ".join(cells) + " |")
    return lines


def _gain_table(others: Sequence[Curve], single: Curve) -> list[str]:
    lines = [
        "Difference to the single layer of the same d, on validation, paired by seed (a seed draws the same order of "
        "the rows for both); positive is better.",
        "",
        "| model | d | n | AUC gain | LogLoss gain |",
        "|---|--:|--:|---|---|",
    ]
    best: tuple[float, str] | None = None
    for curve in others:
        for d in curve.points:
            auc, loss = (paired_gains(curve, single, d, f"validation_{m}") for m in ("auc", "log_loss"))
            if loss:
                lines.append(f"| {curve.label} | {d} | {len(loss)} | {spread(auc, 4, '+')} | {spread(loss, 4, '+')} |")
                here = f"{spread(loss, 4, '+')} (n={len(loss)}), {curve.label} at d={d}"
                best = max(filter(None, (best, (statistics.fmean(loss), here))))
    return [*lines, "", f"Largest LogLoss gain: {best[1]}."] if best else lines


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """mean ± sample standard deviation; without the latter for a single value."""
    mean = f"{statistics.fmean(values):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _figure(curves: Sequence[Curve], measures: Sequence[str], name: str, path: Path) -> list[Path]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(measures), figsize=(6.4 * len(measures), 4.4), squeeze=False, layout="constrained"
        )
        for ax, measure in zip(axes[0], measures, strict=True):
            _plot(ax, curves, measure)
        seeds = sorted({len(found) for curve in curves for found in curve.points.values()})
        n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
        figure.suptitle(f"{name}: mean ± standard deviation over seeds, {n}", fontsize=10)
        return _save(figure, path)


def _save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as .png and .svg, and close it."""
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        with replacing(file) as partial:
            # without the date and the version, the same results give the same bytes
            plain = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(partial, format=file.suffix[1:], dpi=150, metadata=plain)
    plt.close(figure)
    return written


def _plot(ax: Axes, curves: Sequence[Curve], measure: str) -> None:
    # from dark to light, so that the curves are told apart in grey too
    colours = matplotlib.colormaps["viridis"]
    others = sum(not curve.single for curve in curves)
    shown = 0
    for i, curve in enumerate(curves):
        dimensions = list(curve.points)
        means = [curve.mean(d, measure) for d in dimensions]
        bars = [statistics.stdev(v) if len(v := curve.values(d, measure)) > 1 else 0.0 for d in dimensions]
        if curve.single:
            look: dict[str, Any] = {"color": "black", "linestyle": "--", "zorder": 3}
        else:
            look = {"color": colours(0.85 * shown / max(others - 1, 1))}
            shown += 1
        # each curve a little aside, so that error bars don't hide one another
        beside = [d * 2 ** (0.03 * (i - len(curves) / 2)) for d in dimensions]
        for place, d in zip(beside, dimensions, strict=True):  # each seed as a dot: a mean can hide one that is far off
            values = curve.values(d, measure)
            ax.plot([place] * len(values), values, ".", markersize=3, alpha=0.6, color=look["color"], zorder=4)
        ax.errorbar(beside, means, yerr=bars, marker=MARKERS[i % len(MARKERS)], capsize=3, label=curve.label, **look)
    ticks = sorted({d for curve in curves for d in curve.points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(d) for d in ticks])
    split, _, metric = measure.partition("_")
    ax.set_xlabel("embedding dimension d (what is served)")
    ax.set_ylabel(f"{split} {NAMES[metric]}")
    ax.legend(frameon=False)
