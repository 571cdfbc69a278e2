"""The fair fights, in which both sides have rates of their own: what each gives, and what all give together."""

import contextlib
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dlrm_mlet.reporting import forest, trained
from dlrm_mlet.reporting.curves import Curve, make_curves
from dlrm_mlet.reporting.judging import (
    TEST_AUC,
    TEST_LOSS,
    TUNED,
    Gains,
    Point,
    Tables,
    UnlikeRunsError,
    check_alike,
    gains_by_seed,
    jointly,
    levels,
    paired,
    paired_gains,
)

NAMES = {  # of the experiment: what it is of, in words
    "fair-fight-sgd": "DLRM, plain SGD, batch 128",
    "fair-fight-sgd-linear": "DLRM, SGD with rates that fall to zero, batch 128",
    "fair-fight-adagrad": "DLRM, Adagrad (row-wise for the tables), batch 128",
    "fair-fight-adam": "DLRM, Adam, batch 128",
    "fair-fight-adam-512": "DLRM, Adam, batch 512",
    "fair-fight-lazy-adam": "DLRM, lazy Adam, batch 128",
    "fair-fight-lazy-adam-512": "DLRM, lazy Adam, batch 512",
    "deepfm-adam": "DeepFM, Adam, batch 512",
    "dcnv2-adam": "DCN-V2, Adam, batch 512",
    "autoint-adam": "AutoInt, Adam, batch 512",
}
DLRM = tuple(name for name in NAMES if name.startswith("fair-fight"))
"""Those of the paper's model."""
CONTROLLED, CONTROLS = "fair-fight-adam-512", "controls-adam-512"
"""A fight, and other kinds of MLET that were searched and trained as its two sides were."""
IN_DEEPFM = {
    "MLET": "mlet",
    "MLET, W2 of another run, fixed": "learned",
    "MLET, that W2 as d x d, fixed": "learned-square",
    "MLET, W2 random, fixed": "frozen",
    "MLET, one W2 for all tables": "shared",
    "MLET, k = d": "square",
    "plain, MLET's start": "starts-as-mlet",
    "plain, dropout 0.1": "dropout-0.1",
    "plain, dropout 0.3": "dropout-0.3",
    "plain, L2 0.01": "l2-0.01",
    "plain, L2 0.1": "l2-0.1",
    "plain, L2 1": "l2-1",
}
"""Arms of the controls of DeepFM, by what they are called, beside its plain tables."""
OTHERS = frozenset({*NAMES, "deepfm-controls"} - {*DLRM})
"""Those that scripts/other_models.py makes."""
DIMENSIONS = {2, 4, 8, 16}
"""Of the fights, where not told otherwise."""
SIDES = ("MLET ahead", "single layer ahead", "not decided")


def gains(tables: Tables, experiment: str) -> Gains:
    """MLET over the single layer at each d, on test."""
    mlet, single = tables.mlet(experiment), tables.curve(experiment, "single")
    return paired(mlet, single, TEST_AUC) | paired(mlet, single, TEST_LOSS)


def name_of(tables: Tables, experiment: str) -> str:
    """What a fight is of, in words: by its name, and where its runs were trained otherwise, by these.

    Raises FileNotFoundError where it wasn't run.
    """
    how = trained.otherwise(experiment, tables.rows(experiment))
    return f"{NAMES[experiment].partition(',')[0]}, {how} ({experiment})" if how else NAMES[experiment]


def table(tables: Tables, experiment: str) -> list[list[str]]:
    """Both sides at each d: scores, divergences, how many settings the search tried, and what a run takes."""
    sides = (tables.curve(experiment, "single"), tables.mlet(experiment))
    try:
        trials = tables.rows(f"{experiment}-trials")
    except FileNotFoundError:  # not kept
        trials = []
    found = [["model", "d", "n", "diverged", "test AUC, mean", "std", "settings tried",
              "s a run, median, beside other work", "on"]]  # fmt: skip
    for side in sides:
        for row in levels([side], TEST_AUC):
            runs = side.points.get(d := int(row[1]), [])
            tried = {tuple(trial.tuned.values()) for trial in trials
                     if (trial.arm, trial.inner_dim, trial.embedding_dim) == (side.arm, side.inner_dim, d)}  # fmt: skip
            took = f"{statistics.median(run.seconds for run in runs):.1f}" if runs else "–"
            where = "; ".join(dict.fromkeys(run.provenance["device"] for run in runs))
            found.append([*row, str(len(tried)) if trials else "not kept", took, where or "–"])
    return found


def options(tables: Tables, experiment: str) -> str:
    """What scripts/other_models.py is to be told to make the table that is there: its arms and widths, if not all."""
    rows = tables.rows(experiment)
    widths = dict.fromkeys(row.embedding_dim for row in rows)
    arms = dict.fromkeys(row.arm for row in rows)
    every = IN_DEEPFM.values() if experiment.endswith("controls") else ("mlet", "frozen")
    said = "" if {"single", *every} == {*arms} else f" --arms {' '.join(arms)}"
    return said + ("" if {*widths} == DIMENSIONS else f" --embedding-dim {' '.join(map(str, widths))}")


def singles(tables: Tables) -> list[tuple[Curve, str]]:
    """The single layer of each of DLRM's fights that was run. Raises FileNotFoundError where none was."""
    return [(single, text) for _, single, text in _of_each(tables, DLRM)]


def together(tables: Tables) -> Gains:
    """MLET's gain at each d and at all, of each seed the mean over DLRM's fights."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for mlet, single, _ in _of_each(tables, DLRM):
        for d in mlet.points.keys() & single.points.keys():
            for seed, gain in gains_by_seed(mlet.points[d], single.points[d], TEST_AUC).items():
                for name in (f"d={d}", "all d"):
                    found.setdefault((name, TEST_AUC), {}).setdefault(seed, []).append(gain)
    return {
        key: [statistics.fmean(its) for its in found[key].values()] for key in sorted(found, key=lambda key: _d(key[0]))
    }


def pairs(tables: Tables) -> list[list[str]]:
    """How many pairs of runs `together` is the mean of at each d, and how many lack a side."""
    made: dict[int, int] = {}
    lost: dict[int, int] = {}
    for mlet, single, _ in _of_each(tables, DLRM):
        for d in _widths(mlet) & _widths(single):
            whole = len(gains_by_seed(mlet.points.get(d, []), single.points.get(d, []), TEST_AUC))
            runs = (len(side.points.get(d, [])) + side.diverged.get(d, 0) for side in (mlet, single))
            made[d], lost[d] = made.get(d, 0) + whole, lost.get(d, 0) + max(runs) - whole
    return [
        ["d", "pairs of runs", "without one of the two"],
        *([str(d), str(made[d]), str(lost[d])] for d in sorted(made)),
    ]


def _widths(curve: Curve) -> set[int]:
    """The d that it was run at, be it that all runs diverged."""
    return {*curve.points, *curve.diverged}


def _d(name: str) -> float:
    d = name.removeprefix("d=")
    return int(d) if d.isdigit() else math.inf


def draw(tables: Tables, path: Path) -> None:
    """MLET's gain of test AUC, a row a fight and a panel a d, with the interval that it has in its own section."""
    found: dict[str, list[Point]] = {}
    rows: dict[str, None] = {}  # in their order, which isn't a panel's: not every fight has every d
    for name in NAMES:
        with contextlib.suppress(FileNotFoundError, UnlikeRunsError):
            text = name_of(tables, name)
            joint = jointly({(TUNED, *key): values for key, values in gains(tables, name).items()})
            for (_, d, measure), gain in joint.items():
                if measure == TEST_AUC:
                    side = SIDES[0 if gain.low > 0 else 1 if gain.high < 0 else 2]
                    found.setdefault(d, []).append(Point(side, text, measure, gain, (name,)))
                    rows[text] = None
    title = f"{tables.directory.name}: MLET over the single layer of the same d, each with its own best rates"
    forest.side_by_side({d: found[d] for d in sorted(found, key=_d)}, list(rows), SIDES, title, path)


def half_as_wide(tables: Tables) -> Gains:
    """MLET at d over the single layer at 2d, in each fight, on test. Raises FileNotFoundError where none has both."""
    found: dict[tuple[str, str], list[float]] = {}
    there = False
    for mlet, single, text in _of_each(tables, NAMES):
        there |= any(2 * d in _widths(single) for d in _widths(mlet))
        for d in mlet.points:
            if its := paired_gains(mlet.points[d], single.points.get(2 * d, []), TEST_AUC):
                found[f"{text}, d={d} over {2 * d}", TEST_AUC] = its
    if not there:
        raise FileNotFoundError("no fair fight has MLET at half a single layer's d")
    return found


def controls_over_single(tables: Tables) -> Gains:
    """MLET's kinds over the fight's single layer, and before them the fight's MLET at the same d."""
    kinds = make_curves(tables.rows(CONTROLS))
    single, mlet = tables.curve(CONTROLLED, "single"), tables.mlet(CONTROLLED)
    widths = {d for kind in kinds for d in kind.points}
    first = replace(mlet, label=f"the fight's {mlet.label}",
                    points={d: runs for d, runs in mlet.points.items() if d in widths})  # fmt: skip
    found: dict[tuple[str, str], list[float]] = {}
    for curve in (first, *kinds):
        found |= paired(curve, single, TEST_AUC, f"{curve.label}, ")
    return found


def mlet_over_controls(tables: Tables) -> Gains:
    """The fight's MLET over its other kinds."""
    mlet = tables.mlet(CONTROLLED)
    found: dict[tuple[str, str], list[float]] = {}
    for kind in make_curves(tables.rows(CONTROLS)):
        found |= paired(mlet, kind, TEST_AUC, f"{kind.label}, ")
    return found


def _of_each(tables: Tables, names: Iterable[str]) -> list[tuple[Curve, Curve, str]]:
    """MLET and the single layer of each that was run, and for as many steps: its own section says where not.

    Raises FileNotFoundError where there is none.
    """
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError, UnlikeRunsError):
            mlet, single = tables.mlet(name), tables.curve(name, "single")
            check_alike(mlet.runs, single.runs)
            found.append((mlet, single, name_of(tables, name)))
    if not found:
        raise FileNotFoundError("no fair fight")
    return found
