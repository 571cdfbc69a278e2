"""Damaged or incomplete columns are refused by name; batches cover a split once, in a seeded order."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrm_mlet.data.columns import Columns, load
from dlrm_mlet.data.schema import ColumnsError
from dlrm_mlet.data.vocabulary import load_all


@pytest.fixture
def copy(clicks_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clicks_directory, tmp_path / "clicks")


def shuffled_rows(columns: Columns, seed: int) -> torch.Tensor:
    batches = list(columns.shuffled("train", 128, torch.Generator().manual_seed(seed)))
    assert all(len(batch.label) == 128 for batch in batches[:-1])
    return torch.cat([torch.cat((b.dense, b.sparse, b.label[:, None]), dim=1) for b in batches])


def test_a_shuffled_split_is_every_row_once_in_an_order_of_the_seed(clicks):
    everything = clicks.rows(slice(*clicks.range("train")))
    expected = torch.cat((everything.dense, everything.sparse, everything.label[:, None]), dim=1)
    zero, again, one = (shuffled_rows(clicks, seed) for seed in (0, 0, 1))
    assert torch.equal(zero, again)
    assert not torch.equal(zero, one)
    assert sorted(zero.tolist()) == sorted(one.tolist()) == sorted(expected.tolist())


def test_several_orders_are_each_generators_own(clicks):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    for order, seed in zip(clicks.order("validation", generators), (3, 4), strict=True):
        alone = clicks.order("validation", torch.Generator().manual_seed(seed))
        assert torch.equal(order, alone)
        assert sorted(alone.tolist()) == list(range(2400, 2700))


def test_splits_follow_one_another(clicks):
    ranges = [clicks.range(split) for split in ("train", "validation", "test")]
    assert ranges == [(0, 2400), (2400, 2700), (2700, 3000)]
    in_order = torch.cat([batch.sparse for batch in clicks.in_order("validation", 77)])
    assert torch.equal(in_order, clicks.sparse[2400:2700])


@pytest.mark.parametrize("name", ["dense.npy", "sparse.npy", "label.npy"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(copy, name, kept):
    path = copy / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ColumnsError, match=f"{name}: damaged .*preprocess the data set again"):
        load(copy)


@pytest.mark.parametrize("name", ["schema.json", "dense.npy"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ColumnsError, match=f"{name}: no such file"):
        load(copy)


def test_arrays_that_are_not_the_schemas_are_refused(copy):
    np.save(copy / "sparse.npy", np.zeros((3000, 4), np.int32))
    with pytest.raises(ColumnsError, match=r"sparse\.npy: \(3000, 4\) of int32; expected \(3000, 3\) of int32"):
        load(copy)


@pytest.mark.parametrize("change", [lambda table: table.pop("rows"), lambda table: table.update(dense="age")])
def test_a_damaged_schema_is_named(copy, change):
    path = copy / "schema.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(ColumnsError, match=r"schema\.json: not a data set's schema"):
        load(copy)


def test_the_fingerprint_tells_data_sets_apart(copy, clicks):
    assert load(copy).schema.fingerprint == clicks.schema.fingerprint
    table = json.loads((copy / "schema.json").read_text())
    table["split_seed"] = 7
    (copy / "schema.json").write_text(json.dumps(table))
    assert load(copy).schema.fingerprint != clicks.schema.fingerprint


@pytest.mark.parametrize(("f", "wrong"), [(0, -1), (2, 10**6)])
def test_an_id_that_its_table_does_not_have_is_named(copy, f, wrong):
    columns = load(copy)
    ids = columns.sparse.numpy().copy()
    ids[41, f] = wrong
    (copy / "sparse.npy").unlink()  # which is still mapped
    np.save(copy / "sparse.npy", ids)
    name, n = columns.schema.categorical[f], columns.schema.table_rows[f]
    with pytest.raises(ColumnsError, match=rf"sparse\.npy: row 41 of {name} has id {wrong}; expected 0 to {n - 1}"):
        load(copy)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("label", 2, "label.npy: has 2 in rows 0 to 2999; expected 0 and 1"),
        ("dense", np.nan, "dense.npy: has nan in rows 0 to 2999; expected finite numbers"),
        ("dense", -np.inf, "dense.npy: has inf in rows"),
    ],
)
def test_numbers_that_training_can_not_take_are_refused(copy, name, wrong, message):
    array = np.load(copy / f"{name}.npy")
    array[77] = wrong
    np.save(copy / f"{name}.npy", array)
    with pytest.raises(ColumnsError, match=message):
        load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": {"train": 2400, "validation": 600}}, {"rows": {"train": 3000, "validation": 0, "test": 0}},
        {"table_rows": [0, 3, 2]}, {"table_rows": [3]}, {"transform": {}}, {"described": {"name": 3}},
        {"described": {"multi_valued": {"user": {}}}}, {"fallback": "a"},
    ],
)  # fmt: skip
def test_a_schema_that_can_not_be_is_refused(copy, change):
    path = copy / "schema.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ColumnsError, match=r"schema\.json: not a data set's schema"):
        load(copy)


def test_columns_of_an_older_version_train_and_can_not_serve(copy):
    path = copy / "schema.json"
    table = json.loads(path.read_text())
    del table["fallback"]
    path.write_text(json.dumps(table))
    schema = load(copy).schema
    with pytest.raises(ColumnsError, match=r"schema\.json: is of an older version, without `fallback`; preprocess"):
        load_all(copy / "vocabulary", schema)


def test_no_mutation_of_what_describes_columns_escapes(copy):
    rng = random.Random(0)
    for name in ("schema.json", "dense.npy", "label.npy"):
        path = copy / name
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[rng.randrange(min(len(whole), 128 if name != "schema.json" else 4000))] = rng.randrange(256)
            path.unlink()
            path.write_bytes(damaged)
            with contextlib.suppress(ColumnsError):
                load(copy)
        path.write_bytes(whole)


def test_a_table_of_more_rows_than_ids_can_number_is_refused(clicks_directory, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(clicks_directory, copy)
    said = json.loads((copy / "schema.json").read_text())
    said["table_rows"][0] = 10**20
    (copy / "schema.json").write_text(json.dumps(said))
    with pytest.raises(ColumnsError, match=r"table_rows = .*: expected one for each .*, of 1 to 2147483647"):
        load(copy)
