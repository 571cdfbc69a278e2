"""TorchRec's engine beside the plain one, its memory while it collapses, and what an exchange costs.

    python scripts/benchmark_torchrec.py        # about 15 minutes on two cores -> results/benchmarks/torchrec.md

Weights after --steps steps of the flights and Complete Journey configs on two and four processes, for each sharding
that a CPU has, beside those of the plain engine. The peak memory of each of two processes that hold two tables of 2 GiB
while they collapse them. The time of an exchange between two processes, by its bytes.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.distributed import engine, parallel
from dlrm_mlet.distributed.shards import tables
from dlrm_mlet.files import replacing
from dlrm_mlet.toml import build
from dlrm_mlet.training import checkpoint, record
from dlrm_mlet.training.device import CPU, describe
from dlrm_mlet.training.run import train

PAGE = Path("results/benchmarks/torchrec.md")
SHARDINGS = ("table_wise", "column_wise", "data_parallel")
GIB = 2**30


def configs(steps: int | None) -> dict[str, Config]:
    """The paper's grid at one point of each kind, cut short where there are `steps`."""
    found = {}
    for dataset, inner_dim in itertools.product(("flights", "complete-journey"), (None, 64)):
        name = f"{dataset}, {'single layer' if inner_dim is None else 'MLET k=64'}, d=4"
        model = ModelConfig(4, (256, 128), (512, 256), inner_dim)
        found[name] = Config(dataset, model, TrainingConfig(max_steps=steps, evaluate_every=10**6))
    return found


def on(processes: int, task: str, *arguments: object) -> list[str]:
    """Do a task of this script on so many processes; the lines that the first one prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    call = subprocess.run(
        [*command, __file__, "--task", task, *map(str, arguments)],
        check=True, text=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return call.stdout.splitlines()


def equality(steps: int | None, shardings: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Lines of a table: the largest difference of a weight, and that of test AUC, after so many steps or an epoch."""
    lines = ["| run | sharding | processes | largest difference of a weight | of test AUC | ms a step |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    smallest = []
    chosen = {name: config for name, config in configs(steps).items() if steps or config.dataset == "flights"}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        sharded = {
            f"{name}/{sharding}": dataclasses.replace(
                config, training=dataclasses.replace(config.training, sharding=sharding)  # type: ignore[arg-type]
            )
            for name, config in chosen.items() for sharding in shardings
        }  # fmt: skip
        (home / "configs.json").write_text(json.dumps({n: record.as_json(c) for n, c in sharded.items()}))
        for count in counts:
            on(count, "runs", home / "configs.json", home / str(count))
        for name, config in chosen.items():
            with nearest_to_a_kink() as inputs:
                plain = train(config, columns.load(Path("data") / config.dataset), 0, home / name)
            smallest.append(f"{name} {min(inputs):.0e}")
            weights = checkpoint.read(home / name / checkpoint.FILE)["model"]
            assert plain.metrics is not None
            lines.append(f"| {name} | none: the plain engine | 1 | – | – | {1000 * plain.seconds / plain.steps:.1f} |")
            for sharding, count in itertools.product(shardings, counts):
                out = home / str(count) / name / sharding
                mine = checkpoint.read(out / checkpoint.FILE)["model"]
                most = max((mine[key] - value).abs().max().item() for key, value in weights.items())
                found = record.read(out)
                assert found is not None
                assert found.metrics is not None
                auc = abs(found.metrics["test"]["auc"] - plain.metrics["test"]["auc"])
                step = 1000 * found.seconds / found.steps
                lines.append(f"| {name} | {sharding} | {count} | {most:.1e} | {auc:.0e} | {step:.1f} |")
                print(lines[-1], flush=True)
    return [*lines, "", f"Smallest input of a ReLU in training, but for 0: {'; '.join(smallest)}."]


@contextlib.contextmanager
def nearest_to_a_kink() -> Iterator[list[float]]:
    """Of each ReLU in the block, while gradients are taken: the smallest absolute value of its inputs, 0 left out."""
    found: list[float] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, nn.ReLU) and torch.is_grad_enabled():
            values = inputs[0].detach().abs()
            found.append(values[values > 0].min().item())

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        yield found
    finally:
        hook.remove()


def make_runs(configs_json: str, out: str) -> None:
    """Runs of the engine, on the processes that there are."""
    with parallel.processes("cpu") as device:
        for name, table in json.loads(Path(configs_json).read_text()).items():
            config = build(Config, table)
            engine.train(config, columns.load(Path("data") / config.dataset), 0, Path(out) / name, device)


def peak() -> int:
    """Bytes that this process has held at most since the last call."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")
    return int(status["VmHWM"].split()[0]) * 1024


def collapse(out: str) -> None:
    """Two tables of 8,388,608 x 64, one on each process, to d = 16: what each held before and at most meanwhile."""
    rows = {"train": 128, "validation": 128, "test": 128}
    n = 1 << 23
    schema = Schema("big", "label", ("a",), ("b", "c"), (n, n), rows, "ordered", 0, {}, {}, "", ())
    data = Columns(schema, torch.zeros(384, 1), torch.zeros(384, 2, dtype=torch.int32), torch.arange(384) % 2)
    config = Config("big", ModelConfig(16, (16,), (16,), 64), TrainingConfig(sharding="table_wise"))
    with parallel.processes("cpu") as device:
        run = engine.Run(config, data, 0, Path(out), device, None)
        peak()
        before = peak()
        run.finish()
        after = peak()
        mine = sum(shard.numbers.nbytes for table in tables(run.collection) for shard in table.shards)
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, (dist.get_rank(), mine, before, after))
        if dist.get_rank() == 0:
            print("\n".join(f"| {r} | {m / GIB:.2f} | {b / GIB:.2f} | {a / GIB:.2f} | {(a - b) / 2**20:.0f} |"
                            for r, m, b, a in every))  # fmt: skip


def exchange() -> None:
    """All-to-all and all-reduce of some sizes, median of 20."""
    with parallel.processes("cpu"):
        for size in (1 << 12, 1 << 18, 1 << 22, 1 << 24):
            given, taken = torch.zeros(size // 4), torch.zeros(size // 4)
            found = []
            for call in (lambda g=given, t=taken: dist.all_to_all_single(t, g), lambda g=given: dist.all_reduce(g)):
                times = []
                for _ in range(20):
                    dist.barrier()
                    began = time.perf_counter()
                    call()
                    times.append(time.perf_counter() - began)
                found.append(sorted(times)[10])
            if dist.get_rank() == 0:
                print(f"| {size:,} | {1e3 * found[0]:.2f} | {1e3 * found[1]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)  # what torchrun calls
    options = parser.parse_args()
    if options.task:
        {"runs": make_runs, "collapse": collapse, "exchange": exchange}[options.task[0]](*options.task[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        memory = on(2, "collapse", folder)
    exchanged = on(2, "exchange")
    same = equality(options.steps, SHARDINGS, (2, 4))
    epoch = equality(None, ("planner",), (2,))
    text = f"""# TorchRec's engine, measured

{describe(CPU)}, gloo, one thread a process: `python scripts/benchmark_torchrec.py`. Four processes share two cores.

## The same weights

After {options.steps} steps at the paper's rate, seed 0.

{chr(10).join(same)}

Sums come in another order. Where the input of a ReLU is 0 up to rounding, one side passes the gradient and the other
doesn't, and from there on the runs are two, as those of two seeds are. So after a whole epoch weights are others, and
scores are those of a run as good:

{chr(10).join(epoch)}

## Memory while collapsing

Two tables of 8,388,608 x 64 (2 GiB each), d = 16, so that W is 0.5 GiB a table; GiB held by each process.

| process | its shard of W1 | held before | held at most while it collapses | more by, MiB |
|---|---|---|---|---|
{chr(10).join(memory)}

## What an exchange costs

Between two processes on this machine, median of 20, in ms.

| bytes a process | all-to-all | all-reduce |
|---|---|---|
{chr(10).join(exchanged)}
"""
    with replacing(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
