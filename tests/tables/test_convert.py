"""convert and collapse on models with tables in all places, tied, frozen, hooked; and on models of other libraries."""

import copy
import re

import pytest
import torch
from torch import nn

from dlrm_mlet import MLETEmbedding, MLETEmbeddingBag, collapse, convert


class Nest(nn.Module):
    """Tables in a list, in a dictionary, as bags, tied by module and by parameter, and such as must be left."""

    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(100, 4, padding_idx=0)
        self.same_user = self.user
        self.lists = nn.ModuleList([nn.Embedding(50, 4, sparse=True), nn.EmbeddingBag(60, 4, mode="sum")])
        self.by_name = nn.ModuleDict({"a": nn.Embedding(70, 4), "b": nn.Embedding(70, 4)})
        self.by_name["b"].weight = self.by_name["a"].weight
        self.small = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, ids):
        found = [self.user(ids), self.same_user(ids), self.lists[0](ids % 50), self.lists[1](ids.unsqueeze(1) % 60)]
        return self.head(sum([*found, self.by_name["a"](ids % 70), self.by_name["b"](ids % 70), self.small(ids % 3)]))


@pytest.fixture
def lines():
    return []


def test_tables_are_found_wherever_they_are_and_come_back_the_same(lines, device):
    model, ids = Nest().to(device), torch.arange(100, device=device)
    model.by_name["b"].weight = model.by_name["a"].weight  # what stands in for a GPU is moved as a copy
    names, before = list(model.state_dict()), model(ids)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert convert(model, 16, min_rows=10, from_pretrained=True, report=lines.append) is model
    torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-5)
    assert isinstance(model.user, MLETEmbedding)
    assert model.same_user is model.user
    assert model.lists[0].sparse
    assert isinstance(model.lists[1], MLETEmbeddingBag)
    assert model.by_name["a"].inner_weight is model.by_name["b"].inner_weight
    assert model.by_name["a"].projections[0] is model.by_name["b"].projections[0]
    assert set(lines) == {
        "user: 100 x 4 now trained with inner_dim 16",
        "lists.0: 50 x 4 now trained with inner_dim 16",
        "lists.1: 60 x 4 now trained with inner_dim 16",
        "by_name.a: 70 x 4 now trained with inner_dim 16",
        "by_name.b: 70 x 4 now trained with inner_dim 16",
        "small: 3 x 4 left: fewer than 10 rows",
    }
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (model(ids) - 1).square().mean().backward()
        optimizer.step()
    trained = model(ids)
    assert not torch.allclose(trained, before, atol=1e-3)
    collapse(model, report=lines.append)
    torch.testing.assert_close(model(ids), trained, rtol=1e-4, atol=1e-5)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert sorted(model.state_dict()) == sorted(names)
    assert type(model.same_user) is nn.Embedding
    assert model.by_name["a"].weight is model.by_name["b"].weight
    with pytest.raises(ValueError, match="nothing to collapse"):
        collapse(model)


def test_only_what_a_pattern_names_is_converted():
    model = convert(Nest(), [16, 8], only=["lists.*", "user"], report=lambda line: None)
    kinds = {name for name, module in model.named_modules() if isinstance(module, (MLETEmbedding, MLETEmbeddingBag))}
    assert kinds == {"user", "lists.0", "lists.1"}
    assert model.user.inner_dims == (16, 8)
    assert not model.user.weight[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_types_and_modes_stay(dtype):
    model = convert(Nest().to(dtype).eval(), 8, report=lambda line: None)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not any(module.training for module in model.modules())


class Decorated(nn.Embedding):
    def forward(self, input):
        return 2 * super().forward(input)


def frozen():
    return nn.Embedding.from_pretrained(torch.randn(9, 4))


def hooked_weight():
    table = nn.Embedding(9, 4)
    table.weight.register_hook(lambda gradient: gradient)
    return table


def tied_to_a_layer():
    table, layer = nn.Embedding(9, 4), nn.Linear(4, 9)
    layer.weight = table.weight
    return nn.Sequential(table, layer)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Decorated(9, 4), "Decorated is a class of its own"),
        (hooked_weight, "its weight has hooks"),
        (frozen, "it is frozen"),
        (tied_to_a_layer, "its weight is also that of it.1"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Embedding(9, 4)), "its weight is parametrized"),
        (lambda: nn.Embedding(9, 4, max_norm=1.0), "max_norm doesn't commute"),
        (lambda: nn.Embedding(9, 4, scale_grad_by_freq=True), "scale_grad_by_freq doesn't reach W2"),
        (lambda: nn.EmbeddingBag(9, 4, mode="max"), "a bag's maximum doesn't commute"),
        (lambda: nn.Linear(9, 4), "no nn.Embedding and no nn.EmbeddingBag"),
        (lambda: nn.Embedding(9, 16), "inner_dim = 8: expected at least embedding_dim = 16"),
    ],
)
def test_what_cannot_be_converted_is_left_as_it_is_with_the_reason(make, reason):
    model = nn.ModuleDict({"it": make()})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=reason):
        convert(model, 8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if "inner_dim" not in reason and "no nn" not in reason:  # beside one that can be, it is reported
        model["other"], lines = nn.Embedding(9, 4), []
        convert(model, 8, report=lines.append)
        assert any(re.search(reason, line) for line in lines)
        assert isinstance(model["other"], MLETEmbedding)


def test_a_table_tied_to_one_that_is_left_is_left_too(lines):
    model = Nest()
    convert(model, 8, only=["by_name.a", "user"], report=lines.append)
    assert any(line.startswith("by_name.a") and "tied to by_name.b, which is left" in line for line in lines)
    assert model.by_name["a"].weight is model.by_name["b"].weight


def test_a_pattern_without_a_table_is_refused():
    with pytest.raises(ValueError, match=r"only = 'item\.\*': matches no table; expected a pattern of user, lists\.0"):
        convert(Nest(), 8, only="item.*")


def test_collapsed_tables_are_tied_only_where_the_whole_product_is():
    model = nn.ModuleList([MLETEmbedding(9, 4, inner_dim=8), MLETEmbedding(9, 4, inner_dim=8)])
    model[1].inner_weight = model[0].inner_weight
    model[0].requires_grad_(False)
    ids = torch.arange(9)
    before = model[0](ids), model[1](ids)
    with pytest.warns(UserWarning, match="W2 of 1 is what it was at the start"):
        collapse(model, report=lambda line: None)
    torch.testing.assert_close((model[0](ids), model[1](ids)), before)
    assert not model[0].weight.requires_grad
