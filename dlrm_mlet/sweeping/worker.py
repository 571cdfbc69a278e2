"""A sweep's worker process: from its first moment, before torch is there, it ends with its parent; then it trains."""

import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

from dlrm_mlet.files import write_json

FAILED = "failed.json"
"""In a run's directory, why it failed; the next try removes it."""

_columns: Any
_device: Any
_bar: Any


def start(data: Path, places: Any, lock: Any) -> None:
    """Once in each worker: its view of the data set, its device and its line on the screen."""
    global _columns, _device, _bar  # noqa: PLW0603  a worker process has one of each
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once: what it has written is whole
    # these take seconds, in which the parent may be killed
    import torch  # noqa: PLC0415
    from tqdm import tqdm  # noqa: PLC0415

    from dlrm_mlet.data import columns  # noqa: PLC0415

    _columns = columns.load(data)
    tqdm.set_lock(lock)
    position, device = places.get()
    _device = torch.device(device)
    _bar = tqdm(position=position, unit=" steps", leave=False, disable=None, dynamic_ncols=True)


def train(job: Any) -> str | None:
    """Make the runs of a `sweep.Job`; returns the reason where that failed."""
    _bar.set_description(f"{job.point.short} seed {','.join(map(str, job.seeds))}")
    return make(job, _columns, _device, _bar)


def make(job: Any, columns: Any, device: Any, bar: Any = None) -> str | None:
    """The same on these columns and this device, and with this bar."""
    from dlrm_mlet.sweeping.keeping import leave  # noqa: PLC0415
    from dlrm_mlet.training.run import train_together  # noqa: PLC0415

    variants: dict[int, dict[Path, Any]] = {}
    for run in job.others:
        variants.setdefault(run.seed, {})[run.directory] = run.point.config
    try:
        for run in job.runs:
            (run.directory / FAILED).unlink(missing_ok=True)
        train_together(job.point.config, columns, job.seeds, bar=bar, device=device, variants=variants)
        leave(job.keep, job.seeds.values())
        for run in job.others:
            leave(run.keep, [run.directory])
    except Exception as error:  # one bad run is no reason not to make the others
        return said_by(error)
    return None


def said_by(error: Exception) -> str:
    """Why a run failed, in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


def fail(directory: Path, reason: str) -> None:
    """Leave the reason in a run's directory."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / FAILED, {"reason": reason})


def failure(directory: Path) -> str | None:
    """The reason that was left there; None where there is none."""
    try:
        return str(json.loads((directory / FAILED).read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError):
        return "for a reason that can't be read"


def _end_with_parent() -> None:
    """Whatever ended the process that started this one: a worker without it would hold its memory for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
