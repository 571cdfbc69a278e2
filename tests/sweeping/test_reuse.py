"""A run that another experiment has made is taken from there, where the same would come out again, and only there."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dlrm_mlet import config
from dlrm_mlet.config import Experiment
from dlrm_mlet.sweeping import worker
from dlrm_mlet.sweeping.sweep import plan, sweep
from dlrm_mlet.training import checkpoint, record
from tests.sweeping.test_sweep import GRID
from tests.training.test_run import assert_same_bits

CPU = [torch.device("cpu")]
pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What the checkout says; the last one counts."""
    said: list[str | None] = ["0123456789ab"]
    monkeypatch.setattr(record, "_commit", lambda: said[-1])
    return said


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories of runs as they are trained."""
    found: list[Path] = []
    make = worker.make

    def noted(job, *arguments):
        found.extend(run.directory for run in job.runs)
        return make(job, *arguments)

    monkeypatch.setattr(worker, "make", noted)
    return found


def experiment(tmp_path: Path, text: str) -> Experiment:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return config.load(path)


MORE = GRID.replace("embedding_dim = [2, 4]", "embedding_dim = [2], also_measure = [['curve']]") + (
    "again = { inner_dim = [8], embedding_dim = [2, 4] }\n"
)


def test_what_another_experiment_has_made_is_not_trained_again(clicks_directory, tmp_path, commit, made, capsys):
    """Whatever its arm is called there; a run with another key is another run."""
    results = tmp_path / "results" / "clicks"
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "first", CPU)
    assert len(made) == 6
    runs = sweep(experiment(tmp_path, MORE), clicks_directory, results / "second", CPU)
    assert [path.relative_to(results / "second").parts[0] for path in made[6:]] == ["mlet", "mlet"]
    assert "runs that other experiments have made: 6 of first" in capsys.readouterr().out
    assert len(runs) == 8
    assert_same_bits(results / "second/again/inner_dim=8,embedding_dim=4,seed=1",
                     results / "first/mlet/inner_dim=8,embedding_dim=4,seed=1")  # fmt: skip
    sweep(experiment(tmp_path, MORE), clicks_directory, results / "second", CPU)
    assert len(made) == 8
    assert "other experiments" not in capsys.readouterr().out


def _damaged(first: Path) -> None:
    for path in first.rglob(record.FILE):
        path.write_text("{")


def _without_checkpoints(first: Path) -> None:
    for path in first.rglob(checkpoint.FILE):
        path.unlink()


def _cut_checkpoints(first: Path) -> None:
    for path in first.rglob(checkpoint.FILE):
        path.write_bytes(path.read_bytes()[:100])


def _unreadable(first: Path) -> None:
    for path in first.rglob(record.FILE):
        path.unlink()
        path.mkdir()


def _half_a_copy(first: Path) -> None:
    for path in first.rglob("*seed=*"):
        path.rename(path.with_name(f".{path.name}.abcdefgh.partial"))


def _of_another_torch(first: Path) -> None:
    for path in first.rglob(record.FILE):
        table = json.loads(path.read_text())
        table["provenance"]["torch"] = "1.0.0"
        path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    "change", [_damaged, _without_checkpoints, _cut_checkpoints, _unreadable, _half_a_copy, _of_another_torch]
)
def test_a_record_that_may_not_come_out_again_is_left_where_it_is(clicks_directory, tmp_path, commit, made, change):
    results = tmp_path / "results" / "clicks"
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "first", CPU)
    change(results / "first")
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "second", CPU)
    assert len(made) == 12


@pytest.mark.parametrize("said", ["fedcba987654", "0123456789ab+", None])
def test_other_code_trains_for_itself(clicks_directory, tmp_path, commit, made, said):
    """Also a changed checkout, whose changes nobody knows, and where there is none."""
    results = tmp_path / "results" / "clicks"
    commit += [said] if said != "fedcba987654" else []
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "first", CPU)
    commit.append(said)
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "second", CPU)
    assert len(made) == 12


def test_without_checkpoints_to_keep_a_record_is_enough(clicks_directory, tmp_path, commit, made):
    results = tmp_path / "results" / "clicks"
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "first", CPU)
    _without_checkpoints(results / "first")
    sweep(experiment(tmp_path, 'keep = "none"\n' + GRID), clicks_directory, results / "second", CPU)
    assert len(made) == 6


def test_half_a_copy_of_a_sweep_that_was_killed_goes(clicks_directory, tmp_path, commit, made):
    results = tmp_path / "results" / "clicks"
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "first", CPU)
    half = results / "second/single/.embedding_dim=2,seed=0.abcdefgh.partial"
    half.mkdir(parents=True)
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "second", CPU)
    assert not half.exists()
    assert len(made) == 6


def test_a_diverged_run_has_no_checkpoint_and_is_taken_all_the_same(clicks_directory, tmp_path, commit, made):
    results = tmp_path / "results" / "clicks"
    wild = GRID.replace("batch_size = 64", "batch_size = 64\nlearning_rate = 1e6")
    runs = sweep(experiment(tmp_path, wild), clicks_directory, results / "first", CPU)
    assert {found.status for _, found in runs} == {"diverged"}
    sweep(experiment(tmp_path, wild), clicks_directory, results / "second", CPU)
    assert len(made) == 6


def test_of_several_the_whole_one_is_taken(clicks_directory, tmp_path, commit, made):
    results = tmp_path / "results" / "clicks"
    for name in ("a", "b"):
        sweep(experiment(tmp_path, GRID), clicks_directory, results / name, CPU)
    _without_checkpoints(results / "b")
    sweep(experiment(tmp_path, GRID), clicks_directory, results / "b" / ".." / "c", CPU)
    assert len(made) == 6


def test_a_run_that_was_begun_goes_on_where_it_is(clicks_directory, tmp_path, commit, made):
    results = tmp_path / "results" / "clicks"
    grid = experiment(tmp_path, GRID)
    sweep(grid, clicks_directory, results / "first", CPU)
    begun = plan(grid, results / "second")[0].directory
    begun.mkdir(parents=True)
    shutil.copy(results / "first/single/embedding_dim=2,seed=0" / checkpoint.FILE, begun)
    sweep(grid, clicks_directory, results / "second", CPU)
    assert made[6:] == [begun]


def test_elsewhere_than_in_a_data_sets_results_nothing_is_looked_for(clicks_directory, tmp_path, commit, made):
    sweep(experiment(tmp_path, GRID), clicks_directory, tmp_path / "first", CPU)
    sweep(experiment(tmp_path, GRID), clicks_directory, tmp_path / "second", CPU)
    assert len(made) == 12
