"""The same points at one rate for all, and at their own -> in what order the methods come: a table, a sentence, dots.

A method's order is that of the means of test AUC over seeds, among methods of about the same served bytes.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from dlrm_mlet.extras import needs
from dlrm_mlet.reporting import figures
from dlrm_mlet.reporting.curves import model_name, spread
from dlrm_mlet.reporting.judging import TEST_AUC, Tables
from dlrm_mlet.reporting.results import Row

with needs("reporting"):
    from scipy import stats

ONE_RATE, OWN_RATES = "cafe-protocol", "rivals-tuned"
"""The experiments: one rate for all, and one for each point, chosen on validation."""
NAMED = ("tables", "served_as")
"""Settings that the arm's name says."""
EDGES = (1 / 8, 1 / 2)
"""Shares of the largest tables' bytes, between which methods are compared."""


@dataclass(frozen=True)
class Method:
    """One point, by both protocols."""

    name: str
    nbytes: int
    one: dict[int, float]
    """Seed -> test AUC at one rate for all."""
    own: dict[int, float]
    """Seed -> test AUC at its own table rate."""
    rate: str

    def of(self, which: str) -> list[float]:
        """Test AUC of all seeds by one of the two protocols, "one" or "own"."""
        return list(getattr(self, which).values())


Groups = dict[str, list[Method]]
"""Range of served bytes -> the methods in it, the best at its own rate first."""


def groups(tables: Tables) -> Groups:
    """All points that both experiments have finished runs of. Raises FileNotFoundError where one wasn't run."""
    one, own = (_points(tables.rows(name)) for name in (ONE_RATE, OWN_RATES))
    found = [_method(one[key], own[key]) for key in one if key in own]
    whole = max((method.nbytes for method in found), default=0)
    parts: dict[int, list[Method]] = {}
    for method in sorted(found, key=lambda method: -statistics.fmean(method.of("own"))):
        parts.setdefault(sum(method.nbytes > edge * whole for edge in EDGES), []).append(method)
    return {_range(parts[place]): parts[place] for place in sorted(parts, reverse=True)}


def _points(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """The finished runs of each point, by what makes it one; tables may differ in what else they varied."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if TEST_AUC in row.measures:
            varied = (f"{key}={value}" for key, value in row.settings.items() if value)
            found.setdefault((row.arm, row.inner_dim, str(row.embedding_dim), *varied), []).append(row)
    return found


def _method(one: Sequence[Row], own: Sequence[Row]) -> Method:
    first = own[0]
    settings = [f"{key.replace('_', ' ')} {value}" for key, value in first.settings.items()
                if value and key not in NAMED]  # fmt: skip
    name = ", ".join([f"{model_name(first.arm, first.inner_dim)} d={first.embedding_dim}", *settings])
    at_one, at_own = ({row.seed: row.measures[TEST_AUC] for row in rows} for rows in (one, own))
    return Method(name, first.served_table_bytes, at_one, at_own, f"{float(first.tuned['table_learning_rate']):g}")


def _range(methods: Sequence[Method]) -> str:
    sizes = sorted(
        {f"{method.nbytes / 1024:,.0f}" for method in methods}, key=lambda text: float(text.replace(",", ""))
    )
    return f"{' to '.join(dict.fromkeys((sizes[0], sizes[-1])))} KiB"


def ranks(methods: Sequence[Method], which: str) -> list[int]:
    """Of each method by the mean of one protocol, 1 being the best."""
    means = [statistics.fmean(method.of(which)) for method in methods]
    return [1 + sum(other > mean for other in means) for mean in means]


def table(tables: Tables) -> list[list[str]]:
    """Every method with its bytes, both results and both ranks, as rows, the first one their head."""
    rows = [["tables served", "method", "KiB", "test AUC, one rate (n)", "rank, one rate",
             "test AUC, its own rate (n)", "rank, its own rate",
             "its table rate"]]  # fmt: skip
    for name, methods in groups(tables).items():
        for method, *both in zip(methods, ranks(methods, "one"), ranks(methods, "own"), strict=True):
            one, own = (f"{spread(values)} ({len(values)})" for values in (method.of("one"), method.of("own")))
            size = f"{method.nbytes / 1024:,.0f}"
            rows.append([name, method.name, size, one, str(both[0]), own, str(both[1]), method.rate])
    return rows


def verdict(tables: Tables) -> str:
    """Kendall's tau of the two orders of each range, and what two seeds of the first have without any change."""
    said = []
    for name, methods in _compared(tables).items():
        seeds = sorted(set.intersection(*(set(method.one) for method in methods)))
        without = [_agreement(methods, seed) for seed in seeds] if len(seeds) > 2 else []
        of_seeds = f" ({min(without):.2f} to {max(without):.2f} with a seed left out)" if without else ""
        by_seed = [[method.one[seed] for method in methods] for seed in seeds]
        if alone := [_tau(a, b) for a, b in combinations(by_seed, 2)]:
            of_seeds += f", {statistics.fmean(alone):.2f} between two single seeds at one rate"
        first = methods[ranks(methods, "one").index(1)].name
        tau = f"Kendall's tau {_agreement(methods):.2f} between the two orders{of_seeds}"
        said.append(
            f"{name}, {len(methods)} methods: {tau}; the best at one rate, {first}, is number "
            f"{_place(methods, first)} at its own"
        )
    return "; ".join(said)


def _compared(tables: Tables) -> Groups:
    """The ranges with an order."""
    return {name: methods for name, methods in groups(tables).items() if len(methods) > 2}


def _place(methods: Sequence[Method], name: str) -> int:
    return next(rank for method, rank in zip(methods, ranks(methods, "own"), strict=True) if method.name == name)


def _agreement(methods: Sequence[Method], without: int | None = None) -> float:
    """Kendall's tau of the two orders, by the means over all seeds but one."""

    def means(of: Sequence[dict[int, float]]) -> list[float]:
        return [statistics.fmean([auc for seed, auc in runs.items() if seed != without]) for runs in of]

    return _tau(means([method.one for method in methods]), means([method.own for method in methods]))


def _tau(one: Sequence[float], other: Sequence[float]) -> float:
    return float(stats.kendalltau(one, other).statistic)


def draw(tables: Tables, path: Path) -> None:
    """Dots for both protocols, a row a method and a panel a range of bytes."""
    shown: dict[str, Mapping[str, tuple[list[float], list[float], str]]] = {}
    for name, methods in _compared(tables).items():
        both = zip(methods, ranks(methods, "one"), ranks(methods, "own"), strict=True)
        shown[name] = {m.name: (m.of("one"), m.of("own"), f"{before} → {after}") for m, before, after in both}
    figures.two_orders(shown, ("one rate of 0.1 for all", "its own table rate"), "test AUC", path)
