"""The command line: arguments in, one call out."""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path("results")
DATA = Path("data")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 for bad input, 130 when it was stopped by Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, RuntimeError) as error:
        # what the package raises says what was wrong; the rest of a trace would hide it
        if os.environ.get("DLRM_MLET_TRACEBACK"):
            raise
        print(f"dlrm-mlet: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndlrm-mlet: stopped; the same call goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dlrm-mlet", description="Multi-layer embedding training (MLET) for DLRM.")
    commands = parser.add_subparsers(required=True, metavar="command")

    preprocess = commands.add_parser("preprocess", help="raw file -> columns on disk")
    preprocess.add_argument("dataset", help="a built-in data set's name, or the .toml file that describes one")
    preprocess.add_argument("--raw", type=Path, help="CSV, TSV or Parquet file; flights needs none")
    preprocess.add_argument("--out", type=Path, help="default: data/<name>")
    preprocess.set_defaults(run=_preprocess)

    synthesize = commands.add_parser("synthesize", help="a raw file of a data set's format, of any size")
    synthesize.add_argument("dataset", help="criteo-kaggle or avazu")
    synthesize.add_argument("--rows", type=int, required=True)
    synthesize.add_argument("--out", type=Path, required=True)
    synthesize.add_argument("--seed", type=int, default=0)
    synthesize.set_defaults(run=_synthesize)

    train = commands.add_parser("train", help="one run of a config")
    train.add_argument("config", type=Path)
    train.add_argument("--data", type=Path, help="the data set's directory; default: data/<dataset>")
    train.add_argument("--seed", type=int, help="default: the config's first")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as model.inner_dim=64")
    train.add_argument("--out", type=Path, help="default: results/<dataset>/<config>/seed=<seed>")
    train.add_argument("--device", help="cpu or cuda:N; default: the first GPU, if there is one")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    train.set_defaults(run=_train)

    sweep = commands.add_parser("sweep", help="all runs of a grid that have no record yet, then its tables and figures")
    sweep.add_argument("config", type=Path)
    sweep.add_argument("--data", type=Path, help="the data set's directory; default: data/<dataset>")
    sweep.add_argument("--jobs", type=int, help="runs at a time; default: one a GPU, or one a core if there is none")
    sweep.add_argument("--out", type=Path, help="default: results/<dataset>/<config>")
    sweep.set_defaults(run=_sweep)

    spectrum = commands.add_parser("spectrum", help="the singular values of a run's tables")
    spectrum.add_argument("checkpoint", type=Path, help="a run's checkpoint.pt")
    spectrum.set_defaults(run=_spectrum)

    export = commands.add_parser("export", help="a run's model as ONNX, checked in ONNX Runtime on validation rows")
    export.add_argument("checkpoint", type=Path, help="a run's checkpoint.pt")
    export.add_argument("--out", type=Path, required=True, help="such as model.onnx")
    export.add_argument("--quantize", choices=["int8"], help="tables of int8 rows, each with a float16 scale")
    export.add_argument("--data", type=Path, help="the data set's directory; default: data/<dataset>")
    export.set_defaults(run=_export)

    predict = commands.add_parser("predict", help="the probability of a click for each row, as CSV")
    predict.add_argument("model", type=Path, help="a run's checkpoint.pt, or an exported .onnx file")
    predict.add_argument("rows", type=Path, help="a raw file, with or without labels, or a data set's directory")
    predict.add_argument("--out", type=Path, required=True, help="such as probabilities.csv")
    predict.add_argument("--dataset", help="the .toml file of a data set of one's own whose raw files have no header")
    predict.add_argument("--data", type=Path, help="what the model was trained on; default: data/<dataset>")
    predict.set_defaults(run=_predict)

    benchmark = commands.add_parser("benchmark", help="the time of a training step: Table 2 on this machine")
    benchmark.add_argument("--out", type=Path, help="default: results/benchmarks/step-<device type>.json")
    benchmark.add_argument("--device", help="cpu or cuda:N; default: the first GPU, if there is one")
    benchmark.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU; default: all cores")
    benchmark.add_argument("--max-rows", type=int, default=1_000_000, help="cap of a table's rows; default: 1000000")
    benchmark.add_argument("--rounds", type=int, default=40, help="turns of each contender; default: 40")
    benchmark.set_defaults(run=_benchmark)

    report = commands.add_parser("report", help="figures and tables from the tables of results alone")
    report.add_argument("directory", type=Path, nargs="?", default=ROOT)
    report.add_argument("--out", type=Path, help="default: beside the tables")
    report.add_argument("--claims", type=Path, help="also write the page of the paper's claims to this file")
    report.set_defaults(run=_report)
    return parser


def _preprocess(options: argparse.Namespace) -> None:
    from dlrm_mlet.data import datasets
    from dlrm_mlet.data.preprocess import preprocess

    dataset = datasets.load(options.dataset)
    out = options.out or DATA / dataset.name
    schema = preprocess(dataset, out, options.raw)
    for mismatch in schema.mismatches:
        print(f"dlrm-mlet: warning: {dataset.name}: {mismatch}; this may be another file", file=sys.stderr)
    rows = ", ".join(f"{split} {count:,}" for split, count in schema.rows.items())
    print(f"{out}: {rows} rows; {len(schema.table_rows)} tables of {sum(schema.table_rows):,} rows in all")


def _synthesize(options: argparse.Namespace) -> None:
    from dlrm_mlet.data.synthetic import synthesize

    synthesize(options.dataset, options.rows, options.out, options.seed)
    print(f"{options.out}: {options.rows:,} rows of {options.dataset}'s format, {options.out.stat().st_size:,} bytes")


def _train(options: argparse.Namespace) -> None:
    from dlrm_mlet import config
    from dlrm_mlet.data import columns
    from dlrm_mlet.training import device
    from dlrm_mlet.training.run import train

    experiment = config.load(options.config, options.set)
    if len(experiment.points) > 1:
        raise config.ConfigError(
            f"{options.config}: a grid of {len(experiment.points)} points; expected one: see sweep"
        )
    seed = experiment.seeds[0] if options.seed is None else options.seed
    out = options.out or ROOT / experiment.dataset / options.config.stem / f"seed={seed}"
    data = columns.load(options.data or DATA / experiment.dataset)
    where = device.find(options.device)
    record = train(experiment.points[0].config, data, seed, out, options.resume, device=where)
    for split, measured in (record.metrics or {}).items():
        print(f"{split}: AUC {measured['auc']:.4f}, LogLoss {measured['log_loss']:.4f}")
    print(f"{out}: {record.status} in {record.seconds:.1f} s, {record.rows_per_second:,.0f} rows/s")


def _sweep(options: argparse.Namespace) -> None:
    from dlrm_mlet import config
    from dlrm_mlet.data import columns
    from dlrm_mlet.reporting import results
    from dlrm_mlet.sweeping import tuning
    from dlrm_mlet.sweeping.sweep import sweep
    from dlrm_mlet.training import device

    experiment = config.load(options.config)
    out = options.out or ROOT / experiment.dataset / options.config.stem
    data, devices = options.data or DATA / experiment.dataset, device.workers(options.jobs)
    written = []
    if experiment.tuning:
        experiment, trials = tuning.tune(experiment, data, out / "trials", devices)
        written.append(out.with_name(f"{out.name}-trials.csv"))
        results.write(written[0], [(run.point, record) for run, record in trials])
    runs = sweep(experiment, data, out, devices)
    written += results.write_all(out, [(run.point, record) for run, record in runs], columns.load(data).schema)

    from dlrm_mlet.reporting import report

    written += report.draw(out.with_name(f"{out.name}.csv"), out.parent)
    diverged = sum(record.status == "diverged" for _, record in runs)
    print(f"{len(runs)} runs, {diverged} diverged; results: {', '.join(map(str, written))}")


def _spectrum(options: argparse.Namespace) -> None:
    from dlrm_mlet.tables import spectrum
    from dlrm_mlet.training import checkpoint

    served = checkpoint.load(options.checkpoint)
    schema = served.columns
    found = spectrum.singular_values(served.model.tables)
    print(f"{'column':>20} {'n':>12}  above 1 %  singular values")
    for name, n, values in zip(schema.categorical, schema.table_rows, found, strict=True):
        shown = " ".join(f"{value:.4g}" for value in values.tolist())
        print(f"{name:>20} {n:>12,}  {spectrum.count_above(values.tolist()):>3} of {len(values):<3} {shown}")


def _export(options: argparse.Namespace) -> None:
    from dlrm_mlet.data import columns
    from dlrm_mlet.serving.export import export_served
    from dlrm_mlet.training import checkpoint

    served = checkpoint.load(options.checkpoint)
    data = columns.load(options.data or DATA / served.columns.dataset)
    done = export_served(served, data, options.out, as_int8=options.quantize == "int8")
    for name, measured in (("torch, as trained", done.torch), ("ONNX Runtime", done.onnx)):
        print(f"{name}: validation AUC {measured.auc:.6f}, LogLoss {measured.log_loss:.6f}")
    print(f"probabilities differ from torch's by {done.worst:.1e} at most, on {done.rows:,} rows")
    times = ", ".join(f"{ms:.3f} ms for {rows:,} rows" for rows, ms in done.milliseconds.items())
    print(f"{done.path}: {done.nbytes:,} bytes, {done.table_bytes:,} of them tables; {times} (median)")


def _predict(options: argparse.Namespace) -> None:
    from dlrm_mlet.data import datasets
    from dlrm_mlet.serving.predict import open_model, predict

    model = open_model(options.model)
    dataset = datasets.load(options.dataset) if options.dataset else None
    rows, unseen = predict(model, options.rows, options.out, options.data or DATA / model.dataset, dataset)
    for column, count in unseen.items():
        print(f"dlrm-mlet: warning: {column}: {count:,} values that the data set doesn't have", file=sys.stderr)
    print(f"{options.out}: {rows:,} probabilities")


def _benchmark(options: argparse.Namespace) -> None:
    from dlrm_mlet import files
    from dlrm_mlet.sweeping import benchmark
    from dlrm_mlet.training import device

    where = device.find(options.device)
    out = options.out or ROOT / "benchmarks" / f"step-{where.type}.json"
    result = benchmark.benchmark(where, options.threads, options.max_rows, options.rounds)
    files.write_json(out, result)
    print(benchmark.markdown(result))
    print(out)


def _report(options: argparse.Namespace) -> None:
    from dlrm_mlet import files
    from dlrm_mlet.reporting import reproduction
    from dlrm_mlet.reporting.report import report

    for path in report(options.directory, options.out):
        print(path)
    if options.claims:
        with files.replacing(options.claims) as partial:
            partial.write_text(reproduction.page(options.directory), encoding="utf-8")
        print(options.claims)


if __name__ == "__main__":
    sys.exit(main())
