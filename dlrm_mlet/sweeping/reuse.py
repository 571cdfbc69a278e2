"""Runs that another experiment has made already -> copies of them, so that none is trained twice."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrm_mlet.config import Config, Keep
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.files import replacing_directory
from dlrm_mlet.toml import ConfigError
from dlrm_mlet.training import record
from dlrm_mlet.training.checkpoint import FILE as CHECKPOINT
from dlrm_mlet.training.record import RecordError

Wanted = tuple[Path, Config, int, Keep]
"""A run's directory, config and seed, and what is kept of it."""


def take(wanted: Sequence[Wanted], out: Path, schema: Schema, device: str) -> Counter[str]:
    """Copy the runs that experiments beside `out` have; how many came from which experiment.

    Only in results/<data set>/<experiment>, and only what would come out again, on a CPU bit for bit: runs of the same
    config, seed, columns, commit, torch, Python and kind of device, from an unchanged checkout. A run that was begun
    here goes on here.
    """
    taken: Counter[str] = Counter()
    made = json.loads(json.dumps(record.provenance(schema, device)))
    if out.absolute().parent.name != schema.dataset or made["commit"] is None or made["commit"].endswith("+"):
        return taken
    there = _beside(out, made)
    for directory, config, seed, keep in wanted:
        source = there.get(_key(record.as_json(config), seed))
        if source is None or (keep != "none" and not (source / CHECKPOINT).exists()):
            continue
        try:
            with replacing_directory(directory, _refuse) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True)
        except (FileExistsError, FileNotFoundError, shutil.Error):
            continue  # begun here, or a checkpoint less there at this moment
        taken[source.relative_to(out.parent).parts[0]] += 1
    return taken


def _refuse(directory: Path) -> None:
    raise FileExistsError(directory)


def _beside(out: Path, made: dict[str, Any]) -> dict[str, Path]:
    """The directories of finished runs that were made so, by config and seed."""
    found = {}
    for depth in ("*/*", "*/*/*"):  # with and without an arm
        for path in sorted(out.parent.glob(f"{depth}/{record.FILE}")):
            if path.is_relative_to(out):
                continue
            try:
                its = record.read(path.parent)
                if its is not None and its.provenance == made:
                    found[_key(record.resolved(its.config), its.seed)] = path.parent
            except (RecordError, ConfigError):
                continue
    return found


def _key(config: dict[str, Any], seed: int) -> str:
    return json.dumps([config, seed], sort_keys=True)
