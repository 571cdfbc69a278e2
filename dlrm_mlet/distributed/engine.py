"""A config, columns and a seed -> the run that training.run makes, its tables sharded over processes by TorchRec.

Each process reads its own rows of each batch, and has its shards of the tables, which are updated in the backward pass;
the MLPs and W2 are everywhere, and their gradients are averaged. B rows of a batch.
"""

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.config import Config
from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.distributed import checkpoints
from dlrm_mlet.distributed.collapsing import write_at
from dlrm_mlet.distributed.model import CollectionTables, ShardedDLRM, build, start
from dlrm_mlet.distributed.parallel import FUSED, EngineError, fused_params, sharded
from dlrm_mlet.distributed.shards import collapsed
from dlrm_mlet.extras import needs
from dlrm_mlet.files import alone, replacing
from dlrm_mlet.training import checkpoint, evaluation, metrics, record
from dlrm_mlet.training.device import describe, threads, wait
from dlrm_mlet.training.model import build as build_whole
from dlrm_mlet.training.optimizer import Adagrad, factors
from dlrm_mlet.training.run import (
    CURVE,
    DIVERGED_ABOVE,
    OPTIMIZERS,
    STEPS_PER_LOOK,
    check_data,
    generator,
)
from dlrm_mlet.training.tensorboard import Watch

with needs("training"):
    from tqdm import tqdm
with needs("torchrec"):
    from torchrec.optim.optimizers import in_backward_optimizer_filter


def check(config: Config, device: torch.device) -> None:
    """Raises EngineError where the engine can't make this run."""
    model, training = config.model, config.training
    reasons = {
        f'model.tables = "{model.tables}": expected "full"': model.tables != "full",
        "model.served_rank: expected a run without": model.served_rank is not None,
        "model.served_density: expected a run without": model.served_density is not None,
        f'model.served_as = "{model.served_as}": expected "float32", and export --quantize afterwards':
            model.served_as != "float32",
        "model.start_as: expected a run without": model.start_as is not None,
        f'training.optimizer = "{training.optimizer}": expected one of {", ".join(FUSED)}':
            training.optimizer not in FUSED,
        f'training.precision = "{training.precision}": expected "float32"': training.precision != "float32",
        'training.also_measure: expected "curve" alone': bool({*training.also_measure} - {"curve"}),
        'training.sharding = "row_wise": a CPU has none; expected table_wise, column_wise or data_parallel':
            training.sharding == "row_wise" and device.type == "cpu",
        'training.sharding = "column_wise": a row\'s sum of squares would be one of each of its parts; expected '
        'table_wise, or optimizer = "sgd"': training.sharding == "column_wise" and training.optimizer == "adagrad",
    }  # fmt: skip
    for reason, holds in reasons.items():
        if holds:
            raise EngineError(f"{reason} with --engine torchrec")


def train(
    config: Config,
    columns: Columns,
    seed: int,
    out: Path,
    device: torch.device,
    resume: bool = True,
    watch: Watch | None = None,
) -> record.Record:
    """Make one run, all processes of the group together; its record and checkpoint are those of `training.run.train`.

    Up to rounding: the same weights at the start, the same batches, and the same sums, in another order. `out` has to
    be a directory that all processes see. A run that was stopped goes on from its last checkpoint, on as many processes
    as there are now. Raises EngineError where TorchRec can't make the run, and what `training.run.train` raises.
    """
    check(config, device)
    check_data(config, columns)
    if finished := record.of_run(out, config, seed, columns.schema):
        return finished
    first = dist.get_rank() == 0
    with threads(config.training.threads), alone(out, "run") if first else contextlib.nullcontext():
        run = Run(config, columns, seed, out, device, watch if first else None)
        if resume:
            run.restore()
        run.steps_left()
        run.finish()
    dist.barrier()
    found = record.read(out)
    assert found is not None
    return found


class Run:
    """The state of one run between its steps, on one of its processes."""

    def __init__(
        self, config: Config, columns: Columns, seed: int, out: Path, device: torch.device, watch: Watch | None
    ):
        self.config, self.columns, self.seed, self.out, self.device, self.watch = (
            config, columns, seed, out, device, watch
        )  # fmt: skip
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        schema, training = columns.schema, config.training
        self.rows = schema.rows["train"]
        self.steps_per_epoch = -(-self.rows // training.batch_size)
        self.steps = min(self.steps_per_epoch * training.epochs, training.max_steps or sys.maxsize)
        self.step, self.seconds, self.diverged = 0, 0.0, False
        self.curve: list[dict[str, float]] = []
        self.parallel = sharded(build(config.model, schema), config, device)
        model = self.parallel.module
        assert isinstance(model, ShardedDLRM)
        self.model = model
        assert isinstance(model.tables, CollectionTables)
        self.collection = model.tables.collection
        start(model, config.model, schema, generator(seed, "weights"))
        self.optimizers = self._optimizers()
        out.mkdir(parents=True, exist_ok=True)

    def _optimizers(self) -> list[Any]:
        """For the MLPs, and for what of the tables isn't updated in the backward pass: W2, and whole tables."""
        training = self.config.training
        make, by_step = OPTIMIZERS[training.optimizer], factors(training.schedule, training.warm_up, self.steps)
        rest = {name: parameter for name, parameter in in_backward_optimizer_filter(self.parallel.named_parameters())
                if parameter.requires_grad}  # fmt: skip
        of_tables = {name: parameter for name, parameter in rest.items() if name.startswith("tables.")}
        self.of_mlps = {name: parameter for name, parameter in rest.items() if name not in of_tables}
        self.whole = {name: parameter for name, parameter in of_tables.items() if _is_table(name)}
        # a whole table is a slice of something larger, which takes no sparse gradient: another name for its memory does
        self.of_tables = of_tables | {
            name: nn.Parameter(each.detach().as_subclass(Tensor)) for name, each in self.whole.items()
        }
        self.factors = by_step
        table_rate = training.table_learning_rate or training.learning_rate
        parts = (self.of_mlps, training.learning_rate), (self.of_tables, table_rate)
        return [make(parameters.values(), rate, by_step) for parameters, rate in parts]

    def steps_left(self) -> None:
        """All steps from where the run is, with the points of its curve between them."""
        training = self.config.training
        epoch, skip = divmod(self.step, self.steps_per_epoch)
        began = time.perf_counter()
        with tqdm(total=self.steps, initial=self.step, desc=f"seed {self.seed}", unit=" steps",
                  disable=None if self.rank == 0 else True) as bar:  # fmt: skip
            for number in range(epoch, training.epochs):
                order = self.columns.order("train", generator(self.seed, "order", number))
                for chosen in order[skip * training.batch_size :].split(training.batch_size):
                    if self.step == self.steps or self.diverged:
                        return
                    loss = self._take_step(chosen)
                    self.step += 1
                    bar.update()
                    last, at_point = self.step == self.steps, self.step % training.evaluate_every == 0
                    if last or at_point or self.step % STEPS_PER_LOOK == 0:
                        wait(self.device)
                        self.diverged = not self._all(bool(loss.isfinite()))
                        self.seconds += time.perf_counter() - began
                        if at_point and not last and not self.diverged:
                            self._look()
                        began = time.perf_counter()
                skip = 0

    def _take_step(self, chosen: Tensor) -> Tensor:
        """One step on this process's part of the rows at the given places; the process's part of the mean loss."""
        batch, counts = self._part(chosen)
        if self.factors is not None:
            self._set_rate(self.factors[self.step].item())
        logits = self.parallel(batch.dense, batch.sparse)
        each = F.binary_cross_entropy_with_logits(logits, batch.label, reduction="none")
        # gradients are averaged over processes, so that each loss counts as many times
        loss = (each * counts).sum() * (self.world / len(chosen))
        loss.backward()
        for name, parameter in self.whole.items():  # by row, as of any table
            self.of_tables[name].grad = parameter.grad.to_sparse(1)
        for parameter in self.whole.values():
            parameter.grad = None
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _part(self, chosen: Tensor) -> tuple[Batch, Tensor]:
        """This process's rows, as many on each, and by how much each counts: those that fill up a last batch don't."""
        share = -(-len(chosen) // self.world)
        mine = chosen[self.rank * share : (self.rank + 1) * share]
        places = torch.cat((mine, chosen[:1].expand(share - len(mine))))
        batch = self.columns.rows(places).to(self.device)
        counts = (torch.arange(share, device=self.device) < len(mine)).float()
        return batch, counts if batch.weight is None else counts * batch.weight

    def _set_rate(self, factor: float) -> None:
        fused = self.parallel.fused_optimizer
        for group in fused.param_groups:
            group["lr"] = fused_params(self.config)["learning_rate"] * factor
        fused.step()

    def _all(self, holds: bool) -> bool:
        """Whether it holds on all processes."""
        found = torch.tensor(int(holds), device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return bool(found)

    @torch.no_grad()
    def _measure(self, split: str) -> metrics.Metrics | None:
        """The metrics of a whole split, each process scoring its part; None where a score isn't finite, or elsewhere
        than on the first process."""
        begin, end = self.columns.range(split)
        share = -(-(end - begin) // self.world)
        places = (begin + self.rank * share + torch.arange(share)).clamp(max=end - 1)
        scored = []
        for part in places.split(evaluation.ROWS):
            batch = self.columns.rows(part).to(self.device)
            scored.append(self.model.logits(batch.dense, self.model.embed(batch.sparse)))
        mine = torch.cat(scored)
        every = [torch.empty_like(mine) for _ in range(self.world)] if self.rank == 0 else None
        dist.gather(mine, every)
        if every is None or not torch.cat(every).isfinite().all():
            return None
        logits, labels = torch.cat(every)[: end - begin].cpu(), self.columns.label[begin:end].float()
        return metrics.measure(logits, labels, evaluation.weights_of(self.columns, split))

    def _look(self) -> None:
        """A point of the validation curve, and a checkpoint to go on from."""
        result = self._measure("validation")
        self.diverged = not self._all(self.rank > 0 or result is not None)
        if self.diverged:
            return
        if result is not None:
            self.curve.append({"step": self.step, **result._asdict()})
            self._write_curve()
            if self.watch is not None:
                self.watch(self.curve[-1])
        self._save()

    def _write_curve(self) -> None:
        if self.curve:
            with replacing(self.out / CURVE) as partial:
                partial.write_text("".join(json.dumps(point) + "\n" for point in self.curve), encoding="utf-8")

    def _state(self) -> dict[str, Any]:
        """All that the run goes on from, as torch.distributed.checkpoint saves it, and loads into it."""
        held = getattr(self.collection, "collection", self.collection)
        fused = self.parallel.fused_optimizer.state_dict()["state"]
        sums = {key.partition(".")[0]: value for its in fused.values() for key, value in its.items()}
        rest = {name: parameter.detach() for name, parameter in (self.of_mlps | self.of_tables).items()
                if not _is_table(name)}  # fmt: skip
        kept = {}
        for optimizer, parameters in zip(self.optimizers, (self.of_mlps, self.of_tables), strict=True):
            for i, (name, parameter) in enumerate(parameters.items() if isinstance(optimizer, Adagrad) else ()):
                if optimizer.memory[i] is None:
                    shape = (len(parameter), 1) if _is_table(name) else parameter.shape
                    optimizer.memory[i] = torch.zeros(shape, device=parameter.device)
                if _is_table(name):
                    sums[name.split(".")[-2]] = optimizer.memory[i].view(-1)
                else:
                    kept[name] = optimizer.memory[i]
        weights = {name: value for name, value in held.state_dict().items() if name.endswith(".weight")}
        state = {"tables": weights, "sums": sums, "rest": rest, "kept": kept}
        return {name: part for name, part in state.items() if part}

    def _identity(self) -> dict[str, Any]:
        return {"config": record.as_json(self.config), "seed": self.seed, "columns": self.columns.schema.fingerprint}

    def _save(self) -> None:
        progress = checkpoints.Progress(self.step, self.seconds, self.curve)
        checkpoints.save(self.out / checkpoints.DIRECTORY, self._state(), self._identity(), progress)

    def restore(self) -> None:
        """Go on from the last checkpoint, where there is one. Raises TrainingError where it is another run's."""
        progress = checkpoints.load(self.out / checkpoints.DIRECTORY, self._state(), self._identity())
        if progress is not None:
            self.step, self.seconds, self.curve = progress
            for optimizer in self.optimizers:
                optimizer.taken.fill_(self.step)

    def finish(self) -> None:
        """Measure, collapse shard by shard into checkpoint.pt, and write the record."""
        absent = {split: why for split in ("validation", "test") if (why := self.columns.lacks_a_label(split))}
        read = ("validation", "test") if self.config.training.read_test else ("validation",)
        splits = [split for split in read if split not in absent]
        found = {split: self._measure(split) for split in splits if not self.diverged}
        fine = self.rank > 0 or all(result is not None for result in found.values())
        self.diverged = self.diverged or not self._all(fine)
        measured = {split: result._asdict() for split, result in found.items() if result is not None}
        run = self._record(measured, {split: absent[split] for split in read if split in absent})
        path = self.out / checkpoint.FILE
        if not self.diverged:
            self.diverged = not self._collapse(path, run)
        if self.rank == 0:
            self._write_curve()
            if self.diverged:
                path.unlink(missing_ok=True)
                run = self._record(measured, run.absent)
            run.write(self.out)
            shutil.rmtree(self.out / checkpoints.DIRECTORY, ignore_errors=True)

    def _record(self, measured: dict[str, Any], absent: dict[str, str]) -> record.Record:
        schema, model = self.columns.schema, self.config.model
        with torch.device("meta"):
            trained = build_whole(model, len(schema.dense), schema.table_rows, None)
            served = trained.collapse()
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        rows = epochs * self.rows + steps * self.config.training.batch_size
        return record.Record(
            config=record.as_json(self.config),
            seed=self.seed,
            status="diverged" if self.diverged else "finished",
            steps=self.step,
            metrics=None if self.diverged else measured,
            curve=self.curve,
            **record.sizes(trained, served),
            spectra=[],
            by_frequency=[],
            seconds=round(self.seconds, 3),
            rows_per_second=round(rows / self.seconds, 1) if self.seconds else 0.0,
            provenance=record.provenance(schema, describe(self.device))
            | {"engine": f"torchrec, {self.world} processes"},
            absent=absent,
        )

    def _collapse(self, path: Path, run: record.Record) -> bool:
        """Write the checkpoint that is served, each process its rows of W; whether all weights are bounded."""
        schema, d = self.columns.schema, self.config.model.embedding_dim
        begins = dict(zip((f"table_{f}" for f in range(len(schema.table_rows))),
                          torch.tensor([0, *schema.table_rows]).cumsum(0).tolist(), strict=False))  # fmt: skip
        rest = {name: value.detach().cpu() for name, value in self.model.state_dict().items()
                if not name.startswith("tables.")}  # fmt: skip
        bounded = all(_is_bounded(value) for value in rest.values())
        with contextlib.ExitStack() as stack:
            told: list[Any] = [None]
            if self.rank == 0:
                partial = stack.enter_context(replacing(path))
                hollow = {**rest, "tables.weight": torch.empty(sum(schema.table_rows), d)}
                state = {"model": hollow, "served": True, "record": vars(run), "config": run.config, "seed": self.seed,
                         "columns": schema.as_dict(), "from": None}  # fmt: skip
                told = [(partial, checkpoint.hollow(partial, state))]
            dist.broadcast_object_list(told, 0)
            partial, places = told[0]
            for name, first, rows in collapsed(self.collection):
                bounded = bounded and _is_bounded(rows)
                write_at(partial, places["tables.weight"] + 4 * d * (begins[name] + first), rows[:, :d])
            bounded = self._all(bounded)
            if self.rank == 0:
                for name, value in rest.items():
                    write_at(partial, places[name], value)
                checkpoint.seal(partial)
        return bounded


def _is_table(name: str) -> bool:
    """Whether a parameter is a table's, which is whole on each process."""
    return "embedding_bags" in name


def _is_bounded(numbers: Tensor) -> bool:
    return not numbers.numel() or bool(numbers.abs().max() < DIVERGED_ABOVE)
