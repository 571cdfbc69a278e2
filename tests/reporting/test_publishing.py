"""Published tables stay as they are unless it is asked for; rows of one's own are never dropped."""

import csv
import subprocess

import pytest

from dlrm_mlet.reporting import publishing
from dlrm_mlet.reporting.results import ResultsError


def rows(*points, auc="0.75", **settings):
    return [
        {"arm": "mlet", "inner_dim": str(k), "embedding_dim": "4", **settings, "seed": str(seed), "status": "finished",
         "validation_auc": auc, "validation_log_loss": "0.4", "test_auc": "", "test_log_loss": "", "seconds": "1.0"}
        for k, seed in points
    ]  # fmt: skip


def keys(path):
    return [(row["inner_dim"], row["seed"]) for row in publishing._read(path)]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results" / "mine" / "grid"


@pytest.fixture
def published(out):
    """A table that git tracks."""
    publishing.store(out, {"": rows((8, 0), (8, 1), (16, 0))})
    table = out.with_name("grid.csv")
    for command in (["init", "-q"], ["add", "grid.csv"]):
        subprocess.run(["git", *command], cwd=table.parent, check=True)
    return table


def test_ones_own_table_lies_beside_the_runs_and_loses_no_row_to_a_smaller_grid(out):
    table, told = publishing.store(out, {"": rows((8, 0), (8, 1), (16, 0))})
    assert (table, told) == (out.with_name("grid.csv"), "3 runs")
    _, told = publishing.store(out, {"": rows((8, 1), auc="0.8")})
    assert told == "1 runs; 2 rows of other runs stay in the table"
    assert keys(table) == [("8", "1"), ("8", "0"), ("16", "0")]
    assert publishing._read(table)[0]["validation_auc"] == "0.8"


def test_a_published_table_that_is_reproduced_stays_as_it_is(out, published):
    before = published.read_bytes()
    again = [{**row, "seconds": "9.0"} for row in rows((8, 0), (16, 0))]
    assert publishing.store(out, {"": again}) == (None, f"2 of 2 runs equal the published ones: {published}")
    assert published.read_bytes() == before


def test_a_published_search_that_is_reproduced_stays_as_it_is(out, published):
    """Once its seconds had to be the same too, so that each tuned experiment made anew was written apart."""

    def trial(auc, seconds):
        (row,) = rows((8, 9), auc=auc)
        before = {name: row.pop(name) for name in ("arm", "inner_dim", "embedding_dim", "seed")}
        return {**before, "learning_rate": "0.1", "read_test": "False", **row, "seconds": seconds}

    publishing.store(out, {"": rows((8, 0), (8, 1), (16, 0)), "-trials": [trial("0.75", "1.0")]}, publish=True)
    again = {"": rows((8, 0)), "-trials": [trial("0.75", "9.0")]}
    assert publishing.store(out, again) == (None, f"1 of 1 runs equal the published ones: {published}")
    again["-trials"] = [trial("0.76", "1.0")]
    assert publishing.store(out, again)[0] == out / "grid.csv"


def test_what_differs_from_a_published_table_lies_apart(out, published):
    before = published.read_bytes()
    table, told = publishing.store(out, {"": [*rows((8, 0)), *rows((8, 1), (32, 0), auc="0.8")], "-spectra": []})
    assert table == out / "grid.csv"
    assert told.startswith(f"1 of 3 runs equal the published ones in {published}, which stays as it is")
    assert published.read_bytes() == before
    assert keys(table) == [("8", "0"), ("8", "1"), ("32", "0")]


def test_publishing_replaces_the_runs_that_are_new_and_keeps_the_others(out, published):
    table, _ = publishing.store(out, {"": rows((8, 1), (32, 0), auc="0.8")}, publish=True)
    assert table == published
    assert keys(table) == [("8", "1"), ("32", "0"), ("8", "0"), ("16", "0")]


def test_settings_of_all_rows_are_columns_before_the_seed(out):
    publishing.store(out, {"": rows((8, 0))})
    publishing.store(out, {"": rows((8, 0), auc="0.7", precision="tf32")})
    with out.with_name("grid.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0])[:5] == ["arm", "inner_dim", "embedding_dim", "precision", "seed"]
    assert [row["precision"] for row in found] == ["tf32", ""]


def test_a_file_that_is_no_table_of_runs_is_refused(out):
    out.parent.mkdir(parents=True)
    out.with_name("grid.csv").write_text("what,ever\n1,2\n")
    with pytest.raises(ResultsError, match=r"grid\.csv: not a table of runs"):
        publishing.store(out, {"": rows((8, 0))})
    out.with_name("grid.csv").write_bytes(b"arm,seed\n\xff,1\n")
    with pytest.raises(ResultsError, match=r"grid\.csv: not a table: .*utf-8"):
        publishing.store(out, {"": rows((8, 0))})


def test_trials_differ_by_what_was_tried(out):
    def trial(rate):
        (row,) = rows((8, 0))
        before = {"arm": row.pop("arm"), "inner_dim": row.pop("inner_dim"), "embedding_dim": row.pop("embedding_dim")}
        return {**before, "seed": row.pop("seed"), "learning_rate": rate, "read_test": "False", **row}

    publishing.store(out, {"": rows((8, 0)), "-trials": [trial("0.1"), trial("0.2")]})
    publishing.store(out, {"": rows((8, 0)), "-trials": [trial("0.2"), trial("0.8")]})
    kept = publishing._read(out.with_name("grid-trials.csv"))
    assert [row["learning_rate"] for row in kept] == ["0.2", "0.8", "0.1"]


def test_what_else_was_measured_is_kept_where_it_is_not_published(out, published):
    spectra = [{"arm": "mlet", "inner_dim": "8", "embedding_dim": "4", "seed": "0", "step": "0", "values": "1 2"}]
    table, told = publishing.store(out, {"": rows((8, 0)), "-spectra": spectra})
    assert told.startswith(f"1 of 1 runs equal the published ones in {published}, which stays as it is")
    assert "; of grid-spectra.csv not all rows do" in told
    assert table == out / "grid.csv"
    assert publishing._read(out / "grid-spectra.csv") == spectra


def test_a_published_table_that_was_deleted_is_no_reason_to_lose_the_runs(out, published):
    published.unlink()
    table, told = publishing.store(out, {"": rows((8, 0))})
    assert (table, told.partition(" in ")[0]) == (out / "grid.csv", "0 of 1 runs equal the published ones")


def test_a_name_with_the_letters_of_a_pattern_is_a_name(out, published):
    table, _ = publishing.store(out.with_name("gri[d]"), {"": rows((32, 0))})
    assert table == out.with_name("gri[d].csv")
    assert len(keys(published)) == 3


def test_where_git_cannot_tell_a_table_counts_as_published(out, published, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    table, _ = publishing.store(out, {"": rows((32, 0))})
    assert table == out / "grid.csv"


def test_a_column_cannot_be_chosen_and_set_in_one_table(out):
    publishing.store(out, {"": rows((8, 0), precision="tf32")})
    (row,) = rows((8, 0))
    chosen = {key: row[key] for key in ("arm", "inner_dim", "embedding_dim", "seed")} | {"precision": "tf32"} | row
    with pytest.raises(ResultsError, match="precision was chosen in one table and set in the other"):
        publishing.store(out, {"": [chosen]})


def test_runs_of_another_config_or_data_set_are_not_mixed_into_a_table(out):
    table, _ = publishing.store(out, {"": [row | {"experiment": "a-1"} for row in rows((8, 0), (8, 1))]})
    before = table.read_bytes()
    with pytest.raises(
        ResultsError, match=r"grid.csv: has runs of another config or data set \(seed 1\); move the file"
    ):
        publishing.store(out, {"": [row | {"experiment": "b-1"} for row in rows((8, 0))]})
    assert table.read_bytes() == before
    publishing.store(out, {"": [row | {"experiment": "b-1"} for row in rows((8, 0), (8, 1), (16, 0))]})
    assert keys(table) == [("8", "0"), ("8", "1"), ("16", "0")]  # where none stays, none is mixed
