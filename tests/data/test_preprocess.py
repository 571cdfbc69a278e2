"""Columns on disk are what a plain loop over the raw rows makes of them; a failure leaves nothing behind."""

import csv
import dataclasses
import gzip
import math
import resource
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_mlet.__main__ import main
from dlrm_mlet.data import delimited
from dlrm_mlet.data.blocks import RawError
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import COMPLETE_JOURNEY, COMPLETE_JOURNEY_BY_TIME, FLIGHTS, Dataset
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.schema import SPLITS
from dlrm_mlet.data.spool import put
from dlrm_mlet.data.vocabulary import vocabulary_file
from tests.conftest import CLICKS

ORDERED = dataclasses.replace(CLICKS, split="ordered")


def obvious_columns(path: Path) -> tuple[list[list[float]], list[list[int]], list[int], list[list[str]]]:
    """dense, ids, labels and vocabularies of CLICKS, row by row in file order."""
    dense, ids, labels = [], [], []
    seen: list[dict[str, int]] = [{} for _ in CLICKS.categorical]
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            price = float(row["price"] or 0)
            dense.append([float(row["age"] or 0), math.log(1 + max(price, 0))])
            ids.append([v.setdefault(row[c], len(v)) for c, v in zip(CLICKS.categorical, seen, strict=True)])
            labels.append(int(row["clicked"]))
    return dense, ids, labels, [list(values) for values in seen]


@pytest.mark.parametrize("block_bytes", [1 << 10, 1 << 26])
def test_rows_in_file_order_are_those_of_a_plain_loop(clicks_csv, tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    schema = preprocess(ORDERED, tmp_path / "out", clicks_csv)
    columns = load(tmp_path / "out")
    dense, ids, labels, values = obvious_columns(clicks_csv)
    np.testing.assert_allclose(columns.dense.numpy(), dense, rtol=1e-6)
    assert columns.sparse.tolist() == ids
    assert columns.label.tolist() == labels
    assert schema.table_rows == tuple(map(len, values))
    assert schema.rows == {"train": 2400, "validation": 300, "test": 300}
    for column, expected in zip(CLICKS.categorical, values, strict=True):
        assert pl.read_ipc(tmp_path / "out" / "vocabulary" / f"{column}.arrow")[column].to_list() == expected


def test_a_random_split_deals_out_the_same_rows(clicks_csv, tmp_path):
    preprocess(ORDERED, tmp_path / "ordered", clicks_csv)
    preprocess(CLICKS, tmp_path / "zero", clicks_csv)
    preprocess(CLICKS, tmp_path / "again", clicks_csv)
    preprocess(dataclasses.replace(CLICKS, split_seed=1), tmp_path / "one", clicks_csv)
    ordered, zero, again, one = (
        np.hstack([c.dense, c.sparse, c.label[:, None]])
        for c in (load(tmp_path / name) for name in ("ordered", "zero", "again", "one"))
    )
    assert (zero == again).all()
    assert (zero != one).any()
    assert (np.sort(zero.view("V24").ravel()) == np.sort(ordered.view("V24").ravel())).all()


def test_parquet_gives_what_csv_gives(clicks_csv, tmp_path):
    pl.read_csv(clicks_csv).write_parquet(tmp_path / "clicks.parquet")
    preprocess(CLICKS, tmp_path / "csv", clicks_csv)
    preprocess(CLICKS, tmp_path / "parquet", tmp_path / "clicks.parquet")
    for name in ("dense", "sparse", "label"):
        assert (tmp_path / "csv" / f"{name}.npy").read_bytes() == (tmp_path / "parquet" / f"{name}.npy").read_bytes()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("u,2,30,a,1,s,", "clicks.csv:102: column 'clicked' is '2'; expected 0 or 1"),
        ("u,,30,a,1,s,", "clicks.csv:102: column 'clicked' is None; expected 0 or 1"),
        ("u,1,old,a,1,s,", "clicks.csv:102: column 'age' is 'old'; expected a number"),
        ("u,1,inf,a,1,s,", "clicks.csv:102: column 'age' is inf; expected a number"),
        ("u,1,30,a,1", "clicks.csv:102: 5 fields; expected 7"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_left(clicks_csv, tmp_path, monkeypatch, row, message):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1000)
    lines = clicks_csv.read_text().splitlines()
    lines[101] = row
    path = tmp_path / "clicks.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(RawError) as error:
        preprocess(CLICKS, tmp_path / "out", path)
    assert message in str(error.value)
    assert [found.name for found in tmp_path.iterdir()] == ["clicks.csv"]


def test_a_failure_keeps_the_data_set_that_was_there(clicks_csv, tmp_path):
    preprocess(CLICKS, tmp_path / "out", clicks_csv)
    bad = tmp_path / "bad.csv"
    bad.write_text("user,clicked,age,ad,price,site\n")
    with pytest.raises(RawError, match="0 rows; expected at least 10"):
        preprocess(CLICKS, tmp_path / "out", bad)
    assert sum(load(tmp_path / "out").schema.rows.values()) == 3000


def test_a_data_set_that_is_not_bundled_needs_its_raw_file(tmp_path):
    with pytest.raises(RawError, match=r"expected the path of its raw file \(--raw\)"):
        preprocess(CLICKS, tmp_path / "out")


def test_counts_that_a_whole_data_set_has_are_checked(clicks_csv, tmp_path):
    whole = dataclasses.replace(CLICKS, rows=3000, table_rows=(201, 21, 2))
    assert preprocess(whole, tmp_path / "out", clicks_csv).mismatches == ()
    for wrong, message in (
        ({"table_rows": (201, 20, 2)}, "column 'ad' has 21 distinct values; expected 20"),
        ({"rows": 2999}, "3,000 rows; expected 2,999"),
    ):
        schema = preprocess(dataclasses.replace(whole, **wrong), tmp_path / "wrong", clicks_csv)
        assert schema.mismatches == (message,)
        assert load(tmp_path / "wrong").schema.mismatches == (message,)
    part = preprocess(dataclasses.replace(whole, rows=3001), tmp_path / "part", clicks_csv)
    assert part.mismatches == ()


def test_flights_are_what_is_known_of_them(tmp_path):
    schema = preprocess(FLIGHTS, tmp_path / "flights")
    assert schema.mismatches == ()
    columns = load(tmp_path / "flights")
    assert schema.table_rows[schema.categorical.index("tailnum")] == 4037
    assert 0.24 < columns.label.float().mean() < 0.25
    for split in SPLITS:
        start, stop = columns.range(split)
        assert abs((stop - start) / 327_346 - {"train": 0.8}.get(split, 0.1)) < 1e-5
        assert abs(columns.label[start:stop].float().mean() - columns.label.float().mean()) < 0.01
    distance = columns.dense[:, schema.dense.index("distance")]
    assert 17 <= round(math.exp(distance.min()) - 1) < round(math.exp(distance.max()) - 1) == 4983  # miles


def test_complete_journey_is_what_is_known_of_it(tmp_path):
    schema = preprocess(COMPLETE_JOURNEY, tmp_path / "random")
    assert schema.mismatches == ()
    columns = load(tmp_path / "random")
    assert columns.label.float().mean().item() == pytest.approx(0.501, abs=0.0005)
    assert columns.dense.unique().numel() == 24


def test_complete_journey_by_time_asks_for_the_last_weeks(tmp_path):
    schema = preprocess(COMPLETE_JOURNEY_BY_TIME, tmp_path / "by-time")
    columns = load(tmp_path / "by-time")
    weeks = pl.read_ipc(tmp_path / "by-time" / "vocabulary" / "week.arrow")["week"].cast(pl.Int8).to_numpy()
    found = weeks[columns.sparse[:, schema.categorical.index("week")].numpy()]
    last_of_training, first_of_test = columns.range("train")[1] - 1, columns.range("test")[0]
    assert (np.diff(found) >= 0).all()
    assert found[0] == 1
    assert found[last_of_training] < found[first_of_test] < found[-1] == 53


def small(tmp_path, table: dict[str, list], **keys) -> tuple[list[int], list[list]]:
    """Labels, and the values of each categorical column, of a data set in its own order."""
    pl.DataFrame(table).write_csv(tmp_path / "t.csv")
    names = tuple(name for name in table if name != "y")
    dataset = Dataset("small", "y", (), names, split="ordered", **keys)
    preprocess(dataset, tmp_path / "out", tmp_path / "t.csv")
    columns = load(tmp_path / "out")
    values = [pl.read_ipc(vocabulary_file(tmp_path / "out" / "vocabulary", name)).to_series() for name in names]
    return columns.label.tolist(), [
        [values[f][i] for i in column] for f, column in enumerate(columns.sparse.t().tolist())
    ]


@pytest.mark.parametrize(
    ("zero", "one", "keys"),
    [
        ("0", "1", {}),
        ("0.0", "1.0", {}),
        ("false", "TRUE", {}),
        ("-1", "1", {}),
        ("no", "yes", {"positive": "yes"}),
        ("1", "2", {"positive": "2"}),
    ],
)
def test_labels_of_two_kinds_are_0_and_1(tmp_path, zero, one, keys):
    labels, _ = small(tmp_path, {"y": [zero, one, one] * 4, "a": ["x"] * 12}, **keys)
    assert labels == [0, 1, 1] * 4


@pytest.mark.parametrize(
    ("values", "keys", "message"),
    [
        (["yes", "no"], {}, r"'yes'; expected 0 or 1.*a key `positive`.*around there: 'yes' 6 times, 'no' 6 times"),
        (["0", "1", "-1"], {}, "expected 0 or 1"),
        (["0", "1", "2"], {}, r"t\.csv:4: column 'y' is '2'; expected 0 or 1"),
        (["yes", "no", "maybe"], {"positive": "yes"}, "expected 'yes' or one other value, and these are others"),
        (["1", ""], {}, r"t\.csv:3: column 'y' is ''; expected 0 or 1"),
        (["yes", ""], {"positive": "yes"}, r"t\.csv:3: column 'y' is ''; expected 'yes' or one other"),
    ],
)
def test_other_labels_are_refused_with_what_was_found(tmp_path, values, keys, message):
    with pytest.raises(RawError, match=message):
        small(tmp_path, {"y": (values * 6)[:12], "a": ["x"] * 12}, **keys)


def test_numbers_below_0_that_become_0_are_told_of(tmp_path, capsys):
    """Once half a column was 0 without a word."""
    (tmp_path / "shop.toml").write_text(
        'name = "shop"\nlabel = "y"\ndense = ["balance", "depth"]\ncategorical = ["a"]\nsplit = "ordered"\n'
        '[transform]\ndepth = "identity"\n'
    )
    (tmp_path / "t.csv").write_text("y,a,balance,depth\n" + "0,x,-5,-1\n1,x,7,-1\n" * 50)
    call = [
        "preprocess",
        str(tmp_path / "shop.toml"),
        "--raw",
        str(tmp_path / "t.csv"),
        "--out",
        str(tmp_path / "shop"),
    ]
    assert main(call) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "below 0" in line]
    assert said == [
        "dlrm-mlet: warning: shop: balance: 50 of 100 numbers are below 0, which log1p takes as 0; see [transform] "
        'balance = "identity"'
    ]


def test_whole_numbers_are_one_value_however_they_are_written_and_text_stays_text(tmp_path):
    written = ["5", "5.0", "005", "+5", "-5", "", "00001234", "1234", "12", "1", "2", "3"]
    table = {"y": ["0", "1"] * 6, "id": written, "text": written}
    _, (ids, texts) = small(tmp_path, table, integer=("id",))
    assert ids == ["5", "5", "5", "5", "-5", "", "1234", "1234", "12", "1", "2", "3"]
    assert texts == written
    with pytest.raises(RawError, match=r"t\.csv:3: column 'id' is '5\.5'; expected a whole number"):
        small(tmp_path, table | {"id": ["1", "5.5", *written[2:]]}, integer=("id",))


@pytest.mark.parametrize("name", ["../evil", "ts/age", "a[0]", "with space", "ü", "x" * 300, ".", "..", "a\\b", "CON:"])
def test_names_of_columns_decide_nothing_about_files(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    _, (values,) = small(inside, {"y": ["0", "1"] * 6, name: list("abcdefabcdef")})
    assert values == list("abcdefabcdef")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside"]
    assert sorted(path.name for path in inside.iterdir()) == ["out", "t.csv"]
    assert len(list((inside / "out" / "vocabulary").iterdir())) == 1


def test_hundreds_of_columns_need_few_open_files(tmp_path):
    table = {"y": ["0", "1"] * 6} | {f"c{i}": [str(j % (i + 1)) for j in range(12)] for i in range(300)}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        _, columns = small(tmp_path, table)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert columns == [table[f"c{i}"] for i in range(300)]


@pytest.mark.parametrize("number", ["1e300", "-1e39"])
def test_a_number_that_float32_does_not_have_is_refused(tmp_path, number):
    (tmp_path / "t.csv").write_text("y,x,a\n" + "0,1,a\n" * 12 + f"1,{number},a\n")
    dataset = Dataset("small", "y", ("x",), ("a",), transform={"x": "identity"})
    with pytest.raises(RawError, match=r"t\.csv:14: column 'x' is .*; expected a number that float32 has"):
        preprocess(dataset, tmp_path / "out", tmp_path / "t.csv")


def test_the_name_of_the_file_is_nothing_to_the_data_set(clicks_csv, tmp_path):
    prints = set()
    for name in ("a.csv", "b.csv", "c.csv.gz"):
        data = clicks_csv.read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        preprocess(CLICKS, tmp_path / "out", tmp_path / name)
        prints.add(load(tmp_path / "out").schema.fingerprint)
    assert len(prints) == 1


def test_other_rows_replace_a_data_set_only_when_told(clicks_csv, tmp_path):
    preprocess(CLICKS, tmp_path / "out", clicks_csv)
    preprocess(CLICKS, tmp_path / "out", clicks_csv)  # the same rows
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join(clicks_csv.read_text().split("\n")[:500]))
    with pytest.raises(RawError, match=r"out: has clicks of clicks\.csv; expected another --out, or --force"):
        preprocess(CLICKS, tmp_path / "out", fewer)
    with pytest.raises(RawError, match="out: has clicks of"):
        preprocess(dataclasses.replace(CLICKS, name="others"), tmp_path / "out", clicks_csv)
    assert load(tmp_path / "out").schema.rows["train"] == 2400
    preprocess(CLICKS, tmp_path / "out", fewer, force=True)
    assert load(tmp_path / "out").schema.rows["train"] == 401


def test_a_few_numbers_on_a_full_disk_are_an_error():
    """numpy's tofile kept them for its end, and said nothing."""
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        put(file, np.arange(9))
