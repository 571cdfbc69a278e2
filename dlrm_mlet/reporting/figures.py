"""Curves and measurements -> figures."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_mlet.extras import needs
from dlrm_mlet.reporting import drawing
from dlrm_mlet.reporting.curves import Curve, by_bytes, labels, pareto
from dlrm_mlet.reporting.results import Look, Row, Spectrum

with needs("reporting"):
    from matplotlib.axes import Axes


def over_dimension(curves: Sequence[Curve], measures: Sequence[str], name: str, path: Path) -> None:
    """Each measure against d, one curve a model, the single layer dashed; error bars are standard deviations."""
    n = drawing.count_of(len(found) for curve in curves for found in curve.points.values())
    what = " and ".join(drawing.NAMES[measure.partition("_")[2]].partition(" ")[0] for measure in measures)
    title = f"{what} against the embedding dimension, {name}: mean ± standard deviation, {n}"
    with drawing.panels(path, len(measures), "\n".join(textwrap.wrap(title, 66 * len(measures))), width=7) as axes:
        for ax, measure in zip(axes, measures, strict=True):
            _curves(ax, curves, measure)
        drawing.legend_beside(axes, fontsize=9)


def _curves(ax: Axes, curves: Sequence[Curve], measure: str) -> None:
    others = [curve for curve in curves if not curve.single]
    drawn: list[tuple[float, list[float], str]] = []
    for i, curve in enumerate(curves):
        means = [curve.mean(d, measure) for d in curve.points]
        bars = [_bar(curve.values(d, measure)) for d in curve.points]
        if curve.single:
            look: dict[str, Any] = {"color": "black", "linestyle": "--", "zorder": 3, "marker": "o"}
        else:
            look = drawing.look(others.index(curve))
        # each curve a little aside, so that error bars don't hide one another
        beside = [d * 2 ** (0.03 * (i - len(curves) / 2)) for d in curve.points]
        for place, d in zip(beside, curve.points, strict=True):  # each seed as a dot: a mean can hide one far off
            values = curve.values(d, measure)
            ax.plot([place] * len(values), values, ".", markersize=3, alpha=0.6, color=look["color"], zorder=4)
            drawn.append((place, values, look["color"]))
        label = curve.label if curve.points else f"{curve.label}: all diverged"
        ax.errorbar(beside, means, yerr=bars, capsize=3, label=label, **look)
    _limit(ax, drawn)
    ticks = sorted({d for curve in curves for d in curve.points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(d) for d in ticks])
    split, _, metric = measure.partition("_")
    ax.set_xlabel("embedding dimension d (what is served)")
    ax.set_ylabel(f"{split} {drawing.NAMES[metric]}")


def _bar(values: Sequence[float]) -> float:
    """Half an error bar: the sample standard deviation, 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _limit(ax: Axes, drawn: Sequence[tuple[float, Sequence[float], str]]) -> None:
    """A range by means and usual bars of (place, values, colour); a seed or bar that goes on is a mark at the edge."""
    drawn = [each for each in drawn if each[1]]
    if not drawn:
        return
    means, bars = [statistics.fmean(values) for _, values, _ in drawn], [_bar(values) for _, values, _ in drawn]
    usual = 3 * statistics.median(bars)
    low = min(mean - min(bar, usual) for mean, bar in zip(means, bars, strict=True))
    high = max(mean + min(bar, usual) for mean, bar in zip(means, bars, strict=True))
    margin = 0.05 * (high - low) or 0.001
    low, high = low - margin, high + margin
    ax.set_ylim(low, high)
    label: str | None = "goes on beyond the edge"
    for (place, values, colour), mean, bar in zip(drawn, means, bars, strict=True):
        for edge, mark, goes_on in (
            (low, "v", min(*values, mean - bar) < low), (high, "^", max(*values, mean + bar) > high)
        ):  # fmt: skip
            if goes_on:
                ax.plot([place], [edge], mark, color=colour, markersize=7, clip_on=False, zorder=5, linestyle="")
                if label:  # in grey: of whichever curve
                    ax.plot([], [], mark, color="0.4", markersize=7, label=label, linestyle="")
                label = None


def over_bytes(rows: Sequence[Row], measure: str, name: str, path: Path) -> None:
    """AUC, on validation or test, against served bytes, one curve an arm, and the Pareto front as a line beneath."""
    points = by_bytes(rows, measure)
    n = drawing.count_of(len(point.values) for point in points)
    title = f"AUC against the bytes of the tables, {name}: mean ± standard deviation, {n}"
    with drawing.panels(path, 1, title, width=11, height=5.4) as (ax,):
        front = pareto(points)
        sizes, best = [point.nbytes for point in front], [point.mean for point in front]
        ax.step(sizes, best, where="post", color="0.8", linewidth=5, label="Pareto front")
        drawn = []
        # so that most arms look alike in the figures of all data sets
        arms = sorted({point.arm for point in points}, key=lambda arm: (not arm.startswith(("single", "mlet")), arm))
        for i, arm in enumerate(arms):
            mine = sorted((point.nbytes, point.mean, point.std) for point in points if point.arm == arm)
            drawn += [(point.nbytes, point.values, drawing.look(i)["color"]) for point in points if point.arm == arm]
            sizes, means, bars = (list(column) for column in zip(*mine, strict=True))
            line = "-" if arm.startswith(("single", "mlet", "low-rank", "pruned")) else ""
            ax.errorbar(sizes, means, yerr=bars, capsize=2, linestyle=line, label=arm, **drawing.look(i))
        ax.set_xscale("log", base=2)
        smallest, largest = (extreme(point.nbytes for point in points) for extreme in (min, max))
        ticks = [2**power for power in range(10, 40) if smallest <= 2 ** (power + 1) and 2 ** (power - 1) <= largest]
        ax.set_xticks(ticks, [f"{tick // 1024}" for tick in ticks])
        _limit(ax, drawn)
        ax.set_xlabel("tables as served (KiB)")
        ax.set_ylabel(f"{measure.partition('_')[0]} AUC")
        drawing.legend_beside([ax], fontsize=9)


def two_orders(
    found: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float], str]]],
    names: tuple[str, str],
    measure: str,
    path: Path,
) -> None:
    """Two results of each method, a row a method and a panel a group, with what is to be said of each at the right.

    Open circles are the first result, filled squares the second, dots the seeds; bars are standard deviations, and one
    that is far wider than others runs out at the edge.
    """
    rows = max(map(len, found.values()))
    every = [values for methods in found.values() for one, other, _ in methods.values() for values in (one, other)]
    bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in every]
    reach = [min(bar, 3 * statistics.median(bars)) + 0.002 for bar in bars]
    ends = [(statistics.fmean(v) - r, statistics.fmean(v) + r) for v, r in zip(every, reach, strict=True)]
    n = drawing.count_of(map(len, every))
    title = f"{measure} by {names[0]}, and by {names[1]}: mean ± standard deviation, {n}"
    with drawing.panels(path, len(found), title, 6.8, 1.7 + 0.27 * rows) as axes:
        for ax, (group, methods) in zip(axes, found.items(), strict=True):
            for i, (one, other, _) in enumerate(methods.values()):
                means = [statistics.fmean(values) for values in (one, other)]
                ax.plot(means, [-i, -i], color="0.75", linewidth=1, zorder=1)
                for values, mean, look in (
                    (one, means[0], {"marker": "o", "color": drawing.COLOURS[5], "markerfacecolor": "white"}),
                    (other, means[1], {"marker": "s", "color": drawing.COLOURS[0]}),
                ):
                    bar = statistics.stdev(values) if len(values) > 1 else 0.0
                    ax.plot(values, [-i] * len(values), ".", markersize=3, alpha=0.6, color=look["color"])
                    ax.errorbar(mean, -i, xerr=bar, capsize=3, linestyle="", **look)  # type: ignore[arg-type]
            places = [-i for i in range(len(methods))]
            ax.set_yticks(places, list(methods), fontsize=8)
            ax.set_ylim(-len(methods) + 0.4, 0.6)
            ax.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))
            beside = ax.secondary_yaxis("right")
            beside.set_yticks(places, [said for *_, said in methods.values()], fontsize=8)
            beside.tick_params(length=0)
            beside.spines["right"].set_visible(False)
            ax.set_xlabel(measure)
            ax.set_title(f"{group}; at the right: rank by the one → by the other", fontsize=9)
        axes[0].errorbar(
            [], [], label=names[0], linestyle="", marker="o", color=drawing.COLOURS[5], markerfacecolor="white"
        )
        axes[0].errorbar([], [], label=names[1], linestyle="", marker="s", color=drawing.COLOURS[0])
        axes[0].legend(
            frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.6 / (1.7 + 0.27 * rows)), ncols=2
        )


def spectra(found: Sequence[Spectrum], name: str, path: Path) -> None:
    """Singular values at the end of training as shares of the largest, at the widest d, for the 3 largest tables."""
    d, names, found = max(s.embedding_dim for s in found), labels(found), at_the_end(found)
    found = [s for s in found if s.embedding_dim == d]
    models = {series: label for series, label in names.items() if any(s.series == series for s in found)}
    title = f"{name}: singular values at the end of training, d = {d}, mean and range over seeds"
    with drawing.panels(path, 3, title, width=4.4) as axes:
        for ax, (feature, n) in zip(axes, largest_tables(found)[:3], strict=False):
            for i, (series, label) in enumerate(models.items()):
                mine = [s for s in found if (s.feature, s.series) == (feature, series)]
                shares = list(zip(*([value / s.values[0] for value in s.values] for s in mine), strict=True))
                means = [statistics.fmean(share) for share in shares]
                low = [mean - min(share) for mean, share in zip(means, shares, strict=True)]
                high = [max(share) - mean for mean, share in zip(means, shares, strict=True)]
                beside = [rank + 0.12 * (i - (len(models) - 1) / 2) for rank in range(1, d + 1)]
                ax.errorbar(beside, means, yerr=[low, high], capsize=2, label=label, **drawing.look(i))
            ax.axhline(0.01, color="black", linestyle=":", linewidth=1, label="the paper's 1 %")
            ax.set_yscale("log")
            ax.set_xlabel("singular value, from the largest")
            ax.set_ylabel("share of the largest")
            ax.set_title(f"{feature}, n = {n:,}", fontsize=10)
        axes[0].legend(frameon=False, fontsize=8)


def at_the_end(found: Sequence[Spectrum]) -> list[Spectrum]:
    """Those at the last step of their run."""
    last: dict[tuple[object, ...], int] = {}
    for s in found:
        last[s.run] = max(s.step, last.get(s.run, 0))
    return [s for s in found if s.step == last[s.run]]


def largest_tables(found: Sequence[Spectrum]) -> list[tuple[str, int]]:
    """Features and their n, from the largest table down."""
    return sorted({(s.feature, s.num_embeddings) for s in found}, key=lambda pair: -pair[1])


def growth(found: Sequence[Spectrum], name: str, path: Path) -> None:
    """The singular values of the table that grew most against the step, one panel a model, at the widest d."""
    d = max(s.embedding_dim for s in found)
    names = labels(found)
    found = [s for s in found if s.embedding_dim == d]
    feature, n = max(largest_tables(found), key=lambda table: _grown(found, table[0]))
    models = {series: label for series, label in names.items() if any(s.series == series for s in found)}
    title = f"{name}: growth of the singular values of {feature} (n = {n:,}), the most of all, d = {d}, mean over seeds"
    with drawing.panels(path, len(models), title, width=4.4) as axes:
        for ax, (series, label) in zip(axes, models.items(), strict=True):
            mine = [s for s in found if (s.feature, s.series) == (feature, series)]
            steps = sorted({s.step for s in mine})
            for rank in range(d):
                means = [statistics.fmean(s.values[rank] for s in mine if s.step == step) for step in steps]
                ax.plot(steps, means, label=f"{rank + 1}", **drawing.look(rank))
            ax.set_xlabel("step")
            ax.set_ylabel("singular value")
            ax.set_title(label, fontsize=10)
        axes[0].legend(frameon=False, fontsize=8, ncols=2, title="from the largest")
        limits = [limit for ax in axes for limit in ax.get_ylim()]
        for ax in axes:
            ax.set_ylim(0, max(limits))


def over_steps(looks: Sequence[Look], name: str, path: Path) -> None:
    """Validation AUC and LogLoss against the step, a curve a model and d: the mean, and a band of the seeds' range."""
    names = labels(looks)
    models = list(dict.fromkeys((look.series, look.embedding_dim) for look in looks))
    with drawing.panels(path, 2, f"{name}: validation while training, mean and range over seeds") as axes:
        for ax, measure in zip(axes, ("auc", "log_loss"), strict=True):
            for i, (series, d) in enumerate(models):
                by_step: dict[int, list[float]] = {}
                for look in looks:
                    if (look.series, look.embedding_dim) == (series, d):
                        by_step.setdefault(look.step, []).append(getattr(look, measure))
                steps, values = list(by_step), list(by_step.values())
                style = drawing.look(i)
                label = f"{names[series]} d={d}"
                ax.plot(steps, [statistics.fmean(its) for its in values], label=label, markevery=0.25, **style)
                ax.fill_between(steps, list(map(min, values)), list(map(max, values)), alpha=0.15, color=style["color"])
            ax.set_xlabel("step")
            ax.set_ylabel(f"validation {drawing.NAMES[measure]}")
        axes[0].legend(frameon=False, fontsize=8)


def _grown(found: Sequence[Spectrum], feature: str) -> float:
    """How much larger the largest singular values of a table are at the end than at the start, in the mean."""
    mine = [s for s in found if s.feature == feature]
    start = min(s.step for s in mine)
    ends = [[s.values[0] for s in its] for its in (at_the_end(mine), [s for s in mine if s.step == start])]
    return statistics.fmean(ends[0]) - statistics.fmean(ends[1])


def equation_6(changes: Sequence[Mapping[str, str]], path: Path) -> None:
    """Measured against predicted change of each singular value in a step, one panel a start."""
    starts = list(dict.fromkeys(change["start"] for change in changes))
    layers = sorted({change["layers"] for change in changes})
    with drawing.panels(path, len(starts), "equation 6 on a linear problem: change of each singular value in one step",
                 width=5.4) as axes:  # fmt: skip
        for ax, start in zip(axes, starts, strict=True):
            for i, count in enumerate(layers):
                mine = [c for c in changes if (c["start"], c["layers"]) == (start, count)]
                x, y = ([abs(float(c[key])) for c in mine] for key in ("predicted", "measured"))
                look = drawing.look(i)
                ax.plot(x, y, look["marker"], color=look["color"], markersize=3, alpha=0.6, label=f"N = {count}")
            ends = [min(abs(float(c["predicted"])) for c in changes), max(abs(float(c["predicted"])) for c in changes)]
            ax.plot(ends, ends, color="black", linewidth=1)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel("predicted by equation 6")
            ax.set_ylabel("measured")
            ax.set_title(start, fontsize=10)
            ax.legend(frameon=False)


def steps(result: Mapping[str, Any], path: Path) -> None:
    """Table 2: a step's time at each point, the textbook's, ours and the floor's; on a GPU the plain step's too."""
    points = result["points"]
    looks = {"textbook": "0.75", "plain": "#35b779", "ours": "#31688e", "floor": "0.1"}
    names = [name for name in looks if f"{name}_ms" in points[0]]
    width = 0.8 / len(names)
    title = f"{result['device']}: median and quartiles over {result['rounds']} rounds"
    with drawing.panels(path, 1, title, width=9) as (ax,):
        places = range(len(points))
        for i, name in enumerate(names):
            medians = [point[f"{name}_ms"] for point in points]
            quartiles = [point[f"{name}_ms_quartiles"] for point in points]
            below = [max(m - low, 0) for m, (low, _) in zip(medians, quartiles, strict=True)]
            above = [max(high - m, 0) for m, (_, high) in zip(medians, quartiles, strict=True)]
            at = [place + (i - (len(names) - 1) / 2) * width for place in places]
            ax.bar(at, medians, width, yerr=[below, above], capsize=1.5, label=name, color=looks[name])
        ax.set_xticks(places, [f"{point['inner_dim'] or '–'}\n{point['embedding_dim']}" for point in points])
        ax.set_xlabel("inner dimension k (–: single layer), and below it the embedding dimension d")
        ax.set_ylabel(f"ms per step of {result['batch_size']} rows")
        ax.legend(frameon=False, ncols=len(names), loc="upper left")
        highest = max(point["textbook_ms_quartiles"][1] for point in points)
        if "plain" in names:  # of another order of magnitude
            ax.set_yscale("log")
            ax.set_ylim(0.08, 4 * highest)
        else:
            ax.set_ylim(0, 1.15 * highest)
