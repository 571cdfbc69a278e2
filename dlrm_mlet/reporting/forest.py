"""Paired differences with their intervals -> forest plots."""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dlrm_mlet.extras import needs
from dlrm_mlet.reporting import drawing
from dlrm_mlet.reporting.curves import Difference

with needs("reporting"):
    from matplotlib.axes import Axes


Looks = Mapping[str, Mapping[str, Any]]
"""Colour and mark of each group."""


class Point(Protocol):
    """A difference to be drawn: see judging.Point."""

    @property
    def group(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def measure(self) -> str: ...
    @property
    def gain(self) -> Difference: ...


def differences(
    found: Mapping[str, Sequence[Point]], groups: Sequence[str], margin: float | None, title: str, path: Path
) -> None:
    """A claim's differences with their intervals, a row a point and a panel a data set; groups by colour and mark.

    Points of a second metric, as LogLoss beside AUC, are in panels below. The range is that of the means and of usual
    intervals: one that is far wider runs out at the edge, where an arrow says so. `margin` is shaded: within it,
    differences count as none.
    """
    there = {point.group for points in found.values() for point in points}
    looks = {group: drawing.look(i) for i, group in enumerate(group for group in groups if group in there)}
    metrics = list(dict.fromkeys(_metric(point) for points in found.values() for point in points))
    panels = [
        (name, [point for point in points if _metric(point) == metric])
        for metric in metrics
        for name, points in found.items()
    ]
    height = 1.5 + 0.24 * max(len(points) for _, points in panels)
    with drawing.panels(path, len(found), _wrapped(title, 50 * len(found)), 5.6, height, len(metrics)) as axes:
        for ax, (name, points) in zip(axes, panels, strict=True):
            if not points:
                ax.set_axis_off()
                continue
            if margin is not None:
                ax.axvspan(-margin, margin, color="0.85", zorder=0)
            _rows(ax, points, range(len(points)), looks, _range(points))
            names = [point.name + (" (one seed)" if point.gain.n == 1 else "") for point in points]
            ax.set_yticks([-i for i in range(len(points))], names, fontsize=8)
            ax.set_ylim(-len(points) + 0.4, 0.6)
            ax.set_xlabel(f"gain of {_measure(points)}, positive is better")
            ax.set_title(name, fontsize=10)
        if len(looks) > 1:
            handles = _handles(axes[0], looks)
            axes[0].figure.legend(
                handles=handles, frameon=False, fontsize=8, loc="outside lower center", ncols=len(looks)
            )


def side_by_side(
    found: Mapping[str, Sequence[Point]], names: Sequence[str], groups: Sequence[str], title: str, path: Path
) -> None:
    """Differences that have one of the names in several panels: its row goes through them all, on one range.

    The last of the groups is drawn in grey.
    """
    everything = [point for points in found.values() for point in points]
    height = 1.2 + 0.24 * len(names)
    looks = {group: drawing.look(i) for i, group in enumerate(groups)}
    looks[groups[-1]] = {"color": "0.55", "marker": "o"}
    width = 2.6 + 0.08 * max(map(len, names)) / len(found)  # inches; a letter of the names takes 0.08
    with drawing.panels(path, len(found), title, width, height) as axes:
        for ax, (panel, points) in zip(axes, found.items(), strict=True):
            _rows(ax, points, [names.index(point.name) for point in points], looks, _range(everything))
            ax.set_yticks([-i for i in range(len(names))], names if ax is axes[0] else [""] * len(names), fontsize=9)
            ax.set_ylim(-len(names) + 0.4, 0.6)
            ax.set_xlabel(f"gain of {_measure(points)}")
            ax.set_title(panel, fontsize=10)
        handles = _handles(axes[0], looks)
        axes[0].figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=len(looks))


def _rows(ax: Axes, points: Sequence[Point], rows: Sequence[int], looks: Looks, ends: tuple[float, float]) -> None:
    for row, point in zip(rows, points, strict=True):
        gain, look = point.gain, looks[point.group]
        reach = [[gain.mean - gain.low], [gain.high - gain.mean]] if gain.n > 1 else None
        ax.errorbar(gain.mean, -row, xerr=reach, capsize=3, linestyle="", **look)
        for goes_on, end, mark in ((gain.low < ends[0], ends[0], "<"), (gain.high > ends[1], ends[1], ">")):
            if gain.n > 1 and goes_on:
                ax.plot([end], [-row], mark, color=look["color"], markersize=6, clip_on=False)
    ax.set_xlim(*ends)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.tick_params(axis="x", labelsize=8)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.locator_params(axis="x", nbins=5)  # more numbers run into each other


def _range(points: Sequence[Point]) -> tuple[float, float]:
    means = [point.gain.mean for point in points]
    usual = statistics.median((point.gain.high - point.gain.low) / 2 for point in points)
    usual = usual if 0 < usual < math.inf else 0.2 * max(map(abs, means)) or 0.001
    return min(0.0, *means) - 1.6 * usual, max(0.0, *means) + 1.6 * usual


def _metric(point: Point) -> str:
    """What is measured, be it on validation or on test."""
    return point.measure.partition("_")[2]


def _measure(points: Sequence[Point]) -> str:
    metric = _metric(points[0])
    if metric not in drawing.NAMES:
        return points[0].measure
    splits = dict.fromkeys(point.measure.partition("_")[0] for point in points)
    return f"{' or '.join(splits)} {drawing.NAMES[metric]}"


def _handles(ax: Axes, looks: Looks) -> list[Any]:
    return [ax.errorbar([], [], label=group, linestyle="", **look) for group, look in looks.items()]


def _wrapped(title: str, width: int) -> str:
    return "\n".join(textwrap.wrap(title, width))
