"""An experiment -> the runs that have no record yet -> worker processes -> all its records."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dlrm_mlet import columns, record
from dlrm_mlet.columns import Columns
from dlrm_mlet.config import Config, Experiment, Point
from dlrm_mlet.record import Record


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


def sweep(experiment: Experiment, data: Path, out: Path, jobs: int) -> list[tuple[PlannedRun, Record]]:
    """Make the runs of the experiment that have no record in `out`, `jobs` at a time, and return all records.

    A run that was stopped goes on from its checkpoint. Raises RecordError where a record in `out` was made by another
    config or on other columns, ColumnsError where the data set isn't there, SweepError where a worker dies.
    """
    runs = plan(experiment, out)
    loaded = columns.load(data)
    missing = [run for run in runs if run.record(loaded) is None]
    # the longest first, so that no core waits for one at the end
    missing.sort(key=lambda run: max(run.point.config.model.inner_dims, default=0), reverse=True)
    with tqdm(total=len(runs), initial=len(runs) - len(missing), desc="runs", unit=" runs", disable=None) as bar:
        for _ in _train_all(missing, data, min(jobs, len(missing))):
            bar.update()
    return [(run, found) for run in runs if (found := run.record(loaded)) is not None]


def _train_all(runs: list[PlannedRun], data: Path, jobs: int) -> Iterator[None]:
    """Train the runs in worker processes; yields as each one is finished."""
    if not runs:
        return
    context = multiprocessing.get_context("spawn")
    positions = context.SimpleQueue()
    for position in range(1, jobs + 1):
        positions.put(position)
    tqdm.set_lock(context.RLock())  # one for all processes, so that their bars don't write over one another
    shared = (data, positions, tqdm.get_lock())
    with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=shared) as executor:
        try:
            waiting: set[Future[None]] = {
                executor.submit(_train, run.point.config, run.seed, run.directory, run.point.label) for run in runs
            }
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    yield
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
_bar: Any


def _start_worker(data: Path, positions: Any, lock: Any) -> None:
    """Once in each worker: its view of the data set and its line on the screen."""
    global _columns, _bar  # noqa: PLW0603  a worker process has one of each
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once: what it has written is whole
    _columns = columns.load(data)
    tqdm.set_lock(lock)
    _bar = tqdm(position=positions.get(), unit=" steps", leave=False, disable=None)


def _train(config: Config, seed: int, out: Path, label: str) -> None:
    from dlrm_mlet.training import train  # noqa: PLC0415  the process that only waits for workers needs no torch

    _bar.set_description(f"{label},seed={seed}")
    train(config, _columns, seed, out, resume=True, bar=_bar)
