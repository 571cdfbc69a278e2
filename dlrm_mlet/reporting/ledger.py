"""What came out of each claim -> claims.csv: a row for every number of the page's tables."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dlrm_mlet.reporting import judging
from dlrm_mlet.reporting.judging import Claim, Point

COLUMNS = ("claim", "dataset", "group", "point", "measure", "mean", "std", "low", "high", "n", "level", "verdict",
           "tables")  # fmt: skip
TABLE = "table"
"""The group of a number that isn't a difference, but a cell of the claim's table: `measure` is the column's head."""
VERDICTS = {1: "for", -1: "against", 0: "open"}
DIMENSIONS = ("d", "k", "B")
NUMBER = re.compile(r"([+-]?[\d,]*\.?\d+)(?: ± (\d*\.\d+))?(?:x| %)?(?: \((?:(\d+)|[^)]+)\))?")
RANGE = re.compile(r"([+-]?\d*\.?\d+) to ([+-]?\d*\.?\d+)")


@dataclass(frozen=True)
class Outcome:
    """What came out of a claim on one data set."""

    points: list[Point]
    table: list[list[str]]
    said: str
    """The verdict of a claim without points."""
    tables: frozenset[str]
    """The experiments that there are records of."""
    pictures: tuple[str, ...] = ()
    """Those of the claim's that lie beside its tables, from the directory of results on."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What other_models.py needs to make a table as it is there."""
    refused: bool = False
    """A table can't be judged: `said` says why."""

    def of(self, group: str) -> list[Point]:
        """The points of one group."""
        return [point for point in self.points if point.group == group]


Outcomes = dict[str, Outcome]
"""Data set -> outcome, where there are records."""


def as_csv(judged: Sequence[tuple[Claim, Outcomes]]) -> str:
    """The text of claims.csv: differences with their interval, its level and their verdict; then the tables' cells."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for claim, found in judged:
        for dataset, outcome in found.items():
            where = {"claim": claim.name, "dataset": dataset}
            for point in outcome.points:
                writer.writerow(where | _of_point(claim, point) | {"tables": _named(dataset, point.sources, outcome)})
            for cell in _of_table(outcome.table):
                read_from = {"tables": _named(dataset, claim.experiments, outcome)}
                writer.writerow(where | {"group": TABLE} | cell | read_from)
    return buffer.getvalue()


def _named(dataset: str, experiments: Sequence[str], outcome: Outcome) -> str:
    return " ".join(f"{dataset}/{name}.csv" for name in experiments if name in outcome.tables)


def _of_point(claim: Claim, point: Point) -> dict[str, str]:
    gain = point.gain
    numbers = {"mean": gain.mean, "std": gain.std, "low": gain.low, "high": gain.high, "level": gain.level}
    return {"group": point.group, "point": point.name, "measure": point.measure, "n": str(gain.n),
            "verdict": VERDICTS[judging.side(claim, gain)],
            **{name: f"{value:.6f}" for name, value in numbers.items() if math.isfinite(value)}}  # fmt: skip


def _of_table(table: Sequence[Sequence[str]]) -> Iterator[dict[str, str]]:
    """Every number of a table; its point is what stands in words in the row, and the dimensions."""
    for row in table[1:]:
        cells = list(zip(table[0], row, strict=True))
        words = [f"{head}={cell}" if head in DIMENSIONS else cell for head, cell in cells
                 if head in DIMENSIONS or not (NUMBER.fullmatch(cell) or RANGE.fullmatch(cell))]  # fmt: skip
        place = {"point": ", ".join(words), "n": dict(cells).get("n", "")}
        found: list[dict[str, str]] = []
        for head, cell in cells:
            if head == "std" and found and NUMBER.fullmatch(cell):
                found[-1]["std"] = cell
            elif head in (*DIMENSIONS, "std", "n"):
                continue
            elif number := NUMBER.fullmatch(cell):
                mean, std, n = number.groups()
                found.append({**place, "measure": head, "mean": mean.replace(",", ""), "std": std or "",
                              **({"n": n} if n else {})})  # fmt: skip
            elif ends := RANGE.fullmatch(cell):
                found.append({**place, "measure": head, "low": ends[1], "high": ends[2]})
        yield from found
