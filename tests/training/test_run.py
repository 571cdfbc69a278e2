"""One run: the fused step against the textbook's, its seeds, its end, and how it goes on after a stop."""

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_flatten

from dlrm_mlet.config import Config, ModelConfig
from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.files import BusyError, alone
from dlrm_mlet.sweeping.benchmark import TextbookTables, textbook_step
from dlrm_mlet.training import evaluation, record
from dlrm_mlet.training import run as training
from dlrm_mlet.training.device import DeviceError, threads
from dlrm_mlet.training.model import build
from dlrm_mlet.training.optimizer import SGD
from dlrm_mlet.training.run import TrainingError, losses, train, train_together
from dlrm_mlet.training.step import train_step
from tests import pretend_gpu
from tests.conftest import GPUS
from tests.pretend_gpu import PretendGPU

TABLE_ROWS = (6, 30, 500)
DENSE_WIDTH = 5


@pytest.mark.parametrize("inner_dim", [None, 16, (16, 8)])
def test_the_fused_step_is_the_textbooks_over_100_steps(inner_dim, device):
    config = ModelConfig(4, (16,), (32,), inner_dim)
    ours, textbook = (
        build(config, DENSE_WIDTH, TABLE_ROWS, torch.Generator().manual_seed(0)).double().to(device) for _ in range(2)
    )
    textbook.tables = TextbookTables(ours)
    fused, plain = SGD(ours.parameters(), 0.2), torch.optim.SGD(textbook.parameters(), 0.2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        ids = torch.stack([torch.randint(n, (64,), generator=generator) for n in TABLE_ROWS], dim=1).int()
        assert len(ids[:, 0].unique()) < 64  # so that one row is used more than once in a batch
        dense = torch.randn(64, DENSE_WIDTH, generator=generator, dtype=torch.float64)
        label = (torch.rand(64, generator=generator) < 0.3).double()
        batch = Batch(dense, ids, label).to(device)
        torch.testing.assert_close(train_step(ours, [fused], batch), textbook_step(textbook, plain, batch))
    torch.testing.assert_close(ours.tables.collapse().weight.data, textbook.tables.collapsed().data)
    for mine, theirs in zip(ours.top_mlp.parameters(), textbook.top_mlp.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_run_learns_and_leaves_a_whole_record(clicks, small_mlet, tmp_path):
    config = dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, epochs=8))
    record = train(config, clicks, seed=0, out=tmp_path)
    assert record.status == "finished"
    assert record.steps == 8 * 38
    assert record.metrics["test"]["auc"] > 0.65  # the planted rule; chance is 0.5
    assert [point["step"] for point in record.curve] == list(range(10, 8 * 38, 10))
    assert record.parameters["trained_tables"] == sum(clicks.schema.table_rows) * 16 + 3 * 16 * 4
    assert record.parameters["served_tables"] == sum(clicks.schema.table_rows) * 4
    written = json.loads((tmp_path / "record.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(record)))
    assert written["config"]["training"]["learning_rate"] == 0.2


def test_the_checkpoint_is_the_served_model_of_the_record(clicks, small_mlet, tmp_path):
    record = train(small_mlet, clicks, seed=0, out=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    single = dataclasses.replace(small_mlet.model, inner_dim=None)
    served = build(single, 2, clicks.schema.table_rows, None)
    served.load_state_dict(state["model"])
    with threads(1):  # as in a run
        auc, log_loss = evaluation.measure(served, clicks, "test")
    assert auc == record.metrics["test"]["auc"]
    assert log_loss == record.metrics["test"]["log_loss"]


def test_the_batch_size_cannot_change_a_splits_metrics(clicks, small_mlet, monkeypatch):
    model = build(small_mlet.model, 2, clicks.schema.table_rows, torch.Generator().manual_seed(0)).double()
    exact = dataclasses.replace(clicks, dense=clicks.dense.double())
    found = []
    for batch_size in (1, 7, 256, 300, 1000):
        monkeypatch.setattr(evaluation, "ROWS", batch_size)
        found.append(evaluation.measure(model, exact, "test"))
    assert all(other == pytest.approx(found[0], abs=1e-12) for other in found)


def outcome(directory: Path) -> tuple[dict, dict]:
    record = json.loads((directory / "record.json").read_text())
    for key in ("seconds", "rows_per_second", "provenance"):
        record.pop(key)
    return record, torch.load(directory / "checkpoint.pt", weights_only=True)["model"]


def assert_same_bits(one: Path, other: Path) -> None:
    (record, model), (record_2, model_2) = outcome(one), outcome(other)
    assert record == record_2
    assert all(torch.equal(model[key], model_2[key]) for key in model)


def assert_close(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    (record, model), (record_2, model_2) = outcome(one), outcome(other)
    (values, shape), (values_2, shape_2) = tree_flatten(record), tree_flatten(record_2)
    assert shape == shape_2
    for value, value_2 in zip(values, values_2, strict=True):
        assert value == value_2 or (isinstance(value, float) and value == pytest.approx(value_2, abs=2e-4))
    for key, value in model.items():
        torch.testing.assert_close(model_2[key], value, rtol=0, atol=tolerance)


def test_the_same_seed_gives_the_same_bits_and_another_other_ones(clicks, small_mlet, tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        train(small_mlet, clicks, seed, tmp_path / name)
    assert_same_bits(tmp_path / "one", tmp_path / "two")
    assert outcome(tmp_path / "one")[0]["metrics"] != outcome(tmp_path / "other")[0]["metrics"]


@contextlib.contextmanager
def stopped_at(step, monkeypatch):
    left = iter(range(step))

    def stopping(*arguments):
        for loss in losses(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            yield loss

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "losses", stopping)
        yield


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "lazy-adam"])
def test_a_stopped_run_goes_on_to_the_same_bits(clicks, small_mlet, tmp_path, monkeypatch, optimizer):
    keys = {"epochs": 2, "optimizer": optimizer, "also_measure": ("spectra",), "schedule": "linear", "warm_up": 0.1}
    schedule = dataclasses.replace(small_mlet.training, **keys)
    config = dataclasses.replace(small_mlet, training=schedule)
    train(config, clicks, 0, tmp_path / "whole")
    with stopped_at(57, monkeypatch):  # in the second epoch
        train(config, clicks, 0, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "record.json").exists()
    train(config, clicks, 0, tmp_path / "stopped", resume=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("model", "schedule", "tolerance"),
    [
        ({"inner_dim": None}, {}, 1e-5),
        ({"inner_dim": (16, 8)}, {"freeze_projections": True}, 1e-5),
        ({"start_as": ()}, {"table_learning_rate": 0.1}, 1e-5),
        # Adagrad's first step is as large for a gradient of mere rounding as for any
        ({}, {"also_measure": ("spectra", "frequency"), "optimizer": "adagrad"}, 1e-3),
        ({"served_as": "int8"}, {}, 1e-5),
        ({"inner_dim": None, "served_rank": 2}, {}, math.inf),  # a singular vector may have either sign
        ({"inner_dim": None, "tables": "hashed"}, {}, 1e-5),
        ({"inner_dim": None, "tables": "quotient-remainder"}, {}, 1e-5),
        ({"inner_dim": None, "tables": "mixed-dimension"}, {}, 1e-5),
        ({"inner_dim": None, "tables": "robe"}, {}, 1e-5),
        ({"inner_dim": None, "tables": "tensor-train"}, {}, 1e-5),
        ({"inner_dim": None, "tables": "min-count", "min_count": 20}, {}, 1e-5),
        ({"served_as": "int4"}, {}, 1e-3),  # a number at the edge of two codes takes either
        ({"served_density": 0.3}, {}, 1e-5),
    ],
    ids=str,
)
@pytest.mark.parametrize("device", GPUS, indirect=True)
def test_a_run_on_a_gpu_is_that_on_the_cpu_up_to_rounding(
    clicks, small_mlet, tmp_path, monkeypatch, model, schedule, tolerance, device
):
    config = dataclasses.replace(
        small_mlet,
        model=dataclasses.replace(small_mlet.model, **model),
        training=dataclasses.replace(small_mlet.training, learning_rate=0.02, **schedule),
    )
    train(config, clicks, 0, tmp_path / "cpu")
    with stopped_at(27, monkeypatch):
        train(config, clicks, 0, tmp_path / "gpu", device=device)
    train(config, clicks, 0, tmp_path / "gpu", device=device, resume=True)
    assert_close(tmp_path / "cpu", tmp_path / "gpu", tolerance)
    saved = torch.load(tmp_path / "gpu" / "checkpoint.pt", weights_only=True)  # where there is no GPU too
    assert {value.device.type for value in saved["model"].values()} == {"cpu"}


@pytest.mark.parametrize("device", GPUS, indirect=True)
def test_columns_that_do_not_fit_a_gpu_are_read_from_the_disk(clicks, small_mlet, tmp_path, monkeypatch, device):
    small_mlet = dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, learning_rate=0.02))
    train(small_mlet, clicks, 0, tmp_path / "cpu")
    needed = training.memory_needed(small_mlet, clicks.schema)
    monkeypatch.setattr(training, "free_memory", lambda device: needed + clicks.nbytes)
    monkeypatch.setattr(Columns, "to", None)
    train(small_mlet, clicks, 0, tmp_path / "gpu", device=device)
    assert_close(tmp_path / "cpu", tmp_path / "gpu")


@pretend_gpu.INSTEAD
@pytest.mark.parametrize("inner_dim", [None, 16])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 7)])
def test_between_two_looks_no_step_waits_for_a_gpu(clicks, small_mlet, tmp_path, inner_dim, seeds):
    waits = []
    for steps in (10, 30):
        config = dataclasses.replace(
            small_mlet,
            model=dataclasses.replace(small_mlet.model, inner_dim=inner_dim),
            training=dataclasses.replace(small_mlet.training, evaluate_every=1000, max_steps=steps),
        )
        outs = {seed: tmp_path / f"{steps},{seed}" for seed in seeds}
        with PretendGPU() as gpu:
            train_together(config, clicks, outs, device=torch.device(pretend_gpu.NAME))
        waits.append(gpu.waits)
    assert waits[0] == waits[1] > 0


def test_what_else_is_measured_is_in_the_record(clicks, small_mlet, tmp_path):
    schedule = dataclasses.replace(small_mlet.training, also_measure=("spectra", "frequency"), read_test=False)
    record = train(dataclasses.replace(small_mlet, training=schedule), clicks, 0, tmp_path)
    assert [at["step"] for at in record.spectra] == [0, 10, 20, 30, 38]
    assert [len(values) for values in record.spectra[0]["singular_values"]] == [4, 4, 4]
    assert [third["ids"] for third in record.by_frequency] == ["rare", "middle", "frequent"]
    assert set(record.metrics) == {"validation"}
    plain = train(small_mlet, clicks, 0, tmp_path / "plain")
    assert (plain.spectra, plain.by_frequency) == ([], [])
    assert plain.metrics["validation"] == record.metrics["validation"]


def test_another_runs_checkpoint_is_refused(clicks, small_mlet, tmp_path):
    train(small_mlet, clicks, 0, tmp_path)
    (tmp_path / "record.json").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: made with another seed"):
        train(small_mlet, clicks, 1, tmp_path, resume=True)


def test_a_run_that_the_memory_cannot_hold_is_refused_with_the_bytes_it_needs(clicks, tmp_path):
    wide = Config("clicks", ModelConfig(4, (16,), (32,), inner_dim=10**12))
    with pytest.raises(
        DeviceError, match=r"inner_dim = 10+, embedding_dim = 4 needs [\d.]+ GiB; .* has [\d.]+ GiB free"
    ):
        train(wide, clicks, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inner_dim", [None, 64])
def test_the_memory_a_run_is_said_to_need_is_what_its_tables_take(clicks, inner_dim):
    schema = dataclasses.replace(clicks.schema, table_rows=(10**6, 10**6))
    config = Config("clicks", ModelConfig(16, (16,), (32,), inner_dim))
    tables = 4 * 2 * 10**6 * (64 + 16 if inner_dim else 16)
    assert tables < training.memory_needed(config, schema) < tables + 2**26


PEAK = """
from dlrm_mlet.training.model import build, served
from tests.training.test_run import big_run, peak
config, schema = big_run({model})
served(build(config.model, 2, (1000,), None), config.model)
before = peak()
served(build(config.model, 2, schema.table_rows, None), config.model)
print(peak() - before)
"""


def peak():
    """Bytes that this process has held at most; what getrusage says is its parent's too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def big_run(model):
    rows = {"train": 1000, "validation": 0, "test": 0}
    schema = Schema("big", "label", ("a", "b"), ("c",), (10**6,), rows, "ordered", 0, {}, {}, "", ())
    return Config("big", ModelConfig(64, (16,), (32,), **model)), schema


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
@pytest.mark.parametrize(
    "model",
    [
        {"inner_dim": 128},
        *(pytest.param(model, marks=pytest.mark.thorough) for model in (
            {"served_rank": 2}, {"served_density": 0.25}, {"served_as": "int4"}, {"tables": "robe"},
            {"tables": "tensor-train", "tensor_rank": 32}, {"tables": "min-count"},
        )),
    ],
)  # fmt: skip
def test_a_run_takes_no_more_memory_than_was_said(model):
    said = training.memory_needed(*big_run(model))
    command = [sys.executable, "-c", PEAK.format(model=model)]
    took = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert 0 < took < said + 2**26


@pytest.mark.parametrize("rate", ["learning_rate", "table_learning_rate"])
@pytest.mark.parametrize(
    "model",
    [
        {}, {"served_as": "int8"}, {"inner_dim": None, "served_rank": 2}, {"inner_dim": None, "tables": "hashed"},
        {"served_density": 0.25}, {"inner_dim": None, "tables": "tensor-train"},
        {"inner_dim": None, "tables": "min-count", "min_count": 20},
    ],
)  # fmt: skip
def test_a_run_that_diverges_says_so_and_leaves_no_model(clicks, small_mlet, tmp_path, model, rate):
    config = dataclasses.replace(small_mlet, model=dataclasses.replace(small_mlet.model, **model))
    wild = dataclasses.replace(config, training=dataclasses.replace(config.training, **{rate: 1e9}))
    sizes = train(config, clicks, 0, tmp_path / "tame").bytes
    record = train(wild, clicks, 0, tmp_path / "wild")
    assert (record.status, record.metrics, record.bytes) == ("diverged", None, sizes)
    assert (tmp_path / "wild" / "record.json").exists()
    assert not (tmp_path / "wild" / "checkpoint.pt").exists()


def test_a_run_of_before_a_key_of_the_config_came_is_the_same_run(clicks, small_mlet, tmp_path):
    train(small_mlet, clicks, 0, tmp_path)
    path = tmp_path / "record.json"
    old = json.loads(path.read_text())
    del old["config"]["training"]["precision"]
    path.write_text(json.dumps(old))
    assert train(small_mlet, clicks, 0, tmp_path).metrics == old["metrics"]
    assert json.loads(path.read_text()) == old


def test_what_was_measured_is_not_measured_again(clicks, small_mlet, tmp_path, monkeypatch):
    """Once a kill between the served checkpoint and the record made all steps again."""
    whole = train(small_mlet, clicks, 0, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dlrm_mlet.training.record.Record.write", interrupted)
        train(small_mlet, clicks, 0, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "record.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(training, "losses", None)  # no step can be made
        again = train(small_mlet, clicks, 0, tmp_path / "stopped")
    assert again.metrics == whole.metrics
    assert record.read(tmp_path / "stopped") == again


def interrupted(*_):
    raise KeyboardInterrupt


def test_columns_of_another_data_set_are_refused(clicks, small_mlet, tmp_path):
    other = dataclasses.replace(small_mlet, dataset="flights")
    with pytest.raises(training.TrainingError, match="the columns are of clicks; expected flights"):
        train(other, clicks, 0, tmp_path / "run")


def test_a_run_is_worked_on_once_at_a_time(clicks, small_mlet, tmp_path):
    with alone(tmp_path / "run", "run"), pytest.raises(BusyError, match="is working on this run since"):
        train(small_mlet, clicks, 0, tmp_path / "run")


@pytest.mark.parametrize("where", ["project", "GIT_DIR"])
def test_the_commit_is_this_projects_or_none(tmp_path, monkeypatch, where):
    """Once it was that of a project that the package lies in, or that the environment names."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    theirs = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout[:12]
    if where == "GIT_DIR":
        monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    else:
        lib = tmp_path / "lib" / "dlrm_mlet" / "training"
        lib.mkdir(parents=True)
        monkeypatch.setattr(record, "__file__", str(lib / "record.py"))
    assert theirs not in str(record._commit())


@pytest.mark.parametrize(
    "change",
    [{"metrics": 5}, {"metrics": {"validation": {}}}, {"metrics": {"validation": {"auc": "a", "log_loss": 1.0}}},
     {"curve": None}, {"provenance": {}}, {"provenance": {"columns": 3}}, {"seconds": "1"}, {"seed": 0.5},
     {"config": []}],
)  # fmt: skip
def test_a_record_that_can_not_be_is_refused(run, change):
    path = run / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(record.RecordError, match=r"record\.json: not a record: "):
        record.read(run)


def test_a_record_of_a_config_that_can_not_be_is_refused(run, clicks, small_mlet):
    path = run / "record.json"
    path.write_text(path.read_text().replace('"embedding_dim": 4', '"embedding_dim": "four"'))
    with pytest.raises(record.RecordError, match=r"in its config: model\.embedding_dim = 'four': expected int"):
        train(small_mlet, clicks, 0, run)
