"""What a sharded run goes on from: step-<number> in its directory, which any number of processes can load.

Each holds the tensors as torch.distributed.checkpoint has them, and how far the run was, of which config and data.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from dlrm_mlet.files import write_json
from dlrm_mlet.training import record
from dlrm_mlet.training.run import TrainingError

DIRECTORY = "shards"
"""In a run's directory."""
PROGRESS = "progress.json"


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    seconds: float
    """At work so far."""
    curve: list[dict[str, float]]


def save(home: Path, state: dict[str, Any], identity: dict[str, Any], progress: Progress) -> None:
    """Write a checkpoint, all processes together, and then delete those before it.

    `identity` is what a run has to have in common with one that goes on from it: config, seed and columns.
    """
    partial, whole = home / f".step-{progress.step}.partial", home / f"step-{progress.step}"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        home.mkdir(exist_ok=True)
    dist.barrier()
    dcp.save(state, checkpoint_id=partial)
    if dist.get_rank() == 0:
        write_json(partial / PROGRESS, identity | progress._asdict())
        os.replace(partial, whole)
        for other in home.iterdir():
            if other != whole:
                shutil.rmtree(other)
    dist.barrier()


def load(home: Path, state: dict[str, Any], identity: dict[str, Any]) -> Progress | None:
    """Load the last checkpoint into the state, all processes together; None where there is none.

    Raises TrainingError where it is damaged, or another run's.
    """
    there = [[path.name for path in home.glob("step-*")]]
    dist.broadcast_object_list(there, 0)
    if not there[0]:
        return None
    path = home / max(there[0], key=lambda name: int(name.partition("-")[2]))
    try:
        said = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
        was = {"config": record.resolved(said["config"]), "seed": said["seed"], "columns": said["columns"]}
        progress = Progress(said["step"], said["seconds"], said["curve"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TrainingError(f"{path}: not a sharded run's checkpoint: {error}; delete it, or use --fresh") from None
    for key, value in identity.items():
        if was[key] != value:
            raise TrainingError(f"{path}: made with another {key}; delete it, or choose another --out")
    dcp.load(state, checkpoint_id=path)
    return progress
