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
NAMED = ("d", "k", "B", "layers")
WORDS = ("model", "method", "tables served", "rates", "learning rates", "best way up to these bytes", "table", "start",
         "machine", "point")  # fmt: skip
"""Heads of what says which point a row of a table is of, with its name and without."""
NUMBER = re.compile(r"([+-]?[\d,]*\.?\d+(?:e-?\d+)?)(?: ± (\d*\.\d+))?(?:x| %)?(?: \((?:(\d+)|([^)]+))\))?")
RANGE = re.compile(r"([+-]?\d*\.?\d+) to ([+-]?\d*\.?\d+)")
ELSEWHERE = {
    "equation-6": ("python scripts/equation_6.py", "linear/equation-6.csv"),
    "step-cpu": ("make benchmark", "benchmarks/step-cpu.md"),
    "step-cuda": ("dlrm-mlet benchmark --device cuda", "benchmarks/step-cuda.md"),
}
"""Command and records of what isn't a sweep's."""


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
    otherwise: Mapping[str, str] = field(default_factory=dict)
    """Of an experiment whose runs weren't trained as its name says: how."""
    refused: bool = False
    """A table can't be judged: `said` says why."""

    def of(self, group: str) -> list[Point]:
        """The points of one group."""
        return [point for point in self.points if point.group == group]


Outcomes = dict[str, Outcome]
"""Data set -> outcome, where there are records."""


def is_elsewhere(claim: Claim) -> bool:
    """Whether it isn't of a data set."""
    return bool(claim.experiments) and set(claim.experiments) <= set(ELSEWHERE)


def as_csv(judged: Sequence[tuple[Claim, Outcomes]]) -> str:
    """The text of claims.csv: differences with their interval, its level and their verdict; then the tables' cells."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for claim, found in judged:
        for name, outcome in found.items():
            where = {"claim": claim.name, "dataset": "" if is_elsewhere(claim) else name}
            for point in outcome.points:
                read_from = {"tables": _tables(name, point.sources, outcome)}
                writer.writerow(where | _of_point(claim, point) | read_from)
            for cell in _of_table(outcome.table):
                writer.writerow(where | cell | {"tables": _tables(name, claim.experiments, outcome)})
    return buffer.getvalue()


def _tables(dataset: str, experiments: Sequence[str], outcome: Outcome) -> str:
    found = (ELSEWHERE[name][1] if name in ELSEWHERE else f"{dataset}/{name}.csv" * (name in outcome.tables)
             for name in experiments)  # fmt: skip
    return " ".join(filter(None, found))


def _of_point(claim: Claim, point: Point) -> dict[str, str]:
    gain = point.gain
    numbers = {"mean": gain.mean, "std": gain.std, "low": gain.low, "high": gain.high, "level": gain.level}
    return {"group": point.group, "point": point.name, "measure": point.measure, "n": str(gain.n),
            "verdict": VERDICTS[judging.side(claim, gain)],
            **{name: f"{value:.6f}" for name, value in numbers.items() if math.isfinite(value)}}  # fmt: skip


def _of_table(table: Sequence[Sequence[str]]) -> Iterator[dict[str, str]]:
    """Every number of a table; its point is what the row says of which it is, its verdict what stands in brackets."""
    for row in table[1:]:
        cells = dict(zip(table[0], row, strict=True))
        words = [f"{head}={cell}" if head in NAMED else cell for head, cell in cells.items() if head in NAMED + WORDS]
        place = {"group": TABLE, "point": ", ".join(words), "n": cells.get("n", "")}
        found: list[dict[str, str]] = []
        for head, cell in cells.items():
            if head in (*NAMED, *WORDS, "n"):
                continue
            number, ends = NUMBER.fullmatch(cell), RANGE.fullmatch(cell)
            if number and head == "std" and found:
                found[-1]["std"] = cell
            elif number:
                mean, std, n, said = number.groups()
                found.append({**place, "measure": head, "mean": mean.replace(",", ""), "std": std or "",
                              "n": n or place["n"], "verdict": said or ""})  # fmt: skip
            elif ends:
                found.append({**place, "measure": head, "low": ends[1], "high": ends[2]})
        yield from found
