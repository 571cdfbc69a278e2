"""An experiment and where its runs lie -> what is finished, at work, stopped, failed and waiting; changes nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlrm_mlet.config import Experiment
from dlrm_mlet.files import at_work
from dlrm_mlet.sweeping.sweep import plan
from dlrm_mlet.sweeping.worker import FAILED
from dlrm_mlet.training import checkpoint, record
from dlrm_mlet.training.record import RecordError

STATES = ("finished", "diverged", "at work", "stopped", "failed", "waiting")


@dataclass(frozen=True)
class State:
    """How far one run is."""

    name: str
    directory: Path
    state: str
    """One of STATES."""
    said: str
    """Who is at work on it since when, or why it failed."""


def status(experiment: Experiment, out: Path) -> list[State]:
    """The state of each run of an experiment; where it tunes, of the trials made so far, and of the runs chosen."""
    if experiment.tuning is None:
        return [_state(f"{run.point.short}, seed {run.seed}", run.directory) for run in plan(experiment, out)]
    trials = [_state(directory.relative_to(out).as_posix(), directory) for directory in _runs(out)]
    chosen = len(experiment.points) * len(experiment.seeds)
    left = chosen - sum(not state.name.startswith("trials/") for state in trials)
    return trials + [State("a run at the rates that are chosen", out, "waiting", "")] * max(left, 0)


def _runs(out: Path) -> Iterator[Path]:
    """The directories of runs below `out`, by name."""
    yield from sorted({path.parent for kind in (record.FILE, checkpoint.FILE, FAILED) for path in out.rglob(kind)})


def _state(name: str, directory: Path) -> State:
    try:
        found = record.read(directory)
    except RecordError as error:
        return State(name, directory, "failed", str(error))
    if found is not None:
        return State(name, directory, found.status, "")
    if who := at_work(directory):
        return State(name, directory, "at work", who)
    if (directory / FAILED).exists():
        try:
            reason = str(json.loads((directory / FAILED).read_text(encoding="utf-8"))["reason"])
        except (ValueError, LookupError, TypeError):
            reason = "for a reason that can't be read"
        return State(name, directory, "failed", reason)
    stopped = (directory / checkpoint.FILE).exists()
    return State(name, directory, "stopped" if stopped else "waiting", "goes on from its checkpoint" if stopped else "")


def text(states: list[State], out: Path) -> str:
    """What to print: a line for each run that is at work or needs a look, then the counts."""
    shown = [f"{state.name}: {state.state}, {state.said}" for state in states if state.said]
    counts = Counter(state.state for state in states)
    parts = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    busy = at_work(out)
    sweep = f"a sweep is at work: {busy}" if busy else "no sweep is at work"
    return "\n".join([*shown, f"{out}: {len(states)} runs: {parts}; {sweep}"])
