"""Scores by the tables' learning rate -> figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_mlet.config import TrainingConfig
from dlrm_mlet.reporting import drawing
from dlrm_mlet.reporting.results import Row
from dlrm_mlet.reporting.step_law import by_row_rate, larger_step


def over_table_rate(trials: Mapping[str, Sequence[Row]], paper: float, name: str, path: Path) -> None:
    """Validation AUC against the tables' learning rate, a panel per optimizer, single layer and MLET side by side.

    `trials` are those that differ in the tables' rate alone; `paper` is the rate that the paper has for everything.
    """
    points = [[(row.embedding_dim, row.inner_dim, row.tuned["table_learning_rate"]) for row in rows]
              for rows in trials.values()]  # fmt: skip
    n = drawing.count_of(its.count(one) for its in points for one in its)
    title = f"DLRM on {name}: mean ± standard deviation, {n}"
    with drawing.panels(path, len(trials), title, width=5.2) as axes:
        for ax, (optimizer, rows) in zip(axes, trials.items(), strict=True):
            models = dict.fromkeys((row.embedding_dim, row.inner_dim) for row in rows)
            for d, inner_dim in sorted(models, key=lambda model: (model[1] != "", model[0])):
                mine = [row for row in rows if (row.embedding_dim, row.inner_dim) == (d, inner_dim)]
                rates = sorted({float(row.tuned["table_learning_rate"]) for row in mine})
                by_rate = [[row.measures["validation_auc"] for row in mine
                            if float(row.tuned["table_learning_rate"]) == rate] for rate in rates]  # fmt: skip
                ax.errorbar(
                    rates,
                    [statistics.fmean(values) for values in by_rate],
                    [statistics.stdev(values) if len(values) > 1 else 0.0 for values in by_rate],
                    label=f"MLET k={inner_dim}, d={d}" if inner_dim else f"single layer, d={d}",
                    color="#31688e" if inner_dim else "black",
                    linestyle="-" if inner_dim else "--",
                    marker="s" if d == max(models)[0] else "o",
                    capsize=2,
                )
            if optimizer == "SGD":
                ax.axvline(paper, color="0.5", linestyle=":")
                ax.annotate(f"the paper's {paper}", (paper, 0.03), xycoords=("data", "axes fraction"), xytext=(4, 0),
                            textcoords="offset points", color="0.35", fontsize=9)  # fmt: skip
            ax.set_xscale("log")
            ax.set_xlabel("learning rate of the tables")
            ax.set_ylabel("validation AUC")
            others = rows[0].tuned.get("learning_rate")
            ax.set_title(f"{optimizer}, the MLPs at {others}" if others else optimizer, fontsize=10)
            ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def over_row_rate(rows: Sequence[Row], paper: float, name: str, path: Path) -> None:
    """Validation AUC against table rate / batch size, a curve a batch size, a panel for each model.

    `paper` is the paper's rate for everything. A cross at the foot is a rate at which some seed diverged.
    """
    found = by_row_rate(rows)
    models = list(dict.fromkeys(model for model, _ in found))
    sizes = sorted({size for _, size in found})
    ticks = sorted({rate for scores in found.values() for rate in scores})
    seeds = len({row.seed for row in rows})
    title = f"{name}: mean ± standard deviation over {seeds} seeds; x: a seed diverged"
    with drawing.panels(path, len(models), title, width=6.2) as axes:
        for ax, model in zip(axes, models, strict=True):
            for i, size in enumerate(sizes):
                scores = found.get((model, size), {})
                whole = {rate: values for rate, values in scores.items() if values}
                look, aside = drawing.look(i), 2 ** (0.06 * i)  # so that error bars don't hide one another
                means = [statistics.fmean(values) for values in whole.values()]
                bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in whole.values()]
                ax.errorbar([rate * aside for rate in whole], means, bars, capsize=2, label=f"B = {size}", **look)
                lost = [rate * aside for rate, values in scores.items() if not values]
                ax.plot(lost, [0.03 * (i + 1)] * len(lost), "x", color=look["color"],
                        transform=ax.get_xaxis_transform())  # fmt: skip
            its = paper / TrainingConfig.batch_size * larger_step(model.inner_dim)
            ax.axvline(its, color="0.5", linestyle=":")
            ax.annotate(f"the paper's {paper}\nat B = {TrainingConfig.batch_size}", (its, 0.97),
                        xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", color="0.35",
                        fontsize=9, verticalalignment="top")  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks], fontsize=9)
            ax.set_xlabel("table learning rate / B" + (f" · k/16 (k = {model.inner_dim})" if model.inner_dim else ""))
            ax.set_ylabel("validation AUC")
            ax.set_title(f"{model.label}, d={model.embedding_dim}", fontsize=10)
        drawing.legend_beside(axes, fontsize=9)
        drawn = {model for (model, _), scores in found.items() if any(scores.values())}
        limits = [limit for ax, model in zip(axes, models, strict=True) if model in drawn for limit in ax.get_ylim()]
        for ax in axes if limits else ():
            ax.set_ylim(min(limits), max(limits))


def over_rate(scores: Mapping[str, Mapping[float, Sequence[float]]], measure: str, path: Path) -> None:
    """Scores of several models against the tables' learning rate; what diverged isn't drawn, the best is ringed."""
    with drawing.panels(path, 1, f"{measure} by the tables' learning rate: seeds, mean ± standard deviation") as (ax,):
        for i, (name, rates) in enumerate(scores.items()):
            whole = {rate: found for rate, found in rates.items() if all(map(math.isfinite, found))}
            look: dict[str, Any] = drawing.look(i) | {"linestyle": "--" if i == 0 else "-"}
            beside = [rate * 2 ** (0.06 * i) for rate in whole]  # so that error bars don't hide one another
            means = [statistics.fmean(found) for found in whole.values()]
            bars = [statistics.stdev(found) if len(found) > 1 else 0.0 for found in whole.values()]
            ax.errorbar(beside, means, yerr=bars, capsize=3, label=name, **look)
            for place, found in zip(beside, whole.values(), strict=True):
                ax.plot([place] * len(found), found, ".", markersize=3, alpha=0.6, color=look["color"])
            if means:
                best = means.index(max(means))
                ax.plot(beside[best], means[best], "o", markersize=14, fillstyle="none", color=look["color"])
        ticks = sorted({rate for rates in scores.values() for rate in rates})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xlabel("learning rate of the tables")
        ax.set_ylabel(measure)
        ax.legend(frameon=False)
