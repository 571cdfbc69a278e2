"""One run: the fused step against the textbook's, its seeds, its end, and how it goes on after a stop."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dlrm_mlet import evaluation, training
from dlrm_mlet.benchmark import TextbookTables, textbook_step
from dlrm_mlet.columns import Batch
from dlrm_mlet.config import Config, ModelConfig
from dlrm_mlet.device import DeviceError, threads
from dlrm_mlet.model import build
from dlrm_mlet.optimizer import SGD
from dlrm_mlet.training import TrainingError, train, train_step

TABLE_ROWS = (6, 30, 500)
DENSE_WIDTH = 5


NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=NEEDS_GPU)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
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


def test_the_same_seed_gives_the_same_bits_and_another_other_ones(clicks, small_mlet, tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        train(small_mlet, clicks, seed, tmp_path / name)
    assert_same_bits(tmp_path / "one", tmp_path / "two")
    assert outcome(tmp_path / "one")[0]["metrics"] != outcome(tmp_path / "other")[0]["metrics"]


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_stopped_run_goes_on_to_the_same_bits(clicks, small_mlet, tmp_path, monkeypatch, optimizer):
    schedule = dataclasses.replace(small_mlet.training, epochs=2, optimizer=optimizer, also_measure=("spectra",))
    config = dataclasses.replace(small_mlet, training=schedule)
    train(config, clicks, 0, tmp_path / "whole")
    steps = 0

    def stopping_step(*arguments):
        nonlocal steps
        steps += 1
        if steps == 57:  # in the second epoch
            raise KeyboardInterrupt
        return train_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train_step", stopping_step)
        train(config, clicks, 0, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "record.json").exists()
    train(config, clicks, 0, tmp_path / "stopped", resume=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")


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


def test_a_run_that_diverges_says_so(clicks, small_mlet, tmp_path):
    wild = dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, learning_rate=1e9))
    record = train(wild, clicks, 0, tmp_path)
    assert record.status == "diverged"
    assert record.metrics is None
    assert (tmp_path / "record.json").exists()
