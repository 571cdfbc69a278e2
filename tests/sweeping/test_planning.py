"""A plan says what the runs then take of memory and disk, refuses what can't fit; `keep` decides what stays."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from dlrm_mlet import config
from dlrm_mlet.__main__ import main
from dlrm_mlet.config import Config, Experiment, ModelConfig, Point, TrainingConfig
from dlrm_mlet.data import datasets
from dlrm_mlet.data.schema import ColumnsError, Schema
from dlrm_mlet.sweeping import durations, planning, worker
from dlrm_mlet.sweeping import sweep as sweeps
from dlrm_mlet.sweeping.durations import DurationError
from dlrm_mlet.sweeping.keeping import leave
from dlrm_mlet.sweeping.plan_text import check, text
from dlrm_mlet.sweeping.planning import Devices, PlanError, devices_for, plan_of
from dlrm_mlet.sweeping.sweep import sweep
from dlrm_mlet.sweeping.tuning import tune
from dlrm_mlet.toml import ConfigError
from dlrm_mlet.training.device import USABLE, describe
from dlrm_mlet.training.run import CURVE, TrainingError, train
from dlrm_mlet.verify import verify
from tests.sweeping.test_sweep import CPU, GRID
from tests.training.test_bags import write_bags

PROCESSOR = Devices(2, "cpu", 1 << 40)
GPUS = Devices(8, "cuda", 1 << 40)
CRITEO = config.load("criteo-kaggle/paper-grid")
CONFIGS = Path(__file__).parents[2] / "configs"
NOWHERE = Path("not-there")


def experiment(folder: Path, keep: str = "all", grid: str = GRID) -> Experiment:
    path = folder / "grid.toml"
    path.write_text(f'keep = "{keep}"\n{grid}')
    return config.load(path)


def checkpoints(out: Path) -> list[str]:
    return sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("checkpoint.pt"))


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_criteos_grid_leaves_400_gb_by_arithmetic():
    plan = plan_of(CRITEO, NOWHERE, NOWHERE / "out", PROCESSOR)
    rows, widths = 33_762_577, 4 + 8 + 16 + 32 + 64 + 128 + 12 + 28 + 60 + 2 * 124
    assert plan.left("all") == pytest.approx(5 * widths * 4 * rows, rel=0.005)
    assert plan.left("all") == pytest.approx(400e9, rel=0.05)
    assert plan.left("best") == pytest.approx(plan.left("all") / 5)
    assert plan.left("none") == 0
    assert plan.most("none") == pytest.approx(2 * 2 * 128 * 4 * rows, rel=0.01)  # two workers, two checkpoints each
    shown = text(plan)
    assert 'disk, keep = "all", as it is: 406 GB at most, 405 GB at the end' in shown
    assert "125 runs, 125 of them missing; table sizes: published, as not-there isn't there" in shown


def test_what_a_sweep_would_refuse_of_the_data_set_is_not_planned(clicks_directory, tmp_path):
    """Once: rivals on multi-valued columns were planned, and refused by the sweep."""
    model = ModelConfig(4, (16,), (32,), tables="hashed")
    hashed = Experiment(tmp_path / "one.toml", "bags", (0,), (Point("", {}, Config("bags", model)),))
    with pytest.raises(ConfigError, match='"hashed": has no multi-valued columns'):
        plan_of(hashed, write_bags(tmp_path), tmp_path / "out", PROCESSOR)
    with pytest.raises(TrainingError, match="the columns are of clicks; expected bags"):
        plan_of(hashed, clicks_directory, tmp_path / "out", PROCESSOR)


@pytest.mark.parametrize("name", datasets.BUILT_IN)
def test_every_built_in_data_set_can_be_planned_without_its_rows(name, tmp_path):
    model = ModelConfig(4, (16,), (32,))
    point = Point("", {}, Config(name, model))
    plan = plan_of(Experiment(tmp_path / "one.toml", name, (0,), (point,)), NOWHERE, tmp_path, PROCESSOR)
    assert plan.needs[0].checkpoint > 10**5
    assert plan.columns > 10**6


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_experiment_can_be_planned(path):
    plan = plan_of(config.load(path), NOWHERE, NOWHERE / "out", PROCESSOR)
    assert plan.needs
    assert all(need.checkpoint > 0 for need in plan.needs)


def test_a_data_set_that_nobody_knows_has_to_be_there(tmp_path):
    with pytest.raises(
        ColumnsError, match=r"schema\.json: no such file; expected a data set that dlrm-mlet preprocess"
    ):
        plan_of(experiment(tmp_path), NOWHERE, tmp_path, PROCESSOR)


@pytest.mark.usefixtures("in_process")
def test_what_is_finished_is_not_planned_again(tmp_path, clicks, clicks_directory):
    grid, out = experiment(tmp_path), tmp_path / "out"
    before = plan_of(grid, clicks_directory, out, PROCESSOR)
    assert [(need.runs, need.finished, need.missing) for need in before.needs] == 3 * [(2, 0, 2)]
    run = sweeps.plan(grid, out)[3]
    train(run.point.config, clicks, run.seed, run.directory)
    plan = plan_of(grid, clicks_directory, out, PROCESSOR)
    assert [need.missing for need in plan.needs] == [2, 1, 2]
    assert plan.held == (run.directory / "checkpoint.pt").stat().st_size
    assert "6 runs, 5 of them missing" in text(plan)
    sweep(grid, clicks_directory, out, CPU)
    plan = plan_of(grid, clicks_directory, out, PROCESSOR)
    check(dataclasses.replace(plan, devices=Devices(1, "cpu", 0), free=0))  # what is done needs nothing
    assert plan.seconds == 0
    assert plan.left("all") == pytest.approx(plan.held, rel=0.05)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize(
    "model",
    [
        {"inner_dim": 16},
        {"inner_dim": (32, 16)},
        {"served_as": "int8"},
        {"served_rank": 2},
        {"tables": "hashed"},
        {"tables": "quotient-remainder"},
        {"tables": "mixed-dimension"},
    ],
    ids=str,
)
def test_a_checkpoint_takes_the_bytes_that_were_said(clicks, clicks_directory, tmp_path, model, optimizer, monkeypatch):
    training = TrainingConfig(batch_size=64, evaluate_every=30, optimizer=optimizer, learning_rate=0.01)
    one = Config("clicks", ModelConfig(8, (256,), (128,), **model), training)
    grid = Experiment(tmp_path / "one.toml", "clicks", (0,), (Point("", {}, one),))
    need = plan_of(grid, clicks_directory, tmp_path / "out", PROCESSOR).needs[0]
    sizes = []
    real = planning.checkpoint.write
    monkeypatch.setattr(
        planning.checkpoint, "write", lambda path, state: (real(path, state), sizes.append(path.stat().st_size))
    )
    train(one, clicks, 0, tmp_path / "run")
    assert need.standing == pytest.approx(sizes[0], rel=0.05)
    assert need.checkpoint == pytest.approx(sizes[1], rel=0.05)
    assert need.writing == need.checkpoint  # after one look there is nothing else to write


PEAK = """
import sys
from pathlib import Path
from dlrm_mlet.data import columns
from tests.sweeping.test_planning import big
from tests.training.test_run import peak
from dlrm_mlet.training.run import train
train(big({model}, {optimizer!r}), columns.load(sys.argv[1]), 0, Path(sys.argv[2]))
print(peak())
"""


def big(model: dict[str, int], optimizer: str) -> Config:
    training = TrainingConfig(evaluate_every=20, max_steps=30, learning_rate=0.01, optimizer=optimizer)
    return Config("big", ModelConfig(64, (16,), (32,), **model), training)


@pytest.fixture(scope="module")
def big_data(tmp_path_factory) -> Path:
    """Columns of 20,000 rows, with one table of half a million."""
    folder, rng = tmp_path_factory.mktemp("big"), np.random.default_rng(0)
    rows = {"train": 16_000, "validation": 2000, "test": 2000}
    transform = {"a": "identity", "b": "identity"}
    made = Schema("big", "label", ("a", "b"), ("c",), (500_000,), rows, "ordered", 0, transform, {}, "", ())
    np.save(folder / "dense.npy", rng.random((20_000, 2), np.float32))
    np.save(folder / "sparse.npy", rng.integers(0, 500_000, (20_000, 1), np.int32))
    np.save(folder / "label.npy", rng.integers(0, 2, 20_000, np.uint8))
    (folder / "schema.json").write_text(json.dumps(made.as_dict()))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        pytest.param({"inner_dim": 128}, "sgd", marks=pytest.mark.thorough),
        ({}, "adagrad"),
        pytest.param({"inner_dim": 64}, "adam", marks=pytest.mark.thorough),
    ],
)
def test_the_memory_that_was_said_is_what_a_process_takes(big_data, tmp_path, model, optimizer):
    grid = Experiment(tmp_path / "one.toml", "big", (0,), (Point("", {}, big(model, optimizer)),))
    plan = plan_of(grid, big_data, tmp_path, PROCESSOR)
    command = [sys.executable, "-c", PEAK.format(model=model, optimizer=optimizer), big_data, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert max(plan.needs[0].memory) + plan.columns == pytest.approx(int(done.stdout), rel=0.15)


def test_a_run_that_no_device_holds_is_refused(tmp_path):
    plan = plan_of(CRITEO, NOWHERE, tmp_path, Devices(2, "cpu", 20 << 30))
    with pytest.raises(
        PlanError, match=r"mlet k=128 d=64 needs 25\.\d+ GiB on its device, which has 20\.00 GiB to plan with; expected"
    ):
        check(dataclasses.replace(plan, free=10**13))
    unknown = plan_of(CRITEO, NOWHERE, tmp_path, devices_for(None, launcher="slurm"))
    check(dataclasses.replace(unknown, free=10**13))
    assert "1 x cpu of unknown memory" in text(unknown)


def test_checkpoints_that_the_disk_cannot_hold_are_refused_with_what_would_fit(monkeypatch, tmp_path, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 9 * 10**11, 10**11))
    call = ["plan", "criteo-kaggle/paper-grid", "--out", str(tmp_path / "a" / "b"), "--data", str(NOWHERE)]
    assert main([*call, "--device-memory", "80GiB"]) == 1
    out, err = capsys.readouterr()
    assert "single d=128" in out
    assert "b: checkpoints need " in err
    assert 'GB more, and its disk has 100 GB free; expected another --out, or keep = "best" (' in err
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**14, 0, 10**14))
    assert main([*call, "--device-memory", "80GiB", "--devices", "2"]) == 0
    assert "2 x cuda of 72.00 GiB to plan with" in capsys.readouterr().out


def test_a_gpu_makes_all_seeds_of_a_point_at_once_where_it_holds_them():
    small, large = plan_of(CRITEO, NOWHERE, NOWHERE, Devices(1, "cuda", 20 << 30)).needs[::5][:2]
    assert (small.together, large.together) == (5, 1)  # d = 4 and d = 128
    assert small.memory.training > 5 * 4 * 4 * 33_762_577


@pytest.mark.parametrize(
    ("sharding", "rows"),
    [("table_wise", 10_131_227), ("planner", 33_762_577 / 4), ("data_parallel", 33_762_577)],
)
def test_torchrec_spreads_the_tables_over_the_devices(sharding, rows):
    one = config.load("criteo-kaggle/mlet-k64-d16", [f"training.sharding={sharding}"])
    plan = plan_of(one, NOWHERE, NOWHERE, Devices(4, "cuda", 1 << 40), "torchrec")
    assert plan.needs[0].memory.training == pytest.approx(4 * 64 * rows, abs=10**9)
    assert plan.seconds is None
    assert "time: unknown" in text(plan)


def test_a_grid_with_torchrec_is_refused():
    with pytest.raises(PlanError, match=r"paper-grid\.toml: 25 points; expected one with --engine torchrec"):
        plan_of(CRITEO, NOWHERE, NOWHERE, GPUS, "torchrec")


def test_devices_that_are_none_are_refused():
    with pytest.raises(PlanError, match="--devices 0: expected 1 or more"):
        devices_for(0)
    with pytest.raises(PlanError, match="--device-memory 80 apples: expected bytes, such as 80GiB"):
        devices_for(1, "80 apples")
    assert devices_for(2, "1.5 gb") == Devices(2, "cuda", int(USABLE * 1.5e9))
    assert devices_for(3).count == 3


def test_time_is_by_the_benchmark_until_the_experiment_has_records_of_its_own(tmp_path, clicks, clicks_directory):
    grid, out = experiment(tmp_path), tmp_path / "out"
    here = dataclasses.replace(PROCESSOR, name=describe(CPU[0]))
    assert "by results/benchmarks/step-cpu.json, of " in text(plan_of(grid, clicks_directory, out, here))
    assert "takes longer" not in text(plan_of(grid, clicks_directory, out, here))
    training = dataclasses.replace(grid.points[0].config.training, optimizer="adam")
    adam = dataclasses.replace(grid.points[0].config, training=training)
    points = (dataclasses.replace(grid.points[0], config=adam), *grid.points[1:])
    slower = text(plan_of(dataclasses.replace(grid, points=points), clicks_directory, out, here))
    assert "which trains by sgd (adam takes longer); validation" in slower
    run = sweeps.plan(grid, out)[2]
    made = train(run.point.config, clicks, run.seed, run.directory)
    plan = plan_of(grid, clicks_directory, out, here)
    assert "by this experiment's own records" in text(plan)
    assert plan.needs[1].seconds == pytest.approx(made.seconds)
    elsewhere = plan_of(grid, clicks_directory, out, dataclasses.replace(here, name="another"))
    assert "step-cpu.json" in text(elsewhere)


def test_the_nearest_figure_is_that_of_the_same_layers_and_width():
    schema = planning._published("criteo-kaggle")
    steps = -(-schema.rows["train"] // 128)
    single, mlet = (
        Config("criteo-kaggle", ModelConfig(60, (16,), (32,), inner), TrainingConfig()) for inner in (None, 64)
    )
    figures = [
        durations.Figure(128, layers, k, 64, seconds) for layers, k, seconds in ((0, 64, 1), (1, 64, 2), (1, 8, 3))
    ]
    assert [durations.seconds_of(each, schema, figures) for each in (single, mlet)] == [steps, 2 * steps]
    wide = dataclasses.replace(single, training=TrainingConfig(batch_size=256))
    assert durations.seconds_of(wide, schema, figures) == pytest.approx(steps, rel=1e-5)  # half of them, each twice


def test_figures_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    durations.BENCHMARKS.mkdir(parents=True)
    (durations.BENCHMARKS / "step-cpu.json").write_text('{"points": [{}]}')
    with pytest.raises(
        DurationError, match=r"step-cpu\.json: not a benchmark's figures \(KeyError.*dlrm-mlet benchmark"
    ):
        durations.from_benchmark("cpu")
    assert durations.from_benchmark("abacus") == ([], None)


def test_a_dry_run_of_a_sweep_prints_the_plan_and_starts_nothing(tmp_path, clicks_directory, capsys):
    path = experiment(tmp_path).path
    call = [str(path), "--data", str(clicks_directory), "--out", str(tmp_path / "out")]
    assert main(["sweep", *call, "--jobs", "2", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert main(["plan", *call, "--devices", "2"]) == 0
    without = [line for line in capsys.readouterr().out.splitlines() if "free" not in line and "to plan" not in line]
    assert without == [line for line in dry.splitlines() if "free" not in line and "to plan" not in line]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("keep", planning.KEEPS)
def test_keep_decides_which_checkpoints_a_sweep_leaves(keep, tmp_path, clicks_directory):
    out = tmp_path / "out"
    runs = sweep(experiment(tmp_path, keep), clicks_directory, out, 2 * CPU)
    best = {}
    for run, record in runs:
        best.setdefault(run.point.label, []).append((record.metrics["validation"]["auc"], run.seed))
    wanted = {
        "all": [f"{label},seed={seed}" for label in best for seed in (0, 1)],
        "best": [f"{label},seed={max(scores)[1]}" for label, scores in best.items()],
        "none": [],
    }
    assert checkpoints(out) == sorted(wanted[keep])
    assert len(list(out.rglob("record.json"))) == len(list(out.rglob(CURVE))) == 6
    assert all(finding.whole for finding in verify(out))

    before = times(out)
    assert sweep(experiment(tmp_path, keep), clicks_directory, out, 2 * CPU) == runs
    assert times(out) == before
    plan = plan_of(experiment(tmp_path, keep), clicks_directory, out, PROCESSOR)
    assert plan.left(keep) == pytest.approx(plan.held, rel=0.05)


@pytest.mark.usefixtures("in_process")
def test_a_keep_that_came_later_holds_for_what_is_there(tmp_path, clicks_directory):
    out = tmp_path / "out"
    sweep(experiment(tmp_path), clicks_directory, out, CPU)
    sweep(experiment(tmp_path, "best"), clicks_directory, out, CPU)
    assert len(checkpoints(out)) == 3
    sweep(experiment(tmp_path, "none"), clicks_directory, out, CPU)
    assert not checkpoints(out)


def test_what_makes_a_run_on_a_node_removes_its_checkpoint_at_once(tmp_path, clicks):
    run = sweeps.plan(experiment(tmp_path, "none"), tmp_path)[0]
    (job,) = sweeps.jobs_of([run], clicks.schema, CPU)
    assert worker.make(job, clicks, CPU[0]) is None
    assert (run.directory / "record.json").exists()
    assert not checkpoints(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_slurms_last_call_leaves_the_best(tmp_path, clicks_directory):
    slurm = pytest.importorskip("dlrm_mlet.sweeping.slurm")
    runs = sweep(experiment(tmp_path), clicks_directory, tmp_path / "out", CPU)
    found = slurm.submit(experiment(tmp_path, "best"), clicks_directory, tmp_path / "out", {})
    assert [record for _, record in found] == [record for _, record in runs]
    assert len(checkpoints(tmp_path / "out")) == 3


def test_a_run_that_goes_on_keeps_its_checkpoint(run):
    (run / "record.json").unlink()
    leave("none", [run])
    assert (run / "checkpoint.pt").exists()


def test_an_unknown_keep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"keep = 'some': expected one of 'all', 'best', 'none'"):
        experiment(tmp_path, "some")


TUNED = """
dataset = "clicks"
seeds = [0]

[model]
embedding_dim = 2
bottom_mlp = [16]
top_mlp = [32, 16]

[training]
batch_size = 64

[tuning]
start = { learning_rate = [0.1, 0.2] }
seeds = [100]
trials = 2
"""


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("keep", planning.KEEPS)
def test_of_trials_only_all_keeps_checkpoints(keep, tmp_path, clicks_directory):
    grid, out = experiment(tmp_path, keep, TUNED), tmp_path / "out"
    before = plan_of(grid, clicks_directory, out, PROCESSOR)
    assert (before.needs[0].runs, before.needs[0].finished) == (3, 0)
    assert "at least, as it tunes" in text(before)
    launch = functools.partial(sweep, devices=CPU)
    tuned, trials = tune(grid, clicks_directory, out / "trials", launch)
    assert len(trials) > 2  # a longer search than was known beforehand; once it was taken for the run itself
    [need] = plan_of(grid, clicks_directory, out, PROCESSOR).needs
    assert (need.runs, need.finished, need.missing) == (len(trials) + 1, len(trials), 1)
    sweep(tuned, clicks_directory, out, CPU)
    trials = [name for name in checkpoints(out) if name.startswith("trials/")]
    assert len(checkpoints(out)) - len(trials) == (keep != "none")
    assert bool(trials) == (keep == "all")
    assert plan_of(grid, clicks_directory, out, PROCESSOR).needs[0].missing == 0
