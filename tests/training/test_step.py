"""The step that is written out is the step of autograd: same losses, same weights, for all tables and optimizers."""

import contextlib
import dataclasses
import itertools

import pytest
import torch

from dlrm_mlet.config import ModelConfig, TrainingConfig
from dlrm_mlet.training import stepping
from dlrm_mlet.training.device import DeviceError
from dlrm_mlet.training.model import build
from dlrm_mlet.training.run import generator, make_optimizers, train
from dlrm_mlet.training.step import Beside, FusedStep, train_step
from dlrm_mlet.training.stepping import losses
from dlrm_mlet.training.together import Together
from tests import pretend_gpu
from tests.conftest import GPUS

STEPS = {"cpu": 30, "cuda": 100, pretend_gpu.NAME: 12}
MODELS = [
    {},
    {"inner_dim": 16},
    {"inner_dim": (16, 8)},
    {"tables": "hashed"},
    {"tables": "quotient-remainder"},
    {"tables": "mixed-dimension"},
    {"tables": "robe"},
    {"tables": "tensor-train", "tensor_rank": 3},
    {"tables": "min-count"},
]
SCHEDULES = [{}, {"table_learning_rate": 0.1}, {"freeze_projections": True}, {"optimizer": "adagrad"},
             {"optimizer": "adam"}, {"optimizer": "lazy-adam"}, {"schedule": "linear", "warm_up": 0.1}]  # fmt: skip


def models(clicks, shape, schedule, device, seeds=(0,)):
    """A model of each seed in double precision, or one of all of them, and its optimizers."""
    made = [build(shape, 2, clicks.schema.table_rows, generator(seed, "weights")).double() for seed in seeds]
    model = made[0].to(device) if len(seeds) == 1 else Together(made, device)
    return model, make_optimizers(model, schedule, 1000)


def exact(clicks, device):
    return dataclasses.replace(clicks, dense=clicks.dense.double()).to(device)


def by_autograd(model, optimizers, columns, rows):
    batch = columns.rows(rows)
    return train_step(model, optimizers, batch._replace(label=batch.label.double()))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_step_written_out_is_that_of_autograd_over_many_steps(clicks, model, schedule, device):
    shape = ModelConfig(4, (16, 8), (32, 16), **model)
    schedule = TrainingConfig(learning_rate=0.05, **schedule)
    (plain, plain_optimizers), (fused, fused_optimizers) = (models(clicks, shape, schedule, device) for _ in range(2))
    columns = exact(clicks, device)
    orders = [columns.order("train", generator(0, "order", epoch)) for epoch in range(3)]
    # on a CPU the step is written out for bfloat16 alone
    steps = None if device.type == "cpu" else losses(fused, fused_optimizers, columns, orders, 64)
    fused_step = FusedStep(fused, fused_optimizers)
    batches = (rows for order in orders for rows in order.to(device).split(64))
    for rows in itertools.islice(batches, STEPS[device.type]):
        loss = next(steps) if steps else fused_step(columns, rows)
        torch.testing.assert_close(loss, by_autograd(plain, plain_optimizers, columns, rows))
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
        assert one.grad is other.grad is None


@pytest.mark.parametrize("inner_dim", [None, 16])
def test_seeds_together_have_the_same_step_written_out(clicks, inner_dim, device):
    shape, schedule, seeds = ModelConfig(4, (16,), (32, 16), inner_dim), TrainingConfig(learning_rate=0.05), (0, 1, 7)
    (plain, plain_optimizers), (fused, fused_optimizers) = (
        models(clicks, shape, schedule, device, seeds) for _ in range(2)
    )
    columns, fused_step = exact(clicks, device), FusedStep(fused, fused_optimizers)
    order = columns.order("train", [generator(seed, "order") for seed in seeds])
    for rows in order.to(device).split(64, dim=-1):
        loss = by_autograd(plain, plain_optimizers, columns, rows)
        assert loss.shape == (3,)
        torch.testing.assert_close(fused_step(columns, rows), loss)
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("inner_dim", [None, 16])
def test_bfloat16_changes_a_step_by_its_rounding_and_leaves_the_weights_whole(clicks, inner_dim, device):
    shape, schedule = ModelConfig(4, (16,), (32, 16), inner_dim), TrainingConfig(learning_rate=0.05)
    runs = []
    for precision in ("float32", "bfloat16"):
        model = build(shape, 2, clicks.schema.table_rows, generator(0, "weights")).to(device)
        orders = [clicks.order("train", generator(0, "order"))]
        made = losses(model, make_optimizers(model, schedule), clicks.to(device), orders, 64, precision)
        runs.append((torch.stack([loss.clone() for loss in made]), model))
    (whole, _), (rounded, model) = runs
    assert len(whole) == 38
    difference = (whole - rounded).abs().cpu()
    assert 0 < difference.mean() < 0.02 * whole.cpu().mean()  # bfloat16 has 8 bits
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_tf32_is_refused_on_a_cpu_before_anything_is_written(clicks, small_mlet, tmp_path):
    fast = dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, precision="tf32"))
    with pytest.raises(DeviceError, match=r'training\.precision = "tf32": a CPU has none'):
        train(fast, clicks, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("device", GPUS, indirect=True)
def test_rows_that_stream_in_lots_make_the_same_steps_as_resident_ones(clicks, seeds, device, monkeypatch):
    monkeypatch.setattr(stepping, "LOT_BYTES", 20_000)  # several lots an epoch, the last of them short
    shape, schedule = ModelConfig(4, (16,), (32,), inner_dim=16), TrainingConfig(learning_rate=0.05)
    found = []
    for columns in (clicks.to(device), clicks):
        made = [build(shape, 2, clicks.schema.table_rows, generator(seed, "weights")) for seed in seeds]
        model = made[0].to(device) if len(seeds) == 1 else Together(made, device)
        generators = [[generator(seed, "order", epoch) for seed in seeds] for epoch in range(2)]
        orders = [clicks.order("train", each if len(each) > 1 else each[0]) for each in generators]
        made = losses(model, make_optimizers(model, schedule), columns, orders, 64)
        found.append(torch.stack([loss.clone() for loss in made]).cpu())
    assert found[0].shape[0] == 2 * 38
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_above_the_rows_is_one_of_all_rows(clicks, precision):
    model = build(ModelConfig(4, (16,), (32,)), 2, clicks.schema.table_rows, generator(0, "weights"))
    orders = [clicks.order("train", generator(0, "order"))]
    assert len(list(losses(model, make_optimizers(model, TrainingConfig()), clicks, orders, 10**9, precision))) == 1
    assert not list(losses(model, make_optimizers(model, TrainingConfig()), clicks, [], 64, precision))


def test_side_streams_wait_for_their_own_gpu_and_no_other(monkeypatch):
    asked = []

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def wait_stream(self, other):
            pass

    def current(device=None):
        asked.append(device)
        return Stream(device)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", current)
    beside = Beside(torch.device("cuda", 1))
    with beside.begun():
        pass
    beside.join()
    assert asked == [torch.device("cuda", 1)] * 2
