"""Multi-valued columns and weights: a training step is that of torch's own bags and weighted loss."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data.columns import Columns, load
from dlrm_mlet.data.datasets import Dataset
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.tables.stacked import Bags, make_tables
from dlrm_mlet.toml import ConfigError, build
from dlrm_mlet.training import evaluation
from dlrm_mlet.training.metrics import measure
from dlrm_mlet.training.model import bags_of
from dlrm_mlet.training.model import build as build_model
from dlrm_mlet.training.optimizer import SGD, Adagrad
from dlrm_mlet.training.run import generator, train
from dlrm_mlet.training.step import FusedStep, train_step
from dlrm_mlet.training.together import Together
from tests.data.test_kinds import rows_of, write

BAGS = Bags((1, 3, 1, 2), ("", "mean", "", "sum"))
ROWS = (7, 11, 5, 9)


def write_bags(directory: Path) -> Path:
    """600 rows with two multi-valued columns, one of them first, and weights; the columns of data set "bags"."""
    keys = {
        "name": "bags",
        "label": "clicked",
        "dense": ["age"],
        "categorical": ["tags", "user", "parts"],
        "weight": "w",
    }
    keys["multi_valued"] = {"tags": {"max_values": 4}, "parts": {"column": "part", "separator": "i", "pooling": "sum"}}
    preprocess(build(Dataset, keys), directory / "data", write(directory / "raw.csv", rows_of(3)))
    return directory / "data"


@pytest.fixture(scope="module")
def bagged(tmp_path_factory) -> Columns:
    """Those columns, loaded."""
    return load(write_bags(tmp_path_factory.mktemp("bags")))


def some_ids(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    found = [
        torch.randint(-1 if pooling else 0, n, (count, slots), generator=generator)
        for n, slots, pooling in zip(ROWS, BAGS.slots, BAGS.pooling, strict=True)
    ]
    ids = torch.cat(found, 1).int()
    ids[7, 1:4] = -1  # no value at all
    return ids


def by_bags(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(B, slots) ids -> (B, F, D) by torch's own bags, row by row."""
    found = []
    for table, part, pooling in zip(weight.split(ROWS), ids.split(BAGS.slots, 1), BAGS.pooling, strict=True):
        lists = [row[row >= 0].long() for row in part]
        offsets = torch.tensor([0, *(len(row) for row in lists)]).cumsum(0)[:-1]
        found.append(F.embedding_bag(torch.cat(lists), table, offsets, mode=pooling or "sum"))
    return torch.stack(found, 1)


@pytest.mark.parametrize("inner_dims", [(), (8,), (8, 6)])
def test_lookups_are_those_of_bags(inner_dims):
    tables = make_tables(ROWS, inner_dims, 4, 0.25, torch.Generator().manual_seed(0), bags=BAGS).double()
    ids = some_ids(50)
    collapsed = tables.collapse()
    torch.testing.assert_close(tables(ids), by_bags(collapsed.weight, ids))
    torch.testing.assert_close(collapsed(ids), tables(ids))
    packed = quantize(nn.Sequential(collapsed.float()), report=lambda line: None)[0]
    torch.testing.assert_close(packed(ids), by_bags(packed.rows(torch.arange(sum(ROWS))), ids))


def test_ids_of_bags_are_checked():
    tables = make_tables(ROWS, (), 4, 0.25, bags=BAGS)
    with pytest.raises(ValueError, match=r"ids of shape \(50, 4\); expected \(B, 7\), as many a feature"):
        tables(some_ids(50)[:, :4])
    for place, wrong, message in (
        (2, 11, "1 of 4: id 11; expected -1 to 10"),
        (4, -1, "2 of 4: id -1; expected 0 to 4"),
    ):
        ids = some_ids(50)
        ids[3, place] = wrong
        with pytest.raises(IndexError, match=message):
            tables(ids)


def textbook_loss(model, batch):
    logits = model.logits(batch.dense, model.embed(batch.sparse))
    return (F.binary_cross_entropy_with_logits(logits, batch.label, reduction="none") * batch.weight).mean()


@pytest.mark.parametrize("inner_dim", [None, 8])
@pytest.mark.parametrize("kind", [SGD, Adagrad])
def test_steps_are_the_textbooks(bagged, inner_dim, kind, device):
    shape = ModelConfig(4, (8,), (8,), inner_dim)
    bags = bags_of(bagged.schema)
    plain, stepped, fused = models = [
        build_model(shape, 1, bagged.schema.table_rows, generator(0, "weights"), bags).double().to(device)
        for _ in range(3)
    ]
    optimizers = [
        [kind([*model.bottom_mlp.parameters(), *model.top_mlp.parameters()], 0.1), kind(model.tables.parameters(), 0.1)]
        for model in models
    ]
    step, there = FusedStep(fused, optimizers[2]), bagged.to(device)
    for order in torch.randperm(480, generator=torch.Generator().manual_seed(1)).split(50):
        batch = bagged.rows(order)
        batch = batch._replace(dense=batch.dense.double(), label=batch.label.double(), weight=batch.weight.double())
        batch = batch.to(device)
        loss = textbook_loss(plain, batch)
        loss.backward()
        for optimizer in optimizers[0]:
            optimizer.step()
        torch.testing.assert_close(train_step(stepped, optimizers[1], batch), loss.detach())
        torch.testing.assert_close(step(there, order.to(device)), loss.detach())
    for one, other, third in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, third)


def test_seeds_together_are_each_alone(bagged, device):
    shape, bags = ModelConfig(4, (8,), (8,), 8), bags_of(bagged.schema)
    models = [build_model(shape, 1, bagged.schema.table_rows, generator(s, "weights"), bags).double() for s in range(3)]
    orders = [torch.randperm(480, generator=torch.Generator().manual_seed(s))[:50] for s in range(3)]
    batch = bagged.rows(torch.stack(orders)).to(device)
    alone = [model.to(device).embed(batch.sparse[i]) for i, model in enumerate(models)]
    alone = [each.detach().clone() for each in alone]
    torch.testing.assert_close(Together(models, device).embed(batch.sparse), torch.stack(alone))


def test_metrics_count_rows_by_weight():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, generator=generator), torch.randint(0, 2, (200,), generator=generator).float()
    times = torch.randint(0, 4, (200,), generator=generator)
    weighted = measure(logits, labels, times.float())
    repeated = measure(logits.repeat_interleave(times), labels.repeat_interleave(times))
    assert weighted == pytest.approx(repeated, rel=1e-9)


@pytest.mark.parametrize("inner_dim", [None, 8])
def test_a_run_trains_measures_and_serves_them(bagged, inner_dim, tmp_path):
    training = TrainingConfig(0.1, batch_size=32, epochs=2, evaluate_every=20, also_measure=("spectra", "frequency"))
    config = Config("bags", ModelConfig(4, (8,), (8,), inner_dim), training)
    found = train(config, bagged, 0, tmp_path / "run")
    assert found.status == "finished"
    assert sum(third["rows"] for third in found.by_frequency) == 60
    with pytest.raises(ConfigError, match='"hashed": has no multi-valued columns'):
        train(
            dataclasses.replace(config, model=ModelConfig(4, (8,), (8,), tables="hashed")), bagged, 0, tmp_path / "no"
        )
    assert not (tmp_path / "no").exists()  # refused before anything starts, as a sweep asks of all its runs first


def test_how_rare_a_rows_rarest_value_is_looks_at_all_of_a_bag(bagged):
    training = bagged.sparse[:480].numpy()
    expected = []
    for row in bagged.sparse[480:540].numpy():
        counts, place = [480], 0
        for slots in bagged.schema.slots:
            mine = training[:, place : place + slots]
            counts += [np.count_nonzero(mine == id) for id in row[place : place + slots] if id >= 0]
            place += slots
        expected.append(min(counts))
    assert evaluation.rarest_count(bagged).tolist() == expected
