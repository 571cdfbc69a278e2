"""An experiment and where its runs lie -> what is finished, at work, in the queue, failed, waiting; changes nothing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlrm_mlet.config import Experiment
from dlrm_mlet.files import at_work
from dlrm_mlet.sweeping import queue
from dlrm_mlet.sweeping.queue import Place
from dlrm_mlet.sweeping.sweep import PlannedRun, plan
from dlrm_mlet.sweeping.worker import FAILED, failure
from dlrm_mlet.training import checkpoint, record
from dlrm_mlet.training.record import Record, RecordError

QUEUED, OTHER = "in the queue", "another run"
STATES = ("finished", "diverged", "at work", QUEUED, "stopped", "failed", OTHER, "waiting")


@dataclass(frozen=True)
class State:
    """How far one run is."""

    name: str
    directory: Path
    state: str
    """One of STATES."""
    said: str
    """Who is at work on it since when, for what it waits in the queue, or why it failed."""


def status(experiment: Experiment, out: Path, columns: str | None = None) -> list[State]:
    """The state of each run of an experiment; where it tunes, of the trials made so far, and of the runs chosen.

    `columns`: the fingerprint of those that it would be made from now; None: whichever.
    """
    made = {} if columns is None else {"columns": columns}
    places = queue.places(out, out / "trials")
    if experiment.tuning is None:
        return [
            _state(f"{run.point.short}, seed {run.seed}", run.directory, places.get(run.directory), made, run)
            for run in plan(experiment, out)
        ]
    directories = sorted({*_runs(out), *places})
    trials = [_state(each.relative_to(out).as_posix(), each, places.get(each), made) for each in directories]
    chosen = len(experiment.points) * len(experiment.seeds)
    left = chosen - sum(not state.name.startswith("trials/") for state in trials)
    return trials + [State("a run at the rates that are chosen", out, "waiting", "")] * max(left, 0)


def _runs(out: Path) -> set[Path]:
    """The directories of runs below `out`."""
    return {path.parent for kind in (record.FILE, checkpoint.FILE, FAILED) for path in out.rglob(kind)}


def _state(
    name: str, directory: Path, place: Place | None, made: Mapping[str, str], run: PlannedRun | None = None
) -> State:
    try:
        found = record.read(directory)
        other = found and (
            record.difference(directory, found, run.point.config, run.seed, made) if run else _other(found, made)
        )
    except RecordError as error:
        return State(name, directory, "failed", str(error))
    if other:
        return State(name, directory, OTHER, f"its record is of one whose {other}")
    if found is not None:
        return State(name, directory, found.status, "")
    if place is not None and place.live:
        return State(name, directory, "at work" if place.state == "running" else QUEUED, place.said)
    if who := at_work(directory):
        return State(name, directory, "at work", who)
    if reason := failure(directory):
        return State(name, directory, "failed", reason)
    if place is not None:
        return State(name, directory, "failed" if place.state == "gone" else "waiting", place.said)
    stopped = (directory / checkpoint.FILE).exists()
    return State(name, directory, "stopped" if stopped else "waiting", "goes on from its checkpoint" if stopped else "")


def _other(found: Record, made: Mapping[str, str]) -> str | None:
    """In what a run of whatever config was made otherwise."""
    unlike = (f"{key} was {found.provenance.get(key)} and is now {its}" for key, its in made.items()
              if found.provenance.get(key) != its)  # fmt: skip
    return next(unlike, None)


def text(states: list[State], out: Path) -> str:
    """What to print: a line for each run that is at work or needs a look, for what the others wait, then the counts."""
    told = [state for state in states if state.said]
    shown = [f"{state.name}: {state.state}, {state.said}" for state in told if state.state not in (QUEUED, "waiting")]
    reasons = Counter(f"{state.state}: {state.said}" for state in told if state.state in (QUEUED, "waiting"))
    shown += [f"{count} {reason}" for reason, count in reasons.most_common()]
    counts = Counter(state.state for state in states)
    parts = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    if busy := at_work(out):
        parts += f"; a sweep is at work: {busy}"
    elif not counts["at work"] and not counts[QUEUED]:
        parts += "; no sweep is at work"
    return "\n".join([*shown, f"{out}: {len(states)} runs: {parts}"])
