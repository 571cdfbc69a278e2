"""A directory or a file of ours -> whether each thing that lies there is whole, and of what it is. Repairs nothing."""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm_mlet.data import columns, schema, vocabulary
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.reporting import results
from dlrm_mlet.serving import bundle
from dlrm_mlet.sweeping.worker import FAILED
from dlrm_mlet.toml import build
from dlrm_mlet.training import checkpoint, record
from dlrm_mlet.training.record import Record
from dlrm_mlet.training.run import CURVE


class VerifyError(ValueError):
    """What can't be verified, or isn't whole."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    path: Path
    kind: str
    """columns, bundle, run, checkpoint or table."""
    whole: bool
    said: str
    """Of what it is; or what is wrong with it, and what was expected."""


def verify(path: Path) -> Iterator[Finding]:
    """Everything of ours at `path` and below it, one after another. Raises VerifyError where there is nothing.

    Read whole and compared with the hashes that were written with them: columns and their values, bundles and
    checkpoints. Records and tables have none: they are read as everything else of the package reads them, and a table's
    rows are compared with the records that lie beside it.
    """
    if not path.exists():
        raise VerifyError(f"{path}: no such file or directory; expected one that dlrm-mlet wrote")
    looked = False
    for finding in _all(path):
        looked = True
        yield finding
    if not looked:
        raise VerifyError(
            f"{path}: holds nothing that can be compared with what was written; expected columns, runs, tables or a "
            "bundle, not an ONNX file alone"
        )


def _all(path: Path) -> Iterator[Finding]:
    if path.is_file():
        yield from _of_file(path)
        return
    names = {each.name for each in path.iterdir()}
    if bundle.MANIFEST in names:
        yield _finding(path, "bundle", _bundle)
        return
    if "schema.json" in names:
        yield _finding(path, "columns", _columns)
        return
    if names & {record.FILE, checkpoint.FILE, FAILED}:
        yield _finding(path, "run", _run)
        names -= {record.FILE, checkpoint.FILE, FAILED}
    for name in sorted(names):
        if name.endswith(".partial") or name.endswith(".lock"):
            said = "half-written, or a lock: of a process that works on it, or was killed; the same call removes it"
            yield Finding(path / name, "left over", True, said)
        elif (path / name).is_dir():
            yield from _all(path / name)
        else:
            yield from _of_file(path / name)


def _of_file(path: Path) -> Iterator[Finding]:
    if path.suffix == ".pt":
        yield _finding(path, "checkpoint", _checkpoint)
    elif path.name == record.FILE:
        yield _finding(path.parent, "run", _run)
    elif path.name == "schema.json":
        yield _finding(path.parent, "columns", _columns)
    elif path.suffix == ".csv" and _is_table(path):
        yield _finding(path, "table", _table)


def _finding(path: Path, kind: str, look: Callable[[Path], str]) -> Finding:
    try:
        return Finding(path, kind, True, look(path))
    except (ValueError, OSError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        return Finding(path, kind, False, str(error))


def _columns(directory: Path) -> str:
    found = schema.load(directory / "schema.json")
    for name, digest in found.files.items():
        file = directory / name
        if not file.is_file():
            raise VerifyError(f"{file}: no such file; expected it, as schema.json says: preprocess it again")
        if vocabulary.digest_of(file) != digest:
            raise VerifyError(f"{file}: isn't what was written; expected what schema.json says: preprocess it again")
    columns.check(directory, found)
    vocabulary.load_all(directory / "vocabulary", found)
    rows = ", ".join(f"{split} {count:,}" for split, count in found.rows.items())
    proved = "" if found.files else "; the values are unproved: this version kept no hashes of the arrays"
    return f"{_of_columns(found)}; {rows} rows; of {found.source.get('name', 'a raw file')}{proved}"


def _bundle(directory: Path) -> str:
    said = bundle.read(directory)
    schema.load(directory / "schema.json")
    versions = ", ".join(f"{name} {version}" for name, version in said.get("versions", {}).items())
    return f"{said['dataset']} ({said['columns']}); {len(said['files'])} files; {versions}"


def _run(directory: Path) -> str:
    finished = record.read(directory)
    saved = checkpoint.read(directory / checkpoint.FILE) if (directory / checkpoint.FILE).exists() else None
    if finished is None:
        if saved is not None:
            step = f"stopped after step {saved.get('step')}" if not saved["served"] else "without its record"
            return f"{_of_state(saved)}; {step}: the same call goes on"
        reason = json.loads((directory / FAILED).read_text(encoding="utf-8")).get("reason")
        return f"failed, and is tried again: {reason}"
    config = record.resolved(finished.config)
    if saved is None and finished.status == "finished":
        said = "; its checkpoint.pt isn't there, without which it can't be exported"
    elif saved is None:
        said = ""
    elif not saved["served"]:
        raise VerifyError(
            f"{directory / checkpoint.FILE}: of a run that isn't finished, beside the record of a finished one"
        )
    else:
        mine = (record.resolved(saved["config"]), saved["seed"], build(Schema, saved["columns"]).fingerprint)
        if mine != (config, finished.seed, finished.provenance["columns"]):
            raise VerifyError(f"{directory / checkpoint.FILE}: of another config, seed or data set than the record's")
        said = ""
    shown = directory / CURVE
    if (
        shown.exists()
        and [json.loads(line) for line in shown.read_text(encoding="utf-8").splitlines()] != finished.curve
    ):
        raise VerifyError(f"{shown}: isn't the curve of the record beside it; expected its points, a line each")
    made = finished.provenance
    where = f"commit {made.get('commit') or 'unknown'}, torch {made.get('torch')}, {made.get('device')}"
    columns_of = f"{config['dataset']} ({made['columns']})"
    return f"{finished.status}; {columns_of}; {_of_config(config)}, seed {finished.seed}; {where}{said}"


def _checkpoint(path: Path) -> str:
    state = checkpoint.read(path)
    if state["served"]:
        checkpoint.load(path)
    return _of_state(state) + ("" if state["served"] else f"; stopped after step {state.get('step')}")


def _table(path: Path) -> str:
    commits = sorted({row.provenance["commit"] for row in results.read(path)})
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    said, records = f"{len(rows)} runs; commit {', '.join(commits) or 'unknown'}", _records_beside(path)
    if not records:
        return said
    without = 0
    found: set[Path] = set()
    for row in rows:
        mine = {place: run for place, run in records.get(_key(row), ()) if _is_of(row, run)}
        found |= mine.keys()
        wrong = [_differences(row, run) for run in mine.values()]
        if wrong and all(wrong):
            raise VerifyError(
                f"{path}: {row['arm'] or 'the run'} k={row['inner_dim'] or '-'} d={row['embedding_dim']} seed "
                f"{row['seed']} isn't what its record beside the table says ({min(wrong, key=len)}); call the sweep "
                "again, which writes the table from the records"
            )
        without += not mine
    others = sum(map(len, records.values())) - len(found)
    said += f"; {len(rows) - without} are what their records beside it say"
    return said + "".join(
        f", {count} {what}" for count, what in ((without, "have none"), (others, "records have no row")) if count
    )


Key = tuple[str, ...]


def _records_beside(table: Path) -> dict[Key, list[tuple[Path, Record]]]:
    """The records that lie beside a table of runs or of trials, by the arm, d and seed of their runs."""
    name = table.stem.removesuffix("-trials")
    is_search = name != table.stem
    place = table.parent if table.parent.name == name else table.with_name(name)
    found: dict[Key, list[tuple[Path, Record]]] = {}
    if place != table.parent and (place / f"{name}.csv").exists():
        return found  # they are of that table; this one is published, and of other runs
    place = place / "trials" if is_search else place
    for path in place.rglob(record.FILE):
        parts = path.relative_to(place).parts
        if parts[0] == "trials" and not is_search:
            continue
        with contextlib.suppress(ValueError, LookupError, TypeError):  # what isn't one is told of for itself
            if run := record.read(path.parent):
                key = (parts[0] if len(parts) > 2 else "", str(run.config["model"]["embedding_dim"]), str(run.seed))
                found.setdefault(key, []).append((path, run))
    return found


def _key(row: Mapping[str, str]) -> Key:
    return (row["arm"], row["embedding_dim"], row["seed"])


def _is_of(row: Mapping[str, str], run: Record) -> bool:
    """Whether a row of that arm, d and seed is of this run: by k and all that was varied or chosen."""
    names = list(row)
    keys = names[names.index("inner_dim") : names.index("status")]
    config = {
        name: results.as_text(value) for part in ("model", "training") for name, value in run.config[part].items()
    }
    return all(_same(row[key], config[key]) for key in keys if key in config and (row[key] or key == "inner_dim"))


def _differences(row: Mapping[str, str], run: Record) -> str:
    """Where a row says something else of its run than the record does."""
    wrong = [
        f"{name} {row[name] or 'empty'} for {value or 'none'}"
        for name, value in results.fields(run).items()
        if name in row and not _same(row[name], value)
    ]
    return ", ".join(wrong)


def _same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def _is_table(path: Path) -> bool:
    """Whether it is one of runs, whatever separates its columns; those of spectra and of frequencies lie beside it."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        names = {name.strip('"') for name in re.split("[,;\t]", file.readline().strip())}
    return {"embedding_dim", "seed", "validation_auc"} <= names


def _of_state(state: dict[str, Any]) -> str:
    config, its = record.resolved(state["config"]), build(Schema, state["columns"])
    return f"{_of_columns(its)}; {_of_config(config)}, seed {state['seed']}"


def _of_columns(found: Schema) -> str:
    return f"{found.dataset} ({found.fingerprint})"


def _of_config(config: dict[str, Any]) -> str:
    model, training = config["model"], config["training"]
    inner = "single layer" if not model["inner_dim"] else f"k = {model['inner_dim']}"
    return f"{inner}, d = {model['embedding_dim']}, {training['optimizer']}, batch {training['batch_size']}"
