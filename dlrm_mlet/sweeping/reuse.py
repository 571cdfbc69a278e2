"""Runs that another experiment has made already -> copies of them, so that none is trained twice."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm_mlet.config import Config, Keep
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.files import replacing_directory
from dlrm_mlet.toml import ConfigError
from dlrm_mlet.training import checkpoint, record
from dlrm_mlet.training.checkpoint import FILE as CHECKPOINT
from dlrm_mlet.training.checkpoint import CheckpointError
from dlrm_mlet.training.record import Record, RecordError

Wanted = tuple[Path, Config, int, Keep]
"""A run's directory, config and seed, and what is kept of it."""


def take(wanted: Sequence[Wanted], out: Path, schema: Schema, device: str) -> Counter[str]:
    """Copy the runs that experiments beside `out` have; how many came from which experiment.

    Only in results/<data set>/<experiment>, and only what would come out again, on a CPU bit for bit: runs of the same
    config, seed, columns, commit, torch, Python and kind of device, from an unchanged checkout, with their checkpoint
    where one is to be kept. A run that was begun here goes on here.
    """
    taken: Counter[str] = Counter()
    out = Path(os.path.abspath(out))
    made = json.loads(json.dumps(record.provenance(schema, device)))
    if out.parent.name != schema.dataset or made["commit"] is None or made["commit"].endswith("+"):
        return taken
    for half in {half for directory, *_ in wanted for half in directory.parent.glob(".*.partial")}:
        shutil.rmtree(half, ignore_errors=True)  # of a sweep that was killed: the one in `out` is ours
    there = _beside(out, made)
    for directory, config, seed, keep in wanted:
        for source, its in there.get(_key(record.as_json(config), seed), ()):
            is_enough = keep == "none" or its.status == "diverged" or _is_whole(source / CHECKPOINT)
            if is_enough and _copy(source, directory):
                taken[source.relative_to(out.parent).parts[0]] += 1
                break
    return taken


def _copy(source: Path, directory: Path) -> bool:
    def refuse(begun: Path) -> None:
        raise FileExistsError(begun)

    try:
        with replacing_directory(directory, refuse) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
    except (FileExistsError, FileNotFoundError, shutil.Error):
        return False  # begun here, or a checkpoint less there at this moment
    return True


def _is_whole(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except CheckpointError:
        return False
    return True


def _beside(out: Path, made: dict[str, Any]) -> dict[str, list[tuple[Path, Record]]]:
    """The finished runs that were made so, by config and seed."""
    found: dict[str, list[tuple[Path, Record]]] = {}
    for depth in ("*", "*/*"):  # without and with an arm
        for path in sorted(out.parent.glob(f"*/{depth}/{record.FILE}")):
            hidden = any(part.startswith(".") for part in path.relative_to(out.parent).parts)  # half a copy
            if hidden or path.is_relative_to(out):
                continue
            try:
                its = record.read(path.parent)
                if its is not None and its.provenance == made:
                    found.setdefault(_key(record.resolved(its.config), its.seed), []).append((path.parent, its))
            except (RecordError, ConfigError, OSError):
                continue
    return found


def _key(config: dict[str, Any], seed: int) -> str:
    return json.dumps([config, seed], sort_keys=True)
