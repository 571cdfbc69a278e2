"""An experiment -> the runs that have no record yet -> worker processes -> all its records."""

import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlrm_mlet.config import Experiment, Point
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.extras import needs
from dlrm_mlet.training import record
from dlrm_mlet.training.device import CPU, USABLE, free_memory
from dlrm_mlet.training.record import Record
from dlrm_mlet.training.run import check_device, check_labels, memory_needed, train_together
from dlrm_mlet.training.together import can_train_together

with needs("training"):
    from tqdm import tqdm


class SweepError(RuntimeError):
    """A sweep that can't go on: the message says why; what was finished stays."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment, and its directory."""

    point: Point
    seed: int
    directory: Path

    def record(self, loaded: Columns) -> Record | None:
        """Its record; None where it isn't finished. Raises RecordError where the record is another run's."""
        return record.of_run(self.directory, self.point.config, self.seed, loaded.schema)


def plan(experiment: Experiment, out: Path) -> list[PlannedRun]:
    """Every point once per seed, each in its own directory of `out`."""
    return [PlannedRun(p, seed, directory(out, p, seed)) for p in experiment.points for seed in experiment.seeds]


def directory(out: Path, point: Point, seed: int) -> Path:
    """Where a run of an experiment leaves its record, such as <out>/mlet/inner_dim=64,embedding_dim=4,seed=0."""
    return out / ",".join(filter(None, [point.label, f"seed={seed}"]))


def sweep(
    experiment: Experiment, data: Path, out: Path, devices: list[torch.device]
) -> list[tuple[PlannedRun, Record]]:
    """Make the runs of the experiment that have no record in `out`, and return all records.

    `devices` has one entry a worker process, several of them "cpu" as it may be; fewer work where memory is short. A
    run that was stopped goes on from its checkpoint. Raises RecordError where a record in `out` was made by another
    config or on other columns, ColumnsError where the data set isn't there, DeviceError before anything starts where
    a run can't fit a device, SweepError where a worker dies.
    """
    runs = plan(experiment, out)
    loaded = columns.load(data)
    missing = [run for run in runs if run.record(loaded) is None]
    if missing:
        check_labels(loaded)
    for config, device in itertools.product({run.point.config for run in missing}, set(devices)):
        check_device(config, loaded.schema, device, share=USABLE)
    # the longest first, so that no core waits for one at the end
    jobs = sorted(_jobs(missing, loaded.schema, devices), key=lambda job: job.bytes, reverse=True)
    done = len(runs) - len(missing)
    with tqdm(
        total=len(runs), initial=done, desc="runs", unit=" runs", disable=None, leave=False, dynamic_ncols=True
    ) as bar:
        for job in _train_all(deque(jobs), data, devices[: len(jobs)]):
            bar.update(len(job.seeds))
            for seed, directory in job.seeds.items():
                done += 1
                told = _last(directory)
                bar.set_postfix_str(told)
                if bar.disable:  # no terminal: a line per run
                    print(f"{done} of {len(runs)}: {job.point.short}, seed {seed}: {told}", flush=True)
    return [(run, found) for run in runs if (found := run.record(loaded)) is not None]


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


def _jobs(missing: list[PlannedRun], schema: Schema, devices: list[torch.device]) -> Iterator[Job]:
    """A job for each run; on GPUs one for all the seeds of a point, where their memory allows it."""
    on_gpus = devices[0].type != "cpu"
    # what goes to a GPU is made in the CPU's memory
    free = min(USABLE * min(map(free_memory, devices)), free_memory(CPU) / len(devices))
    for point, same in itertools.groupby(missing, key=lambda run: run.point):
        seeds = {run.seed: run.directory for run in same}
        together = memory_needed(point.config, schema, len(seeds))
        if on_gpus and can_train_together(point.config) and together <= free:
            yield Job(point, seeds, together)
        else:
            for seed, out in seeds.items():
                yield Job(point, {seed: out}, memory_needed(point.config, schema))


def _train_all(waiting: deque[Job], data: Path, devices: list[torch.device]) -> Iterator[Job]:
    """Do the jobs in worker processes; yields each as it is finished."""
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for place in enumerate(map(str, devices), start=1):
        places.put(place)
    tqdm.set_lock(context.RLock())  # one for all processes, so that their bars don't write over one another
    shared = (data, places, tqdm.get_lock())
    # workers share the CPU's memory, where models are also made for GPUs, and saved; a GPU has one worker
    budget = free_memory(CPU)
    with ProcessPoolExecutor(len(devices), context, initializer=_start_worker, initargs=shared) as executor:
        try:
            running: dict[Future[None], Job] = {}
            while waiting or running:
                while waiting and len(running) < len(devices):
                    if running and sum(job.bytes for job in running.values()) + waiting[0].bytes > budget:
                        break
                    job = waiting.popleft()
                    running[executor.submit(_train, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    future.result()
                    yield job
        except BrokenProcessPool:
            raise SweepError(
                "a worker process died, as happens when memory runs out; the finished runs are kept: "
                "make the same call again to go on, with fewer --jobs if memory was short"
            ) from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()


_columns: Columns
_device: torch.device
_bar: Any


def _start_worker(data: Path, places: Any, lock: Any) -> None:
    """Once in each worker: its view of the data set, its device and its line on the screen."""
    global _columns, _device, _bar  # noqa: PLW0603  a worker process has one of each
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once: what it has written is whole
    _columns = columns.load(data)
    tqdm.set_lock(lock)
    position, device = places.get()
    _device = torch.device(device)
    _bar = tqdm(position=position, unit=" steps", leave=False, disable=None, dynamic_ncols=True)


def _train(job: Job) -> None:
    _bar.set_description(f"{job.point.short} seed {','.join(map(str, job.seeds))}")
    train_together(job.point.config, _columns, job.seeds, resume=True, bar=_bar, device=_device)
