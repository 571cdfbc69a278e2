"""The runs of an experiment that have no record, and sbatch's flags -> job arrays in Slurm's queue, by submitit."""

import contextlib
import io
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dlrm_mlet.config import Experiment
from dlrm_mlet.data import columns
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.extras import needs
from dlrm_mlet.files import alone, at_work
from dlrm_mlet.sweeping import queue, worker
from dlrm_mlet.sweeping.queue import QueueError
from dlrm_mlet.sweeping.sweep import PlannedRun, leave, plan, unfinished
from dlrm_mlet.sweeping.task import LEAD, Task
from dlrm_mlet.training.record import Record
from dlrm_mlet.training.run import memory_needed
from dlrm_mlet.training.together import can_train_together

with needs("slurm"):
    import submitit
    from submitit.core.utils import FailedJobError

Flags = Mapping[str, str | bool]
"""sbatch's, by name; True for one without a value."""
OURS = (
    "array", "clusters", "error", "help", "input", "job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "version", "wait", "wrap",
)  # fmt: skip
"""The flags that are decided here, or that would change what sbatch does or says."""


class SlurmError(ValueError):
    """A call for Slurm that can't be meant, or that sbatch refused: the message says why."""


def flags(words: Sequence[str]) -> Flags:
    """--mem=8G, --mem 8G, or --exclusive alone -> by name.

    Raises SlurmError for what isn't a flag in its long form, and for one that is decided here.
    """
    found: dict[str, str | bool] = {}
    waiting = list(words)
    while waiting:
        flag, equals, value = waiting.pop(0).partition("=")
        if not re.fullmatch(r"--[a-z][a-z0-9-]*", flag):
            raise SlurmError(f"{flag}: expected a flag of sbatch in its long form, such as --partition=gpu")
        if any(ours.startswith(flag[2:]) for ours in OURS):  # sbatch takes the beginning of a flag for it
            raise SlurmError(f"{flag}: is decided by dlrm-mlet; expected others than --{', --'.join(OURS)}")
        if equals:
            found[flag[2:]] = value
        else:
            found[flag[2:]] = waiting.pop(0) if waiting and not waiting[0].startswith("--") else True
    return found


def submit(
    experiment: Experiment, data: Path, out: Path, flags: Flags, jobs: int | None = None
) -> list[tuple[PlannedRun, Record]] | None:
    """All records, where all runs have one; else None, when those are in Slurm's queue that nobody is at work on.

    A task makes one run, or all seeds of a point where `flags` ask for GPUs; at most `jobs` tasks go at once. Raises
    RecordError and ColumnsError as `sweep` does, BusyError where a sweep is at work in `out` or another call hands over
    its runs, QueueError where Slurm doesn't answer, SlurmError where sbatch refuses.
    """
    if jobs is not None and jobs < 1:
        raise SlurmError(f"--jobs {jobs}: expected 1 or more")
    with alone(out, "sweep"):
        places = queue.places(out)  # before the records: what isn't in the queue any more has left its own by then
        runs, loaded = plan(experiment, out), columns.load(data)
        missing = unfinished(runs, loaded)
        leave(runs)
        if not missing:
            return [(run, found) for run in runs if (found := run.record(loaded))]
        for place in places.values():
            if place.state == "unknown":
                raise QueueError(f"{out}: {place.said}; expected to know, so that no run is handed over twice")
        live = {directory for directory, place in places.items() if place.live}
        left = [run for run in missing if run.directory not in live and not at_work(run.directory)]
        for run in left:
            reason = worker.failure(run.directory)
            if reason is None and run.directory in places:
                reason = places[run.directory].said
            if reason is not None:
                print(f"tried again: {run.directory}: {reason}", flush=True)
        if left:
            _hand_over(_tasks(left, data, loaded.schema, flags), out, flags, jobs)
    return None


def _tasks(left: list[PlannedRun], data: Path, schema: Schema, flags: Flags) -> list[Task]:
    """The largest first, so that at the end none is waited for."""
    on_gpus = any(
        name.startswith("gpus") or (name.startswith(("gres", "tres")) and "gpu" in str(value))
        for name, value in flags.items()
    )
    groups: dict[str | Path, list[PlannedRun]] = {}
    for run in left:
        together = on_gpus and can_train_together(run.point.config)
        groups.setdefault(run.point.label if together else run.directory, []).append(run)
    tasks = [Task(data, tuple(runs)) for runs in groups.values()]
    return sorted(tasks, key=lambda task: -memory_needed(task.runs[0].point.config, schema, len(task.runs)))


def _hand_over(tasks: list[Task], out: Path, flags: Flags, jobs: int | None) -> None:
    """In as few arrays as Slurm's limit allows. Those before one that sbatch refuses stay in the queue."""
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise SlurmError(f"{command} isn't here; expected a machine of a Slurm cluster, or --launcher local")
    limit = re.search(r"MaxArraySize\s*=\s*(\d+)", queue.ask("scontrol", "show", "config"))
    size = max(int(limit[1]), 1) if limit else len(tasks)
    arrays = [tasks[first : first + size] for first in range(0, len(tasks), size)]
    for array in arrays:
        job = _submit(array, out, flags, size if jobs is None else max(jobs // len(arrays), 1))
        runs = sum(len(task.runs) for task in array)
        print(f"{runs} runs handed to Slurm in {len(array)} tasks of job {job}", flush=True)


def _submit(tasks: list[Task], out: Path, flags: Flags, at_once: int) -> str:
    """One array, or a job alone; returns its number. What lies in `out`/slurm/<name> says which runs these are."""
    name = f"mlet-{secrets.token_hex(4)}"
    directories = [[run.directory for run in task.runs] for task in tasks]
    folder = queue.note(out, name, directories, job=None)
    threads = max(run.point.config.training.threads for task in tasks for run in task.runs)
    asked = {"requeue": True, "signal": f"USR2@{LEAD}", "cpus-per-task": str(threads), **flags}
    executor = submitit.SlurmExecutor(folder.resolve())
    executor.update_parameters(
        job_name=name,
        time=None,  # submitit's five minutes would hide the partition's limit
        wckey=None,
        array_parallelism=at_once,
        srun_args=[f"--cpus-per-task={asked['cpus-per-task']}"],  # since 22.05 srun doesn't take it from sbatch
        additional_parameters=asked,
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where submitit prints what it then raises
            submitted = executor.submit_array([_anywhere(task) for task in tasks])
    except FailedJobError as error:
        shutil.rmtree(folder)
        raise SlurmError(f"sbatch refused it: {' '.join(str(error).split())}") from None
    job = submitted[0].job_id.partition("_")[0]
    queue.note(out, name, directories, job)
    return job


def _anywhere(task: Task) -> Task:
    """The same with paths that hold in every directory."""
    runs = (replace(run, directory=run.directory.resolve()) for run in task.runs)
    return Task(task.data.resolve(), tuple(runs))
