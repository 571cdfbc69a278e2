"""A directory or a file of ours -> whether each thing that lies there is whole, and of what it is. Repairs nothing."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
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
    rows = results.read(path)
    beside = _runs_beside(path)
    for row in rows:
        its = beside.get((row.arm, row.embedding_dim, row.seed, row.seconds, row.provenance["commit"]))
        if its and (row.status, row.measures) not in its:
            raise VerifyError(
                f"{path}: {row.arm or 'the run'} k={row.inner_dim or '-'} d={row.embedding_dim} seed {row.seed} isn't "
                "what its record beside the table says; call the sweep again, which writes the table from the records"
            )
    commits = sorted({row.provenance["commit"] for row in rows})
    return f"{len(rows)} runs; commit {', '.join(commits) or 'unknown'}"


def _runs_beside(table: Path) -> dict[tuple[Any, ...], list[tuple[str, dict[str, float]]]]:
    """Status and measures of the runs whose records lie beside a table, by what tells one from others there."""
    place = table.parent if table.parent.name == table.stem else table.with_name(table.stem)
    found: dict[tuple[Any, ...], list[tuple[str, dict[str, float]]]] = {}
    if place != table.parent and (place / table.name).exists():
        return found  # they are of that table; this one is published, and of other runs
    for path in place.rglob(record.FILE):
        with contextlib.suppress(record.RecordError):  # told of for itself
            run, parts = record.read(path.parent), path.relative_to(place).parts
            if run is not None:
                arm, d = parts[0] if len(parts) > 2 else "", run.config["model"]["embedding_dim"]
                key = (arm, d, run.seed, round(run.seconds, 1), run.provenance.get("commit") or "")
                found.setdefault(key, []).append((run.status, results.measured(run)))
    return found


def _is_table(path: Path) -> bool:
    """Whether it is one of runs, whatever separates its columns; those of spectra and of frequencies lie beside it."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return {"embedding_dim", "seed", "validation_auc"} <= set(re.split("[,;\t]", file.readline().strip()))


def _of_state(state: dict[str, Any]) -> str:
    config, its = record.resolved(state["config"]), build(Schema, state["columns"])
    return f"{_of_columns(its)}; {_of_config(config)}, seed {state['seed']}"


def _of_columns(found: Schema) -> str:
    return f"{found.dataset} ({found.fingerprint})"


def _of_config(config: dict[str, Any]) -> str:
    model, training = config["model"], config["training"]
    inner = "single layer" if not model["inner_dim"] else f"k = {model['inner_dim']}"
    return f"{inner}, d = {model['embedding_dim']}, {training['optimizer']}, batch {training['batch_size']}"
