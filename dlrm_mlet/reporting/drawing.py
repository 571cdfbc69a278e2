"""Panels to draw on -> PNG and SVG, the same bytes each time; colours and marks that are told apart in grey."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlrm_mlet.extras import needs
from dlrm_mlet.files import replacing

with needs("reporting"):
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.ticker import LogFormatter, NullFormatter

matplotlib.use("Agg")

NAMES = {"auc": "AUC", "log_loss": "LogLoss (nats)"}
MARKERS = "s^Dv<>P*Xdphx+"
STYLE: Any = {
    "font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "svg.hashsalt": "dlrm_mlet",
    "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
}  # fmt: skip


@contextmanager
def panels(
    path: Path, count: int, title: str, width: float = 6.4, height: float = 4.4, rows: int = 1
) -> Iterator[Sequence[Axes]]:
    """Rows of `count` panels each to draw on, written to `path`.png and .svg afterwards; width and height are one's."""
    with plt.rc_context(STYLE):
        size = width * count, height * rows
        figure, axes = plt.subplots(rows, count, figsize=size, squeeze=False, layout="constrained")
        yield list(axes.flat)
        for axis in (axis for ax in axes.flat for axis in (ax.xaxis, ax.yaxis)):
            if isinstance(axis.get_major_formatter(), LogFormatter):  # writes mathematics, which isn't parsed
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        figure.suptitle(title, fontsize=10)
        for file in files(path):
            with replacing(file) as partial:
                # without the date and the version, the same results give the same bytes
                plain = {"Date": None} if file.suffix == ".svg" else {"Software": None}
                figure.savefig(partial, format=file.suffix[1:], dpi=150, metadata=plain)
        plt.close(figure)


def files(path: Path) -> list[Path]:
    """The files of a figure."""
    return [path.parent / f"{path.name}.png", path.parent / f"{path.name}.svg"]


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31")
"""Of Okabe and Ito (2008) but for the last, told apart by those too who see colours otherwise; marks do it in grey."""


def count_of(counts: Iterable[int]) -> str:
    """Of the seeds behind points."""
    found = sorted(set(counts))
    return f"n = {' to '.join(str(count) for count in dict.fromkeys((found[0], found[-1])))}"


def look(i: int) -> dict[str, Any]:
    """Colour and mark of the i-th of several; a mark is hollow where its colour was there before."""
    hollow = {"markerfacecolor": "white"} if i // len(COLOURS) % 2 else {}
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], **hollow}


def legend_beside(axes: Sequence[Axes], **how: Any) -> None:
    """One legend of all panels at their right, where it covers nothing; what several panels have is there once."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[0].figure.legend(found.values(), found.keys(), frameon=False, loc="outside right upper", **how)
