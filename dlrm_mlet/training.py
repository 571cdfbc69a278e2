"""A config, columns and a seed -> a trained model, its checkpoint and its record."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dlrm_mlet import checkpoint, evaluation, record, spectrum
from dlrm_mlet.columns import Batch, Columns, Schema
from dlrm_mlet.config import Config, TrainingConfig
from dlrm_mlet.device import DeviceError, describe, free_memory, threads, wait
from dlrm_mlet.embedding import MLETTables
from dlrm_mlet.files import replacing
from dlrm_mlet.model import DLRM, build, served
from dlrm_mlet.optimizer import SGD, Adagrad, Optimizer

CPU = torch.device("cpu")
STEPS_PER_LOOK = 100
"""Steps between two looks at the loss: each look waits for the device."""


class TrainingError(ValueError):
    """A run that can't be made from what it was given."""


def train_step(model: DLRM, optimizers: Sequence[Optimizer], batch: Batch) -> Tensor:
    """Forward, backward, update; returns the batch's mean loss, not waited for."""
    loss = F.binary_cross_entropy_with_logits(model(batch.dense, batch.sparse), batch.label)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def memory_needed(config: Config, schema: Schema) -> int:
    """Bytes that a run holds at its fullest, on its device, without the columns and torch itself.

    The trained tables, the collapsed ones beside them at the end, the order of the rows and one batch of evaluation.
    """
    model = config.model
    rows, features = sum(schema.table_rows), len(schema.table_rows)
    widths = (*model.inner_dims, model.embedding_dim)
    tables = rows * (widths[0] + (model.embedding_dim if model.inner_dims else 0))
    activations = evaluation.ROWS * (
        features * sum(widths) + (features + 1) ** 2 + sum(model.bottom_mlp + model.top_mlp)
    )
    return 4 * (tables + activations) + 8 * schema.rows["train"]


def check_memory(config: Config, schema: Schema, device: torch.device) -> None:
    """Raises DeviceError where a run needs more memory than the device has free."""
    needed, free = memory_needed(config, schema), free_memory(device)
    if needed > free:
        raise DeviceError(
            f"inner_dim = {config.model.inner_dim}, embedding_dim = {config.model.embedding_dim} needs "
            f"{needed / 2**30:.2f} GiB; {describe(device)} has {free / 2**30:.2f} GiB free"
        )


def train(
    config: Config,
    columns: Columns,
    seed: int,
    out: Path,
    resume: bool = False,
    bar: Any = None,
    device: torch.device = CPU,
) -> record.Record:
    """One run: `epochs` passes over the training rows, then validation and test, each read once by the served model.

    Leaves `out`/record.json, and `out`/checkpoint.pt with the served model. While it runs, the checkpoint holds the
    state at the last point of the validation curve, where `resume` goes on, to the same bits. The seed decides the
    weights and, apart from them, the order of the rows. `bar` is a tqdm bar to move; by default the run draws its own.
    A run whose record is in `out` is not made again. Raises RecordError where the record there is another run's,
    DeviceError where the device's memory is too small.
    """
    if finished := record.of_run(out, config, seed, columns.schema):
        return finished
    check_memory(config, columns.schema, device)
    with threads(config.training.threads):
        run = Run(config, columns, seed, out, device)
        if resume:
            run.restore()
        with contextlib.ExitStack() as stack:
            if bar is None:
                bar = stack.enter_context(tqdm(desc=f"seed {seed}", unit=" steps", disable=None))
            return run.finish(bar)


class Run:
    """The state of one run between its steps."""

    def __init__(self, config: Config, columns: Columns, seed: int, out: Path, device: torch.device):
        self.config, self.seed, self.out, self.device = config, seed, out, device
        schema = columns.schema
        # drawn on the CPU, so that a seed means the same weights on every device
        self.model = build(config.model, len(schema.dense), schema.table_rows, generator(seed, "weights")).to(device)
        # resident on a GPU if they fit beside the model; on the CPU they stay mapped
        fits = device.type != "cpu" and columns.nbytes + memory_needed(config, schema) < free_memory(device)
        self.columns = columns.to(device) if fits else columns
        self.optimizers = make_optimizers(self.model, config.training)
        self.steps_per_epoch = -(-schema.rows["train"] // config.training.batch_size)
        self.steps = min(self.steps_per_epoch * config.training.epochs, config.training.max_steps or sys.maxsize)
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self.spectra: list[dict[str, Any]] = []
        self._measure_spectra()
        out.mkdir(parents=True, exist_ok=True)

    def finish(self, bar: Any) -> record.Record:
        """Take the steps that are left, measure, and write the record."""
        bar.reset(self.steps)
        bar.update(self.step)
        status: Literal["finished", "diverged"] = "finished" if self._take_steps(bar) else "diverged"
        measured = None
        model = served(self.model, self.config.model)
        by_frequency = []
        splits = ("validation", "test") if self.config.training.read_test else ("validation",)
        if status == "finished":
            results = {split: evaluation.measure(model, self.columns, split) for split in splits}
            measured = {split: result._asdict() for split, result in results.items() if result}
            if len(measured) < len(results):
                status, measured = "diverged", None
            elif "frequency" in self.config.training.also_measure:
                by_frequency = evaluation.by_frequency(model, self.columns)
        if status == "finished":
            self._measure_spectra()
        self._save({"model": model.state_dict(), "served": True})
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        rows = epochs * self.columns.schema.rows["train"] + steps * self.config.training.batch_size
        run = record.Record(
            config=record.as_json(self.config),
            seed=self.seed,
            status=status,
            steps=self.step,
            metrics=measured,
            curve=self.curve,
            parameters={
                "trained": _size(self.model),
                "served": _size(model),
                "trained_tables": _size(self.model.tables),
                "served_tables": _size(model.tables),
            },
            bytes={"trained_tables": self.model.tables.nbytes, "served_tables": model.tables.nbytes},
            spectra=self.spectra,
            by_frequency=by_frequency,
            seconds=round(self.seconds, 3),
            rows_per_second=round(rows / self.seconds, 1) if self.seconds else 0.0,
            provenance=record.provenance(self.columns.schema, describe(self.device)),
        )
        run.write(self.out)
        return run

    def _take_steps(self, bar: Any) -> bool:
        """All steps that are left; False as soon as the loss is seen not to be finite."""
        training = self.config.training
        started = time.perf_counter()
        for batch in self._batches():
            loss = train_step(self.model, self.optimizers, batch.to(self.device))
            self.step += 1
            bar.update()
            if self.step % STEPS_PER_LOOK == 0 and not loss.isfinite():
                return False
            if self.step == self.steps:
                break
            if self.step % training.evaluate_every == 0:
                wait(self.device)
                self.seconds += time.perf_counter() - started
                result = evaluation.measure(self.model, self.columns, "validation")
                if result is None:
                    return False
                self.curve.append({"step": self.step, **result._asdict()})
                self._measure_spectra()
                memory = [optimizer.memory for optimizer in self.optimizers]
                self._save({"model": self.model.state_dict(), "served": False, "step": self.step, "memory": memory,
                            "seconds": self.seconds, "curve": self.curve, "spectra": self.spectra})  # fmt: skip
                started = time.perf_counter()
        wait(self.device)
        self.seconds += time.perf_counter() - started
        return True

    def _measure_spectra(self) -> None:
        if "spectra" in self.config.training.also_measure:
            found = [values.tolist() for values in spectrum.singular_values(self.model.tables)]
            self.spectra.append({"step": self.step, "singular_values": found})

    def _batches(self) -> Iterator[Batch]:
        first_epoch, skip = divmod(self.step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.config.training.epochs):
            order = generator(self.seed, "order", epoch)
            yield from self.columns.shuffled("train", self.config.training.batch_size, order, skip)
            skip = 0

    def _save(self, state: dict[str, Any]) -> None:
        state |= {"config": record.as_json(self.config), "seed": self.seed, "columns": self.columns.schema.as_dict()}
        with replacing(self.out / checkpoint.FILE) as partial:
            torch.save(state, partial)

    def restore(self) -> None:
        """Go on from the checkpoint, where there is one. Raises TrainingError where it is another run's."""
        path = self.out / checkpoint.FILE
        if not path.exists():
            return
        state = checkpoint.read(path)
        mine = {"config": record.as_json(self.config), "seed": self.seed, "columns": self.columns.schema.as_dict()}
        for key, value in mine.items():
            if state[key] != value:
                raise TrainingError(f"{path}: made with another {key}; delete it, or choose another --out")
        if not state["served"]:
            self.model.load_state_dict(state["model"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.curve, self.spectra = state["curve"], state["spectra"]
            for optimizer, memory in zip(self.optimizers, state["memory"], strict=True):
                optimizer.memory = [None if part is None else part.to(self.device) for part in memory]


def make_optimizers(model: DLRM, training: TrainingConfig) -> list[Optimizer]:
    """One for the MLPs and one for the tables, each with its learning rate."""
    make = {"sgd": SGD, "adagrad": Adagrad}[training.optimizer]
    if training.freeze_projections and isinstance(model.tables, MLETTables):
        model.tables.projections.requires_grad_(False)
    mlps = (*model.bottom_mlp.parameters(), *model.top_mlp.parameters())
    rate = training.learning_rate
    return [make(mlps, rate), make(model.tables.parameters(), training.table_learning_rate or rate)]


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A stream of random numbers of its own for each purpose (weights, order) and epoch of a run."""
    entropy = (seed, ("weights", "order").index(purpose), epoch)
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
