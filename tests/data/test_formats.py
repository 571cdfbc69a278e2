"""Criteo-Kaggle's and Avazu's raw files: good rows and bad ones, against a plain loop over the lines."""

import dataclasses
import gzip
import math
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data import delimited
from dlrm_mlet.data.blocks import RawError
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import AVAZU, AVAZU_AS_PUBLISHED, CRITEO_KAGGLE
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.synthetic import synthesize
from dlrm_mlet.training.run import train

SAMPLES = Path(os.environ.get("DLRM_MLET_RAW_SAMPLES", "/nowhere"))
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="set DLRM_MLET_RAW_SAMPLES to a folder of raw samples")
HEX = set("0123456789abcdef")


def obvious_criteo(text: str) -> list[tuple[int, list[float], list[str]]] | None:
    """label, dense and ids of each row, line by line; None where a line isn't one."""
    if not text.endswith("\n"):
        return None
    rows = []
    for line in text.removesuffix("\n").split("\n"):
        fields = line.split("\t")
        if len(fields) != 40 or fields[0] not in ("0", "1"):
            return None
        try:
            dense = [math.log1p(max(float(value or 0), 0)) for value in fields[1:14]]
        except ValueError:
            return None
        if not all(math.isfinite(value) for value in dense):
            return None
        if not all(not value or (len(value) == 8 and set(value) <= HEX) for value in fields[14:]):
            return None
        rows.append((int(fields[0]), dense, fields[14:]))
    return rows


def decoded(out: Path) -> list[tuple[int, list[float], list[str]]]:
    """What obvious_criteo gives, from the columns and their vocabularies."""
    columns = load(out)
    values = []
    for column in columns.schema.categorical:
        vocabulary = pl.read_ipc(out / "vocabulary" / f"{column}.arrow")[column]
        values.append(["" if v is None else f"{v:08x}" for v in vocabulary])
    ids = columns.sparse.tolist()
    dense = columns.dense.tolist()
    labels = columns.label.tolist()
    return [
        (label, numbers, [values[i][row[i]] for i in range(26)])
        for label, numbers, row in zip(labels, dense, ids, strict=True)
    ]


identifier = st.sampled_from(["00000000", "00001234", "12e34567", "0000000a", "ffffffff", ""])
number = st.sampled_from(["", "0", "1", "7", "-1", "-2", "65535", "2147483648"])
good_row = st.tuples(
    st.sampled_from("01"), st.lists(number, min_size=13, max_size=13), st.lists(identifier, min_size=26, max_size=26)
).map(lambda row: [row[0], *row[1], *row[2]])
spoil = st.tuples(
    st.integers(0, 39),
    st.sampled_from(
        ["2", "x", "1 2", "0000000", "000000000", "0000000G", "ABCDEF01", "+1234567", "-", "nan", "inf", '"', "é", ""]
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(good_row, min_size=14, max_size=24),
    spoiled=st.lists(spoil, max_size=1),
    ragged=st.sampled_from([0, 0, 0, 0, 1, -1]),
    both=st.booleans(),
    cut=st.sampled_from([0, 0, 0, 1, 3]),
    place=st.integers(0, 13),
    block_bytes=st.integers(50, 3000),
)
def test_the_loader_is_a_plain_loop_or_both_refuse(
    tmp_path, monkeypatch, rows, spoiled, ragged, both, cut, place, block_bytes
):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    for column, value in spoiled:
        rows[place][column] = value
    if ragged > 0:
        rows[place].append("1")
    if ragged < 0 or (ragged and both):
        rows[place - 1].pop()
    text = "\n".join("\t".join(row) for row in rows) + "\n"
    text = text[: len(text) - cut]
    path = tmp_path / "train.txt"
    path.write_text(text, newline="")
    expected = obvious_criteo(text)
    ordered = dataclasses.replace(CRITEO_KAGGLE, rows=None, table_rows=None)
    if expected is None:
        with pytest.raises(RawError, match=r"train\.txt:\d+: "):
            preprocess(ordered, tmp_path / "out", path)
        assert not (tmp_path / "out").exists()
        return
    preprocess(ordered, tmp_path / "out", path)
    found = decoded(tmp_path / "out")
    assert [(label, ids) for label, _, ids in found] == [(label, ids) for label, _, ids in expected]
    np.testing.assert_allclose([row[1] for row in found], [row[1] for row in expected], rtol=1e-6)
    shutil.rmtree(tmp_path / "out")


@pytest.fixture(scope="module")
def criteo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("criteo") / "train.txt"
    synthesize("criteo-kaggle", 7003, path)
    return path


@pytest.fixture(scope="module")
def avazu(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("avazu") / "train.csv"
    synthesize("avazu", 5000, path)
    return path


def spoiled_line(path: Path, number: int, change) -> list[str]:
    lines = path.read_text().split("\n")
    lines[number - 1] = change(lines[number - 1])
    return lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.rpartition("\t")[0], "train.txt:70: 39 fields; expected 40"),
        (lambda line: line + "\t1", "train.txt:70: 41 fields; expected 40"),
        (lambda line: "2" + line[1:], "train.txt:70: column 'label' is '2'; expected 0 or 1"),
        (
            lambda line: "\t".join(["0", "1x", *line.split("\t")[2:]]),
            "train.txt:70: column 'I1' is '1x'; expected a number",
        ),
        (lambda line: line[:-1] + "G", "expected 8 hexadecimal digits, or nothing"),
        (lambda line: line[:-1] + "A", "expected 8 hexadecimal digits, or nothing"),
        (lambda line: line[:-1], "train.txt:70: column 'C26' is"),
    ],
)
def test_a_bad_criteo_row_is_named_and_nothing_is_left(criteo, tmp_path, change, message):
    path = tmp_path / "train.txt"
    path.write_text("\n".join(spoiled_line(criteo, 70, change)))
    with pytest.raises(RawError) as error:
        preprocess(CRITEO_KAGGLE, tmp_path / "out", path)
    assert message in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["train.txt"]


def test_cut_files_are_refused(criteo, tmp_path):
    text = criteo.read_bytes()
    (tmp_path / "train.txt").write_bytes(text[:-1])  # as if cut behind the last digit
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text)[:-1000])
    with zipfile.ZipFile(tmp_path / "two.txt.zip", "w") as archive:
        archive.writestr("a", text)
        archive.writestr("b", text)
    (tmp_path / "cut.txt.zip").write_bytes((tmp_path / "two.txt.zip").read_bytes()[:-100])
    for name, message in (
        ("train.txt", r"train\.txt:7003: the last line has no end"),
        ("empty.txt", "0 rows; expected at least 10"),
        ("train.txt.gz", r"train\.txt\.gz: the compressed stream is cut or damaged"),
        ("two.txt.zip", "holds 2 files; expected one"),
        ("cut.txt.zip", r"cut\.txt\.zip: the compressed stream is cut or damaged"),
    ):
        with pytest.raises(RawError, match=message):
            preprocess(CRITEO_KAGGLE, tmp_path / "out", tmp_path / name)
        assert not list(tmp_path.glob("out*"))


def test_compressed_files_are_read_as_they_are(criteo, tmp_path):
    plain = preprocess(CRITEO_KAGGLE, tmp_path / "plain", criteo)
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(criteo.read_bytes()))
    with zipfile.ZipFile(tmp_path / "train.txt.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(criteo, "train.txt")
    for name in ("train.txt.gz", "train.txt.zip"):
        schema = preprocess(CRITEO_KAGGLE, tmp_path / "out", tmp_path / name)
        assert schema.source == {**plain.source, "name": name}
        for array in ("dense.npy", "sparse.npy", "label.npy"):
            assert (tmp_path / "out" / array).read_bytes() == (tmp_path / "plain" / array).read_bytes()


def test_criteo_is_split_by_days(criteo, tmp_path):
    schema = preprocess(CRITEO_KAGGLE, tmp_path / "out", criteo)
    days = [len(day) for day in np.array_split(np.arange(7003), 7)]
    assert schema.rows == {"train": sum(days[:6]), "validation": days[6] - days[6] // 2, "test": days[6] // 2}
    assert load(tmp_path / "out").label.tolist() == [int(line[0]) for line in criteo.read_text().splitlines()]


def test_a_full_disk_leaves_nothing(criteo, tmp_path):
    # a limit on the size of files stops a write as a full disk does
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); from dlrm_mlet.__main__ "
    code += "import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["preprocess", "criteo-kaggle", "--raw", str(criteo), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("dlrm-mlet: error: ")
    assert "couldn't be written (" in done.stderr
    assert "the disk has " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_avazus_hour_is_the_hour_of_day_and_as_published_it_is_constant(avazu, tmp_path, monkeypatch):
    lines = avazu.read_text().splitlines()[1:]
    preprocess(dataclasses.replace(AVAZU, split="ordered"), tmp_path / "ours", avazu)
    expected = [math.log(1 + int(line.split(",")[2][-2:])) for line in lines]
    np.testing.assert_allclose(load(tmp_path / "ours").dense[:, 0].numpy(), expected, rtol=1e-6)

    monkeypatch.setattr("dlrm_mlet.data.preprocess.LOADER_ROWS", 700)
    published = dataclasses.replace(AVAZU_AS_PUBLISHED, split="ordered")
    schema = preprocess(published, tmp_path / "published", avazu)
    columns = load(tmp_path / "published")
    assert sum(schema.rows.values()) == 7 * 700  # the first row, every 701st and the tail are lost
    np.testing.assert_allclose(columns.dense.numpy(), math.log(6), rtol=1e-6)
    kept = [line for i, line in enumerate(lines[1:]) if i % 701 < 700][: 7 * 700]
    assert columns.label.tolist() == [int(line.split(",")[1]) for line in kept]


def test_avazu_without_its_header_is_refused(avazu, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(avazu.read_text().partition("\n")[2])
    with pytest.raises(RawError, match=r"train\.csv:1: no column 'click'; expected it once among 1000000000000000000"):
        preprocess(AVAZU, tmp_path / "out", path)


def test_another_file_of_the_same_shape_is_named_when_it_is_whole(criteo, tmp_path, capsys):
    whole = dataclasses.replace(CRITEO_KAGGLE, rows=7003)
    schema = preprocess(whole, tmp_path / "out", criteo)
    assert any(message.startswith("column 'C3' has ") for message in schema.mismatches)
    assert preprocess(CRITEO_KAGGLE, tmp_path / "part", criteo).mismatches == ()


@needs_samples
def test_real_criteo_rows_train_to_a_sensible_auc(tmp_path):
    path = SAMPLES / "criteo-kaggle" / "train.txt"
    schema = preprocess(CRITEO_KAGGLE, tmp_path / "data", path)
    fields = [line.split("\t") for line in path.read_text().splitlines()]
    assert schema.table_rows == tuple(len({row[14 + i] for row in fields}) for i in range(26))
    model = ModelConfig(embedding_dim=4, inner_dim=64, bottom_mlp=(512, 256, 128), top_mlp=(512, 256))
    record = train(Config("criteo-kaggle", model, TrainingConfig()), load(tmp_path / "data"), 0, tmp_path / "run")
    assert record.metrics["validation"]["auc"] > 0.55  # 714 rows: a standard error of 0.025
    assert record.metrics["test"]["auc"] > 0.55


@needs_samples
def test_real_avazu_rows_train_to_a_sensible_auc(tmp_path):
    path = SAMPLES / "avazu" / "train.csv"
    schema = preprocess(AVAZU, tmp_path / "data", path)
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    assert schema.table_rows == tuple(len({row[header.index(c)] for row in rows}) for c in AVAZU.categorical)
    model = ModelConfig(embedding_dim=4, inner_dim=64, bottom_mlp=(256, 128), top_mlp=(512, 256))
    record = train(Config("avazu", model, TrainingConfig()), load(tmp_path / "data"), 0, tmp_path / "run")
    assert record.metrics["validation"]["auc"] > 0.6
    assert record.metrics["test"]["auc"] > 0.6


@needs_samples
def test_the_terabyte_sample_is_not_criteo_kaggle(tmp_path):
    sample = SAMPLES / "criteo-terabyte" / "day_0.txt"
    as_if_whole = dataclasses.replace(CRITEO_KAGGLE, rows=10_000)
    assert preprocess(as_if_whole, tmp_path / "data", sample).mismatches


def test_ids_that_look_like_numbers_stay_apart(tmp_path):
    rng = random.Random(0)
    identifiers = ["12e34567", "00001234", "00000000", "1e340000", ""]
    lines = ["\t".join(["1", *["5"] * 13, *rng.choices(identifiers, k=26)]) for _ in range(50)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    schema = preprocess(CRITEO_KAGGLE, tmp_path / "out", tmp_path / "train.txt")
    assert schema.table_rows == tuple(len({line.split("\t")[14 + i] for line in lines}) for i in range(26))
