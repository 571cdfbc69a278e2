"""A config, columns and a seed -> a trained model, its checkpoint and its record."""

import contextlib
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlrm_mlet import toml
from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.extras import needs
from dlrm_mlet.files import alone, replacing
from dlrm_mlet.tables import rivals, spectrum
from dlrm_mlet.tables.stacked import MLETTables, Tables
from dlrm_mlet.training import checkpoint, evaluation, record
from dlrm_mlet.training.checkpoint import Served
from dlrm_mlet.training.device import CPU, USABLE, DeviceError, describe, free_memory, threads, wait
from dlrm_mlet.training.model import DLRM, bags_of, build, check_tables, served
from dlrm_mlet.training.optimizer import SGD, Adagrad, Adam, LazyAdam, Optimizer, factors
from dlrm_mlet.training.stepping import losses
from dlrm_mlet.training.tensorboard import Watch
from dlrm_mlet.training.together import Together
from dlrm_mlet.training.warm import check_start, start_from

with needs("training"):
    from tqdm import tqdm

CURVE = "metrics.jsonl"
"""In a run's directory, its validation curve so far, a line a point."""
STEPS_PER_LOOK = 100
"""Steps between two looks at the loss: each look waits for the device."""

DIVERGED_ABOVE = 1e6
"""A run with such a weight has diverged, whatever its loss is: int8 rows go up to 8e6."""


SMALLER = {"float32": 0.0, "int8": 0.5, "int4": 1.25}
"""What a table in few bits takes while it is made, int4's before it is packed, for each of its numbers."""
KEPT = {"sgd": (0, 0, 0), "adagrad": (0, 1, 0), "adam": (2, 0, 1), "lazy-adam": (2, 0, 0)}
"""What an optimizer holds of a table: numbers for each of its numbers, and for each row; and while it makes a step."""


Variants = Mapping[Path, Config]
"""Directory -> a config that differs from a run's own in what is served alone: the run is that one's, too."""


class TrainingError(ValueError):
    """A run that can't be made from what it was given."""


class Memory(NamedTuple):
    """Bytes on a run's device."""

    training: int
    """While it makes its steps."""
    end: int
    """When its tables are collapsed and measured."""


def memory_needed(config: Config, schema: Schema, seeds: int = 1) -> int:
    """Bytes that so many runs together hold at their fullest, as `memory_of` has them."""
    return max(memory_of(config, schema, seeds))


def memory_of(config: Config, schema: Schema, seeds: int = 1) -> Memory:
    """Bytes that so many runs together hold on their device, without the columns and torch itself.

    The trained tables and what the optimizer keeps of them, while it makes a step what that takes, at the end the
    collapsed tables of one run and what is served of them; the orders of the rows, and one batch: of evaluation, or of
    training with its gradients.
    """
    model = config.model
    rows, features = sum(schema.table_rows), sum(schema.slots)
    widths = (*model.inner_dims, model.embedding_dim)
    collapsed = model.embedding_dim if model.inner_dims else 0
    smaller = 2 * (model.served_rank or 0) + model.embedding_dim * SMALLER[model.served_as]
    if model.served_density:  # what finds the largest has a place beside each number, and places of those found
        smaller += model.embedding_dim * (6 + 10 * model.served_density) + 1
    kept, a_row, passing = KEPT[config.training.optimizer]
    tables = rows * ((1 + kept) * widths[0] + a_row) * seeds
    batch = min(config.training.batch_size, schema.rows["train"])
    activations = max(evaluation.ROWS, 3 * seeds * batch) * (
        features * (sum(widths) + _passing(model)) + (features + 1) ** 2 + sum(model.bottom_mlp + model.top_mlp)
    )
    pairs = features * (features + 1) // 2
    d = model.embedding_dim
    shapes = (len(schema.dense), *model.bottom_mlp, d), (d + pairs, *model.top_mlp, 1)
    mlps = sum(math.prod(pair) for shape in shapes for pair in pairwise(shape))
    # weights and gradients of each, what the optimizer keeps, and a copy of one in a checkpoint
    mlps *= (2 + kept + a_row) * seeds + 1
    both = 4 * (tables + activations + mlps) + 8 * schema.rows["train"] * seeds
    return Memory(both + 4 * rows * passing * widths[0] * seeds, int(both + 4 * rows * (collapsed + smaller)))


def steps_of(training: TrainingConfig, rows: int) -> int:
    """Steps of a run on so many training rows."""
    return min(-(-rows // training.batch_size) * training.epochs, training.max_steps or sys.maxsize)


def _passing(model: ModelConfig) -> int:
    """Numbers that a lookup of one id makes, beside the vector."""
    if model.tables == "tensor-train":
        shapes = rivals.core_shapes(model.embedding_dim, model.tensor_rank)
        return 2 * sum(map(math.prod, shapes)) + model.embedding_dim * model.tensor_rank
    return 10 * model.embedding_dim if model.tables == "robe" or model.served_density else 0  # places are of 8 bytes


def check_device(config: Config, schema: Schema, device: torch.device, seeds: int = 1, share: float = 1.0) -> None:
    """Raises DeviceError where the device can't do so many runs together, with this share of its free memory."""
    if config.training.precision == "tf32" and device.type == "cpu":
        raise DeviceError('training.precision = "tf32": a CPU has none; expected float32, bfloat16 or a GPU')
    needed, free = memory_needed(config, schema, seeds), share * free_memory(device)
    if needed > free:
        raise DeviceError(
            f"inner_dim = {config.model.inner_dim}, embedding_dim = {config.model.embedding_dim} needs "
            f"{needed / 2**30:.2f} GiB; {describe(device)} has {free / 2**30:.2f} GiB free"
        )


def check_schema(config: Config, schema: Schema) -> None:
    """Raises TrainingError where the columns are of another data set.

    ConfigError where the model's tables can't have its multi-valued columns.
    """
    if schema.dataset != config.dataset:
        raise TrainingError(f"the columns are of {schema.dataset}; expected {config.dataset}, as in the config")
    check_tables(config.model, any(schema.pooling))


def check_data(config: Config, columns: Columns) -> None:
    """As check_schema; and raises TrainingError where the columns have one label alone to learn or choose by."""
    check_schema(config, columns.schema)
    for split in ("train", "validation"):
        if why := columns.lacks_a_label(split):
            raise TrainingError(f"{columns.schema.dataset}: {why}; expected both labels: preprocess with another split")


def train(
    config: Config,
    columns: Columns,
    seed: int,
    out: Path,
    resume: bool = True,
    bar: Any = None,
    device: torch.device = CPU,
    start: Served | None = None,
    watch: Watch | None = None,
) -> record.Record:
    """One run: `epochs` passes over the training rows, then validation and test, each read once by the served model.

    Leaves `out`/record.json and, if it didn't diverge, `out`/checkpoint.pt with the served model. While it runs, the
    checkpoint holds the state at the last point of the validation curve, where `resume` goes on, on a CPU to the same
    bits. The seed decides the weights and, apart from them, the order of the rows. With `start`, a finished run's
    model, the weights are that one's, but for rows of values that it doesn't know (see training/warm.py). `bar` is a
    tqdm bar to move; by default the run draws its own. `watch` is told each point of the curve, which lies in
    `out`/metrics.jsonl too. A run whose record is in `out` is not made again. Raises
    RecordError where the record there is another run's, DeviceError where the device can't do it, TrainingError where
    the columns can't be learned from.
    """
    if finished := record.of_run(out, config, seed, columns.schema, None if start is None else start.digest):
        return finished
    return train_together(config, columns, {seed: out}, resume, bar, device, start, watch)[0]


def train_together(
    config: Config,
    columns: Columns,
    outs: Mapping[int, Path],
    resume: bool = True,
    bar: Any = None,
    device: torch.device = CPU,
    start: Served | None = None,
    watch: Watch | None = None,
    variants: Mapping[int, Variants] | None = None,
) -> list[record.Record]:
    """The runs of some seeds, none of which is finished, in one pass: each gives what `train` gives, up to rounding.

    `outs` has each seed's directory, `variants` those of its runs that are served otherwise, and not trained again:
    each leaves what it would alone. Several seeds are for GPUs, which a batch of one leaves idle; a CPU does them
    faster one by one. A run's record states its share of the time. Raises what `train` raises.
    """
    others = variants or {}
    check_device(config, columns.schema, device, len(outs))
    check_data(config, columns)
    if start is not None:
        check_start(config.model, columns.schema, start)
    with contextlib.ExitStack() as stack:
        for out in (*outs.values(), *(out for each in others.values() for out in each)):
            stack.enter_context(alone(out, "run"))
        return _train_together(config, columns, outs, resume, bar, device, start, watch, others)


def _train_together(
    config: Config,
    columns: Columns,
    outs: Mapping[int, Path],
    resume: bool,
    bar: Any,
    device: torch.device,
    start: Served | None,
    watch: Watch | None,
    variants: Mapping[int, Variants],
) -> list[record.Record]:
    with threads(config.training.threads):
        few = config.model.min_count if config.model.tables == "min-count" else None
        places = None if few is None else rivals.without_rare(columns.counts(), few)
        # resident on a GPU if they fit beside the models; on the CPU they stay mapped
        beside = memory_needed(config, columns.schema, len(outs))
        if device.type != "cpu" and columns.nbytes + beside < USABLE * free_memory(device):
            columns = columns.to(device)
        with ThreadPoolExecutor(len(outs)) as pool:  # a large table is drawn for seconds, by one core
            runs = list(pool.map(
                lambda seed: Run(
                    config, columns, seed, outs[seed], device, start, watch, variants.get(seed, {}), places
                ), outs
            ))  # fmt: skip
        if resume:
            for run in runs:
                run.restore()
        with contextlib.ExitStack() as stack:
            if bar is None:
                name = ",".join(map(str, outs))
                bar = stack.enter_context(tqdm(desc=f"seed {name}", unit=" steps", disable=None))
            while behind := [run for run in runs if run.step < run.steps and not run.diverged and not run.finished]:
                # those that were stopped at an earlier step than others catch up with them first
                step, *later = sorted({run.step for run in behind} | {runs[0].steps})
                _take_steps([run for run in behind if run.step == step], later[0], bar)
            return [run.finish() for run in runs]


def _take_steps(runs: Sequence["Run"], until: int, bar: Any) -> None:
    """The steps up to `until` of some runs that have come equally far, each step once for all of them."""
    first = runs[0]
    training, step = first.config.training, first.step
    # several from the CPU's memory, so that the device never holds a table twice
    alone = len(runs) == 1
    model = first.model.to(first.device) if alone else Together([run.model.cpu() for run in runs], first.device)
    optimizers = make_optimizers(model, training, first.steps, step)
    if first.memory:
        for i, optimizer in enumerate(optimizers):
            optimizer.restore([run.memory[i] for run in runs])
    bar.reset(first.steps)
    bar.update(step)
    started = time.perf_counter()
    for loss in losses(model, optimizers, first.columns, _orders(runs), training.batch_size, training.precision):
        step += 1
        bar.update()
        last, at_point = step == until, step % training.evaluate_every == 0
        if last or at_point or (step % STEPS_PER_LOOK == 0 and not loss.isfinite().all()):
            wait(first.device)
            share = (time.perf_counter() - started) / len(runs)
            for i, (run, finite) in enumerate(zip(runs, loss.isfinite().view(-1).tolist(), strict=True)):
                if run.diverged:
                    continue
                run.step, run.seconds, run.diverged = step, run.seconds + share, not finite
                if at_point and step < run.steps and not run.diverged:
                    memory = [each.kept(i, len(runs)) for each in optimizers]
                    run.memory = [[None if part is None else _whole(part) for part in parts] for parts in memory]
                    run.look()
                    if run.curve:
                        bar.set_postfix_str(f"AUC {run.curve[-1]['auc']:.4f}", refresh=False)
            if last or all(run.diverged for run in runs):
                return
            started = time.perf_counter()


def _orders(runs: Sequence["Run"]) -> Iterator[Tensor]:
    """Of each epoch that is left of some runs that have come equally far: places of rows, (rows,) or (runs, rows)."""
    first = runs[0]
    epoch, skip = divmod(first.step, first.steps_per_epoch)
    for number in range(epoch, first.config.training.epochs):
        orders = [generator(run.seed, "order", number) for run in runs]
        order = first.columns.order("train", orders[0] if len(runs) == 1 else orders)
        yield order[..., skip * first.config.training.batch_size :]
        skip = 0


class Run:
    """The state of one run between its steps."""

    def __init__(
        self,
        config: Config,
        columns: Columns,
        seed: int,
        out: Path,
        device: torch.device,
        start: Served | None = None,
        watch: Watch | None = None,
        variants: Variants | None = None,
        places: Tensor | None = None,
    ):
        self.watch, self.variants = watch, variants or {}
        self.config, self.columns, self.seed, self.out, self.device = config, columns, seed, out, device
        schema = columns.schema
        # drawn on the CPU, so that a seed means the same weights on every device; it stays there until its first step
        self.model = build(
            config.model, len(schema.dense), schema.table_rows, generator(seed, "weights"), bags_of(schema), places
        )
        self.started_from = None if start is None else start.digest
        if start is not None:
            start_from(self.model, start)
        self.memory: list[list[Tensor | None]] = []
        """Of the optimizers, where the run goes on from a checkpoint."""
        self.steps_per_epoch = -(-schema.rows["train"] // config.training.batch_size)
        self.steps = steps_of(config.training, schema.rows["train"])
        self.step = 0
        self.seconds = 0.0
        self.diverged = False
        self.finished: record.Record | None = None
        """What came out, where the run was stopped between its last checkpoint and its record."""
        self.curve: list[dict[str, float]] = []
        self.spectra: list[dict[str, Any]] = []
        self._measure_spectra(self.model.tables)
        out.mkdir(parents=True, exist_ok=True)

    def look(self) -> None:
        """A point of the validation curve, and a checkpoint to go on from."""
        result = evaluation.measure(self.model, self.columns, "validation")
        if result is None:
            self.diverged = True
            return
        self.curve.append({"step": self.step, **result._asdict()})
        self._measure_spectra(self.model.tables)
        self._save(self.model, {"served": False, "step": self.step, "memory": self.memory, "seconds": self.seconds,
                                "curve": self.curve, "spectra": self.spectra})  # fmt: skip
        self._write_curve()
        if self.watch is not None:
            self.watch(self.curve[-1])

    def _write_curve(self) -> None:
        """Where people can look while the run goes on."""
        if self.curve:
            with replacing(self.out / CURVE) as partial:
                partial.write_text("".join(json.dumps(point) + "\n" for point in self.curve), encoding="utf-8")

    def finish(self) -> record.Record:
        """Measure what the steps have come to, and write the record; what is measured is in the checkpoint before.

        The variants come first, so that a run whose record is there has none left.
        """
        if self.finished is not None:
            self._write_curve()
            self.finished.write(self.out)
            return self.finished
        collapsed = self.model.collapse()
        self.diverged |= not all(map(_is_bounded, collapsed.parameters()))
        if self.diverged:  # it can't be quantized; a model of zeros can, and takes as much
            for parameter in collapsed.parameters():
                parameter.data.zero_()
        for out, config in self.variants.items():
            other = copy.copy(self)
            other.config, other.out, other.spectra = config, out, list(self.spectra)
            out.mkdir(parents=True, exist_ok=True)
            other._serve(collapsed)
        return self._serve(collapsed)

    def _serve(self, collapsed: DLRM) -> record.Record:
        """The rest of `finish`, for one way to serve the collapsed model."""
        self._write_curve()
        model = served(collapsed, self.config.model)
        splits: tuple[str, ...] = ("validation", "test") if self.config.training.read_test else ("validation",)
        absent = {split: why for split in splits if (why := self.columns.lacks_a_label(split))}
        splits = tuple(split for split in splits if split not in absent)
        found = {} if self.diverged else {split: evaluation.measure(model, self.columns, split) for split in splits}
        measured = {split: result._asdict() for split, result in found.items() if result}
        self.diverged |= len(measured) < len(splits)
        by_frequency = []
        if self.diverged:
            (self.out / checkpoint.FILE).unlink(missing_ok=True)
        else:
            if "frequency" in self.config.training.also_measure:
                by_frequency = evaluation.by_frequency(model, self.columns)
            self._measure_spectra(collapsed.tables)
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        rows = epochs * self.columns.schema.rows["train"] + steps * self.config.training.batch_size
        run = record.Record(
            config=record.as_json(self.config),
            seed=self.seed,
            status="diverged" if self.diverged else "finished",
            steps=self.step,
            metrics=None if self.diverged else measured,
            curve=self.curve,
            **record.sizes(self.model, model),
            spectra=self.spectra,
            by_frequency=by_frequency,
            seconds=round(self.seconds, 3),
            rows_per_second=round(rows / self.seconds, 1) if self.seconds else 0.0,
            provenance=record.provenance(self.columns.schema, describe(self.device), self.started_from),
            absent=absent,
        )
        if not self.diverged:
            self._save(model, {"served": True, "record": dataclasses.asdict(run)})
        run.write(self.out)
        return run

    def _measure_spectra(self, tables: Tables) -> None:
        if "spectra" in self.config.training.also_measure:
            found = [values.tolist() for values in spectrum.singular_values(tables)]
            self.spectra.append({"step": self.step, "singular_values": found})

    def _save(self, model: DLRM, state: dict[str, Any]) -> None:
        state["model"] = {key: _whole(value) for key, value in model.state_dict().items()}
        state |= {"config": record.as_json(self.config), "seed": self.seed, "columns": self.columns.schema.as_dict()}
        state |= {"from": self.started_from}
        with replacing(self.out / checkpoint.FILE) as partial:
            checkpoint.write(partial, state)

    def restore(self) -> None:
        """Go on from the checkpoint, where there is one. Raises TrainingError where it is another run's."""
        path = self.out / checkpoint.FILE
        if not path.exists():
            return
        state = checkpoint.read(path)
        its = {
            "config": record.resolved(state["config"]),
            "seed": state["seed"],
            "columns": toml.build(Schema, state["columns"]).fingerprint,
            "start": state.get("from"),
        }
        mine = {"config": record.as_json(self.config), "seed": self.seed}
        mine |= {"columns": self.columns.schema.fingerprint, "start": self.started_from}
        for key, value in mine.items():
            if its[key] != value:
                raise TrainingError(f"{path}: made with another {key}; delete it, or choose another --out")
        if state["served"] and "record" in state and not self.variants:
            self.finished = record.Record(**state["record"])
            self.curve = self.finished.curve
        if not state["served"]:
            self.model.load_state_dict(state["model"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.curve, self.spectra, self.memory = state["curve"], state["spectra"], state["memory"]


OPTIMIZERS = {"sgd": SGD, "adagrad": Adagrad, "adam": Adam, "lazy-adam": LazyAdam}


def make_optimizers(model: DLRM, training: TrainingConfig, steps: int = 0, taken: int = 0) -> list[Optimizer]:
    """One for the MLPs and one for the tables, each with its learning rate, at its place in so many steps."""
    make, by_step = OPTIMIZERS[training.optimizer], factors(training.schedule, training.warm_up, steps)
    if training.freeze_projections and isinstance(model.tables, MLETTables):
        model.tables.projections.requires_grad_(False)
    mlps = (*model.bottom_mlp.parameters(), *model.top_mlp.parameters())
    rate = training.learning_rate
    tables = model.tables.parameters()
    return [make(mlps, rate, by_step, taken), make(tables, training.table_learning_rate or rate, by_step, taken)]


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A stream of random numbers of its own for each purpose (weights, order) and epoch of a run."""
    entropy = (seed, ("weights", "order").index(purpose), epoch)
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


def _whole(tensor: Tensor) -> Tensor:
    """On the CPU, and all of its memory: of a part, such as one seed's of several, a file would hold the whole."""
    tensor = tensor.cpu()  # so that the file can be read where there is no such device
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _is_bounded(parameter: Tensor) -> bool:
    """Whether all numbers are such as a served model can have."""
    if not parameter.numel():  # the first layer's weight, of a data set without dense columns
        return True
    least, largest = parameter.detach().aminmax()
    return least.item() > -DIVERGED_ABOVE and largest.item() < DIVERGED_ABOVE  # false for NaN
