"""An experiment's new tables and those that are there -> what is kept, what is written where, and a sentence."""

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrm_mlet.files import replacing
from dlrm_mlet.reporting.results import CLAIMS, COMPANIONS, MEASURES, ResultsError

Table = list[dict[str, str]]
"""Rows by column, all with the same columns."""
RESULT = ("status", *MEASURES)
"""What two runs have to share to be equal."""


def check_name(out: Path) -> None:
    """Raises ResultsError where an experiment's table would be taken for one of another kind."""
    if out.name == CLAIMS or out.name.endswith(COMPANIONS):
        raise ResultsError(
            f"{out}: {out.name}.csv is the name of a table that report writes, or of one beside an experiment's own; "
            f"expected a name other than {CLAIMS} that doesn't end in {', '.join(COMPANIONS)}: of the config, or --out"
        )


def store(out: Path, tables: Mapping[str, Table], publish: bool = False) -> tuple[Path | None, str]:
    """Keep an experiment's tables, by the end of their names, of which "" is the one with a row per run.

    They go beside `out`, as <out>.csv, <out>-spectra.csv and so on, and rows that are there of other runs stay. But a
    published table, one that git tracks, isn't touched unless `publish` says so: where all that is new equals it
    nothing is written, else the tables go into `out`. Returns the table with a row per run that was written, and what
    to tell. Raises ResultsError where a table that is there can't be gone on with.
    """
    runs, place, told = tables[""], out, f"{len(tables[''])} runs"
    if not publish and any(is_tracked(_path(out, ending)) for ending in tables):
        published = _path(out, "")
        same = _equal(_read(published), runs)
        told = f"{same} of {len(runs)} runs equal the published ones"
        beside = {_path(out, ending): rows for ending, rows in tables.items() if ending}
        unlike = [path.name for path, rows in beside.items() if not _holds(path, rows)]
        if same == len(runs) and not unlike:
            return None, f"{told}: {published}"
        place = out / out.name
        told += f" in {published}, which stays as it is"
        if unlike:
            told += f"; of {' and '.join(unlike)} not all rows do"
        told += "; CONTRIBUTING.md says how results are published"
    for ending, rows in tables.items():
        path = _path(place, ending)
        old = _others(path, _read(path), rows)
        _write(path, [*rows, *old])
        if old and not ending:
            told += f"; {len(old)} rows of other runs stay in the table"
    return _path(place, ""), told


def is_tracked(path: Path) -> bool:
    """Whether the file is one of a git checkout's own; so it is taken to be where git can't tell."""
    try:
        found = subprocess.run(
            ["git", "--literal-pathspecs", "ls-files", "--error-unmatch", path.name],
            cwd=path.parent, capture_output=True, check=False, text=True, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError:  # no git, or no such folder
        return False
    return found.returncode == 0 or not (found.returncode == 1 or "not a git repository" in found.stderr)


def _path(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}{ending}.csv")


def _read(path: Path) -> Table:
    """The rows of a table, none where there is no file. Raises ResultsError where it isn't one."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not a table: {error}; expected one that a sweep wrote") from None
    if any(None in row or None in row.values() or "seed" not in row for row in rows):
        raise ResultsError(f"{path}: not a table of runs; expected the columns that a sweep writes")
    return rows


def _key(row: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What says which run a row is of: its arm, what the grid varied, and its seed; in trials what was tried, too."""
    named = list(row)
    end = "status" if row.get("read_test") == "False" else "seed"
    return tuple((name, row[name]) for name in named[: named.index(end) + 1] if row[name] and name != "status")


def _others(path: Path, old: Table, new: Table) -> Table:
    """The old rows that are of other runs than the new ones."""
    if old and new:
        for name in set(_settings(old[0])) ^ set(_settings(new[0])):
            if name in old[0] and name in new[0]:
                raise ResultsError(f"{path}: {name} was chosen in one table and set in the other; move the file away")
    keys = {_key(row) for row in new}
    kept, mine = [row for row in old if _key(row) not in keys], {row.get("experiment") for row in new}
    for row in kept:
        if row.get("experiment") and row["experiment"] not in mine:
            raise ResultsError(
                f"{path}: has runs of another config or data set (seed {row['seed']}); move the file away, and call "
                "again"
            )
    return kept


def _settings(row: Mapping[str, str]) -> list[str]:
    return list(row)[: list(row).index("seed")]


def _equal(there: Table, runs: Table) -> int:
    """How many of the runs are there with the same result, be it made elsewhere or in another time."""
    known = {_key(row): row for row in there}
    return sum(all(row[name] == known.get(_key(row), {}).get(name) for name in RESULT) for row in runs)


def _holds(path: Path, rows: Table) -> bool:
    """Whether a table has all these rows, in the columns that it has; of runs, such as trials, their results."""
    there = _read(path)
    if rows and "status" in rows[0]:
        return _equal(there, rows) == len(rows)
    found = {tuple(row.values()) for row in there}
    return bool(there) and all(tuple(row.get(name, "") for name in there[0]) in found for row in rows)


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
