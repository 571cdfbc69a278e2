"""An experiment -> the runs that have no record yet -> worker processes -> all its records."""

import itertools
import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from dlrm_mlet.config import Config, Experiment, Keep, Point, as_trained
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.extras import needs
from dlrm_mlet.files import BusyError, alone
from dlrm_mlet.sweeping import keeping, queue, reuse, worker
from dlrm_mlet.training import record
from dlrm_mlet.training.device import CPU, USABLE, describe, free_memory
from dlrm_mlet.training.record import Record
from dlrm_mlet.training.run import check_data, check_device, memory_needed
from dlrm_mlet.training.together import can_train_together

with needs("training"):
    from tqdm import tqdm


GRACE = 3.0
"""Seconds in which a worker that is asked to end has to."""


class SweepError(RuntimeError):
    """A sweep that can't go on: the message says why; what was finished stays."""


class FailedRuns(SweepError):
    """Some runs of a sweep failed, and all others are done: their records are in `runs`, the reasons in `reasons`."""

    def __init__(self, runs: "list[tuple[PlannedRun, Record]]", reasons: dict[Path, str]):
        self.runs, self.reasons = runs, reasons
        each = "\n".join(f"  {directory}: {reason}" for directory, reason in reasons.items())
        super().__init__(f"{len(reasons)} runs failed, and the same call tries them again:\n{each}")


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment, and its directory."""

    point: Point
    seed: int
    directory: Path
    keep: Keep = "all"

    def record(self, loaded: Columns) -> Record | None:
        """Its record; None where it isn't finished. Raises RecordError where the record is another run's."""
        return record.of_run(self.directory, self.point.config, self.seed, loaded.schema)


Launcher = Callable[[Experiment, Path, Path], list[tuple[PlannedRun, Record]] | None]
"""An experiment, its data and where its runs lie -> all its records; None where others are at work on them."""


def plan(experiment: Experiment, out: Path) -> list[PlannedRun]:
    """Every point once per seed, each in its own directory of `out`."""
    return [
        PlannedRun(point, seed, directory(out, point, seed), experiment.keep)
        for point in experiment.points
        for seed in experiment.seeds
    ]


def directory(out: Path, point: Point, seed: int) -> Path:
    """Where a run of an experiment leaves its record, such as <out>/mlet/inner_dim=64,embedding_dim=4,seed=0."""
    return out / ",".join(filter(None, [point.label, f"seed={seed}"]))


def unfinished(runs: list[PlannedRun], loaded: Columns) -> list[PlannedRun]:
    """Those without a record. Raises RecordError where another run's lies there, TrainingError on useless columns."""
    missing = [run for run in runs if run.record(loaded) is None]
    for config in {run.point.config for run in missing}:
        check_data(config, loaded)
    return missing


def taken(missing: list[PlannedRun], out: Path, loaded: Columns, device: str) -> list[PlannedRun]:
    """Those that are left after some were taken from other experiments; `device` is what it is called."""
    wanted = [(run.directory, run.point.config, run.seed, run.keep) for run in missing]
    if found := reuse.take(wanted, out, loaded.schema, device):
        said = ", ".join(f"{count} of {experiment}" for experiment, count in found.items())
        print(f"runs that other experiments have made: {said}", flush=True)
    return [run for run in missing if run.record(loaded) is None]


def leave(runs: list[PlannedRun]) -> None:
    """Of each point those checkpoints of finished runs that its experiment keeps."""
    for _, seeds in itertools.groupby(runs, key=lambda run: run.point):
        same = list(seeds)
        keeping.leave(same[0].keep, [run.directory for run in same])


def sweep(
    experiment: Experiment, data: Path, out: Path, devices: list[torch.device]
) -> list[tuple[PlannedRun, Record]]:
    """Make the runs of the experiment that have no record in `out`, and return all records.

    `devices` has one entry a worker process, several of them "cpu" as it may be; fewer work where memory is short. A
    run that was stopped goes on from its checkpoint. Runs that differ in what is served alone are trained once, and
    each leaves what it would by itself. One that fails leaves its reason in failed.json, and the others go
    on. Raises RecordError where a record in `out` was made by another config or on other columns, ColumnsError where
    the data set isn't there, DeviceError before anything starts where a run can't fit a device, BusyError where
    another sweep is at work in `out` or Slurm has some of its runs, and at the end FailedRuns where some failed.
    """
    with alone(out, "sweep"):
        if theirs := [place for place in queue.places(out).values() if place.live]:
            jobs = " ".join(sorted({place.job.partition("_")[0] for place in theirs}))
            raise BusyError(
                f"{out}: Slurm has {len(theirs)} of its runs; expected --launcher slurm, or none there: scancel {jobs}"
            )
        return _sweep(experiment, data, out, devices)


def _sweep(
    experiment: Experiment, data: Path, out: Path, devices: list[torch.device]
) -> list[tuple[PlannedRun, Record]]:
    runs = plan(experiment, out)
    loaded = columns.load(data)
    missing = unfinished(runs, loaded)
    if missing:
        missing = taken(missing, out, loaded, describe(devices[0]))
    leave(runs)  # those of runs that were killed beside their record, or that another `keep` left
    for config, device in itertools.product({run.point.config for run in missing}, set(devices)):
        check_device(config, loaded.schema, device, share=USABLE)
    # the longest first, so that no core waits for one at the end
    jobs = sorted(jobs_of(missing, loaded.schema, devices), key=lambda job: job.bytes, reverse=True)
    done = len(runs) - len(missing)
    with tqdm(
        total=len(runs), initial=done, desc="runs", unit=" runs", disable=None, leave=False, dynamic_ncols=True
    ) as bar:
        reasons: dict[Path, str] = {}
        for job, reason in _train_all(deque(jobs), data, devices[: len(jobs)]):
            bar.update(len(job.runs))
            if reason is None:
                leave([run for run in runs if any(run.point is each.point for each in job.runs)])
            for run in job.runs:
                done += 1
                if reason is not None:
                    reasons[run.directory] = reason
                    worker.fail(run.directory, reason)
                told = _last(run.directory) if reason is None else f"failed: {reason}"
                bar.set_postfix_str(told)
                if bar.disable:  # no terminal: a line per run
                    print(f"{done} of {len(runs)}: {run.point.short}, seed {run.seed}: {told}", flush=True)
    records = [(run, run.record(loaded)) for run in runs]
    for run, found in records:
        if found is None:
            reasons.setdefault(run.directory, "its record is gone")
    finished = [(run, found) for run, found in records if found is not None]
    if reasons:
        raise FailedRuns(finished, reasons)
    return finished


def _last(directory: Path) -> str:
    """What a run came to, in a few words."""
    found = record.read(directory)
    if found is None:
        return "no record"
    return f"AUC {found.metrics['validation']['auc']:.4f}" if found.metrics else found.status


@dataclass(frozen=True)
class Job:
    """What a worker takes at once: a point, the directory of each of its seeds, and the bytes that this needs."""

    point: Point
    seeds: dict[int, Path]
    bytes: int
    keep: Keep = "all"
    others: tuple[PlannedRun, ...] = ()
    """Runs of these seeds that differ in what is served alone."""

    @property
    def runs(self) -> list[PlannedRun]:
        """All that it leaves."""
        return [*(PlannedRun(self.point, seed, out, self.keep) for seed, out in self.seeds.items()), *self.others]


def jobs_of(missing: list[PlannedRun], schema: Schema, devices: list[torch.device]) -> Iterator[Job]:
    """A job for each run that is trained; on GPUs one for all the seeds of a point, where their memory allows it."""
    on_gpus = devices[0].type != "cpu"
    # what goes to a GPU is made in the CPU's memory
    free = min(USABLE * min(map(free_memory, devices)), free_memory(CPU) / len(devices))
    alike: dict[tuple[Config, int], list[PlannedRun]] = {}
    for run in missing:
        alike.setdefault((as_trained(run.point.config), run.seed), []).append(run)
    for point, same in itertools.groupby(alike.values(), key=lambda runs: runs[0].point):
        groups = list(same)
        together = _job(groups, schema)
        if on_gpus and can_train_together(point.config) and together.bytes <= free:
            yield together
        else:
            yield from (_job([group], schema) for group in groups)


def _job(groups: Sequence[Sequence[PlannedRun]], schema: Schema) -> Job:
    """Of each seed the runs that are trained as one: the first is, and the others are served of it."""
    first, others = [group[0] for group in groups], [run for group in groups for run in group[1:]]
    configs = {run.point.config for run in (first[0], *others)}
    needed = max(memory_needed(config, schema, len(groups)) for config in configs)
    return Job(first[0].point, {run.seed: run.directory for run in first}, needed, first[0].keep, tuple(others))


def _train_all(waiting: deque[Job], data: Path, devices: list[torch.device]) -> Iterator[tuple[Job, str | None]]:
    """Do the jobs in worker processes; yields each as it is finished, with the reason where it failed.

    Where a process dies, those that ran are made again one by one, so that one job can't take others with it.
    """
    suspects: deque[Job] = deque()
    while waiting or suspects:
        some, count = (deque([suspects.popleft()]), 1) if suspects else (waiting, len(devices))
        lost: list[Job] = []
        yield from _in_processes(some, data, devices[:count], lost)
        if len(lost) == 1:
            yield lost[0], "its process died, as happens when memory runs out: fewer --jobs leave each more"
        else:
            suspects.extend(lost)


def _in_processes(
    waiting: deque[Job], data: Path, devices: list[torch.device], lost: list[Job]
) -> Iterator[tuple[Job, str | None]]:
    """The same until all are done or a process dies; those that were running then are in `lost`."""
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for place in enumerate(map(str, devices), start=1):
        places.put(place)
    tqdm.monitor_interval = 0  # its thread would wait for ever for a lock that a worker died with
    tqdm.set_lock(context.RLock())  # one for all processes, so that their bars don't write over one another
    shared = (data, places, tqdm.get_lock())
    # workers share the CPU's memory, where models are also made for GPUs, and saved; a GPU has one worker
    budget = free_memory(CPU)
    with ProcessPoolExecutor(len(devices), context, initializer=worker.start, initargs=shared) as executor:
        running: dict[Future[str | None], Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < len(devices):
                    if running and sum(job.bytes for job in running.values()) + waiting[0].bytes > budget:
                        break
                    job = waiting.popleft()
                    running[executor.submit(worker.train, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    reason = future.result()
                    yield running.pop(future), reason
        except BrokenProcessPool:
            lost.extend(running.values())
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            _end_workers()
            tqdm.set_lock(threading.RLock())


def _end_workers() -> None:
    workers = multiprocessing.active_children()
    for process in workers:
        process.terminate()
    for process in workers:
        process.join(GRACE)
        process.kill()
