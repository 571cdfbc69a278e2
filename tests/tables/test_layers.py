"""MLETEmbedding and MLETEmbeddingBag against torch's own over the explicit product W1 W2, values and gradients."""

import copy
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dlrm_mlet import MLETEmbedding, MLETEmbeddingBag, convert
from dlrm_mlet.config import ModelConfig
from dlrm_mlet.tables.stacked import PROJECTION_STD

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(0, 4), st.booleans())
"""n, D, how much K is above it, and whether there is a third layer."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}


def inner(shape):
    _, d, above, deep = shape
    return [d + above, d + 1] if deep else d + above


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in module.parameters()]


def product(layer) -> torch.Tensor:
    whole = layer.inner_weight
    for projection in layer.projections:
        whole = whole @ projection
    return whole


def assert_same(layer, ours, textbook, dtype):
    """Values, and the gradients of all layers, are those of a lookup in the explicit product."""
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ours, textbook, rtol=tolerance, atol=tolerance)
    assert ours.dtype == dtype
    direction = torch.randn(ours.shape, dtype=dtype)
    expected = torch.autograd.grad(textbook, list(layer.parameters()), direction)
    (ours * direction).sum().backward()
    for mine, theirs in zip(gradients(layer), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@settings(max_examples=120, deadline=None)
@given(SHAPES, st.data())
def test_an_embedding_is_torchs_over_the_product(shape, data):
    n, d, _, _ = shape
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    padding = data.draw(st.none() | st.integers(-n, n - 1))
    sparse = data.draw(st.booleans())
    layer = MLETEmbedding(n, d, padding, sparse=sparse, dtype=dtype, inner_dim=inner(shape))
    # without dimensions, torch's own sparse gradients fail
    ids = torch.randint(n, data.draw(st.lists(st.integers(0, 4), min_size=int(sparse), max_size=3)))
    assert layer(ids).shape == (*ids.shape, d)
    if ids.numel():
        assert_same(layer, layer(ids), F.embedding(ids, product(layer), padding), dtype)
        assert layer.inner_weight.grad.is_sparse == sparse
    collapsed = layer.collapse()
    assert (type(collapsed), collapsed.padding_idx, collapsed.sparse) == (nn.Embedding, layer.padding_idx, sparse)
    torch.testing.assert_close(collapsed(ids), layer(ids), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@settings(max_examples=120, deadline=None)
@given(SHAPES, st.data())
def test_a_bag_is_torchs_over_the_product(shape, data):
    n, d, _, _ = shape
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    padding = data.draw(st.none() | st.integers(0, n - 1))
    mode = data.draw(st.sampled_from(["sum", "mean"]))
    last = data.draw(st.booleans())
    layer = MLETEmbeddingBag(
        n,
        d,
        mode=mode,
        sparse=data.draw(st.booleans()),
        include_last_offset=last,
        padding_idx=padding,
        dtype=dtype,
        inner_dim=inner(shape),
    )
    if data.draw(st.booleans()):  # bags of one length
        ids, offsets, last = torch.randint(n, (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))), None, False
        layer.include_last_offset = False
    else:  # bags of any length, empty ones too
        lengths = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6)))
        ids = torch.randint(n, (int(lengths.sum()),))
        ends = lengths.cumsum(0)
        offsets = torch.cat((torch.zeros(1, dtype=torch.int64), ends if last else ends[:-1]))
    weights = torch.rand(ids.shape, dtype=dtype, requires_grad=True)
    weights = weights if mode == "sum" and not layer.sparse and data.draw(st.booleans()) else None
    arguments = {"mode": mode, "include_last_offset": last, "padding_idx": padding, "per_sample_weights": weights}
    textbook = F.embedding_bag(ids, product(layer), offsets, **arguments)
    expected = None if weights is None else torch.autograd.grad(textbook.sum(), weights, retain_graph=True)[0]
    bags = layer(ids, offsets, weights)
    if expected is not None:
        torch.testing.assert_close(torch.autograd.grad(bags.sum(), weights, retain_graph=True)[0], expected)
    assert_same(layer, bags, textbook, dtype)
    collapsed = layer.collapse()
    assert type(collapsed) is nn.EmbeddingBag
    torch.testing.assert_close(collapsed(ids, offsets, weights), layer(ids, offsets, weights), rtol=1e-4, atol=1e-4)


OPTIMIZERS = {
    "SGD": lambda layer: [torch.optim.SGD(layer.parameters(), 0.1)],
    "Adagrad": lambda layer: [torch.optim.Adagrad(layer.parameters(), 0.1)],
    "Adam": lambda layer: [torch.optim.Adam(layer.parameters(), 0.01)],
    # it takes the table alone, since the gradients of projections are dense
    "SparseAdam": lambda layer: [
        torch.optim.SparseAdam([layer.inner_weight], 0.01),
        torch.optim.SGD(layer.projections.parameters(), 0.1),
    ],
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's Adagrad
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", [MLETEmbedding, MLETEmbeddingBag])
def test_every_optimizer_learns_and_leaves_the_padding_alone(name, kind):
    torch.manual_seed(0)
    layer = kind(20, 4, padding_idx=3, sparse=name != "Adam", inner_dim=16)
    ids, goal = torch.arange(20).reshape(20, 1), torch.randn(20, 4)
    goal[3] = 0
    optimizers, losses = OPTIMIZERS[name](layer), []
    for _ in range(300):
        loss = (layer(ids).reshape(20, 4) - goal).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not layer.collapse().weight[3].any()


COMPILER = shutil.which("c++") is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=(pytest.mark.thorough, pytest.mark.skipif(not COMPILER, reason="no C++ compiler here")),
        ),
    ],
)
def test_it_compiles_whole(backend):
    model = nn.ModuleList([MLETEmbedding(20, 4, inner_dim=8), MLETEmbeddingBag(20, 4, inner_dim=[8, 6])])
    ids = torch.randint(20, (5, 3))

    def forward(ids):
        return model[0](ids).sum(1) + model[1](ids)

    torch.testing.assert_close(torch.compile(forward, backend=backend, fullgraph=True)(ids), forward(ids))


def test_autocast_gives_the_type_that_torchs_lookup_gives():
    layer, ids = MLETEmbedding(20, 4, inner_dim=8), torch.randint(20, (5,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(ids).dtype == layer.collapse()(ids).dtype == torch.float32
        torch.testing.assert_close(layer(ids), layer.collapse()(ids), rtol=0.05, atol=0.05)


def train_on(rank, world, file, weights):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=world)
    layer = MLETEmbedding(20, 4, inner_dim=8)
    layer.load_state_dict(weights)
    parallel = nn.parallel.DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.5)
    ids = torch.arange(16)
    for _ in range(3):
        optimizer.zero_grad()
        (parallel(ids[rank::world]) - 1).square().mean().backward()
        optimizer.step()
    torch.save(layer.state_dict(), f"{file}.{rank}")
    while not all(Path(f"{file}.{other}").exists() for other in range(world)):
        time.sleep(0.01)  # the others may still need this one's connections
    os._exit(0)  # the interpreter's own end races with gloo's threads, and now and then aborts


def test_two_processes_train_what_one_does(tmp_path):
    weights = MLETEmbedding(20, 4, inner_dim=8).state_dict()
    torch.multiprocessing.spawn(train_on, (2, tmp_path / "two", weights), nprocs=2)
    torch.multiprocessing.spawn(train_on, (1, tmp_path / "one", weights), nprocs=1)
    one, first, second = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    for key, value in one.items():
        torch.testing.assert_close(first[key], value)
        assert torch.equal(first[key], second[key])


@pytest.mark.parametrize("inner_dim", [8, [8, 6]])
def test_state_round_trips_and_copies(inner_dim):
    one, other = (MLETEmbedding(20, 4, inner_dim=inner_dim) for _ in range(2))
    other.load_state_dict(one.state_dict())
    ids = torch.arange(20)
    assert torch.equal(one(ids), other(ids))
    assert torch.equal(one(ids), copy.deepcopy(one)(ids))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("d", "inner_dim"), [(4, 4), (4, 64), (4, [64, 16]), (64, 64), (64, [64, 64]), (16, [64, 16])])
def test_it_starts_at_any_table_and_every_column_learns(d, inner_dim, dtype):
    torch.manual_seed(0)
    table = torch.randn(100, d, dtype=dtype)
    layer = MLETEmbedding(100, d, dtype=dtype, inner_dim=inner_dim).start_at(table)
    # a Gaussian W2 has no good inverse where it is square
    torch.testing.assert_close(layer.table(), table, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    (layer(torch.arange(100)) * torch.randn(100, d, dtype=dtype)).sum().backward()
    assert all(projection.grad.any(dim=1).all() for projection in layer.projections)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (MLETEmbedding, {"inner_dim": 3}, "inner_dim = 3: expected at least embedding_dim = 4"),
        (MLETEmbedding, {"inner_dim": [8, 3]}, r"inner_dim = \[8, 3\]: expected at least"),
        (MLETEmbedding, {"inner_dim": []}, "inner_dim = .*: expected at least"),
        (MLETEmbedding, {"inner_dim": 8, "max_norm": 1.0}, "max_norm = 1.0: rescaling rows of W1"),
        (MLETEmbedding, {"inner_dim": 8, "scale_grad_by_freq": True}, "scale_grad_by_freq: the gradient of W2"),
        (MLETEmbedding, {"inner_dim": 8, "padding_idx": 10}, "padding_idx = 10: expected a row of the table, of 10"),
        (MLETEmbeddingBag, {"inner_dim": 8, "mode": "max"}, "mode = 'max': the maximum doesn't commute"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(10, 4, **arguments)


def test_a_padding_row_that_is_not_0_stays_what_it_is():
    layer = MLETEmbedding(10, 4, padding_idx=2, inner_dim=8).start_at(torch.ones(10, 4))
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    for _ in range(3):
        layer(torch.arange(10)).square().sum().backward()
        optimizer.step()
    table = layer.collapse().weight
    assert torch.equal(layer.weight[2], torch.ones(4))
    assert torch.equal(table[2], torch.ones(4))
    assert torch.equal(layer(torch.tensor([[2]])), torch.ones(1, 1, 4))
    assert ((table[3] - 1).abs() > 0.1).all()
    other = MLETEmbedding(10, 4, padding_idx=2, inner_dim=8).start_at(torch.ones(10, 4))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.collapse().weight, table)
    with pytest.raises(AttributeError, match="padding_idx = 3: can't be changed here"):
        layer.padding_idx = 3


def test_the_layers_start_as_an_experiments_default_does():
    assert ModelConfig.projection_std == PROJECTION_STD


@pytest.mark.parametrize("inner_dim", [8.5, 8.0, "8", True, [16, 8.5], ["16"]])
def test_an_inner_dim_that_is_no_whole_number_is_refused_and_nothing_changed(inner_dim):
    expected = re.escape(f"inner_dim = {inner_dim!r}: expected a whole number, or a list of them")
    for layer in (MLETEmbedding, MLETEmbeddingBag):
        with pytest.raises(ValueError, match=expected):
            layer(10, 4, inner_dim=inner_dim)
    model = nn.Sequential(nn.Embedding(10, 4))
    for dims in (inner_dim, {"*": inner_dim}):
        with pytest.raises(ValueError, match=expected):
            convert(model, dims)
    assert type(model[0]) is nn.Embedding
