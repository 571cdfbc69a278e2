"""What is whole is said to be, and of what; whatever is damaged or missing is named; nothing is changed."""

import csv
import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest

from dlrm_mlet.__main__ import main
from dlrm_mlet.serving.finished import export_bundle
from dlrm_mlet.training import checkpoint
from dlrm_mlet.training.run import train
from dlrm_mlet.verify import VerifyError, verify
from tests.sweeping.test_sweep import GRID
from tests.training.test_run import stopped_at


def hashes(directory):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.fixture
def kept(clicks_directory, run, tmp_path):
    """Columns, a run and a bundle beside each other."""
    shutil.copytree(clicks_directory, tmp_path / "all" / "columns")
    shutil.copytree(run, tmp_path / "all" / "run")
    export_bundle(checkpoint.load(run / "checkpoint.pt"), clicks_directory, tmp_path / "all" / "bundle", 32)
    return tmp_path / "all"


def test_what_is_whole_is_said_to_be_and_of_what(kept, clicks, capsys):
    before = hashes(kept)
    assert main(["verify", str(kept)]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in said] == ["bundle, whole", "columns, whole", "run, whole"]
    assert last.endswith(": all 3 are whole")
    for line in said:
        assert clicks.schema.fingerprint in line
    assert "k = 16, d = 4, sgd, batch 64, seed 0" in said[2]
    assert hashes(kept) == before


def test_each_file_that_is_cut_changed_or_gone_is_named(kept, tmp_path):
    files = [path for path in sorted(kept.rglob("*")) if path.is_file()]
    assert len(files) > 12
    for path in files:
        whole = path.read_bytes()
        at = len(whole) // 2
        # a record is readable text: most of its letters may be others
        changes = [whole[:at], None] if path.name == "record.json" else [
            whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], None
        ]  # fmt: skip
        for changed in changes:
            path.unlink() if changed is None else path.write_bytes(changed)
            found = list(verify(kept))
            named = [finding for finding in found if not finding.whole or "isn't there" in finding.said
                     or "goes on" in finding.said]  # fmt: skip
            if path.name in ("schema.json", "manifest.json") and changed is None:
                assert len([f for f in found if f.kind in ("columns", "bundle", "run")]) < 3 or named
            elif path.name == "schema.json" and "columns" in path.parts and changed is not None:
                assert named or found != list(verify(kept))  # a name or a count that is another one
            else:
                assert len(named) == (path.name != "metrics.jsonl" or changed is not None), (path, changed)
                assert all(finding.path in (path, *path.parents) for finding in named)
            path.write_bytes(whole)
    assert all(finding.whole for finding in verify(kept))


def test_a_stopped_run_and_a_failed_one_say_how_they_go_on(clicks, small_mlet, tmp_path, monkeypatch):
    with stopped_at(27, monkeypatch):
        train(small_mlet, clicks, 0, tmp_path / "stopped")
    [found] = verify(tmp_path / "stopped")
    assert "stopped after step 20: the same call goes on" in found.said
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "failed.json").write_text('{"reason": "no memory"}')
    [found] = verify(tmp_path / "failed")
    assert "no memory" in found.said


def test_a_checkpoint_of_another_run_beside_a_record_is_found(run, clicks, small_mlet, tmp_path):
    other = dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, learning_rate=0.01))
    train(other, clicks, 0, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "checkpoint.pt", run / "checkpoint.pt")
    [found] = verify(run)
    assert "another config, seed or data set" in found.said
    assert main(["verify", str(run)]) == 1


def test_a_checkpoint_of_a_stopped_run_beside_a_record_is_found(run, clicks, small_mlet, tmp_path, monkeypatch):
    with stopped_at(27, monkeypatch):
        train(small_mlet, clicks, 0, tmp_path / "stopped")
    shutil.copy(tmp_path / "stopped" / "checkpoint.pt", run / "checkpoint.pt")
    [found] = verify(run)
    assert not found.whole
    assert "checkpoint.pt: of a run that isn't finished, beside the record of a finished one" in found.said


def test_what_is_none_of_ours_is_said(tmp_path):
    with pytest.raises(VerifyError, match="no such file"):
        list(verify(tmp_path / "nothing"))
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(VerifyError, match="nothing that can be compared with what was written"):
        list(verify(tmp_path))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("place", ["grid.csv", "grid/grid.csv"])
@pytest.mark.parametrize("published", [False, True])
def test_a_table_that_was_changed_by_hand_differs_from_the_records_beside_it(
    place, published, clicks_directory, tmp_path
):
    """Once: whole, whatever its AUC said."""
    path, out = tmp_path / "grid.toml", tmp_path / "results" / "grid"
    path.write_text(GRID)
    assert main(["sweep", str(path), "--data", str(clicks_directory), "--jobs", "2", "--out", str(out)]) == 0
    table = out.parent / place
    if place != "grid.csv":
        out.with_suffix(".csv").rename(table)
    elif published:  # of other runs than those in the directory, which have a table of their own
        shutil.copy(out.with_suffix(".csv"), out / "grid.csv")
    [found] = verify(table)
    assert found.whole
    told = "" if published and place == "grid.csv" else "; 6 are what their records beside it say"
    assert found.said.endswith(told)
    cells = table.read_text().splitlines()[3].split(",")
    at = table.read_text().splitlines()[0].split(",").index("test_auc")
    table.write_text(table.read_text().replace(cells[at], "0.987654"))
    [found] = verify(table)
    assert found.whole == (published and place == "grid.csv")
    if not found.whole:
        assert f"{table}: mlet k=8 d=2 seed 0 isn't what its record beside the table says (test_auc 0.98" in found.said


@pytest.mark.usefixtures("in_process")
def test_each_cell_of_a_row_is_compared_with_its_record_or_said_to_have_none(clicks_directory, tmp_path):
    """Once: of a changed setting, size, time or commit nothing was said; of trials nothing at all."""
    path, out = tmp_path / "grid.toml", tmp_path / "results" / "grid"
    tuning = "[tuning]\nstart = { table_learning_rate = [0.1, 0.2] }\nseeds = [100]\ntrials = 2\n\n[grid]"
    path.write_text(GRID.replace("[grid]", tuning))
    main(["sweep", str(path), "--data", str(clicks_directory), "--jobs", "2", "--out", str(out)])
    for table in (out.with_name("grid.csv"), out.with_name("grid-trials.csv")):
        [found] = verify(table)
        assert found.said.endswith("are what their records beside it say")
        whole = table.read_text()
        names, row, *rest = csv.reader(whole.splitlines())
        for i, name in enumerate(names):
            if not row[i] or name in ("read_test", "experiment", "status"):
                continue
            other = {"arm": "mlet", "trained": row[i].replace("batch_size=64", "batch_size=7")}.get(name, "7")
            changed = [*row[:i], other, *row[i + 1 :]]
            with table.open("w", newline="") as file:
                csv.writer(file).writerows([names, changed, *rest])
            [found] = verify(table)
            if i < names.index("status"):
                assert not found.whole or found.said.endswith("have none, 1 records have no row"), name
            else:
                assert not found.whole, name
                assert f"{name} {other} for {row[i]}" in found.said or "_auc = 7" in found.said, name
        table.write_text(whole)


def test_a_table_saved_by_a_spreadsheet_is_read_or_refused(tmp_path):
    """Once: with semicolons it was passed over, and with a byte order mark it had no column arm."""
    published = Path(__file__).parents[1] / "results" / "flights" / "narrow.csv"
    text = published.read_text()
    (tmp_path / "mark.csv").write_text(text, encoding="utf-8-sig")
    (tmp_path / "semicolons.csv").write_text(text.replace(",", ";"))
    (tmp_path / "tabs.csv").write_text(text.replace(",", "\t"))
    mark, semicolons, tabs = verify(tmp_path)
    assert mark.whole
    assert not semicolons.whole and not tabs.whole
    assert "expected the columns that a sweep writes, with commas between them" in semicolons.said


def test_the_published_tables_are_whole():
    tables = [path for path in (Path(__file__).parents[1] / "results").glob("*/*.csv") if "-spectra" not in path.name]
    runs = [path for path in tables if "-frequency" not in path.name and path.parent.name != "linear"]
    found = {path: list(verify(path)) for path in runs}
    assert len(found) > 20
    assert all(len(its) == 1 and its[0].whole for its in found.values())
