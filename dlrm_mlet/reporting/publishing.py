"""An experiment's new tables and those that are there -> what is kept, what is written where, and a sentence."""

import csv
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrm_mlet.files import replacing
from dlrm_mlet.reporting.results import MEASURES, ResultsError

Table = list[dict[str, str]]
"""Rows by column, all with the same columns."""
RESULT = ("status", *MEASURES)
"""What two runs have to share to be equal."""


def store(out: Path, tables: Mapping[str, Table], publish: bool = False) -> tuple[Path | None, str]:
    """Keep an experiment's tables, by the end of their names, of which "" is the one with a row per run.

    They go beside `out`, as <out>.csv, <out>-spectra.csv and so on, and rows that are there of other runs stay. But a
    published table, one that git tracks, isn't touched unless `publish` says so: where the new runs equal it nothing
    is written, else the tables go into `out`. Returns the table with a row per run that was written, and what
    to tell.
    """
    published, runs = out.with_name(f"{out.name}.csv"), tables[""]
    told = f"{len(runs)} runs"
    place = out
    if not publish and is_tracked(published):
        there = {_key(row): row for row in read(published)}
        same = sum(all(row[name] == there.get(_key(row), {}).get(name) for name in RESULT) for row in runs)
        told = f"{same} of {len(runs)} runs equal the published ones"
        if same == len(runs):
            return None, f"{told}: {published}"
        place = out / out.name
        told += f" in {published}, which stays as it is; CONTRIBUTING.md says how results are published"
    for ending, rows in tables.items():
        path = place.with_name(f"{place.name}{ending}.csv")
        _write(path, _merged(read(path) if path.exists() else [], rows))
    return place.with_name(f"{place.name}.csv"), told


def is_tracked(path: Path) -> bool:
    """Whether the file is one of a git checkout's own."""
    try:
        found = subprocess.run(
            ["git", "ls-files", "--error-unmatch", path.name], cwd=path.parent, capture_output=True, check=False
        )
    except OSError:  # no git, or no such folder
        return False
    return found.returncode == 0


def read(path: Path) -> Table:
    """The rows of a table. Raises ResultsError where it isn't one."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and (None in rows[0] or "seed" not in rows[0]):
        raise ResultsError(f"{path}: not a table of runs; expected the columns that a sweep writes")
    return rows


def _key(row: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What says which run a row is of: its arm, what the grid varied, and its seed."""
    named = list(row)
    # what lies between seed and status was chosen, and isn't what was asked for
    until_seed = named[: named.index("seed") + 1]
    return tuple((name, row[name]) for name in until_seed if row[name])


def _merged(old: Table, new: Table) -> Table:
    """The new rows, and of the old ones those of other runs."""
    keys = {_key(row) for row in new}
    return [*new, *(row for row in old if _key(row) not in keys)]


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Settings and choices of all rows are columns of each."""
    columns: list[str] = []
    for row in rows:
        before = 0
        for name in row:
            if name in columns:
                before = columns.index(name) + 1
            else:
                columns.insert(before, name)
                before += 1
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
