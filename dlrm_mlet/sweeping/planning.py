"""An experiment, its data set's sizes and the devices -> what its runs take of memory, disk and time, beforehand."""

import dataclasses
import glob
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dlrm_mlet.config import Config, Experiment, Keep, Point
from dlrm_mlet.data import schema as schemas
from dlrm_mlet.data.datasets import BUILT_IN
from dlrm_mlet.data.schema import SPLITS, Schema
from dlrm_mlet.sweeping import durations, sweep
from dlrm_mlet.training import checkpoint, device, record
from dlrm_mlet.training.device import CPU, USABLE
from dlrm_mlet.training.model import build, served
from dlrm_mlet.training.record import Record
from dlrm_mlet.training.run import KEPT, Memory, check_schema, memory_needed, memory_of, steps_of
from dlrm_mlet.training.together import can_train_together

PROCESS = 430 << 20
"""Bytes of a process that trains on a CPU, beside its model and columns: docs/planning.md has how it was measured."""
FILE, RECORD, ENTRY = 1600, 1450, 300
"""Bytes of a checkpoint beside its numbers and its schema: of the file, of its record, and for each array in it."""
PIECE = 1 << 26
"""Bytes of a table that the TorchRec engine collapses at once."""
KEEPS: tuple[Keep, ...] = ("all", "best", "none")
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
         "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


class PlanError(ValueError):
    """A plan that can't be made, or can't be kept: the message says what is needed and what there is."""


@dataclass(frozen=True)
class Devices:
    """What the runs are made on."""

    count: int
    kind: str
    """cpu or cuda."""
    memory: int | None
    """Bytes that can be planned with: all processes on a CPU share them, each GPU has as many; None: not known."""
    name: str | None = None
    """As records say it; None for those of another machine."""


@dataclass(frozen=True)
class Need:
    """What the runs of one point take; bytes on the disk are those of one run."""

    point: Point
    runs: int
    """With tuning also the trials, at least so many."""
    finished: int
    together: int
    """Runs that a device makes at once: on a GPU all seeds that are missing, where it holds them."""
    memory: Memory
    """On the device, of these; on a CPU with the process, without the columns."""
    standing: int
    """On the disk while it runs, its checkpoint to go on from."""
    writing: int
    """And the next one, before it takes that one's place; of those that a device makes at once one at a time."""
    checkpoint: int
    """On the disk when it is finished."""
    seconds: float | None
    """Of its steps; None where there are no figures."""

    @property
    def missing(self) -> int:
        """Runs without a record."""
        return max(self.runs - self.finished, 0)


@dataclass(frozen=True)
class Plan:
    """What an experiment takes."""

    experiment: Experiment
    out: Path
    sizes: str
    """Where the sizes of the data set come from."""
    rows: int
    """Of training."""
    columns: int
    """Bytes of the data set's columns."""
    devices: Devices
    spread: int
    """Devices that one run takes."""
    needs: tuple[Need, ...]
    figures: str | None
    """By what the times are; None where there are none."""
    held: int
    """Bytes of the checkpoints that lie in `out`."""
    free: int
    """Bytes that are free on its disk."""

    @property
    def missing(self) -> list[Need]:
        """The points of which runs are missing."""
        return [need for need in self.needs if need.missing]

    def left(self, keep: Keep) -> int:
        """Bytes of the checkpoints that are there at the end."""
        seeds = {"all": None, "best": 1, "none": 0}[keep]
        return sum((need.runs if seeds is None else seeds) * need.checkpoint for need in self.needs)

    def most(self, keep: Keep) -> int:
        """Bytes of checkpoints at most, of runs that are done and those at work: a sweep makes the largest first."""
        largest = sorted(self.missing, key=lambda need: max(need.memory), reverse=True)
        jobs = [need for need in largest for _ in range(math.ceil(need.missing / need.together))]
        at_once = self.devices.count // self.spread
        points = {id(need.point) for need in self.needs if need.finished}
        done = sum(need.checkpoint * (1 if keep == "best" else min(need.finished, need.runs))
                   for need in self.needs if need.finished and keep != "none")  # fmt: skip
        most = self.left(keep)
        for place, job in enumerate(jobs):
            at_work = jobs[place : place + at_once]
            most = max(most, done + sum(each.together * each.standing + each.writing for each in at_work))
            if keep == "all":
                done += job.together * job.checkpoint
            elif keep == "best" and id(job.point) not in points:
                points.add(id(job.point))
                done += job.checkpoint
        return most

    @property
    def seconds(self) -> float | None:
        """Of all missing runs: each takes its share of the devices, or of a CPU's memory where that is larger.

        No less than the longest run; None where there are no figures.
        """
        total = longest = 0.0
        for need in self.missing:
            if need.seconds is None:
                return None
            share = self.spread / self.devices.count
            if self.devices.kind == "cpu" and self.devices.memory:
                share = max(share, max(need.memory) / self.devices.memory)
            total += need.missing * need.seconds * share
            longest = max(longest, need.seconds)
        return max(total, longest)


def devices_for(count: int | None, memory: str | None = None, launcher: str = "local") -> Devices:
    """The devices to plan for: `count` like those here, by default all; or so many GPUs elsewhere, of such a `memory`.

    Of Slurm's nodes nothing is known. Raises PlanError for a count below 1, and for what is no memory such as 80GiB.
    """
    if count is not None and count < 1:
        raise PlanError(f"--devices {count}: expected 1 or more")
    if memory is not None:
        return Devices(count or 1, "cuda", int(USABLE * _bytes(memory)))
    if launcher == "slurm":
        return Devices(count or 1, "cpu", None)
    here = device.workers(None)
    free = min(map(device.free_memory, here)) if here[0].type == "cuda" else device.free_memory(CPU)
    return Devices(count or len(here), here[0].type, int(USABLE * free), device.describe(here[0]))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.lower())
    if found is None or found[2] not in UNITS:
        raise PlanError(f"--device-memory {text}: expected bytes, such as 80GiB")
    return int(float(found[1]) * UNITS[found[2]])


def plan_of(experiment: Experiment, data: Path, out: Path, devices: Devices, engine: str = "plain") -> Plan:
    """What the runs take that have no record in `out`, by the sizes of the data set in `data`; changes nothing.

    Where the data set isn't there and is a built-in one, its published sizes are taken. With the engine "torchrec" the
    one run is spread over all devices. Raises ColumnsError where no sizes are known, TrainingError where they are of
    another data set, ConfigError where tables can't have its multi-valued columns, RecordError where a record in `out`
    is another run's, DurationError for figures that can't be read, PlanError for a grid with TorchRec.
    """
    if engine == "torchrec" and len(experiment.points) > 1:
        raise PlanError(f"{experiment.path}: {len(experiment.points)} points; expected one with --engine torchrec")
    published = experiment.dataset in BUILT_IN and not (data / "schema.json").exists()
    schema = _published(experiment.dataset) if published else schemas.load(data / "schema.json")
    for point in experiment.points:
        check_schema(point.config, schema)
    chosen, tried = _records(experiment, out, None if published else schema), _trials(experiment, out)
    records = [[*its, *trials] for its, trials in zip(chosen, tried, strict=True)]
    figures = durations.from_records([point.config for point in experiment.points], records, devices.name)
    measured = "this experiment's own records" if figures else None
    if not figures and engine == "plain":
        figures, measured = durations.from_benchmark(devices.kind)
        others = sorted({point.config.training.optimizer for point in experiment.points} - {"sgd"})
        if measured and others:
            measured += f", which trains by sgd ({', '.join(others)} takes longer)"
    tuning, trials = experiment.tuning, 0
    if tuning is not None:
        trials = max(tuning.trials, math.prod(map(len, tuning.start.values()))) * len(tuning.seeds)
    needs = []
    seeds = len(experiment.seeds)
    for point, own, of_search in zip(experiment.points, chosen, tried, strict=True):
        disk = _disk(point.config, schema)
        seconds = durations.seconds_of(point.config, schema, figures) if figures else None
        finished = min(len(own), seeds) + len(of_search)  # a search may go on for longer than is known beforehand
        runs, together = seeds + max(trials, len(of_search)), 1
        if devices.kind == "cuda" and engine == "plain" and can_train_together(point.config):
            at_once = max(min(seeds, runs - finished), 1)
            together = at_once if memory_needed(point.config, schema, at_once) <= (devices.memory or 0) else 1
        memory = _memory(point.config, schema, devices, engine, together)
        needs.append(Need(point, runs, finished, together, memory, *disk, seconds))
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    return Plan(
        experiment,
        out,
        sizes=f"published, as {data} isn't there" if published else f"those of {data}",
        rows=schema.rows["train"],
        columns=sum(schema.rows.values()) * (4 * (len(schema.dense) + sum(schema.slots) + bool(schema.weight)) + 1),
        devices=devices,
        spread=devices.count if engine == "torchrec" else 1,
        needs=tuple(needs),
        figures=measured,
        held=sum(path.stat().st_size for path in out.rglob(checkpoint.FILE)),
        free=shutil.disk_usage(there).free,
    )


def _published(name: str) -> Schema:
    """What is known of a built-in data set without its rows: enough of a schema for all sizes."""
    # polars isn't everywhere that trains
    from dlrm_mlet.data.splits import split_sizes  # noqa: PLC0415
    from dlrm_mlet.data.synthetic import AVAZU_DISTINCT  # noqa: PLC0415

    known = BUILT_IN[name]
    rows = dict(zip(SPLITS, split_sizes(known, known.rows or 0), strict=True))
    return Schema(name, known.label, known.dense, known.categorical, known.table_rows or AVAZU_DISTINCT, rows,
                  known.split, known.split_seed, {}, {}, "", ())  # fmt: skip


def _records(experiment: Experiment, out: Path, schema: Schema | None) -> list[list[Record]]:
    """Of each point the records that are there; where the data set is, each has to be of this very run.

    What tuning chooses is a part of a run's directory: there all count that have the point's name.
    """
    if experiment.tuning is not None:
        return _of_any_choice(experiment, out)
    found: list[list[Record]] = [[] for _ in experiment.points]
    for place, run in enumerate(sweep.plan(experiment, out)):
        if schema is None:
            each = record.read(run.directory)
        else:
            each = record.of_run(run.directory, run.point.config, run.seed, schema)
        if each is not None:
            found[place // len(experiment.seeds)].append(each)
    return found


def _trials(experiment: Experiment, out: Path) -> list[list[Record]]:
    """Of each point the records of its search."""
    return (
        _of_any_choice(experiment, out / "trials") if experiment.tuning is not None else [[]] * len(experiment.points)
    )


def _of_any_choice(experiment: Experiment, directory: Path) -> list[list[Record]]:
    names = [f"{glob.escape(point.label)},*seed=*" if point.label else "*seed=*" for point in experiment.points]
    return [[each for folder in directory.glob(name) if (each := record.read(folder))] for name in names]


def _memory(config: Config, schema: Schema, devices: Devices, engine: str, together: int) -> Memory:
    """Bytes of so many runs on one device: on a CPU with its process, without the columns.

    TorchRec spreads the tables and what the optimizer keeps of them over N devices. Each has 1/N; with table_wise no
    less than the largest table, with data_parallel all. At the end they are collapsed piece by piece.
    """
    process = PROCESS if devices.kind == "cpu" else 0
    training, end = (process + each for each in memory_of(config, schema, together))
    if engine == "plain":
        return Memory(training, end)
    kept, a_row, _ = KEPT[config.training.optimizer]
    width = (*config.model.inner_dims, config.model.embedding_dim)[0]
    a_table = [4 * ((1 + kept) * width + a_row) * rows for rows in schema.table_rows]
    evenly = math.ceil(sum(a_table) / devices.count)
    share = {"table_wise": max(evenly, *a_table), "data_parallel": sum(a_table)}.get(config.training.sharding, evenly)
    training += share - sum(a_table)
    return Memory(training, training + PIECE)


def _disk(config: Config, schema: Schema) -> tuple[int, int, int]:
    """Bytes of a run's checkpoints: of one to go on from, of the largest that is written, of the one that it leaves."""
    shape = dataclasses.replace(config.model, start_as=None)
    with torch.device("meta"), _NothingDrawn():  # sizes without numbers
        model = build(shape, len(schema.dense), schema.table_rows, None)
        smaller = served(model, shape)
    kept, a_row, _ = KEPT[config.training.optimizer]
    remembered = sum(
        4 * (kept * each.numel() + a_row * (len(each) if _is_table(name) else each.numel())) + (kept + a_row) * ENTRY
        for name, each in model.named_parameters()
    )
    beside = FILE + len(json.dumps(schema.as_dict()))
    trained, left = (
        beside + sum(each.nbytes + ENTRY for each in its.state_dict().values()) for its in (model, smaller)
    )
    trained, left = trained + remembered, left + RECORD
    looks = (steps_of(config.training, schema.rows["train"]) - 1) // config.training.evaluate_every
    return (0, trained, trained)[min(looks, 2)], (left, left, max(trained, left))[min(looks, 2)], left


class _NothingDrawn(TorchFunctionMode):
    """Starts nothing: what is drawn on meta torch does in Python, 2 s for the first and 0.1 s for each other model."""

    def __torch_function__(
        self, func: Callable[..., Any], _: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, drawn = kwargs or {}, (torch.Tensor.normal_, torch.Tensor.uniform_)
        if func in drawn or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _is_table(name: str) -> bool:
    """Whether Adagrad keeps a number a row of this parameter."""
    return name.startswith("tables.") and "projections" not in name
