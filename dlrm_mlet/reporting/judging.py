"""What a claim is judged by: tables of results, paired differences, and a rule for the verdict."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlrm_mlet.reporting import results
from dlrm_mlet.reporting.curves import Curve, Difference, difference, make_curves, paired_gains
from dlrm_mlet.reporting.results import Row

AUC, LOSS, TEST_AUC, TEST_LOSS = results.MEASURES


class Judgement(NamedTuple):
    """What came out here."""

    ours: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """One row of docs/reproduction.md: a claim of the paper's, or a question that it leaves open."""

    text: str
    paper: str
    """What the paper says of it."""
    experiment: str
    """The table it is read from; its config and its command have the same name."""
    judge: Callable[["Tables"], Judgement]
    """Raises FileNotFoundError where the experiment wasn't run."""


class Tables:
    """The results of one data set, each table read when it is asked for."""

    def __init__(self, directory: Path):
        self.directory = directory

    def rows(self, experiment: str) -> list[Row]:
        """Its rows. Raises FileNotFoundError where the experiment wasn't run."""
        return results.read(self.directory / f"{experiment}.csv")

    def curve(self, experiment: str, arm: str, inner_dim: str = "") -> Curve:
        """One curve of a table, by its arm and inner dimension."""
        for curve in make_curves(self.rows(experiment)):
            if (curve.arm, curve.inner_dim) == (arm, inner_dim):
                return curve
        raise FileNotFoundError(f"{experiment}: no arm {arm} with inner_dim {inner_dim!r}")


def verdict(found: Iterable[Difference]) -> str:
    """Holds: every interval is above 0; in part: some are; does not hold: none is."""
    above = [gain.low > 0 for gain in found]
    return "Holds" if all(above) else "Holds in part" if any(above) else "Does not hold"


def listed(found: Mapping[str, Difference]) -> str:
    """Each difference after its name, and n: once for all where it is the same."""
    if len(counts := {gain.n for gain in found.values()}) == 1:
        return "; ".join(f"{name}: {gain}" for name, gain in found.items()) + f" (n = {counts.pop()})."
    return "; ".join(f"{name}: {gain} (n = {gain.n})" for name, gain in found.items()) + "."


def paired(better: Curve, base: Curve, measure: str = AUC) -> dict[str, Difference]:
    """The gain of the first curve over the second at each d that both have, positive being better."""
    common = [d for d in better.points if d in base.points]
    return {f"d={d}": difference(paired_gains(better.points[d], base.points[d], measure)) for d in common}
