"""Plain tables against MLET's in other models than DLRM, both tuned: torch-rechub's DeepFM, DCN-V2, AutoInt, by Adam.

    python scripts/other_models.py flights deepfm          # then dcnv2, autoint; a stopped one goes on
    make figures                                           # the pages of the tables that it wrote

For each embedding dimension and each side the rates of the tables and of all else are searched on validation: from
three rates of the tables on, around the best, at least --trials of them and until the best has no neighbour that wasn't
tried. Then --seeds fresh seeds are trained, and test is read once for each. Tables of 100 rows and more are converted.
The control, with rates searched for itself: W2 frozen (`frozen`), at d = 4. --arms leaves some out.
"""

import argparse
import csv
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import AutoInt, DCNv2, DeepFM

from dlrm_mlet import collapse, convert, parameter_groups
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.files import replacing
from dlrm_mlet.training import device, metrics, record

BATCH, INNER, MIN_ROWS, STD = 512, 64, 100, 0.01
MLP = {"dims": [128, 64]}
TRIAL_SEEDS = (100, 101)


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


class Work:
    """The runs of one model on one data set, kept as they are made."""

    def __init__(self, data: Columns, model: str, out: Path):
        self.data, self.make, self.file = data, MODELS[model], out / "runs.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.done = {_key(done): done for done in (Done(**json.loads(line)) for line in lines)}
        dense = data.dense[slice(*data.range("train"))].double()
        self.mean, self.std = dense.mean(0).float(), dense.std(0).clamp(min=1e-6).float()

    def run(self, point: Point, rates: tuple[float, float], seed: int, read_test: bool) -> Done:
        """Make a run, or give what came of it before."""
        key = (point.arm, point.embedding_dim, *rates, seed)
        if key not in self.done:
            self.done[key] = self._train(point, rates, seed, read_test)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.done[key])) + "\n")
        return self.done[key]

    def _build(self, point: Point, seed: int) -> nn.Module:
        schema = self.data.schema
        torch.manual_seed(seed)
        sparse = [SparseFeature(name, n, embed_dim=point.embedding_dim)
                  for name, n in zip(schema.categorical, schema.table_rows, strict=True)]  # fmt: skip
        model = self.make(sparse, [DenseFeature(name) for name in schema.dense])
        for name, parameter in model.named_parameters():
            if "embed_dict" in name:
                nn.init.normal_(parameter, 0, STD)
        if point.arm != "single":
            convert(model, INNER, min_rows=MIN_ROWS, report=lambda line: None)
        if point.arm == "frozen":
            for name, parameter in model.named_parameters():
                if "projections" in name:
                    parameter.requires_grad_(False)
        return model

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        names = (*self.data.schema.categorical, *self.data.schema.dense)
        dense = (batch.dense - self.mean) / self.std
        return dict(zip(names, (*batch.sparse.unbind(1), *dense.unbind(1)), strict=True))

    def _train(self, point: Point, rates: tuple[float, float], seed: int, read_test: bool) -> Done:
        model = self._build(point, seed)
        tables = _table_bytes(model)
        sizes = sum(parameter.numel() for parameter in model.parameters()), tables
        groups = parameter_groups(model, learning_rate=rates[0], table_learning_rate=rates[1])
        optimizer = torch.optim.Adam(groups, fused=True)
        began = time.perf_counter()
        for batch in self.data.shuffled("train", BATCH, torch.Generator().manual_seed(seed)):
            loss = nn.functional.binary_cross_entropy(model(self._inputs(batch)), batch.label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - began
        finite = all(parameter.isfinite().all() for parameter in model.parameters())
        served = collapse(model, report=lambda line: None) if point.arm != "single" else model
        found = {split: self._measure(served.eval(), split) if finite and (read_test or split != "test") else None
                 for split in ("validation", "test")}  # fmt: skip
        return Done(point.arm, point.embedding_dim, *rates, seed, found["validation"], found["test"], sizes[0],
                    sum(parameter.numel() for parameter in served.parameters()), sizes[1], _table_bytes(served),
                    round(seconds, 1))  # fmt: skip

    @torch.no_grad()
    def _measure(self, model: nn.Module, split: str) -> tuple[float, float]:
        batches = list(self.data.in_order(split, 8192))
        scores = torch.cat([model(self._inputs(batch)) for batch in batches]).double().logit(eps=1e-9)
        found = metrics.measure(scores, torch.cat([batch.label for batch in batches]))
        return round(found.auc, 6), round(found.log_loss, 6)

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


def _key(done: Done) -> tuple[object, ...]:
    return done.arm, done.embedding_dim, done.learning_rate, done.table_learning_rate, done.seed


def _table_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for name, tensor in model.state_dict().items() if "embed_dict" in name)


def rows(
    work: Work, points: list[Point], chosen: dict[Point, tuple[float, float]], seeds: int
) -> list[dict[str, object]]:
    """The runs with the rates that were chosen, as a table of results has them."""
    made = record.provenance(work.data.schema, device.describe(device.CPU))
    found = []
    for point, seed in itertools.product(points, range(seeds)):
        done = work.run(point, chosen[point], seed, True)
        whole = done.validation is not None and all(map(math.isfinite, done.validation))
        measured = dict(zip(("validation_auc", "validation_log_loss", "test_auc", "test_log_loss"),
                            (*done.validation, *done.test) if whole else [""] * 4, strict=True))  # fmt: skip
        of_point = {
            "arm": point.arm,
            "inner_dim": "" if point.arm == "single" else INNER,
            "embedding_dim": point.embedding_dim,
            "seed": seed,
            "learning_rate": done.learning_rate,
            "table_learning_rate": done.table_learning_rate,
            "status": "finished" if whole else "diverged",
        }
        sizes = {
            "steps": "",
            "trained_parameters": done.trained,
            "served_parameters": done.served,
            "trained_table_bytes": done.trained_tables,
            "served_table_bytes": done.served_tables,
            "seconds": done.seconds,
        }
        found.append(
            {**of_point, **measured, **sizes, **{key: made[key] or "" for key in ("device", "torch", "commit")}}
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["flights", "complete-journey"])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--embedding-dim", type=int, nargs="+", default=[4, 2, 8, 16])
    parser.add_argument("--arms", nargs="+", choices=["single", "mlet", "frozen"], default=["single", "mlet", "frozen"])
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = options.out / options.dataset / f"{options.model}-adam"
    work = Work(columns.load(Path("data") / options.dataset), options.model, place)
    points = [Point(arm, d) for d in options.embedding_dim for arm in options.arms if arm != "frozen" or d == 4]
    chosen = {}
    for point in points:
        chosen[point] = work.best(point, options.trials, (0.001, 0.004, 0.016))
        print(f"{options.model}, {point.arm} d={point.embedding_dim}: rates {chosen[point]}", flush=True)
        for seed in range(options.seeds):
            work.run(point, chosen[point], seed, True)
    points.sort(key=lambda point: (point.arm != "single", point.arm, point.embedding_dim))
    table = rows(work, points, chosen, options.seeds)
    with replacing(place.with_suffix(".csv")) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(place.with_suffix(".csv"))
