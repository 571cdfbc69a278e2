"""Table 2 on this machine: a device -> the time of a training step, the textbook's, ours and the floor's in turns.

B rows of a batch; F categorical features; K inner dimension; D embedding dimension.
"""

import copy
import itertools
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.config import ModelConfig, TrainingConfig
from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.data.datasets import CRITEO_KAGGLE
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.data.synthetic import draw_ranks
from dlrm_mlet.extras import needs
from dlrm_mlet.tables.stacked import MLETTables, SingleLayerTables, Tables
from dlrm_mlet.training.device import describe, threads, wait
from dlrm_mlet.training.model import DLRM, build
from dlrm_mlet.training.run import make_optimizers
from dlrm_mlet.training.step import train_step
from dlrm_mlet.training.stepping import losses
from dlrm_mlet.training.together import Together

with needs("training"):
    from tqdm import tqdm

POINTS: dict[int, tuple[int | None, ...]] = {
    4: (None, 8, 16, 32, 64),
    8: (None, 8, 16, 32, 64),
    16: (None, 16, 32, 64),
    32: (None, 32, 64),
    64: (None, 64),
}
"""Embedding dimensions of the paper's Table 2, and the inner dimensions of each; None is the single layer."""
BATCH_SIZE = 128
BOTTOM_MLP, TOP_MLP = (512, 256, 128), (512, 256)
FEED_ROWS = 1 << 18
"""Rows of the data that are fed: far more bytes than the caches hold."""
STEPS, WARM_UP_STEPS = 20, 5
"""Steps of one turn, and the untimed ones before them, which fill the caches that the turn before has emptied."""

SEEDS, TOGETHER = 5, (64, 16)
"""How many seeds are timed in one pass, and at which (k, d)."""

Steps = Iterator[object]
"""A step is made whenever the next item is asked for."""
Name = tuple[str, int | None]
"""Whose step it is, and its inner dimension."""


class TextbookTables(Tables):
    """The published code's construction: for each feature an nn.EmbeddingBag(sparse=True) and an nn.Linear a layer."""

    def __init__(self, model: DLRM):
        """The tables of `model`, copied."""
        tables = model.tables
        assert isinstance(tables, SingleLayerTables | MLETTables)
        super().__init__(tables.table_rows, tables.embedding_dim)
        weights = tables.weight.detach().clone().split(tables.table_rows)
        self.embedding_bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(w, freeze=False, mode="sum", sparse=True) for w in weights
        )
        chains = [nn.Sequential() for _ in weights]
        projections: Iterable[Tensor] = tables.projections if isinstance(tables, MLETTables) else ()
        for projection in projections:
            for chain, matrix in zip(chains, projection.detach().clone(), strict=True):
                linear = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
                linear.weight = nn.Parameter(matrix.t().contiguous())
                chain.append(linear)
        self.chains = nn.ModuleList(chains)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        features = zip(self.embedding_bags, self.chains, ids.long().t(), strict=True)
        return torch.stack([chain(bag(column[:, None])) for bag, chain, column in features], dim=1)

    def collapsed(self) -> Tensor:
        """All features' tables, one below another: (N, D)."""
        return torch.cat([chain(bag.weight) for bag, chain in zip(self.embedding_bags, self.chains, strict=True)])


class NoTables(Tables):
    """The floor: the same vectors for every batch; their gradient is computed, as it belongs to the interaction."""

    def __init__(self, table_rows: tuple[int, ...], embedding_dim: int, device: torch.device):
        super().__init__(table_rows, embedding_dim)
        self.vectors = torch.randn(BATCH_SIZE, len(table_rows), embedding_dim).to(device).requires_grad_()

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        self.vectors.grad = None
        return self.vectors[: len(ids)]


def textbook_step(model: DLRM, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """Forward, backward, update, as any introduction has it."""
    loss = F.binary_cross_entropy(torch.sigmoid(model.logits(batch.dense, model.embed(batch.sparse))), batch.label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def benchmark(device: torch.device, cores: int, max_rows: int, rounds: int) -> dict[str, Any]:
    """Time every point of Table 2 and return the result as JSON has it: `device`, `versions`, `points` and settings.

    Criteo-Kaggle's 26 tables, of at most `max_rows` rows each, with ids of a power law, batch 128. All that share an
    embedding dimension take turns of 20 steps, for `rounds` rounds, each with its own feed of batches, which is
    inside what is timed. A point's times are medians over rounds, in ms per step; its ratios are medians of the
    rounds' own ratios, so that a machine that slows down slows both sides. The textbook has torch's own settings; ours
    and the floor have those of `device.threads`. On a GPU there is one more contender, `plain`: our step by autograd,
    as the CPU makes it, not captured; and the kernels of a step are counted.
    """
    table_rows = tuple(min(n, max_rows) for n in CRITEO_KAGGLE.table_rows or ())
    columns = feed_columns(table_rows).to(device)
    points: list[dict[str, Any]] = []
    with tqdm(total=sum(map(len, POINTS.values())), desc="Table 2", unit=" points", disable=None) as bar:
        for embedding_dim, inner_dims in POINTS.items():
            points += _points_of_one_width(columns, device, cores, rounds, embedding_dim, inner_dims)
            bar.update(len(inner_dims))
    together = _seeds_together(columns, device, cores, rounds)
    return {
        "device": describe(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0]},
        "threads": cores,
        "max_rows": max_rows,
        "table_rows": sum(table_rows),
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
        "steps_per_round": STEPS,
        "seeds_together": together,
        "kernels": _kernels_of_a_step(columns, device) if device.type == "cuda" else None,
        "points": sorted(points, key=lambda point: (point["inner_dim"] is not None, point["embedding_dim"])),
    }


def _points_of_one_width(
    columns: Columns,
    device: torch.device,
    cores: int,
    rounds: int,
    embedding_dim: int,
    inner_dims: tuple[int | None, ...],
) -> list[dict[str, Any]]:
    schema = columns.schema
    contenders: dict[Name, Steps] = {}
    for inner_dim in inner_dims:
        config = ModelConfig(embedding_dim, BOTTOM_MLP, TOP_MLP, inner_dim)
        ours = _build(config, schema, device)
        contenders["textbook", inner_dim] = _textbook(_with_tables(ours, TextbookTables(ours)), columns)
        if device.type != "cpu":
            contenders["plain", inner_dim] = _plain(_with_tables(ours, ours.tables), columns)
        contenders["ours", inner_dim] = _ours(ours, columns)
    floor = _with_tables(ours, NoTables(schema.table_rows, embedding_dim, device))
    contenders["floor", None] = _ours(floor, columns)
    times = _in_turns(contenders, device, cores, rounds)
    return [_point(inner_dim, embedding_dim, times) for inner_dim in inner_dims]


def _seeds_together(columns: Columns, device: torch.device, cores: int, rounds: int) -> dict[str, Any]:
    """How long a step of several seeds in one pass takes, beside one of a seed alone."""
    schema, (inner_dim, embedding_dim) = columns.schema, TOGETHER
    config = ModelConfig(embedding_dim, BOTTOM_MLP, TOP_MLP, inner_dim)
    alone = _build(config, schema, device)
    together = Together([copy.deepcopy(alone)] * SEEDS, device)  # they start alike, which doesn't change the time
    one, all_seeds = ("alone", inner_dim), ("together", inner_dim)
    contenders: dict[Name, Steps] = {one: _ours(alone, columns), all_seeds: _ours(together, columns, SEEDS)}
    times = _in_turns(contenders, device, cores, rounds)
    return {
        "seeds": SEEDS,
        "inner_dim": inner_dim,
        "embedding_dim": embedding_dim,
        "alone_ms": round(statistics.median(times[one]), 4),
        "together_ms": round(statistics.median(times[all_seeds]), 4),
        "together_over_alone": _median_ratio(times[all_seeds], times[one]),
    }


def _in_turns(
    contenders: Mapping[Name, Steps],
    device: torch.device,
    cores: int,
    rounds: int,
) -> dict[Name, list[float]]:
    """Milliseconds per step of each contender, one for each round."""
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, steps in contenders.items():
            torch.set_num_threads(cores)
            with nullcontext() if name[0] == "textbook" else threads(cores):
                _milliseconds(steps, WARM_UP_STEPS, device)
                times[name].append(_milliseconds(steps, STEPS, device))
    return times


def _with_tables(model: DLRM, tables: Tables) -> DLRM:
    """A model with other tables, and MLPs of its own."""
    return DLRM(copy.deepcopy(model.bottom_mlp), tables, copy.deepcopy(model.top_mlp))


def _ours(model: DLRM, columns: Columns, seeds: int = 1) -> Steps:
    return losses(model, make_optimizers(model, TrainingConfig()), columns, _orders(columns, seeds), BATCH_SIZE)


def _textbook(model: DLRM, columns: Columns) -> Steps:
    optimizer = torch.optim.SGD(model.parameters(), TrainingConfig.learning_rate)
    for order in _orders(columns):
        for batch in columns.batches(order, BATCH_SIZE):
            yield textbook_step(model, optimizer, batch)


def _plain(model: DLRM, columns: Columns) -> Steps:
    optimizers = make_optimizers(model, TrainingConfig())
    for order in _orders(columns):
        for batch in columns.batches(order, BATCH_SIZE):
            yield train_step(model, optimizers, batch)


def _kernels_of_a_step(columns: Columns, device: torch.device) -> dict[str, float]:
    """How many kernels a GPU runs in a step of each contender, at the point of TOGETHER."""
    inner_dim, embedding_dim = TOGETHER
    model = _build(ModelConfig(embedding_dim, BOTTOM_MLP, TOP_MLP, inner_dim), columns.schema, device)
    textbook = _textbook(_with_tables(model, TextbookTables(model)), columns)
    counts: dict[str, float] = {}
    for name, steps in (("textbook", textbook), ("plain", _plain(model, columns)), ("ours", _ours(model, columns))):
        _milliseconds(steps, WARM_UP_STEPS, device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            _milliseconds(steps, STEPS, device)
        on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        counts[name] = round(len(on_device) / STEPS, 1)
    return counts


def _build(config: ModelConfig, schema: Schema, device: torch.device) -> DLRM:
    """A model whose weights a GPU draws itself: what it starts as doesn't change the time."""
    with device if device.type == "cuda" else nullcontext():
        return build(config, len(schema.dense), schema.table_rows, None).to(device)


def _point(inner_dim: int | None, embedding_dim: int, times: Mapping[Name, list[float]]) -> dict[str, Any]:
    point: dict[str, Any] = {"inner_dim": inner_dim, "embedding_dim": embedding_dim}
    mine = {name: found for (name, k), found in times.items() if k == inner_dim or name == "floor"}
    for name, found in mine.items():
        point[f"{name}_ms"] = round(statistics.median(found), 4)
        low, _, high = statistics.quantiles(found, n=4)
        point[f"{name}_ms_quartiles"] = [round(low, 4), round(high, 4)]
    point["textbook_over_ours"] = _median_ratio(mine["textbook"], mine["ours"])
    point["ours_over_floor"] = _median_ratio(mine["ours"], mine["floor"])
    if inner_dim is not None and ("ours", None) in times:
        point["ours_over_single_layer"] = _median_ratio(mine["ours"], times["ours", None])
    return point


def _median_ratio(above: list[float], below: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def _milliseconds(steps: Steps, count: int, device: torch.device) -> float:
    """Wall-clock time of a step, its batch included, mean over `count`."""
    wait(device)
    begin = time.perf_counter()
    for _ in itertools.islice(steps, count):
        pass
    wait(device)
    return (time.perf_counter() - begin) / count * 1000


def _orders(columns: Columns, seeds: int = 1) -> Iterator[Tensor]:
    for epoch in itertools.count():
        generators = [torch.Generator().manual_seed(epoch + seed) for seed in range(seeds)]
        yield columns.order("train", generators[0] if seeds == 1 else generators)


def feed_columns(table_rows: tuple[int, ...]) -> Columns:
    """Rows to train on, in memory: ids by a power law, as clicks have them; numbers and labels at random."""
    rng = np.random.default_rng(0)
    dense = rng.standard_exponential((FEED_ROWS, len(CRITEO_KAGGLE.dense)), np.float32)
    # ranks are scattered over the table: frequent ids don't lie side by side
    sparse = [draw_ranks(rng, n, FEED_ROWS).astype(np.int64) * 2654435761 % n for n in table_rows]
    schema = Schema(
        dataset="benchmark",
        label="label",
        dense=CRITEO_KAGGLE.dense,
        categorical=CRITEO_KAGGLE.categorical,
        table_rows=table_rows,
        rows={"train": FEED_ROWS, "validation": 0, "test": 0},
        split="ordered",
        split_seed=0,
        transform={},
        source={},
        vocabulary="",
        mismatches=(),
    )
    return Columns(
        schema,
        dense=torch.from_numpy(dense),
        sparse=torch.from_numpy(np.stack(sparse, axis=1).astype(np.int32)),
        label=torch.from_numpy((rng.random(FEED_ROWS) < 0.25).astype(np.uint8)),
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a benchmark's result."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    digits = 2 if result["points"][0]["ours_ms"] > 1 else 3
    names = ["textbook", *(["plain"] if "plain_ms" in result["points"][0] else []), "ours", "floor"]
    lines = [
        f"{result['device']}, {result['threads']} threads, {versions}; Criteo-Kaggle's 26 tables capped at "
        f"{result['max_rows']:,} rows each, batch {result['batch_size']}; medians over {result['rounds']} rounds of "
        f"{result['steps_per_round']} steps, in ms per step, and medians of the rounds' ratios.",
        "",
        f"| model | d | {' | '.join(names)} | textbook / ours | ours / floor | ours / our single layer |",
        f"|---|--:|{'--:|' * len(names)}--:|--:|--:|",
    ]
    for point in result["points"]:
        model = "single layer" if point["inner_dim"] is None else f"MLET k={point['inner_dim']}"
        times = " | ".join(f"{point[f'{name}_ms']:.{digits}f}" for name in names)
        ratios = (point["textbook_over_ours"], point["ours_over_floor"], point.get("ours_over_single_layer", 1.0))
        lines.append(f"| {model} | {point['embedding_dim']} | {times} | {' | '.join(f'{r:.2f}' for r in ratios)} |")
    together = result["seeds_together"]
    lines += [
        "",
        f"{together['seeds']} seeds in one pass, MLET k={together['inner_dim']}, d={together['embedding_dim']}: "
        f"{together['together_ms']:.{digits}f} ms per step of all, {together['together_over_alone']:.2f} times the "
        f"{together['alone_ms']:.{digits}f} ms of one alone.",
    ]
    if kernels := result.get("kernels"):
        counted = ", ".join(f"{name} {count:g}" for name, count in kernels.items())
        lines += ["", f"Kernels, copies and fills that the GPU runs per step at this point: {counted}."]
    return "\n".join(lines)
