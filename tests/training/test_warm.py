"""A run that goes on from another's model: what was known scores as before, and new rows start fresh."""

import dataclasses
import json

import pytest
import torch

from dlrm_mlet.__main__ import main
from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import Dataset
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.schema import ColumnsError
from dlrm_mlet.toml import build
from dlrm_mlet.training import checkpoint, evaluation
from dlrm_mlet.training.checkpoint import CheckpointError
from dlrm_mlet.training.model import bags_of
from dlrm_mlet.training.model import build as build_model
from dlrm_mlet.training.record import RecordError
from dlrm_mlet.training.run import TrainingError, generator, make_optimizers, train
from dlrm_mlet.training.stepping import losses
from dlrm_mlet.training.warm import start_from
from tests.data.test_kinds import rows_of, write
from tests.training.test_run import stopped_at

KEYS = {"name": "own", "label": "clicked", "dense": ["age"], "categorical": ["user", "part"], "split": "ordered"}


def config(inner_dim=None, **keys):
    return Config("own", ModelConfig(4, (8,), (8,), inner_dim), TrainingConfig(0.2, batch_size=16, **keys))


@pytest.fixture
def weeks(tmp_path):
    """Two weeks' rows, the second with users that the first doesn't have, each as columns that share ids."""
    dataset = build(Dataset, KEYS)
    preprocess(dataset, tmp_path / "one", write(tmp_path / "1.csv", rows_of(1)))
    preprocess(dataset, tmp_path / "two", write(tmp_path / "2.csv", rows_of(2, first_user=50)), extend=tmp_path / "one")
    return load(tmp_path / "one"), load(tmp_path / "two")


@pytest.mark.parametrize("inner_dim", [None, 8, (8, 6)])
def test_what_is_known_scores_as_before_and_new_rows_are_fresh(weeks, inner_dim, tmp_path):
    one, two = weeks
    train(config(16), one, 0, tmp_path / "first")
    served = checkpoint.load(tmp_path / "first" / checkpoint.FILE)
    shape = config(inner_dim).model
    drawn, model = (
        build_model(shape, 1, two.schema.table_rows, generator(5, "weights"), bags_of(two.schema)) for _ in range(2)
    )
    start_from(model, served)
    for split in ("train", "validation"):
        before, _ = evaluation.scores(served.model, one.in_order(split, 100))
        after, _ = evaluation.scores(model, one.in_order(split, 100))
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert two.schema.table_rows[0] > one.schema.table_rows[0]
    parts = [m.tables.weight.split(m.tables.table_rows) for m in (model, drawn)]
    for n, mine, fresh in zip(one.schema.table_rows, *parts, strict=True):
        torch.testing.assert_close(mine[n:], fresh[n:], rtol=0, atol=0)


@pytest.mark.parametrize("inner_dim", [None, 8])
def test_two_weeks_one_after_the_other_are_a_run_over_both(weeks, inner_dim, tmp_path):
    """A model that had all values from the beginning, and saw the first week's rows and then the second's."""
    one, two = weeks
    first, second = config(inner_dim), config(inner_dim)
    train(first, one, 0, tmp_path / "first")
    start = checkpoint.load(tmp_path / "first" / checkpoint.FILE)
    train(second, two, 1, tmp_path / "second", start=start)
    warm = checkpoint.load(tmp_path / "second" / checkpoint.FILE)
    # the same by hand: all values have rows from the beginning, those of new ones as the second run draws them
    whole = build_model(second.model, 1, two.schema.table_rows, generator(1, "weights"), None)
    start_from(whole, start)

    for _ in losses(
        whole, make_optimizers(whole, second.training), two, [two.order("train", generator(1, "order"))], 16
    ):
        pass
    for mine, its in zip(whole.collapse().parameters(), warm.model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    said = json.loads((tmp_path / "second" / "record.json").read_text())
    assert said["provenance"]["from"] == start.digest


def test_a_run_from_a_model_resumes_and_is_no_other_run(weeks, tmp_path, monkeypatch):
    one, two = weeks
    train(config(), one, 0, tmp_path / "first")
    start = checkpoint.load(tmp_path / "first" / checkpoint.FILE)
    whole = train(config(evaluate_every=10), two, 0, tmp_path / "whole", start=start)
    with pytest.raises(RecordError, match=r"another run \(the start was [0-9a-f]{12} and is now None\)"):
        train(config(evaluate_every=10), two, 0, tmp_path / "whole")

    with stopped_at(20, monkeypatch):
        train(config(evaluate_every=10), two, 0, tmp_path / "part", start=start)
    with pytest.raises(TrainingError, match="made with another start"):
        train(config(evaluate_every=10), two, 0, tmp_path / "part", resume=True)
    again = train(config(evaluate_every=10), two, 0, tmp_path / "part", resume=True, start=start)
    assert again.metrics == whole.metrics


def test_a_model_of_other_data_or_another_shape_is_refused(weeks, tmp_path):
    one, two = weeks
    train(config(), two, 0, tmp_path / "second")
    later = checkpoint.load(tmp_path / "second" / checkpoint.FILE)
    with pytest.raises(ColumnsError, match=r"which these columns .* don't extend: ids would mean other values"):
        train(config(), one, 0, tmp_path / "no", start=later)
    wider = dataclasses.replace(config(), model=ModelConfig(8, (8,), (8,)))
    with pytest.raises(CheckpointError, match="its embedding_dim is 4; expected 8, as in model"):
        train(wider, two, 0, tmp_path / "no", start=later)
    for name, keys in {"packed": {"served_as": "int8"}, "hashed": {"tables": "hashed"}}.items():
        other = dataclasses.replace(config(), model=ModelConfig(4, (8,), (8,), **keys))
        train(other, two, 0, tmp_path / name)
        with pytest.raises(CheckpointError, match="aren't full float32 ones"):
            train(config(), two, 0, tmp_path / "no", start=checkpoint.load(tmp_path / name / checkpoint.FILE))
    narrow = dataclasses.replace(config(), model=ModelConfig(4, (8,), (8,), 2, allow_bottleneck=True))
    with pytest.raises(CheckpointError, match="inner_dim = 2 can't hold its tables; expected k >= d"):
        train(narrow, two, 0, tmp_path / "no", start=later)
    begun = dataclasses.replace(config(), model=ModelConfig(4, (8,), (8,), 8, start_as=()))
    with pytest.raises(CheckpointError, match="is where the run starts, and so is start_as; expected one of both"):
        train(begun, two, 0, tmp_path / "no", start=later)
    assert not (tmp_path / "no").exists()


def test_the_commands_go_from_week_to_week(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in KEYS.items()]
    (tmp_path / "own.toml").write_text("\n".join(lines))
    (tmp_path / "mlet.toml").write_text(
        'dataset = "own"\n[model]\nembedding_dim = 4\ninner_dim = 8\nbottom_mlp = [8]\ntop_mlp = [8]\n'
    )
    write(tmp_path / "1.csv", rows_of(1))
    write(tmp_path / "2.csv", rows_of(2, first_user=50))
    for call in (
        "preprocess own.toml --raw 1.csv --out data/1",
        "train mlet.toml --data data/1 --out one",
        "preprocess own.toml --raw 2.csv --out data/2 --extend data/1",
        "train mlet.toml --data data/2 --out two --from one/checkpoint.pt",
    ):
        assert main(call.split()) == 0, capsys.readouterr().err


def test_a_split_of_one_label_is_said_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = rows_of(1)
    for i, message in ((slice(480, 540), "all 60 rows of validation have label 0"), (slice(0, 480), "of train have")):
        changed = [["0", *row[1:]] if n in range(600)[i] else row for n, row in enumerate(rows)]
        schema = preprocess(build(Dataset, KEYS), tmp_path / "data", write(tmp_path / "1.csv", changed), force=True)
        with pytest.raises(TrainingError, match=message):
            train(config(), load(tmp_path / "data"), 0, tmp_path / "no")
        assert not (tmp_path / "no").exists()
    changed = [["0", *row[1:]] if n >= 540 else row for n, row in enumerate(rows)]
    (tmp_path / "own.toml").write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in KEYS.items()))
    write(tmp_path / "1.csv", changed)
    assert main(["preprocess", "own.toml", "--raw", "1.csv", "--out", "data", "--force"]) == 0
    assert "warning: all 60 rows of test have label 0, so that it has no AUC" in capsys.readouterr().err
    found = train(config(), load(tmp_path / "data"), 0, tmp_path / "run")
    assert (found.status, list(found.metrics)) == ("finished", ["validation"])
    assert found.absent == {"test": "all 60 rows of test have label 0"}
    assert schema.rows["test"] == 60
