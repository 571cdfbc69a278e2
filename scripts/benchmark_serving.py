"""What models of flights cost to serve, by ONNX Runtime: a wide single layer, MLET collapsed, and that in int8.

    python scripts/benchmark_serving.py [--runs results/flights/paper-grid] [--data data/flights]

Takes the checkpoints that `make sweep` left, five seeds each, exports them, and measures validation and latency.
Writes results/benchmarks/serving.json and .md.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from dlrm_mlet.data import columns
from dlrm_mlet.files import replacing, write_json
from dlrm_mlet.reporting.report import spread
from dlrm_mlet.serving.finished import export_served
from dlrm_mlet.training import checkpoint
from dlrm_mlet.training.device import describe

MODELS = (
    ("single layer, d=64", "single/embedding_dim=64", False),
    ("MLET k=64, collapsed to d=4", "mlet/inner_dim=64,embedding_dim=4", False),
    ("the same with int8 rows", "mlet/inner_dim=64,embedding_dim=4", True),
)
SEEDS = range(5)


def main() -> None:
    """Export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("results/flights/paper-grid"))
    parser.add_argument("--data", type=Path, default=Path("data/flights"))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/serving.json"))
    options = parser.parse_args()
    data = columns.load(options.data)
    models = []
    with tempfile.TemporaryDirectory() as directory:
        for name, run, as_int8 in MODELS:
            reports = []
            for seed in SEEDS:
                served = checkpoint.load(options.runs / f"{run},seed={seed}" / checkpoint.FILE)
                reports.append(export_served(served, data, Path(directory) / "model.onnx", as_int8))
            models.append(
                {
                    "model": name,
                    "table_bytes": reports[0].table_bytes,
                    "file_bytes": reports[0].nbytes,
                    "validation_auc": [report.onnx.auc for report in reports],
                    "validation_log_loss": [report.onnx.log_loss for report in reports],
                    "ms_of_4096_rows": statistics.median(report.milliseconds[4096] for report in reports),
                    "ms_of_1_row": statistics.median(report.milliseconds[1] for report in reports),
                    "largest_difference_to_torch": max(report.worst for report in reports),
                }
            )
    device = describe(torch.device("cpu"))
    write_json(options.out, {"device": device, "torch": torch.__version__.partition("+")[0], "models": models})
    page = options.out.with_suffix(".md")
    with replacing(page) as partial:
        partial.write_text(markdown(models, device), encoding="utf-8")
    print(page)


def markdown(models: list[dict], device: str) -> str:
    """The page: a row a model."""
    lines = [
        f"# What a model of flights costs to serve, on {device}",
        "",
        "Measured through ONNX Runtime by `make benchmark-serving` on the checkpoints of `make sweep`: all validation "
        f"rows, mean ± standard deviation over {len(SEEDS)} seeds, median milliseconds. The file holds the MLPs too, "
        "which depend on d only through their first and last layers.",
        "",
        "| model | bytes of tables | bytes of the file | validation AUC | validation LogLoss | ms for 4,096 rows "
        "| ms for 1 row |",
        "|---|--:|--:|---|---|--:|--:|",
    ]
    for model in models:
        auc, loss = spread(model["validation_auc"]), spread(model["validation_log_loss"])
        lines.append(
            f"| {model['model']} | {model['table_bytes']:,} | {model['file_bytes']:,} | {auc} | {loss} "
            f"| {model['ms_of_4096_rows']:.1f} | {model['ms_of_1_row']:.3f} |"
        )
    worst = max(model["largest_difference_to_torch"] for model in models)
    return "\n".join([*lines, "", f"Probabilities differ from torch's by {worst:.1e} at most."]) + "\n"


if __name__ == "__main__":
    main()
