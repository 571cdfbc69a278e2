"""Synthetic raw files: the same bytes by seed, the real layout, and a rule that can be learned."""

import dataclasses

import numpy as np
import pytest

from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data import synthetic
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import AVAZU, CRITEO_KAGGLE
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.synthetic import draw_ranks, synthesize, vocabulary_size
from dlrm_mlet.toml import ConfigError
from dlrm_mlet.training.run import train


@pytest.mark.parametrize("dataset", [CRITEO_KAGGLE, AVAZU])
def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 700)
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        synthesize(dataset.name, 2000, tmp_path / name, seed)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()
    lines = (tmp_path / "one").read_text().splitlines()
    header = 0 if dataset.columns else 1
    assert len(lines) == 2000 + header
    assert len({line.count("\t" if dataset.columns else ",") for line in lines}) == 1
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(("distinct", "rows"), [(3, 10_000), (5000, 20_000), (1000, 20_000)])
def test_a_vocabulary_is_as_large_as_its_draws_ask_for(distinct, rows):
    values = vocabulary_size(distinct, rows)
    ranks = draw_ranks(np.random.default_rng(0), values, rows)
    assert ranks.max() < values
    assert len(np.unique(ranks)) == pytest.approx(distinct, rel=0.03)
    counts = np.bincount(ranks, minlength=values)
    # twice the rank, 2^-EXPONENT of the frequency
    if values > 500:
        near, far = counts[20:40].sum(), counts[40:80].sum()
        assert far / near == pytest.approx(2 ** (1 - synthetic.EXPONENT), rel=0.15)


def test_clicks_can_be_learned_from_the_ids(tmp_path):
    synthesize("criteo-kaggle", 60_000, tmp_path / "train.txt")
    preprocess(dataclasses.replace(CRITEO_KAGGLE, split="random"), tmp_path / "data", tmp_path / "train.txt")
    columns = load(tmp_path / "data")
    assert 0.2 < columns.label.float().mean() < 0.32
    model = ModelConfig(embedding_dim=8, inner_dim=64, bottom_mlp=(32,), top_mlp=(64, 32))
    record = train(Config("criteo-kaggle", model, TrainingConfig(epochs=2)), columns, 0, tmp_path / "run")
    assert record.metrics["test"]["auc"] > 0.54  # chance is 0.5, with a standard error of 0.009


def test_wrong_calls_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'flights': can't be synthesized; expected one of criteo-kaggle, avazu"):
        synthesize("flights", 10, tmp_path / "out")
    with pytest.raises(ConfigError, match="--rows 0: expected at least 1"):
        synthesize("avazu", 0, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
