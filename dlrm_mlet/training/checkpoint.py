"""A run's checkpoint.pt -> the model that is served, and what it was trained on."""

import dataclasses
import hashlib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlrm_mlet.config import Config
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.schema import Schema, check_trained_on
from dlrm_mlet.toml import build
from dlrm_mlet.training.model import DLRM, bags_of, served
from dlrm_mlet.training.model import build as build_model

FILE = "checkpoint.pt"


class CheckpointError(ValueError):
    """A checkpoint that can't be used: names the file and what was expected."""


@dataclass(frozen=True)
class Served:
    """A finished run's model."""

    path: Path
    model: DLRM
    config: Config
    columns: Schema

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of the file's SHA-256."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]

    def check(self, columns: Columns) -> None:
        """Raises ColumnsError where the columns are of another data set than the one it was trained on."""
        check_trained_on(self.path, self.columns.dataset, self.columns.fingerprint, columns.schema)


def read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing in it is run. Raises CheckpointError where it isn't a whole checkpoint of ours."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums
            if damaged := archive.testzip():
                raise CheckpointError(
                    f"{path}: damaged: {damaged} isn't what was written; expected the {FILE} of a run"
                )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected the {FILE} of a run") from None
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint ({error}); expected the {FILE} of a run") from None
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: holds more than numbers and text; expected the {FILE} of a run") from None
    except (RuntimeError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint ({error}); expected the {FILE} of a run") from None
    missing = {"model", "served", "config", "seed", "columns"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(sorted(missing))}; expected the {FILE} of a run")
    return state


def load(path: Path) -> Served:
    """The served model of a run. Raises CheckpointError where the run isn't finished or the file isn't a run's."""
    state = read(path)
    if not state["served"]:
        raise CheckpointError(
            f"{path}: of a run that stopped after step {state.get('step')}: its tables aren't collapsed yet; "
            "expected a finished run, see dlrm-mlet train, which goes on"
        )
    try:
        config, schema = build(Config, state["config"]), build(Schema, state["columns"])
        # as it is served: the trained layers need no memory any more
        plain = dataclasses.replace(config.model, inner_dim=None, start_as=None, initial_scale=1.0)
        model = served(build_model(plain, len(schema.dense), schema.table_rows, None, bags_of(schema)), plain)
        model.load_state_dict(state["model"])
        model.tables.names = schema.categorical
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a model of this version: {error}") from None
    return Served(path, model.eval().requires_grad_(False), config, schema)
