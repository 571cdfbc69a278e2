"""The two groups of parameters that an optimizer takes."""

import pytest
import torch
from torch import nn

from dlrm_mlet import collapse, convert, parameter_groups
from dlrm_mlet.config import ModelConfig
from dlrm_mlet.training.model import build

QUIET = {"report": lambda line: None}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(30, 4), nn.EmbeddingBag(20, 4)
        self.same, self.twin = self.user, nn.Embedding(30, 4)
        self.twin.weight = self.user.weight
        self.decoder = nn.Linear(4, 30)
        self.decoder.weight = self.user.weight
        self.frozen = nn.Embedding(3, 4).requires_grad_(False)
        self.head = nn.Linear(4, 1)


def groups(model):
    found = parameter_groups(model, learning_rate=0.1, table_learning_rate=3.0, weight_decay=0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [(group["lr"], group["weight_decay"], [names[p] for p in group["params"]]) for group in found]


def test_tables_are_in_one_group_once_and_the_rest_in_the_other():
    assert groups(Model()) == [
        (3.0, 0.5, ["user.weight", "item.weight"]),
        (0.1, 0.5, ["decoder.bias", "head.weight", "head.bias"]),
    ]


def test_a_converted_models_projections_are_with_their_tables():
    model = convert(Model(), 8, only=["item"], **QUIET)
    assert groups(model)[0][2] == ["user.weight", "item.inner_weight", "item.projections.0"]
    assert len(groups(model)[1][2]) == 3


@pytest.mark.parametrize("inner_dim", [None, 8])
def test_dlrms_stacked_tables_are_tables(inner_dim):
    model = build(ModelConfig(4, (8,), (8,), inner_dim=inner_dim), 2, (7, 9), None)
    tables, rest = groups(model)
    assert all(name.startswith("tables.") for name in tables[2])
    assert not any(name.startswith("tables.") for name in rest[2])
    assert len(tables[2]) == (2 if inner_dim else 1)


def test_a_model_of_tables_alone_has_one_group_and_one_without_is_refused():
    assert len(groups(nn.Embedding(3, 2))) == 1
    with pytest.raises(ValueError, match=r"the model has no nn\.Embedding"):
        groups(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"no nn\.Embedding.* that is trained"):
        groups(nn.Sequential(nn.Embedding(3, 2).requires_grad_(False), nn.Linear(2, 1)))


def test_a_rate_among_the_settings_is_refused():
    with pytest.raises(ValueError, match=r"lr = .*: is what the two rates are for"):
        parameter_groups(nn.Embedding(3, 2), learning_rate=0.1, table_learning_rate=1.0, lr=0.5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_every_optimizer_takes_them(optimizer):
    model = convert(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 1)), 8, **QUIET)
    before = [parameter.clone() for parameter in model.parameters()]
    steps = optimizer(parameter_groups(model, learning_rate=0.0, table_learning_rate=0.1))
    model(torch.arange(9)).square().sum().backward()
    steps.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [True, True, False, False]
    collapse(model, **QUIET)


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["learning_rate", "table_learning_rate"])
def test_a_rate_that_is_none_is_refused(name, rate):
    rates = {"learning_rate": 0.1, "table_learning_rate": 0.1, name: rate}
    with pytest.raises(ValueError, match=f"{name} = {rate}: expected a number from 0 up"):
        parameter_groups(nn.Embedding(3, 2), **rates)
