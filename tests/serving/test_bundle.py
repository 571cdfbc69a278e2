"""A bundle scores what training scored, where neither torch nor the training data are; what is unknown is said."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_mlet.__main__ import main
from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import Dataset
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.serving.bundle import BundleError, read
from dlrm_mlet.serving.finished import export_bundle
from dlrm_mlet.serving.predict import PredictError, auc, open_model, predict
from dlrm_mlet.toml import build
from dlrm_mlet.training import checkpoint, evaluation, metrics
from dlrm_mlet.training.run import train
from tests.data.test_kinds import rows_of, write

SHAPES = {
    "plain": {"categorical": ["user", "part"]},
    "integer": {"categorical": ["age", "user"], "dense": [], "integer": ["age"]},
    "bags": {
        "categorical": ["tags", "user"], "multi_valued": {"tags": {"max_values": 4}}, "weight": "w", "min_count": 2,
    },
    "hashed": {"categorical": ["user", "tags"], "hash_buckets": {"user": 31, "tags": 7}},
    "times": {
        "categorical": ["user", "hour"], "split": "time", "split_by": "ts",
        "times": {"hour": {"column": "ts", "part": "hour"}},
    },
}  # fmt: skip


def trained(directory: Path, raw: Path, inner_dim: int | None = 8, **keys):
    keys = {"name": "own", "label": "clicked", "dense": ["age"]} | keys
    preprocess(build(Dataset, keys), directory / "data", raw)
    config = Config("own", ModelConfig(4, (8,), (8,), inner_dim), TrainingConfig(0.5, batch_size=16, evaluate_every=99))
    train(config, load(directory / "data"), 0, directory / "run")
    return checkpoint.load(directory / "run" / checkpoint.FILE)


def probabilities(path: Path) -> np.ndarray:
    return pl.read_csv(path)["probability"].to_numpy()


@pytest.mark.parametrize("bits", [32, pytest.param(8, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_bundle_scores_as_training_does(shape, bits, tmp_path):
    rows = rows_of(4)
    raw = write(tmp_path / "raw.csv", rows)
    served = trained(tmp_path, raw, **SHAPES[shape])
    report = export_bundle(served, tmp_path / "data", tmp_path / "bundle", bits)
    assert report.worst < 1e-5
    data = load(tmp_path / "data")
    shutil.move(tmp_path / "data", tmp_path / "gone")
    done = predict(open_model(tmp_path / "bundle"), raw, tmp_path / "p.csv", keep=["user", "ts"])
    written = pl.read_csv(tmp_path / "p.csv", infer_schema=False)
    assert written.columns == ["user", "ts", "probability"]
    assert written["ts"].to_list() == [row[4] for row in rows]
    by_torch = predict(open_model(served.path), raw, tmp_path / "q.csv", tmp_path / "gone")
    assert by_torch.rows == done.rows == len(rows)
    if bits == 32:
        np.testing.assert_allclose(probabilities(tmp_path / "p.csv"), probabilities(tmp_path / "q.csv"), atol=1e-6)
    expected = []
    whole = checkpoint.load(served.path).model  # `served` is int8 now
    for split in ("train", "validation", "test"):
        expected += evaluation.scores(whole, data.in_order(split, 100))[0].sigmoid().tolist()
    np.testing.assert_allclose(np.sort(probabilities(tmp_path / "q.csv")), np.sort(expected), atol=1e-6)
    logits, labels = probabilities(tmp_path / "p.csv"), np.array([float(row[0]) for row in rows])
    weights = np.array([float(row[6]) for row in rows]) if "weight" in SHAPES[shape] else None
    import torch  # noqa: PLC0415

    wanted = metrics.measure(
        torch.tensor(logits).logit(), torch.tensor(labels), None if weights is None else torch.tensor(weights)
    )
    assert done.quality.auc == pytest.approx(wanted.auc, abs=1e-6)
    assert done.quality.log_loss == pytest.approx(wanted.log_loss, abs=1e-6)


WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "sklearn", "onnx", "onnxscript", "matplotlib", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from dlrm_mlet.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_directory_alone_is_enough_without_torch(tmp_path):
    raw = write(tmp_path / "raw.csv", rows_of(4))
    served = trained(tmp_path, raw, categorical=["user", "part"])
    export_bundle(served, tmp_path / "data", tmp_path / "bundle")
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    shutil.copytree(tmp_path / "bundle", empty / "model")
    shutil.copy(raw, empty / "rows.csv")
    call = [sys.executable, "-c", WITHOUT_TORCH, "predict", "model", "rows.csv", "--out", "p.csv", "--keep", "user"]
    done = subprocess.run(call, cwd=empty, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "p.csv: 600 probabilities, in the order of the rows; " in done.stdout
    assert "600 rows have labels: AUC 0." in done.stdout
    predict(open_model(served.path), raw, tmp_path / "p.csv", tmp_path / "data")
    np.testing.assert_allclose(probabilities(empty / "p.csv"), probabilities(tmp_path / "p.csv"), atol=1e-6)


def test_next_weeks_file_says_what_is_new_and_known_users_keep_their_scores(tmp_path, capsys):
    rng, rows = random.Random(5), rows_of(4)
    raw = write(tmp_path / "raw.csv", rows)
    export_bundle(trained(tmp_path, raw, categorical=["user", "part"]), tmp_path / "data", tmp_path / "bundle")
    new = [i for i in range(600) if rng.random() < 0.2]
    later = [[*row[:2], f"new{i}" if i in new else row[2], *row[3:]] for i, row in enumerate(rows)]
    week = write(tmp_path / "week.csv", later)
    main(["predict", str(tmp_path / "bundle"), str(raw), "--out", str(tmp_path / "p.csv")])
    assert capsys.readouterr().err == ""
    assert main(["predict", str(tmp_path / "bundle"), str(week), "--out", str(tmp_path / "q.csv")]) == 0
    said = f"user: {len(new)} of 600 values ({len(new) / 600:.1%}) are unknown, such as 'new{new[0]}', 'new{new[1]}', "
    assert said in capsys.readouterr().err
    before, after = probabilities(tmp_path / "p.csv"), probabilities(tmp_path / "q.csv")
    np.testing.assert_array_equal(np.delete(before, new), np.delete(after, new))


def test_a_column_of_strangers_stops_it_and_both_sides_are_shown(tmp_path, capsys):
    rows = [[*row[:2], str(hash(row[2]) % 50), *row[3:]] for row in rows_of(4)]
    raw = write(tmp_path / "raw.csv", rows)
    export_bundle(trained(tmp_path, raw, categorical=["user", "part"]), tmp_path / "data", tmp_path / "bundle")
    floats = write(tmp_path / "floats.csv", [[*row[:2], f"{row[2]}.0", *row[3:]] for row in rows])
    call = ["predict", str(tmp_path / "bundle"), str(floats), "--out", str(tmp_path / "p.csv")]
    assert main(call) == 1
    error = capsys.readouterr().err
    assert "600 of 600 values of column 'user' (100%) are unknown: there " in error
    assert f"there '{rows[0][2]}.0', " in error
    assert f"in training '{rows[0][2]}', " in error or "in training '" in error
    assert "a data set with integer = ['user'] takes 5 and 5.0 for one" in error
    assert not (tmp_path / "p.csv").exists()
    assert main([*call, "--allow-unseen"]) == 0
    names = write(tmp_path / "names.csv", [[*row[:2], f"x{row[2]}", *row[3:]] for row in rows])
    with pytest.raises(PredictError, match=r"are unknown: there 'x\d+'") as refused:
        predict(open_model(tmp_path / "bundle"), names, tmp_path / "p.csv")
    assert "integer" not in str(refused.value)


def test_rows_without_labels_with_some_and_of_one_kind(tmp_path):
    rows = rows_of(4)
    raw = write(tmp_path / "raw.csv", rows)
    export_bundle(trained(tmp_path, raw, categorical=["user", "part"]), tmp_path / "data", tmp_path / "bundle")
    model = open_model(tmp_path / "bundle")
    blank = write(tmp_path / "blank.csv", [["", *row[1:]] for row in rows])
    assert predict(model, blank, tmp_path / "p.csv").quality is None
    some = write(tmp_path / "some.csv", [["" if i % 3 else row[0], *row[1:]] for i, row in enumerate(rows)])
    assert predict(model, some, tmp_path / "p.csv").quality.rows == 200
    ones = write(tmp_path / "ones.csv", [["1", *row[1:]] for row in rows])
    assert predict(model, [ones, some], tmp_path / "p.csv").rows == 1200
    assert predict(model, ones, tmp_path / "p.csv").quality.auc is None
    wrong = write(tmp_path / "wrong.csv", [["" if i < 5 else "maybe", *row[1:]] for i, row in enumerate(rows)])
    with pytest.raises(ValueError, match=r"wrong\.csv:7: column 'clicked' is 'maybe'; expected 0 or 1"):
        predict(model, wrong, tmp_path / "p.csv")
    with pytest.raises(PredictError, match=r"keep = .*: 'probability' is what is written"):
        predict(model, raw, tmp_path / "p.csv", keep=["probability"])
    with pytest.raises(ValueError, match="no column 'row_id'"):
        predict(model, raw, tmp_path / "p.csv", keep=["row_id"])


def test_a_bundle_that_is_not_whole_is_refused(tmp_path):
    raw = write(tmp_path / "raw.csv", rows_of(4))
    served = trained(tmp_path, raw, categorical=["user", "part"])
    export_bundle(served, tmp_path / "data", tmp_path / "bundle")
    names = sorted(json.loads((tmp_path / "bundle" / "manifest.json").read_text())["files"])
    assert names == ["model.onnx", "schema.json", "vocabulary/part.arrow", "vocabulary/user.arrow"]
    earlier = json.loads((tmp_path / "bundle" / "manifest.json").read_text()) | {"format": 1}
    del earlier["sha256"]
    shutil.copytree(tmp_path / "bundle", tmp_path / "earlier")
    (tmp_path / "earlier" / "manifest.json").write_text(json.dumps(earlier))
    assert read(tmp_path / "earlier") == earlier
    for name in names:
        for change in ("gone", "other"):
            shutil.copytree(tmp_path / "bundle", tmp_path / "copy", dirs_exist_ok=True)
            file = tmp_path / "copy" / name
            file.unlink() if change == "gone" else file.write_bytes(file.read_bytes()[:-1] + b"?")
            with pytest.raises(BundleError, match=rf"{Path(name).name}: (no such file|isn't what was written)"):
                open_model(tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")
    for text in (
        "",
        "{}",
        "[]",
        '{"format": 2, "files": {}, "dataset": "a", "columns": "b"}',
        '{"format": 1, "files": 3}',
    ):
        shutil.copytree(tmp_path / "bundle", tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "copy" / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match=r"manifest\.json: "):
            open_model(tmp_path / "copy")
    with pytest.raises(BundleError, match=r"manifest\.json: no such file; expected a bundle, as dlrm-mlet export"):
        read(tmp_path)
    said = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    del said["files"]["model.onnx"]
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(BundleError, match=r"says nothing of a model, a schema or a data set"):
        read(tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(said | {"format": 3}))
    with pytest.raises(BundleError, match=r"manifest\.json: of format 3; expected 2, as this version writes it"):
        read(tmp_path / "copy")
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter-1").write_text("mine")
    with pytest.raises(BundleError, match=r"thesis: holds other files; expected an empty directory"):
        export_bundle(served, tmp_path / "data", mine)
    assert (mine / "chapter-1").read_text() == "mine"
    shutil.copytree(tmp_path / "bundle", tmp_path / "mixed")
    shutil.copy(mine / "chapter-1", tmp_path / "mixed" / "vocabulary")
    with pytest.raises(BundleError, match=r"mixed/vocabulary/chapter-1: is no part of a bundle; expected another"):
        export_bundle(served, tmp_path / "data", tmp_path / "mixed")
    assert (tmp_path / "mixed" / "vocabulary" / "chapter-1").read_text() == "mine"
    export_bundle(served, tmp_path / "data", tmp_path / "bundle", 8)  # one of ours is replaced
    with pytest.raises(ValueError, match=r"expected either --out FILE or --bundle DIR"):
        main_raising(["export", str(served.path)])


def main_raising(arguments: list[str]) -> None:
    os.environ["DLRM_MLET_TRACEBACK"] = "1"
    try:
        main(arguments)
    finally:
        del os.environ["DLRM_MLET_TRACEBACK"]


def test_auc_counts_ties_half_and_rows_by_weight():
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415

    rng = np.random.default_rng(0)
    scores, labels, weights = rng.integers(0, 30, 500) / 30, rng.integers(0, 2, 500), rng.random(500)
    assert auc(scores, labels, weights) == pytest.approx(
        roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    assert auc(scores, np.ones(500), weights) is None


def test_the_csv_that_is_read_can_be_quoted_and_kept(tmp_path):
    rows = rows_of(4)
    raw = tmp_path / "raw.csv"
    with raw.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [["clicked", "age", "user", "note"], *([*r[:3], 'a "b", c'] for r in rows)]
        )
    export_bundle(trained(tmp_path, raw, categorical=["user"]), tmp_path / "data", tmp_path / "bundle")
    predict(open_model(tmp_path / "bundle"), raw, tmp_path / "p.csv", keep=["note"])
    assert pl.read_csv(tmp_path / "p.csv")["note"].unique().to_list() == ['a "b", c']


def test_nothing_that_is_read_is_written_over(tmp_path):
    raw = write(tmp_path / "raw.csv", rows_of(4))
    served = trained(tmp_path, raw, categorical=["user", "part"])
    export_bundle(served, tmp_path / "data", tmp_path / "bundle")
    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(raw, parts / "p0.csv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for model, source, out in (
        (tmp_path / "bundle", parts, parts / "p0.csv"),
        (tmp_path / "bundle", parts, parts / "p1.csv"),
        (tmp_path / "bundle", raw, tmp_path / "bundle" / "model.onnx"),
        (served.path, raw, served.path),
        (served.path, raw, tmp_path / "data" / "label.npy"),
        (tmp_path / "bundle", raw, raw),
    ):
        with pytest.raises(PredictError, match="which is read; expected another --out"):
            predict(open_model(model), source, out, tmp_path / "data")
    with pytest.raises(IsADirectoryError, match=r"dirout: is a directory; expected the name of a file"):
        (tmp_path / "dirout").mkdir()
        predict(open_model(tmp_path / "bundle"), raw, tmp_path / "dirout")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "bundle" / ".DS_Store").write_bytes(b"a Mac's")
    predict(open_model(tmp_path / "bundle"), raw, tmp_path / "p.csv", keep=["user", "user"])
    assert pl.read_csv(tmp_path / "p.csv").columns == ["user", "probability"]


def test_labels_and_weights_at_predict_are_read_as_in_training(tmp_path):
    rows = [["yes" if row[0] == "1" else "no", *row[1:]] for row in rows_of(4)]
    raw = write(tmp_path / "raw.csv", rows)
    served = trained(tmp_path, raw, categorical=["user", "part"], positive="yes", weight="w")
    export_bundle(served, tmp_path / "data", tmp_path / "bundle")
    model, out = open_model(tmp_path / "bundle"), tmp_path / "p.csv"
    other = write(tmp_path / "other.csv", [["YES", *row[1:]] for row in rows])
    with pytest.raises(ValueError, match=r"other\.csv:2: column 'clicked' is 'YES'; expected 'yes' or one other value"):
        predict(model, [raw, other], out)
    for weight, message in (("-5", "a weight of 0 or more"), ("", "a weight"), ("nan", "a weight")):
        bad = write(tmp_path / "bad.csv", [[*row[:6], weight if i == 5 else row[6]] for i, row in enumerate(rows)])
        with pytest.raises(ValueError, match=rf"bad\.csv:7: column 'w' is .*; expected {message}"):
            predict(model, bad, out)
    with pytest.raises(PredictError, match="all weights of rows with a label are 0"):
        predict(model, write(tmp_path / "zero.csv", [[*row[:6], "0"] for row in rows]), out)
    unlabelled = tmp_path / "unlabelled.csv"
    pl.read_csv(raw, infer_schema=False).drop("clicked").write_csv(unlabelled)
    with pytest.raises(PredictError, match=r"unlabelled\.csv: has no column 'clicked', (as|and) others have"):
        predict(model, [raw, unlabelled], out)
    assert not out.exists()


def test_a_headerless_file_without_a_label_says_what_it_was_taken_for(tmp_path, capsys):
    rows = rows_of(4)
    raw = tmp_path / "raw.tsv"
    raw.write_text("".join("\t".join(row[:3]) + "\n" for row in rows))
    keys = {"categorical": ["user"], "columns": ["clicked", "age", "user"]}
    export_bundle(trained(tmp_path, raw, **keys), tmp_path / "data", tmp_path / "bundle")
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "0.tsv").write_text("".join("\t".join(row[1:3]) + "\n" for row in rows))
    for source, said in ((raw, ""), (parts, "a field less than the data set: taken as rows without 'clicked'")):
        assert (
            main(["predict", str(tmp_path / "bundle"), str(source), "--out", str(tmp_path / f"{source.stem}.out")]) == 0
        )
        assert said in capsys.readouterr().err
    assert (tmp_path / "raw.out").read_text() == (tmp_path / "parts.out").read_text()


def test_what_is_kept_is_the_raw_column(tmp_path):
    rows = rows_of(4)
    raw = write(tmp_path / "raw.csv", rows)
    keys = {"categorical": ["tags", "user"], "multi_valued": {"tags": {"column": "part", "separator": "i"}}}
    export_bundle(trained(tmp_path, raw, **keys), tmp_path / "data", tmp_path / "bundle")
    predict(open_model(tmp_path / "bundle"), raw, tmp_path / "p.csv", keep=["tags", "age"])
    written = pl.read_csv(tmp_path / "p.csv", infer_schema=False)
    assert written["tags"].fill_null("").to_list() == [row[3] for row in rows]
    assert written["age"].to_list() == [row[1] for row in rows]


def test_a_kept_column_of_lists_is_refused_since_csv_has_none(tmp_path):
    raw = write(tmp_path / "raw.csv", rows_of(4))
    served = trained(tmp_path, raw, categorical=["tags"], multi_valued={"tags": {"max_values": 4}})
    lists = tmp_path / "lists.parquet"
    pl.read_csv(raw, infer_schema=False).with_columns(pl.col("tags").fill_null("").str.split("|")).write_parquet(lists)
    model, out = open_model(served.path), tmp_path / "p.csv"
    assert predict(model, lists, out, tmp_path / "data", keep=["user"]).rows == 600
    with pytest.raises(PredictError, match="keep: column 'tags' is of lists, which CSV has none of; expected others"):
        predict(model, lists, tmp_path / "q.csv", tmp_path / "data", keep=["tags"])
    assert not (tmp_path / "q.csv").exists()
