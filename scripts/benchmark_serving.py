"""What models of flights cost to serve: a wide single layer, MLET collapsed, and that in 16, 8 and 4 bits.

    python scripts/benchmark_serving.py [--runs results/flights/paper-grid] [--data data/flights]

Takes the checkpoints that `make sweep` left, five seeds each, exports them, and measures validation in ONNX Runtime,
and the latency of the first seed's in torch, AOTInductor (which needs a C++ compiler) and ONNX Runtime, on one thread
each, in turns. Writes results/benchmarks/serving.json and .md.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dlrm_mlet.data import columns
from dlrm_mlet.files import replacing, write_json
from dlrm_mlet.reporting.curves import spread
from dlrm_mlet.serving.checking import run
from dlrm_mlet.serving.finished import Probability, export_served
from dlrm_mlet.serving.session import open_session
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.training import checkpoint
from dlrm_mlet.training.device import describe

COLLAPSED = "mlet/inner_dim=64,embedding_dim=4"
MODELS = (
    ("single layer, d=64", "single/embedding_dim=64", 32, False),
    ("MLET k=64, collapsed to d=4", COLLAPSED, 32, False),
    ("in float16", COLLAPSED, 16, False),
    ("in int8, with a scale", COLLAPSED, 8, False),
    ("in int8, with scale and offset", COLLAPSED, 8, True),
    ("in int4, with a scale", COLLAPSED, 4, False),
    ("in int4, with scale and offset", COLLAPSED, 4, True),
)
SEEDS = range(5)
ROWS = (1, 128, 4096)
TURNS = 200
"""Of each batch in each runtime; fewer where a turn takes long."""


def main() -> None:
    """Export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("results/flights/paper-grid"))
    parser.add_argument("--data", type=Path, default=Path("data/flights"))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/serving.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = []
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        for name, run_name, bits, offset in MODELS:
            runs = [options.runs / f"{run_name},seed={seed}" / checkpoint.FILE for seed in SEEDS]
            reports = [
                export_served(checkpoint.load(path), options.data, out / "m.onnx", bits, offset) for path in runs
            ]
            export_served(checkpoint.load(runs[0]), options.data, out / "m.onnx", bits, offset)
            models.append(
                {
                    "model": name,
                    "table_bytes": reports[0].table_bytes,
                    "file_bytes": reports[0].nbytes,
                    "validation_auc": [report.onnx.auc for report in reports],
                    "validation_log_loss": [report.onnx.log_loss for report in reports],
                    "milliseconds": latencies(runs[0], options.data, out / "m.onnx", bits, offset),
                    "largest_difference_to_torch": max(report.worst for report in reports),
                }
            )
            print(models[-1])
    device = describe(torch.device("cpu"))
    write_json(options.out, {"device": device, "torch": torch.__version__.partition("+")[0], "models": models})
    page = options.out.with_suffix(".md")
    with replacing(page) as partial:
        partial.write_text(markdown(models, device), encoding="utf-8")
    print(page)


def latencies(path: Path, directory: Path, onnx: Path, bits: int, offset: bool) -> dict[str, dict[int, float]]:
    """Runtime -> rows of a batch -> median milliseconds, measured in turns."""
    model = checkpoint.load(path).model
    whole = Probability(model if bits == 32 else quantize(model, bits, offset=offset, report=lambda line: None)).eval()
    data = columns.load(directory)
    start, _ = data.range("validation")
    batches = {rows: data.rows(slice(start, start + rows)) for rows in ROWS}
    compiled, session = inductor(whole, batches[128][:2], onnx.with_suffix(".pt2")), open_session(onnx, threads=1)
    runtimes: dict[str, Callable[[Tensor, Tensor], object]] = {
        "torch": whole,
        "AOTInductor": compiled,
        "ONNX Runtime": lambda dense, sparse: run(session, (dense, sparse)),
    }
    found: dict[str, dict[int, float]] = {name: {} for name in runtimes}
    for rows, batch in batches.items():
        times: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(TURNS):
            for name, runtime in runtimes.items():
                begin = time.perf_counter()
                with torch.inference_mode():
                    runtime(batch.dense, batch.sparse)
                times[name].append(1000 * (time.perf_counter() - begin))
        for name, measured in times.items():
            found[name][rows] = statistics.median(measured)
    return found


def inductor(whole: Probability, batch: tuple[Tensor, ...], path: Path) -> Callable[[Tensor, Tensor], object]:
    """The model compiled ahead of time, for batches of any size."""
    rows = torch.export.Dim("rows")
    program = torch.export.export(copy.deepcopy(whole), batch, dynamic_shapes=({0: rows}, {0: rows}))
    return torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program, package_path=str(path)))


def markdown(models: list[dict], device: str) -> str:
    """The page: a row a model, and a row a model and a runtime."""
    runtimes = list(models[0]["milliseconds"])
    lines = [
        f"# What a model of flights costs to serve, on {device}",
        "",
        "Measured through ONNX Runtime by `make benchmark-serving` on the checkpoints of `make sweep`: all validation "
        f"rows, mean ± standard deviation over {len(SEEDS)} seeds. The rows after the second are the second's model in "
        "fewer bits a number. The file holds the MLPs too, which depend on d only through their first and last layers.",
        "",
        "| model | bytes of tables | bytes of the file | validation AUC | validation LogLoss |",
        "|---|--:|--:|---|---|",
    ]
    for model in models:
        auc, loss = spread(model["validation_auc"]), spread(model["validation_log_loss"])
        lines.append(f"| {model['model']} | {model['table_bytes']:,} | {model['file_bytes']:,} | {auc} | {loss} |")
    worst = max(model["largest_difference_to_torch"] for model in models)
    lines += [
        "",
        f"Probabilities differ from torch's by {worst:.1e} at most.",
        "",
        f"Median milliseconds of {TURNS} calls on one thread, the runtimes in turns, seed 0:",
        "",
        f"| model | rows | {' | '.join(runtimes)} |",
        f"|---|--:|{'--:|' * len(runtimes)}",
    ]
    for model in models:
        for rows in ROWS:
            times = " | ".join(f"{model['milliseconds'][runtime][rows]:.3f}" for runtime in runtimes)
            lines.append(f"| {model['model']} | {rows:,} | {times} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
