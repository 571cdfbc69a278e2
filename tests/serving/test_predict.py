"""Probabilities from raw rows are those of the columns, in torch and in ONNX Runtime."""

import csv
import dataclasses
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from dlrm_mlet.__main__ import main
from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data.blocks import RawError
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import BUILT_IN, Dataset
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.schema import ColumnsError
from dlrm_mlet.data.synthetic import synthesize
from dlrm_mlet.serving.export import export
from dlrm_mlet.serving.finished import export_served
from dlrm_mlet.serving.predict import PredictError, open_model, predict
from dlrm_mlet.serving.session import ExportError
from dlrm_mlet.training import checkpoint, evaluation
from dlrm_mlet.training.run import train


def predicted(*arguments, **keywords):
    done = predict(*arguments, **keywords)
    return done.rows, {name: its.count for name, its in done.unseen.items()}


def probabilities(path):
    return pl.read_csv(path)["probability"].to_numpy()


@pytest.fixture
def model(run, clicks_directory, tmp_path):
    export_served(checkpoint.load(run / checkpoint.FILE), clicks_directory, tmp_path / "m.onnx")
    return {"torch": run / checkpoint.FILE, "onnx": tmp_path / "m.onnx"}


@pytest.mark.parametrize("by", ["torch", "onnx"])
def test_raw_rows_and_columns_have_the_same_probabilities(model, by, clicks, clicks_csv, clicks_directory, tmp_path):
    loaded, out = open_model(model[by]), tmp_path / "p.csv"
    assert predicted(loaded, clicks_directory, out, clicks_directory) == (3000, {})
    by_columns = probabilities(out)
    logits, _ = evaluation.scores(checkpoint.load(model["torch"]).model, clicks.in_order("train", 999))
    np.testing.assert_allclose(by_columns[:2400], logits.sigmoid().numpy(), atol=1e-6)
    with clicks_csv.open() as file:
        rows = list(csv.reader(file))
    unlabelled = tmp_path / "unlabelled.csv"  # other order of columns, and no label
    with unlabelled.open("w", newline="") as file:
        csv.writer(file).writerows([[row[i] for i in (5, 4, 3, 2, 0)] for row in rows])
    for source in (clicks_csv, unlabelled):
        assert predicted(loaded, source, out, clicks_directory) == (3000, {})
        np.testing.assert_allclose(np.sort(probabilities(out)), np.sort(by_columns), atol=1e-6)
    # in the file's order: a row is where its columns are
    clicked, first = probabilities(out), {}
    for row, value in zip(rows[1:], clicked, strict=True):
        assert first.setdefault(tuple(row[i] for i in (0, 2, 3, 4, 5)), value) == pytest.approx(value, abs=1e-6)


def test_values_that_the_data_set_does_not_have_are_counted_and_taken_as_missing(model, clicks_directory, tmp_path):
    raw, out = tmp_path / "new.csv", tmp_path / "p.csv"
    raw.write_text('user,age,ad,price,site\nstranger,3,,1.5,"x,y"\n,3,,1.5,"x,y"\nu1,3,nothing,1.5,elsewhere\n')
    loaded = open_model(model["torch"])
    assert predicted(loaded, raw, out, clicks_directory) == (3, {"user": 1, "ad": 1, "site": 1})
    found = probabilities(out)
    assert found[0] == found[1]


def test_a_criteo_file_without_labels_is_read(tmp_path):
    raw = tmp_path / "train.txt"
    synthesize("criteo-kaggle", 2000, raw, seed=0)
    preprocess(BUILT_IN["criteo-kaggle"], tmp_path / "data", raw)
    config = Config("criteo-kaggle", ModelConfig(2, (4,), (4,), 4), TrainingConfig())
    train(config, load(tmp_path / "data"), 0, tmp_path / "run")
    model = open_model(tmp_path / "run" / checkpoint.FILE)
    test = tmp_path / "test.txt"
    test.write_text("".join(line.partition("\t")[2] for line in raw.read_text().splitlines(keepends=True)))
    for source, out in ((raw, "a.csv"), (test, "b.csv"), (tmp_path / "data", "c.csv")):
        assert predicted(model, source, tmp_path / out, tmp_path / "data") == (2000, {})
    a, b, c = (probabilities(tmp_path / name) for name in ("a.csv", "b.csv", "c.csv"))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, c, atol=1e-6)  # in file order, as this split is


def test_bad_rows_and_models_are_named_and_nothing_is_left(model, clicks_directory, tmp_path, run, capsys):
    raw, out = tmp_path / "new.csv", tmp_path / "p.csv"
    loaded = open_model(model["torch"])
    raw.write_text("user,age,ad,price,site\nu1,old,,1.5,x\n")
    with pytest.raises(RawError, match=r"new\.csv:2: column 'age' is 'old'; expected a number"):
        predict(loaded, raw, out, clicks_directory)
    raw.write_text("user,age,ad,price,site\n")
    with pytest.raises(PredictError, match="no rows"):
        predict(loaded, raw, out, clicks_directory)
    raw.write_text("user,age,ad\nu1,3,\n")
    with pytest.raises(RawError, match="no column 'price'"):
        predict(loaded, raw, out, clicks_directory)
    with pytest.raises(PredictError, match=r"new\.csv: is .*new\.csv, which is read"):
        predict(loaded, raw, raw, clicks_directory)
    assert not out.exists()
    with pytest.raises(ExportError, match="no such file"):
        open_model(tmp_path / "gone.onnx")
    assert (
        main(
            [
                "predict",
                str(model["onnx"]),
                str(tmp_path / "gone.csv"),
                "--data",
                str(clicks_directory),
                "--out",
                str(out),
            ]
        )
        == 1
    )
    assert "gone.csv: no such file" in capsys.readouterr().err
    raw.write_text('user,age,ad,price,site\nnobody,3,,1.5,"x,y"\nu1,3,,1.5,"x,y"\n')
    assert main(["predict", str(model["onnx"]), str(raw), "--data", str(clicks_directory), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "user: 1 of 2 values (50.0%) are unknown, such as 'nobody'; training has 'u" in said.err
    assert f"{out}: 2 probabilities, in the order of the rows" in said.out


def test_another_vocabulary_is_refused(model, clicks_csv, clicks_directory, tmp_path):
    copy = shutil.copytree(clicks_directory, tmp_path / "copy")
    loaded, file = open_model(model["torch"]), copy / "vocabulary" / "ad.arrow"
    pl.read_ipc(file).reverse().write_ipc(file)
    with pytest.raises(ColumnsError, match=r"vocabulary: isn't the vocabulary of schema\.json"):
        predict(loaded, clicks_csv, tmp_path / "p.csv", copy)
    file.unlink()
    with pytest.raises(ColumnsError, match=r"ad\.arrow: no such file; expected the data set's vocabulary"):
        predict(loaded, clicks_csv, tmp_path / "p.csv", copy)


def test_raw_files_without_a_header_are_read_as_the_data_set_says(clicks_csv, small_mlet, tmp_path):
    with clicks_csv.open() as file:
        header, *rows = csv.reader(file)
    raw = tmp_path / "own.tsv"
    raw.write_text("".join("\t".join(row) + "\n" for row in rows))
    own = Dataset("own", "clicked", ("age", "price"), ("user", "ad"), columns=tuple(header))
    preprocess(own, tmp_path / "own", raw)
    train(dataclasses.replace(small_mlet, dataset="own"), load(tmp_path / "own"), 0, tmp_path / "run")
    loaded = open_model(tmp_path / "run" / checkpoint.FILE)
    assert predicted(loaded, raw, tmp_path / "p.csv", tmp_path / "own") == (3000, {})


def test_a_model_of_unknown_columns_and_calls_that_can_not_be_meant_are_refused(run, clicks_directory, tmp_path):
    other = export(torch.nn.Linear(2, 1), (torch.rand(4, 2),), tmp_path / "other.onnx")
    with pytest.raises(PredictError, match=r"other\.onnx: doesn't say what it was trained on"):
        open_model(other)
    loaded, out = open_model(run / checkpoint.FILE), tmp_path / "p.csv"
    with pytest.raises(PredictError, match=r"checkpoint\.pt: brings no values along; expected .* \(--data\)"):
        predict(loaded, clicks_directory, out)
    for source, keep in (clicks_directory, ["user"]), ([clicks_directory, clicks_directory], []):
        with pytest.raises(PredictError, match="clicks: holds columns, which are as they are; expected raw files"):
            predict(loaded, source, out, clicks_directory, keep)
    assert not out.exists()
