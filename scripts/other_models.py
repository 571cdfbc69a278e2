"""Plain tables against MLET's in other models than DLRM, both tuned: torch-rechub's DeepFM, DCN-V2, AutoInt, by Adam.

    python scripts/other_models.py flights deepfm               # then dcnv2, autoint; a stopped one goes on
    python scripts/other_models.py flights deepfm --controls    # what decides the difference
    make figures                                                # the pages of the tables that it wrote

A published table stays as it is, as it does for a sweep; rows of other arms and d stay in a table of your own.
A data set of your own goes by its name as well, once `dlrm-mlet preprocess` has written its columns in data/; not one
with weights or multi-valued columns.

For each embedding dimension and each side the rates of the tables and of all else are searched on validation: from
three rates of the tables on, around the best, at least --trials of them and until the best has no neighbour that wasn't
tried. Then --seeds fresh seeds are trained, and test is read once for each. Tables of 100 rows and more are converted.
Of tables beyond 10,000 rows a row makes Adam's steps when a batch reads it (row_adam.py), the same steps for less.
A control with rates searched for itself: W2 frozen (`frozen`), at d = 4. --arms leaves some out.

With --controls, each with rates searched for itself as well:

    frozen            W2 stays at its random start
    learned           W2 stays at what it was after training with another seed; W1 starts anew
    learned-square    the same with k = d: (W2ᵀ W2)^½ of that W2, so that training needs no n x k numbers
    shared            one W2 for all tables
    square            k = d
    starts-as-mlet    a plain table that starts at MLET's W1 W2
    dropout-P         plain tables, of whose looked-up numbers the share P is dropped
    l2-L              plain tables, with L/2 times the mean squared norm of looked-up rows in the loss
"""

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import AutoInt, DCNv2, DeepFM

from dlrm_mlet import collapse, convert, parameter_groups
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.files import replacing
from dlrm_mlet.reporting import publishing
from dlrm_mlet.reporting.results import ResultsError
from dlrm_mlet.tables.spectrum import gram
from dlrm_mlet.training import device, evaluation, metrics, record
from dlrm_mlet.training.run import DIVERGED_ABOVE
from row_adam import RowAdam

BATCH, INNER, MIN_ROWS, STD = 512, 64, 100, 0.01
MLP = {"dims": [128, 64]}
TRIAL_SEEDS = (100, 101)
FIGHT = ("single", "mlet", "frozen")
CONTROLS = (*FIGHT, "learned", "learned-square", "shared", "square", "starts-as-mlet", "dropout-0.1", "dropout-0.3",
            "l2-0.01", "l2-0.1", "l2-1")  # fmt: skip
MLETS = {"mlet", "frozen", "learned", "learned-square", "shared", "square"}
BY_ROW = 10_000
"""Tables of more rows are trained by RowAdam; for smaller ones dense Adam takes no longer."""
MADE = ("commit", "columns", "device", "torch")
"""Of a run's provenance, what is kept with it."""
LOOKUPS = 2
"""How often DeepFM looks up each row of a batch: for its MLP, and for FM and the linear terms."""
ELSEWHERE = 1000
"""What is added to a run's seed for the one that a `learned` W2 comes from."""


def deepfm(sparse: list[SparseFeature], dense: list[DenseFeature]) -> nn.Module:
    """FM and linear terms over the tables, and an MLP over them and the dense columns."""
    return DeepFM(sparse + dense, sparse, dict(MLP))


def dcnv2(sparse: list[SparseFeature], dense: list[DenseFeature]) -> nn.Module:
    """Two full cross layers beside an MLP."""
    return DCNv2(sparse + dense, 2, dict(MLP), use_low_rank_mixture=False)


def autoint(sparse: list[SparseFeature], dense: list[DenseFeature]) -> nn.Module:
    """Two layers of self-attention beside an MLP."""
    return AutoInt(sparse, dense, num_layers=2, num_heads=2, mlp_params=dict(MLP))


MODELS: dict[str, Callable[[list[SparseFeature], list[DenseFeature]], nn.Module]] = {
    "deepfm": deepfm, "dcnv2": dcnv2, "autoint": autoint,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One side at one dimension."""

    arm: str
    embedding_dim: int

    @property
    def inner_dim(self) -> int | str:
        """k, and nothing of a plain table."""
        return "" if self.arm not in MLETS else self.embedding_dim if self.arm.endswith("square") else INNER


@dataclass(frozen=True)
class Done:
    """One run and what it came to; no measures where it diverged."""

    arm: str
    embedding_dim: int
    learning_rate: float
    table_learning_rate: float
    seed: int
    validation: tuple[float, float] | None
    test: tuple[float, float] | None
    trained: int
    served: int
    trained_tables: int
    served_tables: int
    seconds: float
    commit: str | None = None
    """Of the code that made it."""
    columns: str | None = None
    """The fingerprint of the data set's."""
    device: str | None = None
    torch: str | None = None
    w2_from: list[float] | None = None
    """The rates of the run of MLET whose W2 it has."""
    train_log_loss: float | None = None
    """At the end, over all training rows."""
    effective_rank: float | None = None
    """Mean of the tables that MLET converts: see `effective_rank`."""
    thirds: list[dict[str, Any]] = field(default_factory=list)
    """See evaluation.in_thirds."""


class Work:
    """The runs of one model on one data set, kept as they are made."""

    def __init__(self, data: Columns, model: str, out: Path):
        self.data, self.model, self.file = data, model, out / "runs.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        self.made = record.provenance(data.schema, device.describe(device.CPU))
        self.done = {_key_of(done): done for done in self._read()}
        dense = data.dense[slice(*data.range("train"))].double()
        self.chosen: dict[int, tuple[float, float]] = {}
        """MLET's rates by d, once they were searched."""
        self.mean, self.std = dense.mean(0).float(), dense.std(0).clamp(min=1e-6).float()

    def run(self, point: Point, rates: tuple[float, float], seed: int, read_test: bool) -> Done:
        """Make a run, or give what came of it before."""
        key = _key(point.arm, point.embedding_dim, *rates, seed, self.donor(point))
        if key not in self.done:
            self.done[key] = self._train(point, rates, seed, read_test)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.done[key])) + "\n")
        return self.done[key]

    def donor(self, point: Point) -> list[float] | None:
        """The rates of the MLET that an arm has its W2 of."""
        return list(self.chosen[point.embedding_dim]) if point.arm.startswith("learned") else None

    def _read(self) -> Iterator[Done]:
        """The runs that are there. Raises ValueError where one is of other columns, or a line is none."""
        if not self.file.exists():
            return
        *lines, rest = self.file.read_text(encoding="utf-8").split("\n")
        if rest:  # what a run that was killed as it wrote has left; it is made again
            with replacing(self.file) as partial:
                partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for number, line in enumerate(lines, 1):
            try:
                done = Done(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.file}, line {number}: not a run: {error}; delete it to run it again") from None
            if done.columns != self.made["columns"]:
                raise ValueError(
                    f"{self.file}, line {number}: of the columns {done.columns}; those of the data set are now "
                    f"{self.made['columns']}: move the file away"
                )
            yield done

    def _build(self, point: Point, seed: int) -> nn.Module:
        schema = self.data.schema
        torch.manual_seed(seed)
        sparse = [SparseFeature(name, n, embed_dim=point.embedding_dim)
                  for name, n in zip(schema.categorical, schema.table_rows, strict=True)]  # fmt: skip
        model = MODELS[self.model](sparse, [DenseFeature(name) for name in schema.dense])
        for name, parameter in model.named_parameters():
            if "embed_dict" in name:
                nn.init.normal_(parameter, 0, STD)
        if point.arm in MLETS:
            convert(model, int(point.inner_dim), min_rows=MIN_ROWS, report=lambda line: None)
        elif point.arm == "starts-as-mlet":
            convert(model, INNER, min_rows=MIN_ROWS, report=lambda line: None)
            with warnings.catch_warnings(action="ignore"):  # that W2 was never trained
                collapse(model, report=lambda line: None)
        large = _large(model)
        if point.arm == "shared":
            for table in large:
                table.projections = large[0].projections
        elif point.arm.startswith("learned"):
            of, from_seed = Point("mlet", point.embedding_dim), seed + ELSEWHERE
            mlet = self._build(of, from_seed)
            whole = self._fit(mlet, of, self.chosen[point.embedding_dim], from_seed)
            for table, other in zip(large, _large(mlet), strict=True):
                learned = other.projections[0].detach()
                if not whole:  # so that this run diverges too
                    table.projections[0].data.fill_(math.nan)
                elif point.arm == "learned-square":
                    table.projections[0].data = _root(learned.T @ learned)
                else:
                    table.projections[0].data = learned
        if point.arm in ("frozen", "learned", "learned-square"):
            for table in large:
                table.projections.requires_grad_(False)
        return model

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        names = (*self.data.schema.categorical, *self.data.schema.dense)
        dense = (batch.dense - self.mean) / self.std
        return dict(zip(names, (*batch.sparse.unbind(1), *dense.unbind(1)), strict=True))

    def _fit(self, model: nn.Module, point: Point, rates: tuple[float, float], seed: int) -> bool:
        """Train it for an epoch; whether it didn't diverge."""
        penalty = _regularize(_large(model), point.arm)
        steps = -(-self.data.schema.rows["train"] // BATCH)
        tables = [RowAdam(table, rates[1], steps) for table in _large(model) if table.num_embeddings > BY_ROW]
        of_tables = {id(table.weight) for table in tables}
        groups = parameter_groups(model, learning_rate=rates[0], table_learning_rate=rates[1])
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_tables]
        optimizer = torch.optim.Adam(groups, fused=True)
        for batch in self.data.shuffled("train", BATCH, torch.Generator().manual_seed(seed)):
            scores = model(self._inputs(batch))
            if not scores.isfinite().all():
                return False
            loss = nn.functional.binary_cross_entropy(scores, batch.label) + penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for table in tables:
                table.step()
        for table in tables:
            table.finish()
        return all(bool(parameter.abs().max() < DIVERGED_ABOVE) for parameter in model.parameters())

    def _train(self, point: Point, rates: tuple[float, float], seed: int, read_test: bool) -> Done:
        began = time.perf_counter()
        model = self._build(point, seed)
        whole = self._fit(model, point, rates, seed)
        seconds = time.perf_counter() - began
        trained = _numbers(model), _table_bytes(model)
        served = (collapse(model, report=lambda line: None) if point.arm in MLETS else model).eval()
        found: dict[str, metrics.Metrics] = {}
        beside: dict[str, Any] = {}
        if whole:
            logits, labels = self._scores(served, "validation")
            found["validation"] = metrics.measure(logits, labels)
            if read_test:
                found["test"] = metrics.measure(*self._scores(served, "test"))
                train = metrics.measure(*self._scores(served, "train"))
                beside = {
                    "train_log_loss": round(train.log_loss, 6),
                    "effective_rank": round(statistics.fmean(effective_rank(t.weight) for t in _large(served)), 3),
                    "thirds": evaluation.in_thirds(self.data, logits, labels),
                }
        measured = {split: (round(its.auc, 6), round(its.log_loss, 6)) for split, its in found.items()}
        sizes = trained[0], _numbers(served), trained[1], _table_bytes(served)
        return Done(point.arm, point.embedding_dim, *rates, seed, measured.get("validation"), measured.get("test"),
                    *sizes, round(seconds, 1), **{name: self.made[name] for name in MADE},
                    w2_from=self.donor(point), **beside)  # fmt: skip

    @torch.no_grad()
    def _scores(self, model: nn.Module, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        scored = [(model(self._inputs(batch)), batch.label) for batch in self.data.in_order(split, 8192)]
        scores, labels = zip(*scored, strict=True)
        return torch.cat(scores).double().logit(eps=1e-9), torch.cat(labels)

    def best(self, point: Point, trials: int, start: tuple[float, ...]) -> tuple[float, float]:
        """The rates of all else and of the tables with the highest mean validation AUC."""
        scores: dict[tuple[float, float], float] = {}

        def look(rates: tuple[float, float]) -> None:
            found = [self.run(point, rates, seed, False).validation for seed in TRIAL_SEEDS]
            scores[rates] = statistics.fmean(auc[0] if auc else 0.0 for auc in found)

        for table_rate in start:
            look((0.002, table_rate))
        while True:
            ranked = sorted(scores, key=scores.__getitem__, reverse=True)
            for rank, (rate, table_rate) in enumerate(ranked):
                near = [(rate / 2, table_rate), (rate * 2, table_rate), (rate, table_rate / 2), (rate, table_rate * 2)]
                untried = [other for other in near if other not in scores]
                if untried and (rank == 0 or len(scores) < trials):
                    break
            else:
                return ranked[0]
            if rank and len(scores) >= trials:
                return ranked[0]
            for rates in untried if rank == 0 else untried[: trials - len(scores)]:
                look(rates)
            print(f"  {point.arm} d={point.embedding_dim}: {max(scores.values()):.4f} after {len(scores)}", flush=True)


def _key(*what: object) -> str:
    """Of a run: its arm, dimension, rates and seed, and the rates of the run that its W2 is of."""
    return json.dumps(what)


def _key_of(done: Done) -> str:
    return _key(done.arm, done.embedding_dim, done.learning_rate, done.table_learning_rate, done.seed, done.w2_from)


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _tables(model: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(
        table for name, table in model.named_modules() if name.rpartition(".")[0].endswith("embed_dict")
    )


def _table_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in _tables(model).parameters())


def _large(model: nn.Module) -> list[nn.Module]:
    return [table for table in _tables(model) if table.num_embeddings >= MIN_ROWS]


def _root(square: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(square)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def effective_rank(table: torch.Tensor) -> float:
    """Of W, (n, d): the square of the sum of WᵀW's eigenvalues over the sum of their squares; 1 to d."""
    values = torch.linalg.eigvalsh(gram(table.detach()))
    return float(values.sum().square() / values.square().sum())


def _regularize(tables: list[nn.Module], arm: str) -> Callable[[], torch.Tensor | float]:
    """Have an arm's regularization at work on what is looked up; what is called adds its share to a batch's loss."""
    kind, _, strength = arm.partition("-")
    seen: list[torch.Tensor] = []

    def drop(module: nn.Module, _: object, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(vectors, float(strength), module.training)

    def keep(module: nn.Module, _: object, vectors: torch.Tensor) -> None:
        if module.training:
            seen.append(vectors.square().sum(-1).mean())

    def penalty() -> torch.Tensor | float:
        total = float(strength) / 2 * torch.stack(seen).sum() / LOOKUPS if seen else 0.0
        seen.clear()
        return total

    if kind in ("dropout", "l2"):
        for table in tables:
            table.register_forward_hook(drop if kind == "dropout" else keep)
    return penalty


def trials(work: Work, points: list[Point]) -> list[tuple[Point, Done]]:
    """What the rates were chosen by; test wasn't read."""
    tried = sorted(
        (done for done in work.done.values() if done.seed in TRIAL_SEEDS),
        key=lambda done: (done.arm, done.embedding_dim, done.learning_rate, done.table_learning_rate, done.seed),
    )
    wanted = {point: (point.arm, point.embedding_dim, work.donor(point)) for point in points}
    return [(point, done) for point, its in wanted.items() for done in tried
            if (done.arm, done.embedding_dim, done.w2_from) == its]  # fmt: skip


def rows(model: str, runs: Iterable[tuple[Point, Done]], controls: bool) -> list[dict[str, object]]:
    """The runs as a table of results has them, a row a run."""
    found = []
    for point, done in runs:
        measured = dict(zip(("validation_auc", "validation_log_loss", "test_auc", "test_log_loss"),
                            (*done.validation, *(done.test or ("", ""))) if done.validation else [""] * 4,
                            strict=True))  # fmt: skip
        of_point = {
            "arm": point.arm,
            "inner_dim": point.inner_dim,
            "embedding_dim": point.embedding_dim,
            "seed": done.seed,
            "learning_rate": done.learning_rate,
            "table_learning_rate": done.table_learning_rate,
            **({} if done.seed not in TRIAL_SEEDS else {"read_test": False}),
            "status": "finished" if done.validation else "diverged",
        }
        sizes = {
            "steps": "",
            "trained_parameters": done.trained,
            "served_parameters": done.served,
            "trained_table_bytes": done.trained_tables,
            "served_table_bytes": done.served_tables,
            "seconds": done.seconds,
        }
        if controls:
            measured |= {"train_log_loss": done.train_log_loss or "", "effective_rank": done.effective_rank or ""}
        where = {"device": done.device or "unknown", "torch": done.torch or "unknown", "commit": done.commit or ""}
        found.append({**of_point, **measured, **sizes, **where, "experiment": f"{model}-{done.columns}"})
    return found


def thirds(runs: Iterable[tuple[Point, Done]]) -> list[dict[str, object]]:
    """The gains by how rare ids are, as <table>-frequency.csv has them: a row a run and third."""
    found = []
    for point, done in runs:
        where = {"arm": point.arm, "inner_dim": point.inner_dim, "embedding_dim": point.embedding_dim,
                 "seed": done.seed}  # fmt: skip
        for third in done.thirds:
            found.append(
                where
                | {name: third[name] for name in ("ids", "rows", "at_most")}
                | {name: round(third[name], 6) for name in ("auc", "log_loss")}
            )
    return found


def load(directory: Path) -> Columns:
    """A data set's columns. Raises ValueError where these models can't take them, ColumnsError as columns.load does."""
    data = columns.load(directory)
    if data.weight is not None or any(data.schema.pooling):
        raise ValueError(f"{directory}: has weights or multi-valued columns; expected none")
    if max(data.schema.table_rows, default=0) < MIN_ROWS:
        raise ValueError(
            f"{directory}: no categorical column has {MIN_ROWS} values; expected one, as MLET is for those"
        )
    if empty := [split for split, rows in data.schema.rows.items() if not rows]:
        raise ValueError(f"{directory}: no rows of {', '.join(empty)}; expected some of each split")
    return data


def main(arguments: list[str] | None = None) -> None:
    """The command. Exits with an error where its arguments, the columns or the runs that are there can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="the name of a directory in data/")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--controls", action="store_true", help="DeepFM alone")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--embedding-dim", type=int, nargs="+", default=[4, 2, 8, 16])
    parser.add_argument("--arms", nargs="+", choices=CONTROLS, help="default: single mlet frozen; with --controls all")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--publish", action="store_true", help="write into a published table: see CONTRIBUTING.md")
    options = parser.parse_args(arguments)
    if options.controls and options.model != "deepfm":
        parser.error("--controls: are of deepfm")
    if not options.controls and (others := {*(options.arms or ())} - {*FIGHT}):
        parser.error(f"--arms {' '.join(sorted(others))}: expected --controls too")
    if options.arms and any(arm.startswith("learned") for arm in options.arms) and "mlet" not in options.arms:
        parser.error("--arms learned: its W2 is from a run of mlet; expected that too")
    for name in ("trials", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: expected 1 or more")
    if options.seeds > min(TRIAL_SEEDS):
        parser.error(
            f"--seeds {options.seeds}: expected {min(TRIAL_SEEDS)} at most; from there on they are the search's"
        )
    if len({*options.embedding_dim}) < len(options.embedding_dim) or min(options.embedding_dim) < 1:
        parser.error(f"--embedding-dim {' '.join(map(str, options.embedding_dim))}: expected 1 or more, each once")
    wanted = CONTROLS if options.controls else FIGHT
    arms = [arm for arm in wanted if arm in (options.arms or wanted)]  # mlet before those that take its W2
    points = [Point(arm, d) for d in options.embedding_dim for arm in arms
              if options.controls or arm != "frozen" or d == 4]  # fmt: skip
    if not points:
        parser.error("--arms frozen: is at d = 4 alone; expected that among --embedding-dim, or --controls")
    place = options.out / options.dataset / f"{options.model}-{'controls' if options.controls else 'adam'}"
    try:
        work = Work(load(Path("data") / options.dataset), options.model, place)
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    torch.set_num_threads(1)
    chosen = {}
    for point in points:
        chosen[point] = work.best(point, options.trials, (0.001, 0.004, 0.016))
        if point.arm == "mlet":
            work.chosen[point.embedding_dim] = chosen[point]
        print(f"{options.model}, {point.arm} d={point.embedding_dim}: rates {chosen[point]}", flush=True)
        for seed in range(options.seeds):
            work.run(point, chosen[point], seed, True)
    points.sort(key=lambda point: (point.arm != "single", arms.index(point.arm), point.embedding_dim))
    runs = [(point, work.run(point, chosen[point], seed, True)) for point in points for seed in range(options.seeds)]
    tables = {
        "": rows(options.model, runs, options.controls),
        "-trials": rows(options.model, trials(work, points), False),
    }
    if options.controls:
        tables["-frequency"] = thirds(runs)
    texts = {end: [{name: str(cell) for name, cell in row.items()} for row in its] for end, its in tables.items()}
    try:
        written, told = publishing.store(place, texts, options.publish)
    except ResultsError as error:
        parser.exit(1, f"error: {error}\n")
    print(told, *([] if written is None else [written]), sep="\n")


if __name__ == "__main__":
    main()
