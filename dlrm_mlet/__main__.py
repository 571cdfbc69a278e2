"""The command line: arguments in, one call out."""

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dlrm_mlet import stopping
from dlrm_mlet.extras import MissingExtraError

if TYPE_CHECKING:
    from dlrm_mlet.sweeping.sweep import Launcher

ROOT = Path("results")
DATA = Path("data")
EXAMPLES = {
    "preprocess": "my-clicks.toml --raw clicks.parquet",
    "synthesize": "criteo-kaggle --rows 1000000 --out train.txt",
    "train": "criteo-kaggle/mlet-k64-d16 --seed 1 --set training.epochs=2",
    "sweep": "flights/paper-grid",
    "plan": "criteo-kaggle/paper-grid --devices 8 --device-memory 80GiB",
    "status": "flights/paper-grid",
    "spectrum": "results/flights/one/seed=0/checkpoint.pt",
    "export": "checkpoint.pt --out model.onnx --quantize int8",
    "predict": "model.onnx clicks.csv --out probabilities.csv",
    "benchmark": "--device cuda:0",
    "verify": "results/flights",
    "report": "results --out drawn",
    "compare": "results/flights/paper-grid.csv:mlet:64 results/flights/paper-grid.csv:single",
}
CONFIG = "an experiment's .toml file, or the name of a built-in one, such as flights/paper-grid"


class _Parser(argparse.ArgumentParser):
    """What it doesn't know with --launcher slurm is sbatch's."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # as argparse has it
        options, unknown = super().parse_known_args(args, namespace)
        if getattr(options, "launcher", None) == "slurm":
            options.sbatch, unknown = [*getattr(options, "sbatch", []), *unknown], []
        return options, unknown


def command() -> None:
    """The process `dlrm-mlet`."""
    try:
        stopping.open_streams()
        stopping.heed()
        status = main()
    except KeyboardInterrupt:  # before there was a command
        status = _stopped()
    stopping.over(status)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, 1 for bad input, 130 where Ctrl-C stopped it, and 143 where SIGTERM did."""
    try:
        options = _parser().parse_args(arguments)
        for stream in (sys.stdout, sys.stderr):  # a terminal without ± shows another character
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, MissingExtraError, MemoryError) as error:
        if stopping.asked():  # what a signal does to a lock or an import that it interrupts
            return _stopped()
        # what the package raises says what was wrong; the rest of a trace would hide it
        if os.environ.get("DLRM_MLET_TRACEBACK"):
            raise
        short = "the memory ends here; expected more, or a smaller batch or table" if not str(error) else error
        print(f"dlrm-mlet: error: {short}", file=sys.stderr)
        return 1
    except BaseException as error:
        if stopping.asked() or isinstance(error, KeyboardInterrupt):
            return _stopped()
        raise
    return 0


def _stopped() -> int:
    print("\ndlrm-mlet: stopped; the same call goes on from here", file=sys.stderr)
    return 128 + (stopping.asked() or signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    from dlrm_mlet import __version__

    parser = _Parser(prog="dlrm-mlet", description="Multi-layer embedding training (MLET) for DLRM.")
    parser.add_argument("--version", action="version", version=f"dlrm-mlet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], None], what: str) -> Callable[..., argparse.Action]:
        example = f"example: dlrm-mlet {name} {EXAMPLES[name]}"
        added = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=example)
        added.set_defaults(run=run)
        return added.add_argument

    add = command("preprocess", _preprocess, "raw file -> columns on disk")
    add("dataset", help="a built-in data set's name, or the .toml file that describes one: see docs/datasets.md")
    raw = "CSV, TSV or Parquet, or directories of parts, one after another; the bundled data sets need none"
    add("--raw", type=Path, nargs="+", metavar="PATH", help=raw)
    add("--out", type=Path, metavar="DIR", help="default: data/<name>")
    add("--force", action="store_true", help="replace a data set that was made of other rows")
    extend = "go on with the ids of this directory, of the same data set's earlier rows: see train --from"
    add("--extend", type=Path, metavar="DIR", help=extend)

    add = command("synthesize", _synthesize, "a raw file of a data set's format, of any size")
    add("dataset", help="criteo-kaggle or avazu")
    add("--rows", type=int, required=True, help="how many to write")
    add("--out", type=Path, required=True, metavar="FILE", help="such as train.txt")
    add("--seed", type=int, default=0, help="of the values; default: 0")

    data = "the data set's directory; default: data/<dataset>"
    add = command("train", _train, "one run of an experiment")
    add("config", help=CONFIG)
    add("--data", type=Path, metavar="DIR", help=data)
    add("--seed", type=int, help="of the weights and of the order of the rows; default: the experiment's first")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="instead of what the file says, such as model.inner_dim=64",
    )
    add("--out", type=Path, metavar="DIR", help="default: results/<dataset>/<config>[,KEY=VALUE]/seed=<seed>")
    add("--device", help="cpu or cuda:N; default: the first GPU, if there is one")
    add("--fresh", action="store_true", help="start anew; without it the run goes on from the checkpoint in --out")
    add("--resume", action="store_true", help=argparse.SUPPRESS)  # as it does anyway
    start = "a finished run's checkpoint.pt to start from, of the same data set or one that this extends"
    add("--tensorboard", type=Path, metavar="DIR", help="also write the validation curve as TensorBoard reads it")
    engine = "torchrec: tables spread over the processes that torchrun starts: see docs/torchrec.md; default: plain"
    add("--engine", choices=["plain", "torchrec"], default="plain", help=engine)
    add("--from", dest="start", type=Path, metavar="CHECKPOINT", help=start)

    add = command("sweep", _sweep, "all runs of a grid that have no record yet, then its table and figures")
    add("config", help=CONFIG)
    add("--data", type=Path, metavar="DIR", help=data)
    jobs = "worker processes; default: one per GPU, or one per core if there is none; with slurm: tasks at once"
    add("--jobs", type=int, metavar="N", help=jobs)
    launcher = "slurm: hand the runs to its queue and return; all other options go to sbatch; default: local"
    add("--launcher", choices=["local", "slurm"], default="local", help=launcher)
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="of the runs; the table and figures lie beside it; default: results/<dataset>/<config>",
    )
    add(
        "--publish",
        action="store_true",
        help="write into the published table, one that git tracks: see CONTRIBUTING.md",
    )
    add("--dry-run", action="store_true", help="print what plan prints, and start nothing")

    add = command("plan", _plan, "what a sweep or a run takes: memory, disk and time, before anything runs")
    add("config", help=CONFIG)
    add("--data", type=Path, metavar="DIR", help=data)
    add("--out", type=Path, metavar="DIR", help="of the runs; default: results/<dataset>/<config>")
    count = "GPUs, or worker processes; default: as many as sweep would use here"
    add("--devices", type=int, metavar="N", help=count)
    elsewhere = "plan for GPUs of so much memory, such as 80GiB, which need not be here"
    add("--device-memory", metavar="BYTES", help=elsewhere)
    slurm = "slurm: nodes whose memory isn't known; default: local"
    add("--launcher", choices=["local", "slurm"], default="local", help=slurm)
    add("--engine", choices=["plain", "torchrec"], default="plain", help="torchrec: one run spread over all devices")

    add = command("status", _status, "what of a sweep is finished, at work, in the queue, stopped, failed and waiting")
    add("config", help=CONFIG)
    add("--data", type=Path, metavar="DIR", help=data)
    add("--out", type=Path, metavar="DIR", help="of the runs; default: results/<dataset>/<config>")

    add = command("spectrum", _spectrum, "the singular values of a run's tables")
    add("checkpoint", type=Path, help="a run's checkpoint.pt")

    add = command("export", _export, "a run's model as ONNX, checked in ONNX Runtime on validation rows")
    add("checkpoint", type=Path, help="a run's checkpoint.pt")
    add("--out", type=Path, metavar="FILE", help="such as model.onnx")
    add("--bundle", type=Path, metavar="DIR", help="the model with all that predict needs, to be carried away")
    add("--quantize", choices=["int8", "int4", "fp16"], help="fewer bits a number in the tables; default: float32")
    add("--data", type=Path, metavar="DIR", help=data)

    add = command("predict", _predict, "the probability of a click for each row, as CSV")
    add("model", type=Path, help="a bundle, an exported .onnx file, or a run's checkpoint.pt")
    rows = "raw files, with or without labels, or directories of parts; or a data set's directory"
    add("rows", type=Path, nargs="+", help=rows)
    add("--out", type=Path, required=True, metavar="FILE", help="such as probabilities.csv")
    keep = 'columns of the raw file to write beside the probability, as in CSV: row_id,"price, EUR"'
    add("--keep", type=lambda names: next(csv.reader([names])), default=[], metavar="COLUMNS", help=keep)
    add("--allow-unseen", action="store_true", help="go on where most values of a column are unknown")
    trained = "what the model was trained on; default: data/<dataset>, and a bundle needs none"
    add("--data", type=Path, metavar="DIR", help=trained)

    add = command("benchmark", _benchmark, "the time of a training step: Table 2 on this machine")
    add("--out", type=Path, metavar="FILE", help="default: results/benchmarks/step-<device type>.json")
    add("--device", help="cpu or cuda:N; default: the first GPU, if there is one")
    add("--threads", type=int, metavar="N", default=os.cpu_count() or 1, help="of the CPU; default: all cores")
    add("--max-rows", type=int, metavar="N", default=1_000_000, help="cap of a table's rows; default: 1000000")
    add("--rounds", type=int, metavar="N", default=40, help="turns of each contender, of 20 steps each; default: 40")

    add = command("verify", _verify, "whether what lies there is whole, and of what it is")
    add("path", type=Path, help="columns, a run, a checkpoint, a bundle, a directory of results; or what holds some")

    add = command("report", _report, "figures and pages from the tables of results alone")
    add("directory", type=Path, nargs="?", default=ROOT, help="with <dataset>/<experiment>.csv; default: results")
    add("--out", type=Path, metavar="DIR", help="default: beside the tables")
    add("--claims", type=Path, metavar="FILE", help="also write the page of the paper's claims to this file")
    add("--dataset", metavar="NAME", help="this one alone, and its page of claims beside its tables: claims.md")

    add = command("compare", _compare, "the difference of two models in two tables of results, paired by seed")
    side = "a table of results and an arm of it, such as results/flights/paper-grid.csv:mlet"
    add("better", help=side)
    add("base", help="the one that it is compared with, likewise")
    return parser


def _preprocess(options: argparse.Namespace) -> None:
    from dlrm_mlet.data import datasets
    from dlrm_mlet.data.preprocess import lone_labels, preprocess

    dataset = datasets.load(options.dataset)
    out = options.out or DATA / dataset.name
    warn = functools.partial(print, f"dlrm-mlet: warning: {dataset.name}:", file=sys.stderr)
    schema = preprocess(dataset, out, options.raw, options.force, options.extend, warn)
    for mismatch in schema.mismatches:
        warn(f"{mismatch}; this may be another file")
    for why in lone_labels(out, schema):
        print(f"dlrm-mlet: warning: {why}, so that it has no AUC; expected both labels", file=sys.stderr)
    rows = ", ".join(f"{split} {count:,}" for split, count in schema.rows.items())
    print(f"{out}: {rows} rows; {len(schema.table_rows)} tables of {sum(schema.table_rows):,} rows in all")


def _synthesize(options: argparse.Namespace) -> None:
    from dlrm_mlet.data.synthetic import synthesize

    synthesize(options.dataset, options.rows, options.out, options.seed)
    print(f"{options.out}: {options.rows:,} rows of {options.dataset}'s format, {options.out.stat().st_size:,} bytes")


def _train(options: argparse.Namespace) -> None:
    from dlrm_mlet import config as configs
    from dlrm_mlet.data import columns
    from dlrm_mlet.toml import ConfigError
    from dlrm_mlet.training import checkpoint, device, tensorboard
    from dlrm_mlet.training.run import train

    experiment = configs.load(options.config, options.set)
    if len(experiment.points) > 1:
        raise ConfigError(f"{options.config}: a grid of {len(experiment.points)} points; expected one: see sweep")
    seed = experiment.seeds[0] if options.seed is None else options.seed
    if seed < 0:
        raise ConfigError(f"--seed {seed}: expected 0 or more")
    name = re.sub(r"[^\w.,=+-]", "_", ",".join([experiment.path.stem, *sorted(options.set)]))
    if len(name) > 150:  # file systems end at 255
        name = f"{name[:130]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    out = options.out or ROOT / experiment.dataset / name / f"seed={seed}"
    data = columns.load(options.data or DATA / experiment.dataset)
    start = None if options.start is None else checkpoint.load(options.start)
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(tensorboard.watching(options.tensorboard)) if options.tensorboard else None
        config = experiment.points[0].config
        if options.engine == "torchrec":
            from dlrm_mlet.distributed import engine, parallel

            if start is not None:
                raise ConfigError("--from: expected --engine plain, which can start from a checkpoint")
            where = stack.enter_context(parallel.processes(options.device))
            record = engine.train(config, data, seed, out, where, not options.fresh, watch)
        else:
            where = device.find(options.device)
            record = train(config, data, seed, out, not options.fresh, device=where, start=start, watch=watch)
    for split, measured in (record.metrics or {}).items():
        print(f"{split}: AUC {measured['auc']:.4f}, LogLoss {measured['log_loss']:.4f}")
    for split, why in record.absent.items():
        print(f"{split}: no AUC, since {why}")
    print(f"{out}: {record.status} in {record.seconds:.1f} s, {record.rows_per_second:,.0f} rows/s")


def _sweep(options: argparse.Namespace) -> None:
    from dlrm_mlet import config
    from dlrm_mlet.data import columns
    from dlrm_mlet.reporting import publishing
    from dlrm_mlet.sweeping import status, tuning
    from dlrm_mlet.sweeping.sweep import FailedRuns

    if options.dry_run:
        _print_plan(options, options.jobs)
        return
    launch, experiment = _launcher(options), config.load(options.config)
    out = options.out or ROOT / experiment.dataset / experiment.path.stem
    if out.name in ("", ".."):  # the table beside it needs a name
        out = out.resolve()
    publishing.check_name(out)
    data = options.data or DATA / experiment.dataset
    tuned = tuning.tune(experiment, data, out / "trials", launch) if experiment.tuning else (experiment, [])
    failed: FailedRuns | None = None
    try:
        runs = launch(tuned[0], data, out) if tuned else None
    except FailedRuns as error:
        failed, runs = error, error.runs
        if not runs:
            raise
    if tuned is None or runs is None:
        print(status.text(status.status(experiment, out), out))
        print("the same call goes on when Slurm has done these")
        return

    from dlrm_mlet.reporting import page, report, results

    schema = columns.load(data).schema
    tables = results.tables([(run.point, record) for run, record in runs], schema)
    for row in tables[""]:
        row["experiment"] = f"{experiment.base}-{schema.fingerprint}"
    if tuned[1]:
        tables["-trials"] = results.rows([(run.point, record) for run, record in tuned[1]])
    table, told = publishing.store(out, tables, options.publish)
    print(page.summary([results.as_row(row) for row in tables[""]]))
    diverged = sum(record.status == "diverged" for _, record in runs)
    print(f"{told}; {diverged} diverged")
    for path in filter(None, [table]):
        print(path)
    for path in report.draw(table, table.parent) if table else []:
        print(path)
    if failed is not None:
        raise failed


def _launcher(options: argparse.Namespace) -> "Launcher":
    if options.launcher == "slurm":
        from dlrm_mlet.sweeping import slurm

        return functools.partial(slurm.submit, flags=slurm.flags(options.sbatch), jobs=options.jobs)
    from dlrm_mlet.sweeping.sweep import sweep
    from dlrm_mlet.training import device

    return functools.partial(sweep, devices=device.workers(options.jobs))


def _plan(options: argparse.Namespace) -> None:
    _print_plan(options, options.devices, options.device_memory, options.engine)


def _print_plan(
    options: argparse.Namespace, count: int | None, memory: str | None = None, engine: str = "plain"
) -> None:
    from dlrm_mlet import config
    from dlrm_mlet.sweeping import plan_text, planning

    experiment = config.load(options.config)
    out = options.out or ROOT / experiment.dataset / experiment.path.stem
    devices = planning.devices_for(count, memory, options.launcher)
    plan = planning.plan_of(experiment, options.data or DATA / experiment.dataset, out, devices, engine)
    print(plan_text.text(plan))
    plan_text.check(plan)


def _status(options: argparse.Namespace) -> None:
    from dlrm_mlet import config
    from dlrm_mlet.data import schema
    from dlrm_mlet.sweeping.status import status, text

    experiment = config.load(options.config)
    out = options.out or ROOT / experiment.dataset / experiment.path.stem
    described = (options.data or DATA / experiment.dataset) / "schema.json"
    try:
        columns = schema.load(described).fingerprint
    except schema.ColumnsError:
        if options.data:
            raise
        columns = None  # they may lie elsewhere: runs of any will do
    print(text(status(experiment, out, columns), out))


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
    from dlrm_mlet.serving.finished import export_bundle, export_served
    from dlrm_mlet.training import checkpoint

    if (options.out is None) == (options.bundle is None):
        raise ValueError("expected either --out FILE or --bundle DIR")
    served, bits = checkpoint.load(options.checkpoint), {"int8": 8, "int4": 4, "fp16": 16, None: 32}[options.quantize]
    data = options.data or DATA / served.columns.dataset
    if options.bundle is None:
        done = export_served(served, data, options.out, bits)
    else:
        done = export_bundle(served, data, options.bundle, bits)
    for name, measured in (("torch, as trained", done.torch), ("ONNX Runtime", done.onnx)):
        print(f"{name}: validation AUC {measured.auc:.6f}, LogLoss {measured.log_loss:.6f}")
    same = f"the {options.quantize} model's in torch" if options.quantize else "torch's"
    print(f"probabilities differ from {same} by {done.worst:.1e} at most, on {done.rows:,} rows")
    times = ", ".join(f"{ms:.3f} ms for {rows:,} rows" for rows, ms in done.milliseconds.items())
    print(f"{done.path}: {done.nbytes:,} bytes, {done.table_bytes:,} of them tables; {times} (median)")


def _predict(options: argparse.Namespace) -> None:
    from dlrm_mlet.serving.predict import open_model, predict

    model = open_model(options.model)
    data = options.data or DATA / model.dataset
    done = predict(model, options.rows, options.out, data, options.keep, options.allow_unseen)
    for column, its in done.unseen.items():
        examples = ", ".join(map(repr, its.examples))
        print(
            f"dlrm-mlet: {column}: {its.count:,} of {its.values:,} values ({its.share:.1%}) are unknown, such as "
            f"{examples}; training has {', '.join(map(repr, its.known))} and others",
            file=sys.stderr,
        )
    if done.lacks:
        print(f"dlrm-mlet: a field less than the data set: taken as rows without {done.lacks!r}", file=sys.stderr)
    if done.quality:
        auc = "undefined, as all labels are alike" if done.quality.auc is None else f"{done.quality.auc:.6f}"
        print(f"{done.quality.rows:,} rows have labels: AUC {auc}, LogLoss {done.quality.log_loss:.6f}")
    print(f"{options.out}: {done.rows:,} probabilities, in the order of the rows; {done.rows_per_second:,.0f} rows/s")


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


def _verify(options: argparse.Namespace) -> None:
    from dlrm_mlet.verify import VerifyError, verify

    whole = []
    for found in verify(options.path):
        whole.append(found.whole)
        print(f"{found.path}: {found.kind}, {'whole' if found.whole else 'NOT WHOLE'}: {found.said}", flush=True)
    if not all(whole):
        raise VerifyError(f"{options.path}: {whole.count(False)} of {len(whole)} aren't whole")
    print(f"{options.path}: all {len(whole)} are whole")


def _compare(options: argparse.Namespace) -> None:
    from dlrm_mlet.reporting.compare import compare

    print(compare(options.better, options.base))


def _report(options: argparse.Namespace) -> None:
    from dlrm_mlet.reporting import reproduction
    from dlrm_mlet.reporting.report import report
    from dlrm_mlet.reporting.results import ResultsError

    dataset = options.dataset and Path(options.dataset).name  # as a completed path has a slash
    out, page, datasets = options.out or options.directory, options.claims, None
    if dataset:
        out, datasets = out / dataset, [dataset]
        page = page or out / "claims.md"
    drawn = [report(options.directory, options.out, dataset)]
    if page:
        drawn.append(reproduction.publish(options.directory, page, out, datasets))
    failed = []
    for written in drawn:
        try:
            for path in written:
                print(path)
        except ResultsError as error:  # the page of claims doesn't wait for a table that can't be drawn
            failed.append(str(error))
    if failed:
        raise ResultsError("\n".join(failed))


if __name__ == "__main__":
    command()
