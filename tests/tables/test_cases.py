"""What models do with their tables: a table of cases, what came of each once, and what has to come of it now."""

import copy
import functools
import gc
import time
import types
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dlrm_mlet import MLETEmbedding, MLETEmbeddingBag, collapse, convert, quantize

N, D, K = 40, 4, 8
IDS = torch.arange(N)
QUIET = {"report": lambda line: None}


class Model(nn.Module):
    """A table, and a way from ids to what the head takes that may go round the table's own call."""

    def __init__(self, way: Callable[[Any, torch.Tensor], torch.Tensor], table: nn.Module | None = None):
        super().__init__()
        self.table = table or nn.Embedding(N, D)
        self.head, self.way = nn.Linear(D, D), way

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.way(self, ids)


@dataclass
class Feature:
    """As torch-rechub keeps a table beside the model."""

    embed: nn.Module


class Plain:
    """An object that is no module and no container."""

    def __init__(self, embed: nn.Module):
        self.inside = {"deep": [(embed,)]}


Named = namedtuple("Named", "name table")


def scores(model, ids):
    return model.head(model.table(ids)) @ model.table.weight.T


def tied_decoder(model, ids):
    return F.linear(model.head(model.table(ids)), model.table.weight)


def functional(model, ids):
    return model.head(F.embedding(ids, model.table.weight))


def factors(model, ids):
    return (model.table.weight[ids] * model.head(model.table.weight[ids.flip(0)])).sum(1)


def graph(model, ids):
    """LightGCN's: neighbours' vectors, of all rows at once."""
    rows = model.table.weight
    return model.head((rows + rows.roll(1, 0) / 2)[ids])


def penalized(model, ids):
    return model.head(model.table(ids)) + 0.1 * model.table.weight.square().mean()


def normalized(model, ids):
    return model.head(F.normalize(model.table.weight, dim=1)[ids])


def by_data(model, ids):
    return model.head(model.table(ids)) + model.table.weight.data.mean() + model.table.weight.detach()[0].sum()


def through(hold: Callable[[nn.Module], Any], get: Callable[[Any], Callable]) -> Callable[[], Model]:
    """A model that keeps its table in its own way, and calls it there."""

    def make() -> Model:
        model = Model(lambda model, ids: model.head(get(model.held)(ids)))
        model.held = hold(model.table)
        return model

    return make


HELD = {
    "a list": through(lambda table: [table], lambda held: held[0]),
    "a nested list": through(lambda table: [("user", [table])], lambda held: held[0][1][0]),
    "a dictionary of dictionaries": through(lambda table: {"a": {"b": table}}, lambda held: held["a"]["b"]),
    "a dataclass": through(Feature, lambda held: held.embed),
    "a plain object": through(Plain, lambda held: held.inside["deep"][0][0]),
    "a named tuple": through(lambda table: Named("user", table), lambda held: held.table),
    "a set": through(lambda table: frozenset([table]), lambda held: next(iter(held))),
    "a bound method": through(lambda table: table.forward, lambda held: held),
    "a call": through(lambda table: table.__call__, lambda held: held),
    "a partial": through(functools.partial, lambda held: held),
    "a closure": through(lambda table: lambda ids: table(ids + 0), lambda held: held),
    "a namespace": through(lambda table: types.SimpleNamespace(_table=table), lambda held: held._table),
}
DIRECT = [scores, tied_decoder, functional, factors, graph, penalized, normalized, by_data]


def train(model, ids=IDS, steps=5):
    torch.manual_seed(1)
    goal = None
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(steps):
        out = model(ids)
        goal = torch.randn_like(out) if goal is None else goal
        optimizer.zero_grad()
        (out - goal).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("inner_dim", [D, [K, 6]])
@pytest.mark.parametrize("make", [*(functools.partial(Model, way) for way in DIRECT), *HELD.values()])
def test_however_a_model_uses_its_table_it_is_trained_and_collapsed(make, inner_dim):
    """Once: W1 in place of W, so that collapse changed the outputs; or the old table, in no parameters()."""
    torch.manual_seed(0)
    model = make()
    plain, before = copy.deepcopy(model), model(IDS).detach()
    convert(model, inner_dim, from_pretrained=True, **QUIET)
    torch.testing.assert_close(model(IDS), before, rtol=1e-4, atol=1e-5)
    start = [projection.clone() for projection in model.table.projections]
    train(model)
    trained = model(IDS).detach()
    assert (trained - before).abs().max() > 1e-3
    assert not any(map(torch.equal, start, model.table.projections))
    collapse(model, **QUIET)
    assert type(model.table) is nn.Embedding
    torch.testing.assert_close(model(IDS), trained, rtol=1e-5, atol=1e-6)
    assert sorted(model.state_dict()) == sorted(plain.state_dict())
    quantize(model, **QUIET)
    torch.testing.assert_close(model(IDS), trained, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("way", DIRECT)
def test_a_gradient_through_the_weight_is_that_of_the_product(way):
    model = convert(Model(way), K, **QUIET)
    torch.manual_seed(0)
    direction = torch.randn_like(model(IDS))
    (model(IDS) * direction).sum().backward()
    found = [parameter.grad.clone() for parameter in model.table.parameters()]
    twin = Model(way)
    twin.head.load_state_dict(model.head.state_dict())
    whole = torch.nn.Parameter(model.table.table())
    twin.table.weight = whole
    (twin(IDS) * direction).sum().backward()
    projection, inner = model.table.projections[0], model.table.inner_weight
    torch.testing.assert_close(found[0], whole.grad @ projection.detach().T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], inner.detach().T @ whole.grad, rtol=1e-4, atol=1e-5)


WRITES = {
    "numbers into .data": lambda table: table.weight.data.normal_(),
    "an initialization": lambda table: nn.init.xavier_uniform_(table.weight),
    "a row into .data": lambda table: table.weight.data[0].zero_(),
    "a row": lambda table: table.weight.__setitem__(0, 1.0),
    "copy_": lambda table: table.weight.detach().copy_(torch.ones(N, D)),
    "+=": lambda table: table.weight.__iadd__(1),
    "a view": lambda table: table.weight.data[1:3].T.mul_(2),
    "an unbound row": lambda table: table.weight.unbind()[0].fill_(1),
    "other .data": lambda table: setattr(table.weight, "data", torch.ones(N, D)),
    "frozen by its weight": lambda table: table.weight.requires_grad_(False),
    "frozen by an attribute": lambda table: setattr(table.weight, "requires_grad", False),
    "a hook": lambda table: table.weight.register_hook(print),
    "a parameter of another": lambda table: nn.Parameter(table.weight),
    "a parameter of its data": lambda table: nn.Parameter(table.weight.data),
}


@pytest.mark.parametrize("kind", ["trained", "quantized"])
@pytest.mark.parametrize("case", WRITES)
def test_what_would_be_written_into_a_computed_weight_is_refused(case, kind):
    """Once: into W1 in place of W. And a product that forgets it would be worse."""
    table = nn.Embedding(N, D)
    convert(table, K, **QUIET) if kind == "trained" else quantize(table, **QUIET)
    lost = r"this table's weight is .*, and what is written into it is lost"
    with torch.no_grad(), pytest.raises(RuntimeError, match=lost):
        WRITES[case](table)


@pytest.mark.parametrize("wrap", [lambda table: table, nn.Parameter])
@pytest.mark.parametrize("inner_dim", [D, K, [K, 6]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_is_assigned_is_the_product(wrap, inner_dim, dtype):
    layer = MLETEmbedding(N, D, padding_idx=3, inner_dim=inner_dim, dtype=dtype)
    table = torch.randn(N, D, dtype=dtype)
    layer.weight = wrap(table)
    torch.testing.assert_close(layer.weight, table, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(IDS), table, rtol=1e-4, atol=1e-5)
    assert next(name for name, _ in layer.named_parameters()) == "inner_weight"
    with pytest.raises(ValueError, match=r"a table of \(40, 8\); expected \(40, 4\)"):
        layer.weight = torch.randn(N, K)
    table[5, 1] = torch.nan
    with pytest.raises(ValueError, match="row 5 isn't finite"):
        layer.weight = table


def test_a_projection_stays_where_it_has_an_inverse():
    layer = MLETEmbedding(N, D, inner_dim=64)
    before = layer.projections[0].clone()
    layer.weight = torch.randn(N, D)
    assert torch.equal(layer.projections[0], before)
    with torch.no_grad():
        layer.projections[0][:, 0] = layer.projections[0][:, 1]
    table = torch.randn(N, D)
    layer.weight = table
    torch.testing.assert_close(layer.weight, table, rtol=1e-4, atol=1e-5)


def normed(norm=1.0, kind=nn.Embedding):
    table = kind(N, D, max_norm=norm, norm_type=1.5)
    table.weight.data.mul_(3)
    return table


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_quantized_rows_have_the_norm_that_they_had(kind, bits):
    """Once: a row of norm 2.5 in place of 1."""
    table = normed(kind=kind)
    small = quantize(copy.deepcopy(table), bits, **QUIET)
    ids = IDS.unsqueeze(1) if kind is nn.EmbeddingBag else IDS
    torch.testing.assert_close(small(ids), table(ids), rtol=0, atol=0.1 if bits == 4 else 0.005)


def doubled(module, inputs, output):
    return 2 * output


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # ids need no gradient
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_hooks_on_a_table_stay(kind):
    """Once: dropped by collapse and by quantize."""
    seen = []
    model = nn.Sequential(kind(N, D))
    model[0].register_forward_hook(doubled)
    model[0].register_forward_pre_hook(lambda module, inputs: ((inputs[0] + 1) % N,))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    ids = IDS.unsqueeze(1)
    before = model(ids).detach()
    convert(model, K, from_pretrained=True, **QUIET)
    torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-5)
    train(model, ids)
    assert seen == ["backward"] * 5
    trained = model(ids).detach()
    model[0].register_forward_hook(doubled)
    torch.testing.assert_close(collapse(model, **QUIET)(ids), 2 * trained)
    torch.testing.assert_close(quantize(model, **QUIET)(ids), 2 * trained, rtol=0.1, atol=0.1)


class Derived(nn.Embedding):
    def forward(self, input):
        return 2 * super().forward(input)


class DerivedMLET(MLETEmbedding):
    def forward(self, input):
        return 2 * super().forward(input)


def patched(table):
    own = table.forward
    table.forward = lambda ids: 2 * own(ids)
    return table


def with_weight_hook(table):
    table.weight.register_hook(lambda gradient: gradient)
    return table


def with_step_in_backward(table):
    table.weight.register_post_accumulate_grad_hook(lambda weight: weight.data.sub_(weight.grad))
    return table


def with_state_hook(table):
    table.register_state_dict_post_hook(lambda *_: None)
    return table


def old_weight_norm(table):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(table)


def pruned(table):
    return prune.random_unstructured(table, "weight", 0.5)


LEFT = {
    "a derived class": (lambda: Derived(N, D), "Derived is a class of its own"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Embedding(N, D)), "its weight is parametrized"),
    "old weight_norm": (
        lambda: old_weight_norm(nn.Embedding(N, D)),
        "its parameters are weight_g, weight_v, not weight",
    ),
    "pruned": (lambda: pruned(nn.Embedding(N, D)), "its parameters are weight_orig, not weight"),
    "a patched forward": (lambda: patched(nn.Embedding(N, D)), "its forward is another one than its class has"),
    "a hook on the weight": (lambda: with_weight_hook(nn.Embedding(N, D)), "its weight has hooks"),
    "a step in the backward pass": (lambda: with_step_in_backward(nn.Embedding(N, D)), "its weight has hooks"),
    "a hook on the state": (lambda: with_state_hook(nn.Embedding(N, D)), "it has state_dict hooks"),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.parametrize("change", [lambda model, report: convert(model, K, report=report), quantize])
def test_what_is_more_than_its_class_is_left_with_the_reason(case, change):
    """Once: converted or quantized, without its hook, its forward or its norm."""
    make, why = LEFT[case]
    model, lines = nn.Sequential(nn.Embedding(9, D), make()), []
    before, kind = model[1](IDS).detach(), type(model[1])
    change(model, report=lines.append)
    assert type(model[1]) is kind
    assert torch.equal(model[1](IDS), before)
    assert any("left: " + why in line for line in lines)
    with pytest.raises(ValueError, match=f"0: {why}"):
        change(nn.Sequential(make()), report=print)


def normalized_inner(table):
    return parametrizations.weight_norm(table, "inner_weight")


def old_normalized_inner(table):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(table, "inner_weight")


def parametrized_projections(table):
    table.projections = nn.ParameterList(table.projections)
    nn.utils.parametrize.register_parametrization(table.projections, "0", nn.Identity())
    return table


COLLAPSING = {
    "a derived class": (lambda: DerivedMLET(N, D, inner_dim=K), "DerivedMLET is a class of its own"),
    "weight_norm": (lambda: normalized_inner(MLETEmbedding(N, D, inner_dim=K)), "its inner_weight is parametrized"),
    "old weight_norm": (
        lambda: old_normalized_inner(MLETEmbedding(N, D, inner_dim=K)),
        "its parameters are inner_weight_g, inner_weight_v, not inner_weight",
    ),
    "pruned": (
        lambda: prune.random_unstructured(MLETEmbeddingBag(N, D, inner_dim=K), "inner_weight", 0.5),
        "its parameters are inner_weight_orig, not inner_weight",
    ),
    "a projection": (lambda: parametrized_projections(MLETEmbedding(N, D, inner_dim=K)), "its projections are param"),
    "a patched forward": (lambda: patched(MLETEmbedding(N, D, inner_dim=K)), "its forward is another one"),
}


@pytest.mark.parametrize("case", COLLAPSING)
def test_collapse_refuses_what_it_would_lose_and_changes_nothing(case):
    """Once: the other tables were collapsed, and nothing was said of this one."""
    make, why = COLLAPSING[case]
    model = nn.Sequential(MLETEmbedding(9, D, inner_dim=K), make())
    with pytest.raises(ValueError, match=f"1: {why}"):
        collapse(model)
    assert type(model[0]) is MLETEmbedding
    with pytest.raises(ValueError, match=r"[01]: isn't collapsed"):
        quantize(model)
    for module in model:
        assert not isinstance(module, nn.Embedding | nn.EmbeddingBag) or convert_finds_nothing(module)


def convert_finds_nothing(module):
    with pytest.raises(ValueError, match="no table to convert in the model: all are converted"):
        convert(module, K)
    return True


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        (lambda m: convert(m, K), "convert first, and then the wrapper"),
        (collapse, "the model inside it, with inplace=False or when the wrapper is gone"),
        (quantize, "a copy of the model inside it"),
    ],
)
def test_a_wrapped_model_is_refused_from_outside_and_inside(group, verb, expected):
    """Once: ranks drifted apart, each with its own new parameters that nobody reduces."""
    model = nn.Sequential(nn.Embedding(N, D))
    model = convert(model, K, **QUIET) if verb is collapse else model
    wrapped = nn.parallel.DistributedDataParallel(model)
    for given in (wrapped, wrapped.module, nn.Sequential(wrapped), model[0]):
        with pytest.raises(ValueError, match=f"in DistributedDataParallel.*; expected {expected}"):
            verb(given)
    if verb is collapse:
        assert type(collapse(wrapped.module, inplace=False)[0]) is nn.Embedding
        wrapped = given = None
        with pytest.warns(UserWarning, match="never trained"):
            assert type(collapse(model, **QUIET)[0]) is nn.Embedding


def test_a_sharded_model_is_refused(group):
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    model = nn.Sequential(nn.Embedding(N, D), nn.Linear(D, 1))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match=r"in FSDP\w+, which keeps"):
        convert(model, K)
    with pytest.raises(ValueError, match=r"in FSDP\w+, which keeps"):
        convert(model[0], K)


def test_a_distributed_weight_is_left(group):
    from torch.distributed.tensor import Shard, distribute_tensor  # noqa: PLC0415

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    table = nn.Embedding(N, D)
    table.weight = nn.Parameter(distribute_tensor(table.weight.data, mesh, [Shard(0)]))
    for change in (lambda: convert(table, K), lambda: quantize(table)):
        with pytest.raises(ValueError, match="its weight is a DTensor"):
            change()


def test_a_collection_of_torchrecs_is_left():
    """Once: DistributedModelParallel then shards W1 and drops W2."""

    class EmbeddingBagCollection(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding_bags = nn.ModuleDict({"t": nn.EmbeddingBag(N, D)})

    EmbeddingBagCollection.__module__ = "torchrec.modules.embedding_modules"
    model, lines = nn.ModuleDict({"own": nn.Embedding(N, D), "ebc": EmbeddingBagCollection()}), []
    convert(model, K, report=lines.append)
    assert any("it is in EmbeddingBagCollection, which would shard W1 and drop W2" in line for line in lines)
    with pytest.raises(ValueError, match="it is in EmbeddingBagCollection"):
        convert(model["ebc"], K)


def tied_by_storage(*, whole=True):
    model = nn.ModuleList([nn.Embedding(N, D), nn.Embedding(N if whole else N // 2, D)])
    model[1].weight = nn.Parameter(model[0].weight.data if whole else model[0].weight.data[: N // 2])
    return model


def test_tables_in_the_same_memory_are_tied():
    """Once: taken for two, and trained apart."""
    model = convert(tied_by_storage(), K, from_pretrained=True, **QUIET)
    assert model[0].inner_weight is model[1].inner_weight
    assert model[0].projections[0] is model[1].projections[0]
    collapse(copy.deepcopy(model).requires_grad_(False), **QUIET)
    assert quantize(tied_by_storage(), **QUIET)[0].rows.codes.shape == (N, D)


@pytest.mark.parametrize("change", [lambda m: convert(m, K), quantize])
def test_what_shares_memory_in_another_way_is_left(change):
    """Once: converted, and no longer shared; or quantized, with its float twin still there and counted as saved."""
    with pytest.raises(ValueError, match=r"0: its weight is also that of 1.*; 1: its weight is also that of 0"):
        change(tied_by_storage(whole=False))
    for share in (lambda weight: weight, lambda weight: nn.Parameter(weight.data)):
        decoder = nn.Sequential(nn.Embedding(N, D), nn.Linear(D, N))
        decoder[1].weight = share(decoder[0].weight)
        with pytest.raises(ValueError, match="0: its weight is also that of 1"):
            change(decoder)
    buffered = nn.Sequential(nn.Embedding(N, D))
    buffered.register_buffer("cache", buffered[0].weight.data)
    with pytest.raises(ValueError, match="0: its weight is also that of the model"):
        change(buffered)


BAD = {
    "offsets with 2 dimensions": ("sum", lambda: (IDS.reshape(8, 5), torch.arange(8)), {}),
    "no offsets": ("sum", lambda: (IDS,), {}),
    "offsets of 2 dimensions": ("sum", lambda: (IDS, torch.zeros(2, 2, dtype=torch.long)), {}),
    "3 dimensions": ("sum", lambda: (IDS.reshape(2, 4, 5),), {}),
    "no columns": ("sum", lambda: (IDS[:0].reshape(3, 0),), {}),
    "weights that broadcast": ("sum", lambda: (IDS.reshape(8, 5), None, torch.ones(8, 1)), {}),
    "weights of a row": ("sum", lambda: (IDS, torch.tensor([0]), torch.ones(1)), {}),
    "weights of another type": ("sum", lambda: (IDS.reshape(8, 5), None, torch.ones(8, 5).double()), {}),
    "weights with mean": ("mean", lambda: (IDS.reshape(8, 5), None, torch.ones(8, 5)), {}),
    "weights with max": ("max", lambda: (IDS.reshape(8, 5), None, torch.ones(8, 5)), {}),
    "offsets that don't start at 0": ("sum", lambda: (IDS, torch.tensor([1, 5])), {}),
    "an id of n": ("sum", lambda: (torch.tensor([[N]]),), {}),
    "an id of -1": ("mean", lambda: (torch.tensor([[-1]]),), {}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_quantized_bag_refuses_what_torchs_refuses(case):
    """Once: some were ignored, some broadcast."""
    mode, arguments, more = BAD[case]
    plain = nn.EmbeddingBag(N, D, mode=mode, **more)
    for bag in (plain, quantize(copy.deepcopy(plain), **QUIET)):
        with pytest.raises((ValueError, RuntimeError, NotImplementedError, IndexError)):
            bag(*arguments())


def test_an_optimizer_from_before_is_named_at_once_and_again_at_the_end():
    """Once: AUC 0.764 in place of 0.78, and no word."""
    model = Model(lambda model, ids: model.head(model.table(ids)))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with pytest.warns(UserWarning, match="old weights of 1 tables are still in an optimizer's parameter groups"):
        convert(model, K, **QUIET)
    model(IDS).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="W2 of table is what it was at the start"):
        collapse(model, **QUIET)


def test_a_list_of_penalized_weights_is_named():
    model = Model(lambda model, ids: model.head(model.table(ids)))
    model.regularization_weight = [(list(model.table.parameters()), 0.0, 1e-5)]
    with pytest.warns(UserWarning, match="still in 'regularization_weight', and no longer"):
        convert(model, K, **QUIET)


def test_an_alias_of_the_weight_is_named():
    model = Model(lambda model, ids: model.head(model.alias["user"][ids]))
    model.alias = {"user": model.table.weight}
    with pytest.warns(UserWarning, match="still in 'alias'"):
        convert(model, K, **QUIET)


def test_nothing_is_said_of_what_nobody_holds():
    model = Model(lambda model, ids: model.head(model.table(ids)))
    convert(model, K, **QUIET)  # a warning would be an error here
    train(model)
    collapse(model, **QUIET)


def test_an_average_of_the_product_is_not_the_product_of_averages():
    """Once: AveragedModel over W1 and W2 apart was collapsed without a word."""
    model = convert(Model(lambda model, ids: model.head(model.table(ids))), K, **QUIET)
    apart = AveragedModel(model)
    average = AveragedModel(collapse(model, inplace=False, **QUIET), multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = None
    for _ in range(4):
        train(model, steps=1)
        apart.update_parameters(model)
        average.update_parameters(collapse(model, inplace=False, **QUIET))
        table = model.table.table()
        expected = table if expected is None else (expected + table) / 2
    torch.testing.assert_close(average.module.table.weight, expected)
    with pytest.raises(ValueError, match="product of an averaged W1 and an averaged W2 isn't the average of W"):
        collapse(apart)
    assert isinstance(model.table, MLETEmbedding)


def test_a_collapsed_copy_shares_the_rest():
    model = convert(Model(lambda model, ids: model.head(model.table(ids))), K, **QUIET)
    train(model)
    other = collapse(model, inplace=False, **QUIET)
    assert other.head.weight is model.head.weight
    assert type(other.table) is nn.Embedding
    torch.testing.assert_close(other(IDS), model(IDS))


def test_a_table_wider_than_inner_dim_is_left_and_each_may_have_its_own():
    model, lines = nn.ModuleDict({"user": nn.Embedding(N, 4), "item": nn.Embedding(N, 16)}), []
    convert(model, 8, report=lines.append)
    assert lines[1] == "item: 40 x 16 left: inner_dim = 8: expected at least embedding_dim = 16"
    assert model["user"].inner_dims == (8,)
    model = nn.ModuleDict({"user": nn.Embedding(N, 4), "item": nn.Embedding(N, 16), "day": nn.Embedding(7, 4)})
    convert(model, {"user": 64, "it*": [32, 16]}, report=lines.append)
    assert (model["user"].inner_dims, model["item"].inner_dims) == ((64,), (32, 16))
    assert lines[-1] == "day: 7 x 4 left: no pattern of user, it* matches"
    with pytest.raises(ValueError, match=r"inner_dim = 'users': matches no table; expected a pattern of user"):
        convert(nn.ModuleDict({"user": nn.Embedding(N, 4)}), {"users": 8})


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_padding_row_that_is_not_0_is_kept(kind):
    table = kind(N, D, padding_idx=2, _weight=torch.ones(N, D))
    ids = IDS.unsqueeze(1)
    before = table(ids).detach()
    convert(table, K, from_pretrained=True, **QUIET)
    torch.testing.assert_close(table(ids), before)
    train(table, ids)
    assert torch.equal(collapse(table, **QUIET).weight[2], torch.ones(D))


def test_tied_tables_of_which_one_keeps_a_padding_row_are_left():
    model = nn.ModuleList([nn.Embedding(N, D, padding_idx=2), nn.Embedding(N, D)])
    model[1].weight = model[0].weight
    model[0].weight.data.fill_(1)
    with pytest.raises(ValueError, match="the padding row of 0 isn't 0, and others that are tied to it train that row"):
        convert(model, K, from_pretrained=True)
    model[1].padding_idx = 2
    convert(model, K, from_pretrained=True, **QUIET)
    torch.testing.assert_close(model[1](IDS), torch.ones(N, D))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_everything_works_on_the_meta_device(kind):
    with torch.device("meta"):
        model = nn.ModuleDict({"a": kind(N, D, padding_idx=1), "b": kind(N, D)})
        model["b"].weight = model["a"].weight
    convert(model, K, from_pretrained=True, **QUIET)
    collapse(model, **QUIET)
    assert model["a"].weight.is_meta
    assert model["a"].weight is model["b"].weight
    quantize(model, **QUIET)
    assert model["a"].rows.codes.is_meta


def test_a_compiled_model_sees_the_change():
    torch.compiler.reset()
    model = Model(scores)
    compiled = torch.compile(model, backend="aot_eager")
    before = compiled(IDS).detach()
    convert(compiled, K, from_pretrained=True, **QUIET)
    torch.testing.assert_close(compiled(IDS), before, rtol=1e-4, atol=1e-5)
    train(compiled)
    trained = compiled(IDS).detach()
    collapse(compiled, **QUIET)
    torch.testing.assert_close(compiled(IDS), trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(IDS), trained, rtol=1e-4, atol=1e-5)


def test_a_model_of_many_tables_is_converted_in_time_that_grows_as_they_do():
    """Once: quadratic, 29 s for 1,600 tables."""

    def seconds(tables: int) -> float:
        model = nn.ModuleList(nn.Embedding(10, 4) for _ in range(tables))
        start = time.process_time()
        convert(model, K, **QUIET)
        with pytest.warns(UserWarning, match="never trained"):
            collapse(model, **QUIET)
        quantize(model, **QUIET)
        return time.process_time() - start

    seconds(10)
    assert seconds(1600) / seconds(400) < 9


def test_the_drop_ins_take_torchs_arguments_in_torchs_order():
    weight = torch.randn(N, D)
    layer = MLETEmbedding(N, D, 0, None, 2.0, False, True, weight, True, inner_dim=K)
    torch.testing.assert_close(layer.weight, weight, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    for cls, plain in ((MLETEmbedding, nn.Embedding), (MLETEmbeddingBag, nn.EmbeddingBag)):
        ours = cls.from_pretrained(weight, freeze=False, padding_idx=1, sparse=True, inner_dim=K)
        theirs = plain.from_pretrained(weight, freeze=False, padding_idx=1, sparse=True)
        ids = IDS.unsqueeze(1)
        torch.testing.assert_close(ours(ids), theirs(ids), rtol=1e-4, atol=1e-5)
        assert isinstance(ours, plain)
        for name in plain.__constants__:
            assert getattr(ours, name) == getattr(theirs, name)
            assert getattr(quantize(copy.deepcopy(theirs), **QUIET), name) == getattr(theirs, name)


KEYWORDS = {
    "normal_": nn.init.normal_,
    "uniform_": nn.init.uniform_,
    "constant_": lambda w: nn.init.constant_(w, 1.0),
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "a keyword": lambda w: torch.clamp_(input=w, min=0),
    "many at once": lambda w: torch._foreach_mul_([w], 2),
    "one of two results": lambda w: torch.sort(torch.randn(N, D), out=(w, torch.empty(N, D, dtype=torch.long))),
}


@pytest.mark.parametrize("case", KEYWORDS)
def test_a_write_by_keyword_or_list_is_refused_too(case):
    """Once: lost, and nothing said."""
    table = convert(nn.Embedding(N, D), K, **QUIET)
    with torch.no_grad(), pytest.raises(RuntimeError, match="what is written into it is lost"):
        KEYWORDS[case](table.weight)
    with pytest.raises(ValueError, match="read-only"):
        table.weight.detach().numpy()[0] = 1


def test_a_weight_is_copied_and_saved_as_an_ordinary_one(tmp_path):
    table = convert(nn.Embedding(N, D), K, **QUIET)
    assert type(copy.deepcopy(table.weight.detach())) is torch.Tensor
    torch.save(table.weight.detach(), tmp_path / "w.pt")
    assert torch.equal(torch.load(tmp_path / "w.pt"), table.table())


@pytest.mark.parametrize(
    "hold", [lambda w: w.t(), lambda w: w.data, lambda w: w.detach()[1:], lambda w: [w[2]], lambda w: {"a": w.data}]
)
@pytest.mark.parametrize("change", [lambda m: convert(m, K), quantize])
def test_a_view_of_the_weight_that_a_module_keeps_is_seen(hold, change):
    """Once: it went stale, and a tie with it."""
    model = nn.Sequential(nn.Embedding(N, D))
    model.kept = hold(model[0].weight)
    with pytest.raises(ValueError, match="0: its weight is also that of the model"):
        change(model)


def test_parameters_in_one_buffer_are_tables_of_their_own():
    model = nn.Sequential(nn.Embedding(N, D), nn.Embedding(N, D), nn.Linear(D, D))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    convert(model, K, **QUIET)
    assert model[0].inner_weight is not model[1].inner_weight


def test_memory_of_numpy_is_seen_as_tied():
    numbers = torch.randn(N, D).numpy()
    model = nn.Sequential(nn.Embedding(N, D), nn.Linear(D, N))
    for module in model:
        module.weight = nn.Parameter(torch.from_numpy(numbers))
    with pytest.raises(ValueError, match="0: its weight is also that of 1"):
        convert(model, K)


def scaled():
    table = nn.Embedding(N, D)
    table.register_buffer("scale", torch.tensor(3.0))
    return table


def grown():
    table = nn.Embedding(N, D)
    table.weight = nn.Parameter(torch.randn(N + 5, D))
    return table


def named_as_ours():
    table = nn.Embedding(N, D)
    table.padding = 1.0
    return table


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (scaled, "it has scale of its own"),
        (grown, r"its weight is \(45, 4\), and it says \(40, 4\)"),
        (named_as_ours, "it has an attribute padding, whose name is needed"),
        (lambda: nn.Embedding.from_pretrained(torch.arange(8).view(2, 4)), "frozen|its numbers are torch.int64"),
    ],
)
def test_what_the_class_does_not_say_is_left(make, why):
    with pytest.raises(ValueError, match=why):
        convert(make(), K)
    if make is not grown:
        with pytest.raises(ValueError, match=why.removeprefix("frozen|")):
            quantize(make())


def test_a_lazy_model_is_converted():
    model = convert(nn.Sequential(nn.Embedding(N, D), nn.LazyLinear(1)), K, **QUIET)
    assert isinstance(model[0], MLETEmbedding)


def test_assigning_keeps_what_it_can_and_never_gives_nan():
    layer = MLETEmbedding(N, D, inner_dim=64)
    before = layer.projections[0].clone()
    layer.weight = torch.randn(N, D).double()
    assert torch.equal(layer.projections[0], before)
    nn.init.zeros_(layer.projections[0])
    table = torch.randn(N, D)
    layer.weight = table
    torch.testing.assert_close(layer.weight, table, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="weight = a ndarray: expected a tensor"):
        layer.weight = table.numpy()
    with pytest.raises(ValueError, match="the gradient of what is assigned would be lost"):
        layer.weight = table.clone().requires_grad_() * 2


def test_a_parameter_of_another_is_not_tied_and_that_is_said():
    layer, decoder = MLETEmbedding(N, D, inner_dim=K), nn.Linear(D, N)
    with pytest.warns(UserWarning, match="they are not tied; tie them before convert"):
        layer.weight = decoder.weight


def test_a_functional_call_leaves_the_model_as_it_was():
    model = convert(nn.Sequential(nn.Embedding(N, D), nn.Linear(D, 1)), K, **QUIET)
    before, table = model(IDS).detach(), torch.randn(N, D)
    found = torch.func.functional_call(model, {"0.weight": table}, IDS)
    torch.testing.assert_close(found, F.linear(table, model[1].weight, model[1].bias), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(IDS), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="gradient of what is assigned would be lost"):
        torch.func.functional_call(model, {"0.weight": table.requires_grad_()}, IDS)
    torch.testing.assert_close(model(IDS), before, rtol=1e-4, atol=1e-5)


def test_half_precision_that_cannot_hold_the_start_is_refused():
    with pytest.raises(ValueError, match=r"the table has numbers up to 40000, and W1 would be beyond torch\.float16"):
        convert(nn.Embedding(N, D, _weight=torch.full((N, D), 40000.0).half()), D, from_pretrained=True)


def test_a_padding_row_that_is_kept_is_loaded_into_a_model_without():
    table = nn.Embedding(N, D, padding_idx=2, _weight=torch.ones(N, D))
    trained = convert(table, K, from_pretrained=True, **QUIET)
    fresh = MLETEmbedding(N, D, 2, inner_dim=K)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(IDS), trained(IDS))
    trained.load_state_dict({}, strict=False)  # which says nothing of it
    assert torch.equal(fresh(IDS), trained(IDS))
    trained.load_state_dict(MLETEmbedding(N, D, 2, inner_dim=K).state_dict())
    assert not trained(torch.tensor([2])).any()


@pytest.mark.filterwarnings("ignore:W2 of .* was never trained")
def test_tied_tables_whose_padding_rows_differ_are_not_tied_after_collapse():
    model = nn.ModuleList([nn.Embedding(N, D, padding_idx=0), nn.Embedding(N, D, padding_idx=0)])
    model[1].weight = model[0].weight
    convert(model, K, **QUIET)
    model[1].weight = torch.ones(N, D)
    before = [table(IDS).detach() for table in model]
    collapse(model, **QUIET)
    torch.testing.assert_close([table(IDS) for table in model], before)


def test_rows_of_other_bits_are_not_loaded():
    four, eight = (quantize(nn.Embedding(N, 1), bits, **QUIET) for bits in (4, 8))
    with pytest.raises(RuntimeError, match=r"rows\.codes is of torch.uint8; expected torch.int8: rows of other bits"):
        eight.load_state_dict(four.state_dict())


@pytest.mark.parametrize("padding", [None, 3])
def test_offsets_of_a_quantized_bag_are_torchs(padding):
    plain = nn.EmbeddingBag(N, D, mode="sum", include_last_offset=True)
    small = quantize(copy.deepcopy(plain), 16, **QUIET)
    ids = torch.tensor([1, 2, 3, 4, 5])
    torch.testing.assert_close(
        small(ids, torch.tensor([0, 2, 4])), plain(ids, torch.tensor([0, 2, 4])), atol=0.01, rtol=0
    )
    other = quantize(nn.EmbeddingBag(N, D, mode="sum", padding_idx=padding), **QUIET)
    assert other(ids, ids[:0]).shape == (0, D)
    negative = nn.EmbeddingBag(N, D)
    negative.padding_idx = -1
    square = torch.tensor([[N - 1, 2, 3]])
    torch.testing.assert_close(
        quantize(copy.deepcopy(negative), 16, **QUIET)(square), negative(square), atol=0.01, rtol=0
    )


def test_some_tables_can_be_quantized_after_others():
    model = nn.ModuleDict({"a": nn.Embedding(N, D), "b": nn.Embedding(N, D)})
    quantize(model, 4, only="a", **QUIET)
    quantize(model, 8, **QUIET)
    assert model["a"].rows.bits == 4
    assert model["b"].rows.bits == 8


def test_an_average_taken_out_of_its_wrapper_is_refused():
    model = convert(nn.Sequential(nn.Embedding(N, D)), K, **QUIET)
    average = AveragedModel(model)
    with pytest.raises(ValueError, match="isn't the average of W"):
        collapse(average.module)


def test_shared_memory_stays_shared():
    model = nn.Sequential(nn.Embedding(N, D)).share_memory()
    convert(model, K, **QUIET)
    assert all(parameter.is_shared() for parameter in model.parameters())
    train(model)
    assert collapse(model, **QUIET)[0].weight.is_shared()


@pytest.mark.thorough
def test_hundreds_of_stale_lists_take_no_more_looks_at_all_that_is_alive_than_ten(monkeypatch):
    """Once: a look for each."""
    looks = []
    real = gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *objects: looks.append(len(objects)) or real(*objects))

    def looked(tables: int) -> int:
        looks.clear()
        model = nn.ModuleList(nn.Embedding(9, 4) for _ in range(tables))
        model.penalties = [([table.weight], 1e-5) for table in model]
        with pytest.warns(UserWarning, match=f"old weights of {tables} tables are still"):
            convert(model, K, **QUIET)
        return len(looks)

    assert looked(200) == looked(10)
