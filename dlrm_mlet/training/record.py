"""What one run leaves behind: record.json, written last, once and whole."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dlrm_mlet.config import Config
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.files import write_json
from dlrm_mlet.toml import ConfigError, build
from dlrm_mlet.training.model import DLRM

FILE = "record.json"


class RecordError(ValueError):
    """A record that can't be used: names the file and what was expected."""


@dataclass(frozen=True)
class Record:
    """One finished run."""

    config: dict[str, Any]
    seed: int
    status: Literal["finished", "diverged"]
    """Diverged: a loss or a score was no longer finite, or a weight above 1e6; there are no metrics then."""
    steps: int
    metrics: dict[str, dict[str, float]] | None
    """validation and test: auc and log_loss (nats), of the collapsed model at the end of training."""
    curve: list[dict[str, float]]
    """step, auc and log_loss on validation while training."""
    parameters: dict[str, int]
    """trained and served, of the whole model; trained_tables and served_tables."""
    bytes: dict[str, int]
    """trained_tables and served_tables, projections and scales included."""
    spectra: list[dict[str, Any]]
    """step, and singular_values: for each feature those of its product W, largest first; empty where not asked for."""
    by_frequency: list[dict[str, Any]]
    """Validation in thirds by how rare a row's rarest id is: see evaluation.by_frequency; empty where not asked for."""
    seconds: float
    """Wall-clock time of the training steps, without evaluation."""
    rows_per_second: float
    provenance: dict[str, Any]
    absent: dict[str, str] = field(default_factory=dict)
    """Why a split has no metrics, where it was to be measured."""

    def check(self) -> None:
        """Raises TypeError where a field is of another type than is written."""
        kinds: dict[str, Any] = {
            "config": dict, "seed": int, "status": str, "steps": int, "metrics": dict | None, "curve": list,
            "parameters": dict, "bytes": dict, "spectra": list, "by_frequency": list, "seconds": int | float,
            "rows_per_second": int | float, "provenance": dict, "absent": dict,
        }  # fmt: skip
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} = {getattr(self, name)!r}")
        for split, measured in (self.metrics or {}).items():
            if not all(isinstance(measured[key], float) for key in ("auc", "log_loss")):
                raise TypeError(f"metrics.{split} = {measured!r}")
        if not isinstance(self.provenance["columns"], str):
            raise TypeError(f"provenance = {self.provenance!r}")

    def write(self, directory: Path) -> None:
        """Write <directory>/record.json."""
        write_json(directory / FILE, asdict(self))


def sizes(trained: DLRM, served: DLRM) -> dict[str, dict[str, int]]:
    """A record's `parameters` and `bytes`."""
    modules: dict[str, nn.Module] = {
        "trained": trained, "served": served, "trained_tables": trained.tables, "served_tables": served.tables,
    }  # fmt: skip
    return {
        "parameters": {name: sum(each.numel() for each in module.parameters()) for name, module in modules.items()},
        "bytes": {"trained_tables": trained.tables.nbytes, "served_tables": served.tables.nbytes},
    }


def read(directory: Path) -> Record | None:
    """The record of a run's directory; None where the run isn't finished. Raises RecordError where it is damaged."""
    path = directory / FILE
    try:
        found = Record(**json.loads(path.read_text(encoding="utf-8")))
        found.check()
        return found
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RecordError(f"{path}: not a record: {error}; delete it to run again") from None


def of_run(
    directory: Path, config: Config, seed: int, schema: Schema, started_from: str | None = None
) -> Record | None:
    """The record of this very run in its directory; None where it isn't finished.

    Raises RecordError where the record is damaged, or was made by another config, seed or data set, or from another
    start.
    """
    found = read(directory)
    if found is None:
        return None
    if other := difference(directory, found, config, seed, {"columns": schema.fingerprint, "from": started_from}):
        raise RecordError(
            f"{directory / FILE} is of another run ({other}); move it away, with the table where a sweep made one, or "
            "choose another --out"
        )
    return found


def difference(directory: Path, found: Record, config: Config, seed: int, made: Mapping[str, Any]) -> str | None:
    """In what a record in that directory is another run's than that of this config and seed; None where it is its own.

    `made` has what else of its provenance has to be so. Raises RecordError where its config is none.
    """
    try:
        config_was = resolved(found.config)
    except ConfigError as error:
        raise RecordError(f"{directory / FILE}: not a record: in its config: {error}; delete it to run again") from None
    was = _flat({**config_was, "seed": found.seed}) | {key: found.provenance.get(key) for key in made}
    now = _flat({**as_json(config), "seed": seed}) | dict(made)
    names = {"from": "the start"}
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            return f"{names.get(key, key)} was {was.get(key)} and is now {now.get(key)}"
    return None


def as_json(config: Config) -> dict[str, Any]:
    """The config, resolved whole, as it is after a round through JSON."""
    return json.loads(json.dumps(asdict(config)))


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """A config as a record has it, with keys that came later at their defaults. Raises ConfigError if it is none."""
    return as_json(build(Config, config))


def provenance(schema: Schema, device: str, started_from: str | None = None) -> dict[str, Any]:
    """Where a run took place, on the device of that name, and with what; and the checkpoint that it started from."""
    return {
        **({} if started_from is None else {"from": started_from}),
        "columns": schema.fingerprint,
        "source": schema.source,
        "torch": torch.__version__.partition("+")[0],
        "python": platform.python_version(),
        "device": device,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside of a checkout of this project.

    A project that has the package somewhere within it is another one, whatever the environment says of git.
    """
    home = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        call = subprocess.run(
            ["git", *arguments], cwd=home, capture_output=True, text=True, check=True, env=environment
        )
        return call.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != home:
            return None
        return git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")
    except (OSError, subprocess.CalledProcessError):
        return None


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
