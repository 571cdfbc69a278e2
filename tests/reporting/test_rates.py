"""The search for the tables' learning rate: it ends where the best has neighbours, goes on, and says what came out."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from dlrm_mlet import MLETEmbedding, find_table_learning_rate, parameter_groups


class Peak:
    """Training that only keeps its rate, and a score that falls off on both sides of the best one."""

    def __init__(self, plain=12.8, mlet=0.8, diverges_above=math.inf):
        self.plain, self.mlet, self.diverges_above, self.calls = plain, mlet, diverges_above, []

    def make(self):
        return nn.Sequential(nn.Embedding(200, 4), nn.Linear(4, 1))

    def train(self, model, rate, seed):
        self.calls.append((isinstance(model[0], MLETEmbedding), rate, seed))
        if rate > self.diverges_above:
            raise FloatingPointError
        model.rate, model.seed = rate, seed

    def evaluate(self, model):
        best = self.mlet if isinstance(model[0], MLETEmbedding) else self.plain
        return 0.8 - 0.001 * math.log2(model.rate / best) ** 2 + 0.0001 * model.seed


def search(peak, out, **arguments):
    lines = []
    found = find_table_learning_rate(
        peak.make, peak.train, peak.evaluate, out, **({"start": 3.2, "report": lines.append} | arguments)
    )
    return found, lines


def test_each_side_ends_where_its_best_rate_has_neighbours(tmp_path):
    peak = Peak()
    found, lines = search(peak, tmp_path / "rates")
    assert (found.best("plain tables"), found.best("MLET k=64")) == (12.8, 0.8)
    for name, best in (("plain tables", 12.8), ("MLET k=64", 0.8)):
        assert {best / 2, best, best * 2} <= set(found.scores[name])
    assert len(peak.calls) == len(set(peak.calls)) == sum(len(s) for r in found.scores.values() for s in r.values())
    assert found.sentence == (
        "plain tables at 12.8: 0.8001 ± 0.0001; MLET k=64 at 0.8: 0.8001 ± 0.0001; "
        "MLET's gain +0.0000 ± 0.0000 [+0.0000, +0.0000] (3 seeds): keep plain tables"
    )
    page = (tmp_path / "rates" / "rates.md").read_text()
    assert "| 12.8 | **0.8001 ± 0.0001** |" in page
    assert found.sentence in page
    assert lines[-4] == found.sentence
    assert lines[-3:] == [str(tmp_path / "rates" / name) for name in ("rates.md", "rates.png", "rates.svg")]
    assert (tmp_path / "rates" / "rates.png").stat().st_size > 10_000


def test_a_stopped_search_goes_on_and_another_one_is_refused(tmp_path):
    peak = Peak()
    whole, _ = search(peak, tmp_path / "whole")

    class Stopped(Peak):
        def train(self, model, rate, seed):
            if len(self.calls) == 7:
                raise KeyboardInterrupt
            super().train(model, rate, seed)

    stopped = Stopped()
    with pytest.raises(KeyboardInterrupt):
        search(stopped, tmp_path / "again")
    rest = Peak()
    assert search(rest, tmp_path / "again")[0] == whole
    assert stopped.calls + rest.calls == peak.calls
    assert search(again := Peak(), tmp_path / "again")[0] == whole
    assert not again.calls
    more = Peak()
    search(more, tmp_path / "again", seeds=(0, 1, 2, 3))
    assert {seed for _, _, seed in more.calls} == {3}
    with pytest.raises(ValueError, match=r"trials\.json: of a search with start = 3\.2, and this one has 6\.4"):
        search(Peak(), tmp_path / "again", start=6.4)
    held = tmp_path / "again" / "trials.json"
    held.write_text(held.read_text().replace('"MLET k=64"', '"MLET k=32"'))
    with pytest.raises(ValueError, match=r"trials\.json: has trials of 'MLET k=32'; expected another directory"):
        search(Peak(), tmp_path / "again")
    held.write_text("[]")
    with pytest.raises(ValueError, match=r"trials\.json: not the trials of a search"):
        search(Peak(), tmp_path / "again")


def test_the_best_is_that_of_the_seeds_asked_for(tmp_path):
    """Once that of all that were ever tried, at which a search of fewer seeds ended too early."""

    class Torn(Peak):
        def evaluate(self, model):
            best = 12.8 if model.seed == 0 else 0.2
            return 0.8 - 0.001 * math.log2(model.rate / best) ** 2

    search(Torn(), tmp_path / "both", seeds=(0, 1, 2))
    later, _ = search(Torn(), tmp_path / "both", seeds=(0,))
    afresh, _ = search(Torn(), tmp_path / "one", seeds=(0,))
    for name in ("plain tables", "MLET k=64"):
        assert later.best(name) == afresh.best(name) == 12.8
        assert 25.6 in later.scores[name]


def test_what_diverges_is_below_all_else_and_is_said(tmp_path):
    found, lines = search(Peak(diverges_above=2.0), tmp_path)
    assert found.best("plain tables") == 1.6
    assert "| 3.2 | 3 of 3 diverged | 3 of 3 diverged |" in str(found)
    assert "plain tables at 3.2, seed 0: diverged" in lines
    assert json.loads((tmp_path / "trials.json").read_text())["trials"][0]["score"] is None
    found, _ = search(Peak(diverges_above=-1), tmp_path / "never")
    assert "diverged at their best rate: try a smaller rate" in found.sentence


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_it_works_with_every_optimizer(optimizer, tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(200, (512,), generator=generator)
    labels = (torch.rand(200, generator=generator)[ids] > 0.5).float()

    def make():
        return nn.Sequential(nn.Embedding(200, 4), nn.Linear(4, 1))

    def train(model, rate, seed):
        steps = optimizer(parameter_groups(model, learning_rate=0.01, table_learning_rate=rate))
        for _ in range(3):
            steps.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(ids).squeeze(1), labels).backward()
            steps.step()

    def evaluate(model):
        with torch.no_grad():
            return -nn.functional.binary_cross_entropy_with_logits(model(ids).squeeze(1), labels).item()

    found = find_table_learning_rate(
        make, train, evaluate, tmp_path, start=1.0, seeds=(0, 1), measure="-LogLoss", report=lambda line: None
    )
    for rates in found.scores.values():
        means = {rate: sum(scores.values()) / len(scores) for rate, scores in rates.items()}
        best = max(means, key=means.get)
        assert min(rates) < best < max(rates) or best in (2**10, 2**-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0.0}, "start = 0, 3 seeds: expected a start above 0"),
        ({"start": math.nan}, "start = nan"),
        ({"start": math.inf}, "start = inf"),
        ({"seeds": ()}, "0 seeds: expected a start above 0, and at least one seed"),
        ({"min_rows": 1000}, "no table to convert"),
        ({"only": "users"}, "matches no table"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_first_training(tmp_path, arguments, message):
    peak = Peak()
    with pytest.raises(ValueError, match=message):
        search(peak, tmp_path, **arguments)
    assert not peak.calls


def test_numbers_of_numpy_do_and_a_best_rate_at_the_end_is_said(tmp_path):
    peak = Peak(plain=2.0**40)
    found, _ = search(peak, tmp_path, start=np.float32(4), seeds=np.arange(2), inner_dim=np.int64(64))
    assert "the best rate of plain tables is the last that was tried" in found.sentence
