"""What was handed to Slurm, by the files beside the runs, and one call of squeue -> where the job of each run is."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dlrm_mlet.files import write_json
from dlrm_mlet.training import record

FOLDER = "slurm"
"""Beside the runs: a folder for each array, by the name of its jobs, with their logs."""
FILE = "submission.json"
"""In it, which task makes which runs."""
SECONDS = 60
"""Within which Slurm's commands have to answer."""
FIELDS = ("name:64", "arrayjobid:20", "arraytaskid:20", "state:20", "reason:200", "restartcnt:10", "nodelist:200")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
"""The states of a job that is in the queue and not on a node."""
NOISE = ("srun: ", "submitit ", "Terminated")
"""How lines of a log begin that say no reason."""


class QueueError(RuntimeError):
    """One of Slurm's commands that isn't there, or that failed: names it, and what it said."""


@dataclass(frozen=True)
class Place:
    """Where the job is that was to make a run."""

    job: str
    """As Slurm names it, such as 123_4."""
    state: Literal["queued", "running", "gone", "unknown"]
    """Unknown: squeue can't be asked here."""
    said: str
    """Why it waits, on which node it is, or the end of its log."""

    @property
    def live(self) -> bool:
        """Whether it is in the queue or on a node."""
        return self.state in ("queued", "running")


def ask(*command: str) -> str:
    """What one of Slurm's commands prints. Raises QueueError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except FileNotFoundError:
        raise QueueError(f"{command[0]} isn't here; expected a machine of a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise QueueError(f"{command[0]} didn't answer in {SECONDS} s; expected Slurm's controller to be up") from None
    if done.returncode:
        raise QueueError(f"{' '.join(command[:2])} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def note(out: Path, name: str, tasks: Sequence[Sequence[Path]], job: str | None) -> Path:
    """Write down which runs, by their directories in `out`, each task of this name makes; returns the name's folder.

    This is done before they are handed over, and again with the number of their job: where the process died in between,
    what is in the queue is still known by its name.
    """
    folder = out / FOLDER / name
    relative = [[directory.relative_to(out).as_posix() for directory in directories] for directories in tasks]
    write_json(folder / FILE, {"job": job, "since": time.time(), "tasks": relative})
    return folder


def places(*outs: Path) -> dict[Path, Place]:
    """By its directory, the place of each run in one of `outs` that was handed to Slurm and has no record, the latest.

    Asks squeue once, and only where there is such a run.
    """
    waiting = [task for out in outs for task in _handed(out)]
    if not waiting:
        return {}
    try:
        listed, why = _listed({task.name for task in waiting}), ""
    except QueueError as error:
        listed, why = {}, str(error)
    found: dict[Path, Place] = {}
    for task in waiting:
        place = listed.get((task.name, task.index))
        if place is None and why:
            place = Place(task.job, "unknown", f"handed to Slurm, but {why}")
        elif place is None and task.log is not None:
            place = Place(task.job, "gone", f"job {task.job} left the queue: {_end_of(task.log)}")
        if place is not None:
            for directory in task.directories:
                if not (directory in found and found[directory].live):  # one that is there counts, also if it is older
                    found[directory] = place
    return found


@dataclass(frozen=True)
class _Handed:
    """One task of an array, with those of its runs that have no record."""

    name: str
    index: int
    job: str
    log: Path | None
    """None where it may never have been handed over."""
    directories: list[Path]


def _handed(out: Path) -> Iterator[_Handed]:
    """All that have such runs, the oldest first."""
    for written, folder in sorted(_notes(out), key=lambda pair: pair[0]["since"]):
        for index, names in enumerate(written["tasks"]):
            directories = [out / name for name in names if not (out / name / record.FILE).exists()]
            if directories:
                # submitit makes an array of more than one
                job = f"{written['job']}_{index}" if len(written["tasks"]) > 1 else f"{written['job']}"
                log = folder / f"{job}_0_log.err" if written["job"] else None
                yield _Handed(folder.name, index, job, log, directories)


def _notes(out: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    for path in out.glob(f"{FOLDER}/*/{FILE}"):
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
            if not written.keys() >= {"job", "since", "tasks"}:
                raise ValueError(f"has {', '.join(written)}")
        except FileNotFoundError:  # sbatch has refused it just now
            continue
        except (ValueError, AttributeError) as error:
            raise QueueError(f"{path}: doesn't say what was handed to Slurm: {error}; delete it to forget it") from None
        yield written, path.parent


def _listed(names: set[str]) -> dict[tuple[str, int], Place]:
    """What squeue has of the jobs with these names, by name and index."""
    form = ",".join(f"{field}|" for field in FIELDS)
    told = ask("squeue", "--noheader", "--array", f"--name={','.join(sorted(names))}", f"--Format={form}")
    found = {}
    for line in filter(str.strip, told.splitlines()):
        name, number, index, state, reason, restarts, node = (field.strip() for field in line.split("|")[: len(FIELDS)])
        job = f"{number}_{index}" if index.isdecimal() else number
        again = "" if restarts in ("", "0") else ", requeued" if restarts == "1" else f", requeued {restarts} times"
        if state in WAITING:
            place = Place(job, "queued", ("Slurm hasn't looked at it yet" if reason == "None" else reason) + again)
        else:
            place = Place(job, "running", f"job {job} on {node}{again}")
        found[name, int(index) if index.isdecimal() else 0] = place
    return found


def _end_of(log: Path) -> str:
    """The last line of a log that says a reason."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - 10_000, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "it has no log, as where it was cancelled before it began, or its node has another disk"
    said = [line.strip() for line in lines if line.strip() and not line.startswith(NOISE) and "JOB REQUEUE" not in line]
    if not said:
        return "its log has no reason"
    return said[-1] + (" (its memory ran out: expected a larger --mem)" if "oom" in said[-1].lower() else "")
