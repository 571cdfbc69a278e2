"""Splits, rare values, hashes, several values a row, times and weights: columns beside a plain loop over the rows."""

import csv
import datetime
import json
import random
import shutil
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_mlet.data.blocks import RawError
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import Dataset, MultiValued, Time
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.schema import SPLITS, ColumnsError
from dlrm_mlet.data.spool import places
from dlrm_mlet.toml import ConfigError, build

HEADER = ["clicked", "age", "user", "tags", "ts", "part", "w"]


def rows_of(seed: int, count: int = 600, users: int = 90, first_user: int = 0) -> list[list[str]]:
    """Rows in no order of time, with rare users, lists of 0 to 4 tags, and a part that is named."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        user = f"u{first_user + int(rng.paretovariate(1)) % users}" if rng.random() > 0.05 else ""
        tags = "|".join(f"t{rng.randrange(12)}" for _ in range(rng.randrange(5)))
        at = datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=rng.randrange(60 * 24 * 30))
        part = rng.choices(["train", "valid", "test"], [7, 2, 1])[0]
        found.append([str(rng.randrange(2)), str(rng.randrange(80)), user, tags, str(at), part, f"{rng.random():.3f}"])
    return found


def write(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


@pytest.fixture
def rows():
    return rows_of(1)


@pytest.fixture
def raw(rows, tmp_path):
    return write(tmp_path / "raw.csv", rows)


def made(tmp_path, raw, **keys):
    keys = {"name": "own", "label": "clicked", "dense": ["age"], "categorical": ["user"]} | keys
    out = tmp_path / "out"
    schema = preprocess(build(Dataset, keys), out, raw, force=True)
    return schema, load(out), {name: values_of(out, name) for name in keys["categorical"]}


def values_of(out: Path, name: str) -> list[str | None]:
    file = out / "vocabulary" / f"{name}.arrow"
    return pl.read_ipc(file)[name].to_list() if file.exists() else []


def laid_out(rows: list[list[str]], of_row: list[int]) -> list[list[str]]:
    return [row for split in range(3) for row, its in zip(rows, of_row, strict=True) if its == split]


def user_ids(values: list[str | None], fallback: int, rows: list[list[str]]) -> list[int]:
    return [values.index(row[2]) if row[2] in values else fallback for row in rows]


@pytest.mark.parametrize("fractions", [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
@pytest.mark.parametrize("split", ["ordered", "random"])
def test_fractions_decide_how_many_rows_a_split_has(tmp_path, raw, rows, split, fractions):
    schema, columns, values = made(tmp_path, raw, split=split, fractions=fractions)
    assert [schema.rows[name] for name in SPLITS] == [round(600 * share) for share in fractions]
    assert sorted(columns.sparse[:, 0].tolist()) == sorted(user_ids(values["user"], -9, rows))
    if split == "ordered":
        assert columns.sparse[:, 0].tolist() == user_ids(values["user"], -9, rows)


@pytest.mark.parametrize("keys", [{}, {"fractions": [0.7, 0.2, 0.1]}, {"split_at": ["2024-01-20 12:00", "2024-01-25"]}])
@pytest.mark.parametrize("epoch", [False, True])
def test_a_split_by_time_trains_on_what_came_first_and_numbers_it_alone(tmp_path, rows, keys, epoch):
    if epoch:
        rows = [[*r[:4], str(int(datetime.datetime.fromisoformat(r[4] + "+00:00").timestamp())), *r[5:]] for r in rows]
    raw = write(tmp_path / "raw.csv", rows)
    schema, columns, values = made(tmp_path, raw, split="time", split_by="ts", **keys)
    times = [
        datetime.datetime.fromtimestamp(int(row[4]), datetime.UTC).replace(tzinfo=None)
        if epoch
        else datetime.datetime.fromisoformat(row[4])
        for row in rows
    ]
    if "split_at" in keys:
        starts = [datetime.datetime.fromisoformat(text) for text in keys["split_at"]]
    else:
        shares = keys.get("fractions", [0.8, 0.1, 0.1])
        starts = [sorted(times)[round(600 * sum(shares[:i]))] for i in (1, 2)]
    of_row = [sum(time >= start for start in starts) for time in times]
    assert [schema.rows[name] for name in SPLITS] == [of_row.count(i) for i in range(3)]
    expected = laid_out(rows, of_row)
    assert columns.label.tolist() == [int(row[0]) for row in expected]
    known = list(dict.fromkeys(row[2] for row, its in zip(rows, of_row, strict=True) if its == 0))
    assert values["user"] == known
    assert schema.fallback == (known.index(""),)
    assert columns.sparse[:, 0].tolist() == user_ids(known, known.index(""), expected)


def test_a_split_by_a_column_and_by_files_are_the_same(tmp_path, raw, rows):
    schema, columns, values = made(tmp_path, raw, split="column", split_by="part")
    parts = ["train", "valid", "test"]
    files = [write(tmp_path / f"{part}.csv", [row for row in rows if row[5] == part]) for part in parts]
    again, same, others = made(tmp_path, files, split="files")
    expected = [row for part in parts for row in rows if row[5] == part]
    assert columns.label.tolist() == same.label.tolist() == [int(row[0]) for row in expected]
    assert schema.rows == again.rows
    assert columns.sparse.tolist() == same.sparse.tolist()
    assert values == others
    assert set(values["user"]) == {row[2] for row in rows if row[5] == "train"}
    _, columns, values = made(tmp_path, files, split="files", vocabulary="all")
    assert set(values["user"]) == {row[2] for row in rows}
    assert columns.sparse[:, 0].tolist() == user_ids(values["user"], -9, expected)
    with pytest.raises(RawError, match="2 raw files; expected three"):
        made(tmp_path, files[:2], split="files")


def test_several_files_are_one_after_another(tmp_path, raw, rows):
    files = [write(tmp_path / f"{i}.csv", rows[i * 200 : (i + 1) * 200]) for i in range(3)]
    one, several = made(tmp_path, raw)[1], made(tmp_path, files)[1]
    assert one.sparse.tolist() == several.sparse.tolist()
    bad = write(tmp_path / "3.csv", [*rows[:5], ["1", "old", "u", "", "", "", ""]])
    with pytest.raises(RawError, match=r"3\.csv:7: column 'age' is 'old'"):
        made(tmp_path, [*files, bad])


@pytest.mark.parametrize("vocabulary", ["all", "train"])
@pytest.mark.parametrize("least", [2, 3, 10])
def test_rare_values_share_a_row(tmp_path, raw, rows, least, vocabulary):
    schema, columns, values = made(tmp_path, raw, split="ordered", min_count=least, vocabulary=vocabulary)
    training = [row[2] for row in rows[:480]]
    kept = [value for value in dict.fromkeys(row[2] for row in rows) if training.count(value) >= least]
    assert values["user"] == [*kept, None]
    assert (schema.table_rows, schema.fallback) == ((len(kept) + 1,), (len(kept),))
    assert columns.sparse[:, 0].tolist() == user_ids(kept, len(kept), rows)


def test_rare_hexadecimal_values_share_a_row(tmp_path, rows):
    rows = [[*row[:2], f"{zlib.crc32(row[2].encode()):08x}" if row[2] else "", *row[3:]] for row in rows]
    raw = write(tmp_path / "raw.csv", rows)
    _, columns, values = made(tmp_path, raw, split="ordered", min_count={"user": 3}, hexadecimal=["user"])
    training = [row[2] for row in rows[:480]]
    assert set(values["user"]) == {None, *(value for value in training if training.count(value) >= 3)}
    assert columns.sparse[:, 0].tolist() == user_ids(values["user"], values["user"].index(None), rows)


def test_hashed_values_need_no_vocabulary(tmp_path, raw, rows):
    schema, columns, values = made(tmp_path, raw, split="ordered", hash_buckets={"user": 17})
    assert (schema.table_rows, values["user"]) == ((17,), [])
    assert columns.sparse[:, 0].tolist() == [zlib.crc32(row[2].encode()) % 17 for row in rows]


@pytest.mark.parametrize("as_lists", [False, True])
@pytest.mark.parametrize("longer", ["refuse", "first", "last"])
def test_a_column_may_have_several_values_a_row(tmp_path, rows, longer, as_lists):
    raw = write(tmp_path / "raw.csv", rows)
    if as_lists:
        table = pl.read_csv(raw, infer_schema=False).with_columns(pl.col("tags").fill_null("").str.split("|"))
        raw = tmp_path / "raw.parquet"
        table.write_parquet(raw)
    most = 4 if longer == "refuse" else 2
    keys = {"max_values": most, "longer": longer, "pooling": "sum", "column": "tags"}
    categorical = ["labels", "user"]
    schema, columns, values = made(
        tmp_path, raw, split="ordered", categorical=categorical, multi_valued={"labels": keys}
    )
    assert (schema.slots, schema.pooling) == ((most, 1), ("sum", ""))
    for row, ids in zip(rows, columns.sparse[:, :most].tolist(), strict=True):
        tags = [tag for tag in row[3].split("|") if tag]
        tags = tags[-most:] if longer == "last" else tags[:most]
        assert [values["labels"][id] for id in ids if id >= 0] == tags
        assert ids[len(tags) :] == [-1] * (most - len(tags))
    assert columns.sparse[:, most].tolist() == user_ids(values["user"], -9, rows)
    if longer == "refuse":
        with pytest.raises(RawError, match=r"column 'tags' is .*; expected at most max_values = 2 values, or longer"):
            made(tmp_path, raw, categorical=["tags"], multi_valued={"tags": {"max_values": 2}})


def test_unseen_and_rare_values_of_a_bag_are_left_out_or_shared(tmp_path, raw, rows):
    keys = {"split": "ordered", "categorical": ["tags"], "multi_valued": {"tags": {"max_values": 4}}}
    rows[500][3] = "t3|new|t4"
    write(raw, rows)
    schema, columns, values = made(tmp_path, raw, vocabulary="train", **keys)
    assert schema.fallback == (-1,)
    assert columns.sparse[500].tolist() == [values["tags"].index("t3"), -1, values["tags"].index("t4"), -1]
    schema, columns, values = made(tmp_path, raw, min_count=2, **keys)
    assert columns.sparse[500, 1].item() == schema.fallback[0] == values["tags"].index(None)


def test_a_bag_that_is_empty_in_all_rows_of_training_is_refused(tmp_path, rows):
    rows = [[*row[:3], "t1" if i > 500 else "", *row[4:]] for i, row in enumerate(rows)]
    keys = {"categorical": ["tags"], "multi_valued": {"tags": {}}, "split": "ordered", "vocabulary": "train"}
    with pytest.raises(RawError, match=r"raw\.csv: column 'tags' has no value at all in training; expected some"):
        made(tmp_path, write(tmp_path / "raw.csv", rows), **keys)
    assert not (tmp_path / "out").exists()


def test_parts_of_a_time_are_columns(tmp_path, raw, rows):
    times = {part: {"column": "ts", "part": part} for part in ("hour", "weekday", "day")}
    schema, columns, values = made(
        tmp_path, raw, split="ordered", dense=["hour"], categorical=["weekday", "day"], times=times
    )
    at = [datetime.datetime.fromisoformat(row[4]) for row in rows]
    assert columns.dense[:, 0].tolist() == [time.hour for time in at]
    assert schema.transform == {"hour": "identity"}
    assert [values["weekday"][id] for id in columns.sparse[:, 0]] == [str(time.isoweekday()) for time in at]
    assert [values["day"][id] for id in columns.sparse[:, 1]] == [str(time.day) for time in at]
    rows[7][4] = "yesterday"
    with pytest.raises(RawError, match=r"raw\.csv:9: column 'ts' is 'yesterday'; expected a time, as 2014-10-21"):
        made(tmp_path, write(raw, rows), dense=["hour"], times={"hour": times["hour"]})


def test_weights_have_a_mean_of_1_over_training(tmp_path, raw, rows):
    _, columns, _ = made(tmp_path, raw, split="ordered", weight="w")
    weights = np.array([float(row[6]) for row in rows])
    np.testing.assert_allclose(columns.weight, weights / weights[:480].mean(), rtol=1e-5)
    for wrong, expected in (("-1", "a weight of 0 or more"), ("", "a weight"), ("much", "a number")):
        rows[3][6] = wrong
        with pytest.raises(RawError, match=rf"raw\.csv:5: column 'w' is .*; expected {expected}"):
            made(tmp_path, write(raw, rows), weight="w")
    with pytest.raises(RawError, match="all weights of train are 0"):
        made(tmp_path, write(raw, [[*row[:6], "0"] for row in rows]), weight="w")


def test_going_on_keeps_the_ids_and_adds_new_ones(tmp_path, rows):
    later = rows_of(2, first_user=60)
    for n, keys in enumerate([{}, {"min_count": 3}, {"multi_valued": {"user": {"separator": "9"}}}]):
        dataset = build(
            Dataset,
            {"name": "own", "label": "clicked", "dense": ["age"], "categorical": ["user"], "split": "ordered"} | keys,
        )
        first, second = tmp_path / f"first{n}", tmp_path / f"second{n}"
        before = preprocess(dataset, first, write(tmp_path / "a.csv", rows))
        after = preprocess(dataset, second, write(tmp_path / "b.csv", later), extend=first)
        old, new = values_of(first, "user"), values_of(second, "user")
        assert new[: len(old)] == old
        assert len(new) > len(old)
        assert after.extends == (before.fingerprint,)
        assert after.fallback == before.fallback
        for row, ids in zip(later, load(second).sparse.tolist(), strict=True):
            mine = [value for value in row[2].split("9") if value] if len(ids) > 1 else [row[2]]
            found = [new[id] for id in ids if id >= 0]
            assert found == [value if value in new else None for value in mine]
        assert preprocess(dataset, tmp_path / f"third{n}", tmp_path / "b.csv", extend=second).extends == (
            after.fingerprint, before.fingerprint,
        )  # fmt: skip
    other = build(Dataset, {"name": "own", "label": "clicked", "dense": [], "categorical": ["user"]})
    with pytest.raises(ColumnsError, match=r"its dense is \('age',\), and this data set's \(\)"):
        preprocess(other, tmp_path / "other", tmp_path / "b.csv", extend=tmp_path / "first0")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "time"}, "split_by = None: expected a column where split is time or column"),
        ({"split_by": "ts"}, "split_by = 'ts': expected a column where split is time or column, only"),
        ({"fractions": [0.8, 0.3, 0.1]}, "expected three above 0, of 1 in all"),
        ({"fractions": [0.9, 0.1]}, "expected three above 0, of 1 in all"),
        ({"fractions": [1.0, 0.0, 0.0]}, "expected three above 0, of 1 in all"),
        ({"split": "days", "fractions": [0.7, 0.2, 0.1]}, "split = 'days' has its own"),
        ({"split_at": ["2024-01-01", "2024-01-02"]}, 'and split = "time"'),
        ({"min_count": 0}, "min_count = 0: expected 1 or more"),
        ({"min_count": {"user": -1}}, "expected 1 or more"),
        ({"min_count": {"age": 2}}, "min_count: age is not a categorical column"),
        ({"hash_buckets": {"user": 0}}, "hash_buckets.user = 0: expected 1"),
        ({"hash_buckets": {"users": 3}}, "hash_buckets: users is not a categorical column"),
        ({"multi_valued": {"age": {}}}, "multi_valued: age is not a categorical column"),
        ({"multi_valued": {"user": {"max_values": 0}}}, "max_values = 0: expected 1 to 4096"),
        ({"multi_valued": {"user": {"pooling": "max"}}}, "multi_valued.user.pooling = 'max': expected one of"),
        ({"times": {"hour": {"column": "ts", "part": "hour"}}}, "times.hour: is neither a dense nor a categorical"),
        ({"times": {"user": {"column": "user", "part": "hour"}}}, "times.user: has the name of its raw column"),
        (
            {"times": {"user": {"column": "ts", "part": "hour"}}, "integer": ["user"]},
            "times.user: is a part of a time, and can be nothing else",
        ),
        ({"hexadecimal": ["user"], "integer": ["user"]}, "hexadecimal: user is in integer too"),
        ({"multi_valued": {"user": {}}, "hexadecimal": ["user"]}, "multi_valued.user: is hexadecimal too"),
        ({"multi_valued": {"user": {"separator": ", "}}}, "multi_valued.user.separator = ', ': expected one character"),
        (
            {"hash_buckets": {"user": 9}, "min_count": {"user": 2}},
            "hash_buckets.user: is numbered by",
        ),
        ({"lost_rows": True, "split": "files"}, "lost_rows: can't be with split = 'files'"),
        ({"weight": "age"}, "columns age are named twice"),
    ],
)
def test_keys_that_can_not_be_meant_are_refused(keys, message):
    with pytest.raises(ConfigError) as error:
        build(Dataset, {"name": "own", "label": "clicked", "dense": ["age"], "categorical": ["user"]} | keys)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "change", "message"),
    [
        ({"split": "column", "split_by": "part"}, (5, "holdout"), "column 'part' is 'holdout'; expected one of train"),
        ({"split": "time", "split_by": "ts"}, (4, ""), "column 'ts' is '': expected|; expected a time, by which"),
        (
            {"split": "time", "split_by": "ts", "split_at": ["2030-01-01", "2031-01-01"]},
            None,
            "no row is of validation",
        ),
        ({"split": "time", "split_by": "ts", "split_at": ["2030-01-01", "2029-01-01"]}, None, "the earlier one first"),
        ({"split": "time", "split_by": "ts", "split_at": ["then", "later"]}, None, r"split_at = .*: expected a time"),
    ],
)
def test_rows_that_can_not_be_split_are_refused(tmp_path, rows, keys, change, message):
    if change is not None:
        rows[11][change[0]] = change[1]
    with pytest.raises(RawError, match=message):
        made(tmp_path, write(tmp_path / "raw.csv", rows), **keys)
    assert not (tmp_path / "out").exists()


def test_old_data_sets_keep_their_fingerprint(tmp_path, raw):
    """What is new in a schema says nothing where it isn't used: checkpoints and records of before still fit."""
    schema, _, _ = made(tmp_path, raw)
    path = tmp_path / "out" / "schema.json"
    said = json.loads(path.read_text())
    for name in ("described", "fallback", "extends"):
        said.pop(name)
    path.write_text(json.dumps(said))
    assert load(tmp_path / "out").schema.fingerprint == schema.fingerprint
    assert made(tmp_path, raw, min_count=2)[0].fingerprint != schema.fingerprint


def test_a_time_and_a_bag_are_described_by_tables():
    assert build(Dataset, {
        "name": "own", "label": "l", "dense": [], "categorical": ["tags", "hour"],
        "multi_valued": {"tags": {"separator": ";"}}, "times": {"hour": {"column": "ts", "part": "hour"}},
    }) == Dataset(
        "own", "l", (), ("tags", "hour"),
        multi_valued={"tags": MultiValued(separator=";")}, times={"hour": Time("ts", "hour")},
    )  # fmt: skip


@pytest.mark.parametrize("known", [
    [7], [0, 2**32 - 1], range(0, 2**32, 2**16), range(0, 2**32, 2**12), [3**i % 2**32 for i in range(5000)],
])  # fmt: skip
def test_places_are_where_values_lie(known):
    known = np.unique(np.array(list(known), np.uint32))
    drawn = np.random.default_rng(0).integers(0, len(known), 300_000)
    assert (places(known[drawn], known) == drawn).all()
    assert places(known[:0], known[:0]).shape == (0,)


def test_a_fingerprint_differs_where_what_is_read_differs(tmp_path, rows):
    """Once a model trained with positive = "yes" was taken for one of positive = "no"."""
    raw = write(tmp_path / "raw.csv", [["yes" if row[0] == "1" else "no", *row[1:]] for row in rows])
    yes, no = (made(tmp_path, raw, positive=positive)[0].fingerprint for positive in ("yes", "no"))
    assert yes != no
    headless = tmp_path / "raw.tsv"
    headless.write_text("".join("\t".join([row[0], row[1], row[6], row[2]]) + "\n" for row in rows))
    one, other = (
        made(tmp_path, headless, dense=["a", "b"], categorical=["u"], columns=names)[0].fingerprint
        for names in (["clicked", "a", "b", "u"], ["clicked", "b", "a", "u"])
    )
    assert one != other


def test_what_unknown_values_count_as_was_trained(tmp_path, rows):
    """A missing value that only validation has teaches nothing; in week 2 there are rare values to share a row."""
    rows = [[*row[:2], row[2] or "u1", *row[3:]] for row in rows]
    rows[590][2] = ""
    schema, _, values = made(tmp_path, write(tmp_path / "a.csv", rows), split="ordered")
    training = [row[2] for row in rows[:480]]
    assert schema.fallback == (values["user"].index(max(values["user"], key=training.count)),)
    dataset = build(Dataset, {"name": "own", "label": "clicked", "dense": ["age"], "categorical": ["user"],
                              "split": "ordered", "vocabulary": "train", "min_count": 2})  # fmt: skip
    plenty = [[*row[:2], "ab"[i % 2], *row[3:]] for i, row in enumerate(rows)]
    preprocess(dataset, tmp_path / "1", write(tmp_path / "1.csv", plenty))
    plenty[7][2], plenty[8][2], plenty[9][2] = "rare", "", ""
    after = preprocess(dataset, tmp_path / "2", write(tmp_path / "2.csv", plenty), extend=tmp_path / "1")
    assert values_of(tmp_path / "2", "user") == ["a", "b", "", None]
    assert after.fallback == (3,)


def test_min_count_counts_rows_and_blanks_are_no_values(tmp_path, rows):
    rows = [[*row[:3], "z", *row[4:]] for row in rows]
    rows[0][3], rows[1][3] = "q|q|q|z", "z| |NA|nan"
    keys = {"categorical": ["tags"], "multi_valued": {"tags": {"max_values": 4}}, "split": "ordered"}
    raw = write(tmp_path / "raw.csv", rows)
    _, columns, values = made(tmp_path, raw, min_count=3, null_values=["NA", "nan"], **keys)
    assert values["tags"] == ["z", None]
    assert columns.sparse[:2].tolist() == [[1, 1, 1, 0], [0, -1, -1, -1]]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_raw_column_may_have_two_roles(tmp_path, rows, suffix):
    moment = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()
    table = pl.DataFrame(
        {
            "clicked": [int(row[0]) for row in rows],
            "ep": [int(moment) + 3600 * i for i in range(600)],
            "hx": [f"{i % 9:08x}" for i in range(600)],
            "x": [float(i % 7) for i in range(600)],
        }
    )
    raw = tmp_path / f"raw.{suffix}"
    table.write_csv(raw) if suffix == "csv" else table.write_parquet(raw)
    keys = {"dense": ["ep", "x", "hour"], "categorical": ["hx", "xs"], "hexadecimal": ["hx"], "split": "time"}
    keys["transform"] = {"x": "identity", "ep": "identity"}
    keys |= {"split_by": "ep", "times": {"hour": {"column": "ep", "part": "hour"}}}
    _, columns, values = made(tmp_path, raw, multi_valued={"xs": {"column": "x", "separator": "."}}, **keys)
    assert columns.dense[:, 1].tolist() == [float(i % 7) for i in range(600)]
    assert columns.dense[:, 2].tolist() == [i % 24 for i in range(600)]
    assert values["hx"] == list(range(9))
    keys = {"split": "time", "split_by": "hx", "categorical": ["hx"], "hexadecimal": ["hx"], "dense": []}
    with pytest.raises(RawError, match=r"column 'hx' is '00000000'; expected a time"):
        made(tmp_path, raw, **keys)


@pytest.mark.parametrize("text", ["2014102107", "201410210730", "12345678", "20141021", "99999999999"])
def test_compact_times_are_not_taken_for_epochs(tmp_path, rows, text):
    rows[0][4] = text
    with pytest.raises(RawError, match=rf"is '{text}'; expected a time, as 2014-10-21 07:30, or seconds \(9 or 10"):
        made(
            tmp_path,
            write(tmp_path / "raw.csv", rows),
            dense=["hour"],
            times={"hour": {"column": "ts", "part": "hour"}},
        )


@pytest.mark.parametrize("at", [0, 590])
def test_weights_that_leave_nothing_are_refused(tmp_path, rows, at):
    zero = [[*row[:6], "0" if (i >= 540) == bool(at) else "1"] for i, row in enumerate(rows)]
    with pytest.raises(RawError, match=r"all weights of (train|test) are 0"):
        made(tmp_path, write(tmp_path / "raw.csv", zero), split="ordered", weight="w")
    rows[at][6] = "3e38"
    small = [[*row[:6], row[6] if i == at else "1e-30"] for i, row in enumerate(rows)]
    if at:
        with pytest.raises(RawError, match="expected less of a spread"):
            made(tmp_path, write(tmp_path / "raw.csv", small), split="ordered", weight="w")
    rows[at][6] = " "
    with pytest.raises(RawError, match="column 'w' is ' '; expected a weight"):
        made(tmp_path, write(tmp_path / "raw.csv", rows), split="ordered", weight="w")


def test_a_directory_with_anything_else_is_not_replaced(tmp_path, raw):
    dataset = build(Dataset, {"name": "own", "label": "clicked", "dense": ["age"], "categorical": ["user"]})
    for name, text in (
        ("vocabulary/notes.txt", "mine"), ("label.npy", "mine"), ("schema.json", '{"my": "own"}'), ("thesis.txt", "m"),
    ):  # fmt: skip
        mine = tmp_path / "mine" / name
        mine.parent.mkdir(parents=True)
        mine.write_text(text)
        for force in (False, True):
            with pytest.raises(RawError, match=r"expected another --out"):
                preprocess(dataset, tmp_path / "mine", raw, force)
        assert mine.read_text() == text
        shutil.rmtree(tmp_path / "mine")


def test_a_label_may_have_any_name(tmp_path, rows):
    raw = tmp_path / "raw.csv"
    with raw.open("w", newline="") as file:
        csv.writer(file).writerows([["count", "value", "id", "text"], *([*row[:3], row[3]] for row in rows)])
    keys = {"label": "count", "dense": ["value"], "categorical": ["id", "text"]}
    assert made(tmp_path, raw, **keys)[0].rows["train"] == 480
    raw.write_text(raw.read_text().replace("\n1,", "\n3,", 1))
    with pytest.raises(RawError, match="column 'count' is '3'; expected 0 or 1"):
        made(tmp_path, raw, **keys)


@pytest.mark.parametrize("scale", [1, 1000, 1_000_000])
@pytest.mark.parametrize("moment", ["2001-09-10 01:02", "2014-10-21 07:30", "2033-05-17 23:59"])
def test_epochs_of_any_unit_are_the_same_moment(tmp_path, rows, scale, moment):
    """Once microseconds were read as milliseconds."""
    at = datetime.datetime.fromisoformat(moment).replace(tzinfo=datetime.UTC)
    rows[0][4] = str(int(at.timestamp()) * scale)
    times = {part: {"column": "ts", "part": part} for part in ("hour", "weekday", "day")}
    raw = write(tmp_path / "raw.csv", rows)
    _, columns, _ = made(tmp_path, raw, split="ordered", dense=["hour", "weekday", "day"], times=times)
    assert columns.dense[0].tolist() == [at.hour, at.isoweekday(), at.day]
