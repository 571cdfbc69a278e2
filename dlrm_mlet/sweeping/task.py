"""Some runs of an experiment -> their records, made on a node of Slurm's, which may end it and begin it again."""

import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dlrm_mlet.data import columns
from dlrm_mlet.files import DEAD_AFTER, HEARTBEAT, at_work
from dlrm_mlet.sweeping import worker
from dlrm_mlet.sweeping.queue import QueueError, ask
from dlrm_mlet.sweeping.sweep import FailedRuns, PlannedRun, jobs_of
from dlrm_mlet.training import checkpoint, device, record

LEAD = 90
"""Seconds before its time limit at which Slurm sends a task SIGUSR2, or up to a minute earlier."""


@dataclass
class Task:
    """What a node is given, and what submitit calls there."""

    data: Path
    runs: tuple[PlannedRun, ...]
    before: dict[Path, int] = field(default_factory=dict)
    """What lay in the runs' directories when it began."""

    def __call__(self) -> None:
        """Make those of the runs that have no record, on the first GPU where there is one; go on from checkpoints.

        All seeds of a point go at once on a GPU that holds them. Raises FailedRuns where some failed: each has its
        reason in failed.json.
        """
        self.before = self._traces()
        # in place of submitit's handler, which needs to know the time limit beforehand and counts how often it was met
        signal.signal(signal.SIGUSR2, self._go_back)
        reasons: dict[Path, str] = {}
        try:
            reasons.update(self._make())
        except Exception as error:  # such as columns that a node can't read
            reasons = {run.directory: worker.said_by(error) for run in self.runs}
        for directory, reason in reasons.items():
            worker.fail(directory, reason)
        if reasons:
            raise FailedRuns([], reasons)

    def _make(self) -> Iterator[tuple[Path, str]]:
        """Yields each run that failed, and why."""
        until = time.monotonic() + DEAD_AFTER + HEARTBEAT
        while any(at_work(run.directory) for run in self.runs) and time.monotonic() < until:
            time.sleep(1)  # of a process that was killed on another node, the lock counts for two minutes
        loaded, where = columns.load(self.data), device.find(None)
        missing = [run for run in self.runs if run.record(loaded) is None]
        for job in jobs_of(missing, loaded.schema, [where]):
            if (reason := worker.make(job, loaded, where)) is not None:
                yield from ((run.directory, reason) for run in job.runs)

    def _traces(self) -> dict[Path, int]:
        paths = (run.directory / name for run in self.runs for name in (checkpoint.FILE, record.FILE))
        return {path: path.stat().st_mtime_ns for path in paths if path.exists()}

    def _go_back(self, number: int, frame: object) -> None:
        """At Slurm's signal: into the queue again, or fail where that would lead nowhere. Ends the process."""
        signal.signal(number, signal.SIG_IGN)
        job = os.environ["SLURM_JOB_ID"]
        try:
            reason = self._stuck(ask("scontrol", "show", "job", job))
            if reason is None:
                ask("scontrol", "requeue", job)
        except QueueError as error:
            reason = f"couldn't go back into the queue: {error}"
        if reason is None:
            sys.exit("back into the queue")  # the locks are given back on the way
        for run in self.runs:
            if not (run.directory / record.FILE).exists():
                worker.fail(run.directory, reason)
        sys.exit(reason)

    def _stuck(self, job: str) -> str | None:
        """Why a job, as scontrol shows it, would come no further the next time; None where it may."""
        times = dict(re.findall(r"\b(RunTime|TimeLimit)=(\S+)", job))
        ran, limit = times.get("RunTime", ""), times.get("TimeLimit", "")
        if self._traces() != self.before or not _seconds(ran) + LEAD + 60 >= _seconds(limit):
            return None
        return (
            f"its time limit of {limit} ends before its next checkpoint; expected a larger --time, or a smaller "
            "training.evaluate_every"
        )


def _seconds(text: str) -> float:
    """Slurm's [days-]hours:minutes:seconds. Not a number, which is no more than any, where there is no limit."""
    days, _, clock = text.rpartition("-")
    try:
        hours, minutes, seconds = map(int, clock.split(":"))
    except ValueError:
        return math.nan
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
