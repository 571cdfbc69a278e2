"""The optimizers against torch's own and plain loops, the schedule, and what a run's parts are given."""

import pytest
import torch
from torch import nn

from dlrm_mlet.config import ModelConfig, TrainingConfig
from dlrm_mlet.training.model import build
from dlrm_mlet.training.optimizer import SGD, Adagrad, Adam, LazyAdam, factors, sum_by_row
from dlrm_mlet.training.run import make_optimizers


def test_dense_parameters_step_as_torchs_adagrad_does():
    mine, theirs = (nn.Parameter(torch.ones(3, 4, dtype=torch.float64)) for _ in range(2))
    ours, torchs = Adagrad([mine], 0.1), torch.optim.Adagrad([theirs], 0.1, eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(3, 4, dtype=torch.float64, generator=generator)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
    torch.testing.assert_close(mine, theirs)
    assert mine.grad is None


def test_gathered_rows_step_as_a_plain_loop_does():
    table = nn.Parameter(torch.randn(9, 4, dtype=torch.float64))
    expected, sums = table.detach().clone(), torch.zeros(9, dtype=torch.float64)
    optimizer = Adagrad([table], 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ids = torch.randint(5, (16,), generator=generator)  # many twice in a batch, and rows 5 to 8 never
        weights = torch.randn(16, 4, dtype=torch.float64, generator=generator)
        (torch.nn.functional.embedding(ids, table, sparse=True) * weights).sum().backward()
        optimizer.step()
        for row in range(9):
            gradient = weights[ids == row].sum(dim=0)
            if (ids == row).any():
                sums[row] += gradient.square().mean()
                expected[row] -= 0.1 * gradient / (sums[row].sqrt() + 1e-8)
    torch.testing.assert_close(table.detach(), expected)
    assert optimizer.memory[0].shape == (9, 1)


def test_each_part_has_its_own_learning_rate_and_frozen_projections_stay():
    model = build(ModelConfig(2, (4,), (4,), inner_dim=8), 3, (5, 6), None)
    mlps, tables = make_optimizers(model, TrainingConfig(learning_rate=0.2, table_learning_rate=0.8))
    assert (mlps.learning_rate, tables.learning_rate) == (0.2, 0.8)
    assert isinstance(mlps, SGD)
    assert {id(p) for p in (*mlps.parameters, *tables.parameters)} == {id(p) for p in model.parameters()}
    before = model.tables.projections[0].detach().clone()
    optimizers = make_optimizers(model, TrainingConfig(freeze_projections=True))
    model(torch.randn(4, 3), torch.zeros(4, 2, dtype=torch.int32)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(model.tables.projections[0], before)


def test_sums_by_row_are_what_coalescing_gives():
    generator = torch.Generator().manual_seed(0)
    rows, values = torch.randint(9, (64,), generator=generator), torch.randn(64, 4, generator=generator)
    summed_rows, sums, count = sum_by_row(rows, values)
    expected = torch.sparse_coo_tensor(rows[None], values, (9, 4), check_invariants=True).coalesce()
    distinct = len(expected.values())
    assert count.item() == distinct
    assert torch.equal(summed_rows[:distinct], expected.indices()[0])
    torch.testing.assert_close(sums[:distinct], expected.values())
    assert len(sums) == 64
    assert not sums[distinct:].any()


def rate_at(name, step):
    """By a schedule of 20 steps with a quarter of them to warm up, or by none."""
    if name == "constant":
        return 0.1
    return 0.1 * ((step + 1) / 5 if step < 5 else (20 - step) / 15)


@pytest.mark.parametrize("name", ["constant", "linear"])
@pytest.mark.parametrize(
    ("mine", "torchs", "sparse"),
    [
        (SGD, torch.optim.SGD, False),
        (SGD, torch.optim.SGD, True),
        (Adagrad, torch.optim.Adagrad, False),
        (Adam, torch.optim.Adam, False),
        (Adam, torch.optim.Adam, True),
        (LazyAdam, torch.optim.Adam, False),
        (LazyAdam, torch.optim.SparseAdam, True),
    ],
)
def test_steps_are_torchs_own_by_any_schedule(mine, torchs, sparse, name, device):
    """20 steps of a table that is gathered from, or of a dense parameter; taken up by a new optimizer at step 9."""
    table, twin = (nn.Parameter(torch.arange(36.0, dtype=torch.float64).view(9, 4).to(device)) for _ in range(2))
    by_step = factors(name, 0.25 if name == "linear" else None, 20)
    settings = {"eps": 1e-8} if mine is Adagrad else {}
    theirs = torchs([twin], 0.1, **settings)
    ours = mine([table], 0.1, by_step)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        if step == 9:
            kept, ours = ours.kept(0, 1), mine([table], 0.1, by_step, taken=step)
            if kept:
                ours.restore([kept])
        ids = torch.randint(2, 7, (16,), generator=generator).to(device)  # rows 0, 1, 7 and 8 never
        weights = torch.randn(16, 4, dtype=torch.float64, generator=generator).to(device)
        for one, is_sparse in ((table, sparse), (twin, torchs is torch.optim.SparseAdam)):
            (torch.nn.functional.embedding(ids, one, sparse=is_sparse) * weights).sum().backward()
        for group in theirs.param_groups:
            group["lr"] = rate_at(name, step)
        ours.step()
        theirs.step()
        theirs.zero_grad()
    torch.testing.assert_close(table.cpu(), twin.cpu(), rtol=1e-6, atol=1e-6)  # the factors are float32
    assert torch.equal(table[0].cpu(), torch.arange(4.0, dtype=torch.float64))


def test_the_schedule_rises_and_falls_to_zero():
    assert factors("constant", None, 10) is None
    linear = factors("linear", None, 4)
    torch.testing.assert_close(linear, torch.tensor([1, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(factors("constant", 0.5, 4), torch.tensor([0.5, 1, 1, 1]))
    torch.testing.assert_close(factors("linear", 0.5, 4), torch.tensor([0.5, 1, 1, 0.5]))
