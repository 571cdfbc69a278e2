"""Models made at random: converted, trained, collapsed and quantized, or refused with the reason; never wrong."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dlrm_mlet import collapse, convert, quantize

N, D = 12, 3
IDS = torch.arange(N)


def embedding(data) -> nn.Module:
    """A table of any of torch's settings, some of which can't be converted."""
    padding = data.draw(st.none() | st.integers(0, N - 1))
    more: dict[str, Any] = {"padding_idx": padding, "max_norm": data.draw(st.sampled_from([None, None, None, 0.5]))}
    if data.draw(st.booleans()):
        return nn.EmbeddingBag(N, D, mode=data.draw(st.sampled_from(["sum", "mean", "max"])), **more)
    return nn.Embedding(N, D, scale_grad_by_freq=data.draw(st.sampled_from([False, False, True])), **more)


def by_call(table, ids):
    return table(ids.unsqueeze(1)).flatten(1)


def by_weight(table, ids):
    return table.weight[ids]


def by_function(table, ids):
    return F.embedding(ids, table.weight)


def by_scores(table, ids):
    return by_call(table, ids) @ table.weight.T @ table.weight


HOLD = {
    "module": lambda table: nn.ModuleList([table]),
    "deep": lambda table: nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Sequential(table)})}),
    "list": lambda table: [[table]],
    "object": lambda table: type("Thing", (), {"inside": (table,)})(),
    "method": lambda table: table.forward,
}


class Model(nn.Module):
    """Tables, some shared, tied, hooked, held twice; each used in a way of its own."""

    def __init__(self, data):
        super().__init__()
        self.tables, self.ways, self.held = nn.ModuleList(), [], []
        for i in range(data.draw(st.integers(1, 4))):
            # torch's max_norm writes into the table at each lookup: what else reads it depends on the order
            before = [table for table in self.tables if table.max_norm is None]
            kind = data.draw(st.sampled_from(["new", "new", "shared", "tied", "same memory"])) if before else "new"
            table = data.draw(st.sampled_from(before)) if kind == "shared" else embedding(data)
            if kind != "new":
                table.max_norm = None
            if kind == "tied":
                table.weight = data.draw(st.sampled_from(before)).weight
            if kind == "same memory":
                table.weight = nn.Parameter(data.draw(st.sampled_from(before)).weight.data)
            match data.draw(st.sampled_from(["nothing", "nothing", "hook", "weight hook", "padding", "frozen"])):
                case "hook":
                    table.register_forward_hook(lambda module, inputs, output: output * 1.5)
                case "weight hook" if table.weight.requires_grad:
                    table.weight.register_hook(lambda gradient: gradient * 0.5)
                case "padding" if table.padding_idx is not None:
                    table.weight.data[table.padding_idx] = 0.5
                case "frozen":
                    table.weight.requires_grad_(False)
            self.tables.append(table)
            ways = [by_call, by_call, by_weight, by_function, by_scores]
            self.ways.append(data.draw(st.sampled_from(ways if table.max_norm is None else [by_call])))
            self.held.append(HOLD[data.draw(st.sampled_from(list(HOLD)))](table))
            if i and table.max_norm is None and data.draw(st.integers(0, 9)) == 0:
                self.decoder = nn.Linear(D, N)
                self.decoder.weight = table.weight
        self.head = nn.Linear(D, 2)

    def forward(self, ids):
        found = [way(table, ids) for way, table in zip(self.ways, self.tables, strict=True)]
        return self.head(torch.stack([F.normalize(vectors, dim=1) for vectors in found]).sum(0))


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore:W2 of .* was never trained")
def test_collapse_keeps_the_outputs_or_convert_refuses_with_a_reason(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    model, lines = Model(data), []
    model(IDS)  # which is when torch applies max_norm to the table
    before, shapes = model(IDS).detach(), {name: value.shape for name, value in model.state_dict().items()}
    kinds = [type(table) for table in model.tables]
    from_pretrained = data.draw(st.booleans())
    inner_dim = data.draw(st.sampled_from([D, 5, 16, [8, 4]]))
    try:
        convert(model, inner_dim, from_pretrained=from_pretrained, report=lines.append)
    except ValueError as error:
        assert "no table to convert; " in str(error)
        torch.testing.assert_close(model(IDS), before)
        assert [type(table) for table in model.tables] == kinds
        return
    assert len(lines) == len(set(model.tables))
    assert all("now trained with inner_dim" in line or " left: " in line for line in lines)
    if from_pretrained:
        torch.testing.assert_close(model(IDS), before, rtol=1e-4, atol=1e-4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (model(IDS) - 1).square().mean().backward()
        optimizer.step()
    trained = model(IDS).detach()
    collapse(model, report=lines.append)
    torch.testing.assert_close(model(IDS), trained, rtol=1e-5, atol=1e-5)
    assert [type(table) for table in model.tables] == kinds
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    small = copy.deepcopy(model)
    try:
        quantize(small, report=lambda line: None)
    except ValueError as error:
        assert "nothing to quantize; " in str(error)
        return
    torch.testing.assert_close(small(IDS), trained, rtol=0.1, atol=0.1)
