"""How much narrower a table may be at equal AUC: by what factor, for each way of training."""

import contextlib
from collections.abc import Iterator

from dlrm_mlet.reporting import fights
from dlrm_mlet.reporting.curves import Curve, shrink_factors
from dlrm_mlet.reporting.judging import AUC, GRID, PAPER, TEST_AUC, TUNED, Tables, UnlikeRunsError, check_alike


def _factors(tables: Tables) -> Iterator[tuple[str, Curve, dict[int, tuple[int, float] | None]]]:
    """Way of training, a curve (MLET's of each k, then the single layer's), and by the single layer's d its factor."""
    for experiment in (GRID, *fights.NAMES):
        with contextlib.suppress(FileNotFoundError, UnlikeRunsError):  # the latter is said in its own section
            text = f"{PAPER}, SGD" if experiment == GRID else fights.name_of(tables, experiment)
            single = tables.curve(experiment, "single")
            ks = tables.inner_dims(experiment) if experiment == GRID else [tables.mlet(experiment).inner_dim]
            for curve in (*(tables.curve(experiment, "mlet", k) for k in ks), single):
                check_alike(curve.runs, single.runs)
                found = shrink_factors(curve, single, AUC if experiment == GRID else TEST_AUC)
                yield text, curve, {wide: its for wide, its in found.items() if wide >= 8}


def table(tables: Tables) -> list[list[str]]:
    every = list(_factors(tables))
    widths = sorted({wide for *_, found in every for wide in found})
    if not widths:
        raise FileNotFoundError(f"{GRID}, {', '.join(fights.NAMES)}: no single layer of d 8 or more")
    rows = [["rates", "model", *(f"as good as single d={wide}" for wide in widths)]]
    for text, curve, found in every:
        rows.append([text, curve.label, *(_factor(found[wide]) if wide in found else "–" for wide in widths)])
    return rows


def _factor(found: tuple[int, float] | None) -> str:
    return f"{found[1]:g}x (d={found[0]})" if found else "not reached"


def verdict(tables: Tables) -> str:
    said = []
    for name, of_paper in ((PAPER, True), (TUNED, False)):
        mine = [(curve.single, [its[1] if its else 0.0 for its in found.values()])
                for text, curve, found in _factors(tables) if text.startswith(PAPER) is of_paper]  # fmt: skip
        mlet, single = ([f for is_single, its in mine if is_single is wanted for f in its] for wanted in (False, True))
        if mlet:
            parts = (
                f"{least}x or more: MLET at {_many(mlet, least)}, a narrower single layer at {_many(single, least)}"
                for least in (4, 2)
            )
            said.append(f"{name} {', '.join(parts)}")
    return "; ".join(said)


def _many(factors: list[float], least: int) -> str:
    """How many are so large, of all pairs of a model and a wide d."""
    return f"{sum(factor >= least for factor in factors)} of {len(factors)}"
