"""What a step costs at a data set's full size, its feed included: one seed and five in one pass, and a whole grid.

    python scripts/benchmark_full_size.py --data data/criteo-kaggle [--device cuda:0] [--steps 20000] [--grid-steps 500]

`--data` is a preprocessed data set of Criteo-Kaggle's columns, the real one or a synthetic one. The model and training
are those of configs/criteo-kaggle/paper-grid.toml. Two of its points take `--steps` steps, the one of Table 2 and the
grid's largest, with a validation afterwards; then each point takes `--grid-steps` with all its seeds, as a sweep does
it on this device. Leaves results/benchmarks/full-size-<device type>.json and .md.
"""

import argparse
import itertools
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrm_mlet import config, files
from dlrm_mlet.config import Config
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.training import device, evaluation
from dlrm_mlet.training.model import build
from dlrm_mlet.training.run import generator, make_optimizers, memory_needed
from dlrm_mlet.training.stepping import losses
from dlrm_mlet.training.together import Together

LONG = ((64, 16), (128, 64))
"""(k, d) of the points that take many steps."""
UNTIMED = 100


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", help="cpu or cuda:N; default: the first GPU, if there is one")
    parser.add_argument("--config", type=Path, default=Path("configs/criteo-kaggle/paper-grid.toml"))
    parser.add_argument("--steps", type=int, default=20_000, help="of each long measurement; default: 20000")
    parser.add_argument("--grid-steps", type=int, default=500, help="of each point of the grid; default: 500")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    where = device.find(options.device)
    experiment = config.load(options.config)
    on_disk = columns.load(options.data)
    begin = time.perf_counter()
    data = on_disk.to(where)
    device.wait(where)
    result: dict[str, Any] = {
        "device": device.describe(where),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0]},
        "rows": on_disk.schema.rows,
        "table_rows": sum(on_disk.schema.table_rows),
        "seconds_to_load_columns": round(time.perf_counter() - begin, 1),
        "seconds_to_draw_orders": {},
        "long": [],
        "grid": [],
    }
    orders: dict[int, Tensor] = {}
    for seeds in (1, len(experiment.seeds)):
        begin = time.perf_counter()
        generators = [generator(seed, "order") for seed in range(seeds)]
        orders[seeds] = data.order("train", generators[0] if seeds == 1 else generators)
        result["seconds_to_draw_orders"][seeds] = round(time.perf_counter() - begin, 1)
    with device.threads(1):
        for point in experiment.points:
            model = point.config.model
            if (model.inner_dim, model.embedding_dim) in LONG:
                for seeds in (1, len(experiment.seeds)):
                    if fits(point.config, on_disk, where, seeds):
                        result["long"].append(
                            measure(point.config, data, orders[seeds], where, options.steps, validate=True)
                        )
                        print(line(result["long"][-1]), flush=True)
        for point in experiment.points:
            seeds = len(experiment.seeds) if fits(point.config, on_disk, where, len(experiment.seeds)) else 1
            found = measure(point.config, data, orders[seeds], where, options.grid_steps, validate=False)
            print(line(found), flush=True)
            result["grid"].append(found)
    out = options.out / f"full-size-{where.type}.json"
    files.write_json(out, result)
    out.with_suffix(".md").write_text(page(result, len(experiment.seeds)), encoding="utf-8")
    print(out)


def fits(run: Config, data: Columns, where: torch.device, seeds: int) -> bool:
    """Whether so many seeds of a run fit the device, as a sweep decides it."""
    return memory_needed(run, data.schema, seeds) < device.USABLE * device.free_memory(where)


def measure(
    run: Config, data: Columns, order: Tensor, where: torch.device, steps: int, validate: bool
) -> dict[str, Any]:
    """Time so many steps of all seeds, of which `order` (rows,) or (seeds, rows) has the orders, in one pass."""
    schema, model, batch = data.schema, run.model, run.training.batch_size
    seeds = order.shape[:-1].numel()
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    with where:  # what the tables start as doesn't change the time, and a GPU draws them at once
        alone = build(model, len(schema.dense), schema.table_rows, None)
    together = alone if seeds == 1 else Together([alone] * seeds, where)
    made = losses(together, make_optimizers(together, run.training), data, [order], batch)
    for _ in itertools.islice(made, UNTIMED):
        pass
    device.wait(where)
    begin = time.perf_counter()
    for _ in itertools.islice(made, steps):
        pass
    device.wait(where)
    milliseconds = (time.perf_counter() - begin) / steps * 1000
    found = {
        "inner_dim": model.inner_dim,
        "embedding_dim": model.embedding_dim,
        "seeds": seeds,
        "steps": steps,
        "ms": round(milliseconds, 4),
        "epoch_seconds": round(milliseconds / 1000 * -(-schema.rows["train"] // batch), 1),
    }
    if where.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated(where) / 2**30, 1)
    if validate:
        begin = time.perf_counter()
        evaluation.measure(alone, data, "validation")
        found["validation_seconds"] = round(time.perf_counter() - begin, 1)
    return found


def line(found: dict[str, Any]) -> str:
    """One measurement as a row of a Markdown table."""
    name = "single layer" if found["inner_dim"] is None else f"MLET k={found['inner_dim']}"
    shown = (name, found["embedding_dim"], found["seeds"], f"{found['steps']:,}", f"{found['ms']:.3f}",
             f"{found['epoch_seconds']:.0f}", f"{found['epoch_seconds'] / found['seeds']:.0f}",
             found.get("peak_gib", ""), found.get("validation_seconds", ""))  # fmt: skip
    return f"| {' | '.join(map(str, shown))} |"


def page(result: dict[str, Any], seeds: int) -> str:
    """The Markdown page of a result."""
    head = [
        "| model | d | seeds in one pass | steps | ms per step of all | s per epoch of all | s per epoch and seed | "
        "peak GiB on the device | s per validation |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    hours = sum(found["epoch_seconds"] * seeds / found["seeds"] for found in result["grid"]) / 3600
    rows, drawn = result["rows"], result["seconds_to_draw_orders"][seeds]
    return "\n".join(
        [
            f"# Steps at Criteo-Kaggle's full size on {result['device']}",
            "",
            f"Measured by `python scripts/benchmark_full_size.py` on columns of {sum(rows.values()):,} rows, "
            f"{rows['train']:,} of them for training, and {result['table_rows']:,} table rows; python "
            f"{result['versions']['python']}, torch {result['versions']['torch']}. The columns were resident on the "
            f"device after {result['seconds_to_load_columns']} s. An epoch is a step's time, times their number; "
            f"the drawing of its order comes on top, {drawn} s for {seeds} seeds. Peak memory is that of torch's "
            "tensors, columns included.",
            "",
            *head,
            *map(line, result["long"]),
            "",
            "## The whole grid",
            "",
            f"Each point of configs/criteo-kaggle/paper-grid.toml, {seeds} seeds: {hours:.1f} hours of epochs in all, "
            "projected. Validation (the last column above, once per seed and look), the drawing of the tables on the "
            "CPU and checkpoints come on top.",
            "",
            *head,
            *map(line, result["grid"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
