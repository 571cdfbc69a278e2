"""Preprocessing against what polars needs merely to parse the same file, hexadecimal ids to uint32, into .npy files.

    python scripts/benchmark_preprocess.py [--rows 4000000] [--runs 5] [--out results/benchmarks/preprocess.json]

A synthetic Criteo-Kaggle file is made first. The two take turns, each in a process of its own; their median times and
the ratio of each pair are written to --out. So are the time that the command takes for a file of 20 rows, which is its
start, and the largest memory of a preprocessing process.
"""

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from dlrm_mlet.data.datasets import CRITEO_KAGGLE
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.synthetic import synthesize
from dlrm_mlet.files import write_json
from dlrm_mlet.training.device import describe


def parse_only(raw: Path, rows: int, out: Path) -> None:
    """polars' streaming reader into memory-mapped arrays: nothing is checked, numbered or transformed."""
    out.mkdir()
    schema = dict.fromkeys((CRITEO_KAGGLE.label, *CRITEO_KAGGLE.dense), pl.Int64)
    table = pl.scan_csv(
        raw,
        has_header=False,
        separator="\t",
        quote_char=None,
        schema={name: schema.get(name, pl.String) for name in CRITEO_KAGGLE.columns},
    ).with_columns(pl.col(CRITEO_KAGGLE.categorical).str.to_integer(base=16, dtype=pl.UInt32))
    arrays = {
        name: np.lib.format.open_memmap(out / f"{name}.npy", mode="w+", dtype=dtype, shape=(rows, len(columns)))
        for name, dtype, columns in (
            ("label", np.uint8, [CRITEO_KAGGLE.label]),
            ("dense", np.float32, CRITEO_KAGGLE.dense),
            ("sparse", np.uint32, CRITEO_KAGGLE.categorical),
        )
    }
    start = 0
    for batch in table.collect_batches():
        stop = start + batch.height
        arrays["label"][start:stop] = batch.select(CRITEO_KAGGLE.label).to_numpy()
        arrays["dense"][start:stop] = batch.select(CRITEO_KAGGLE.dense).fill_null(0).to_numpy()
        arrays["sparse"][start:stop] = batch.select(CRITEO_KAGGLE.categorical).fill_null(0).to_numpy()
        start = stop


def timed(what: str, raw: Path, rows: int, out: Path) -> tuple[float, int]:
    """Seconds that one of the two takes in a process of its own, without its start and imports, and its peak bytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", what, str(raw), str(rows), str(out)], capture_output=True, check=True
    )
    shutil.rmtree(out)
    return json.loads(done.stdout)


def start_up(raw: Path, out: Path) -> float:
    """Seconds of the whole command on 20 rows."""
    some = raw.with_name("some.txt")
    with raw.open("rb") as file:
        some.write_bytes(b"".join(file.readline() for _ in range(20)))
    call = [sys.executable, "-m", "dlrm_mlet", "preprocess", CRITEO_KAGGLE.name, "--raw", str(some), "--out", str(out)]
    begin = time.perf_counter()
    subprocess.run(call, capture_output=True, check=True)
    seconds = time.perf_counter() - begin
    shutil.rmtree(out)
    return seconds


def worker(what: str, raw: Path, rows: int, out: Path) -> None:
    """Print the seconds of one call, and the process's largest memory."""
    begin = time.perf_counter()
    if what == "parse":
        parse_only(raw, rows, out)
    else:
        preprocess(CRITEO_KAGGLE, out, raw)
    seconds = time.perf_counter() - begin
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10]))


def main() -> None:
    """Make the file, time both in turns, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/preprocess.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "train.txt", Path(folder) / "out"
        synthesize(CRITEO_KAGGLE.name, options.rows, raw)
        timed("preprocess", raw, options.rows, out)  # the file is in the page cache for both from here on
        measured = [
            [timed(what, raw, options.rows, out) for what in ("parse", "preprocess")] for _ in range(options.runs)
        ]
        pairs = [[seconds for seconds, _ in pair] for pair in measured]
        starts = [start_up(raw, out) for _ in range(options.runs)]
        size = raw.stat().st_size
    parse, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    result = {
        "command": f"python scripts/benchmark_preprocess.py --rows {options.rows} --runs {options.runs}",
        "device": describe(torch.device("cpu")),
        "versions": {"python": platform.python_version(), "polars": pl.__version__, "numpy": np.__version__},
        "rows": options.rows,
        "bytes": size,
        "runs": options.runs,
        "parse_seconds_median": round(parse, 3),
        "preprocess_seconds_median": round(ours, 3),
        "start_up_seconds_median": round(statistics.median(starts), 3),
        "preprocess_peak_gib": round(max(pair[1][1] for pair in measured) / 2**30, 2),
        "preprocess_rows_per_second": round(options.rows / ours),
        "ratios": [round(pair[1] / pair[0], 3) for pair in pairs],
        "ratio_median": round(statistics.median(pair[1] / pair[0] for pair in pairs), 3),
    }
    write_json(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
