"""Of a sweep's runs it is said how far each is, by what lies there, and nothing is changed."""

import json
import shutil

import pytest

from dlrm_mlet import config
from dlrm_mlet.__main__ import main
from dlrm_mlet.files import alone
from dlrm_mlet.sweeping import sweep
from dlrm_mlet.training.run import train
from tests.sweeping.test_sweep import GRID
from tests.training.test_run import stopped_at

TUNING = "[tuning]\nstart = { table_learning_rate = [0.1, 0.2] }\nseeds = [100]\ntrials = 2\n\n[grid]"


@pytest.fixture
def experiment(tmp_path):
    """Six runs."""
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return config.load(path)


def test_each_run_is_as_far_as_what_lies_there(experiment, clicks, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    runs = sweep.plan(experiment, out)
    call = ["status", str(experiment.path), "--out", str(out)]
    assert main(call) == 0
    assert capsys.readouterr().out == f"{out}: 6 runs: 6 waiting; no sweep is at work\n"
    train(runs[0].point.config, clicks, runs[0].seed, runs[0].directory)
    with stopped_at(27, monkeypatch):
        train(runs[1].point.config, clicks, runs[1].seed, runs[1].directory)
    runs[2].directory.mkdir(parents=True)
    (runs[2].directory / "failed.json").write_text(json.dumps({"reason": "no memory"}))
    runs[3].directory.mkdir(parents=True)
    (runs[3].directory / "record.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with alone(out, "sweep"), alone(runs[4].directory, "run"):
        assert main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "single d=2, seed 1: stopped, goes on from its checkpoint"
    assert lines[1] == "mlet k=8 d=2, seed 0: failed, no memory"
    assert lines[2].startswith("mlet k=8 d=2, seed 1: failed, ")
    assert "record.json: not a record" in lines[2]
    assert lines[3].startswith("mlet k=8 d=4, seed 0: at work, pid ")
    assert "6 runs: 1 finished, 1 at work, 1 stopped, 2 failed, 1 waiting; a sweep is at work: pid " in lines[4]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*")}.items()


def test_a_run_of_other_columns_is_another_one(experiment, clicks, clicks_directory, tmp_path, capsys):
    """Once it was finished, until the sweep refused it."""
    out = tmp_path / "out"
    run = sweep.plan(experiment, out)[0]
    train(run.point.config, clicks, run.seed, run.directory)
    data = shutil.copytree(clicks_directory, tmp_path / "data")
    call = ["status", str(experiment.path), "--out", str(out), "--data", str(data)]
    assert main(call) == 0
    assert "1 finished" in capsys.readouterr().out
    schema = json.loads((data / "schema.json").read_text())
    schema["source"] |= {"sha256": "0" * 64}
    (data / "schema.json").write_text(json.dumps(schema))
    for text in (GRID, GRID.replace("[grid]", TUNING)):
        experiment.path.write_text(text)
        assert main(call) == 0
        said = capsys.readouterr().out
        assert f"another run, its record is of one whose columns was {clicks.schema.fingerprint} and is now " in said
        assert "0 finished" in said or "finished" not in said


@pytest.mark.usefixtures("in_process")
def test_of_a_tuned_experiment_the_trials_count_and_the_runs_wait(
    experiment, clicks, clicks_directory, tmp_path, capsys
):
    path = tmp_path / "tuned.toml"
    tuning = "[tuning]\nstart = { table_learning_rate = [0.1] }\nseeds = [100]\ntrials = 1\n\n[grid]"
    path.write_text(GRID.replace("[grid]", tuning).replace("mlet =", "# mlet ="))
    out = tmp_path / "results" / "clicks" / "tuned"
    call = ["status", str(path), "--out", str(out)]
    assert main(call) == 0
    assert "2 runs: 2 waiting" in capsys.readouterr().out
    assert main(["sweep", str(path), "--data", str(clicks_directory), "--jobs", "2", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(call) == 0
    records = len(list(out.rglob("record.json")))
    assert f"{records} runs: {records} finished; no sweep is at work" in capsys.readouterr().out


def test_a_record_of_another_config_is_not_finished(experiment, clicks, tmp_path, capsys):
    out = tmp_path / "out"
    first = sweep.plan(experiment, out)[0]
    train(first.point.config, clicks, first.seed, first.directory)
    experiment.path.write_text(GRID.replace("batch_size = 64", "batch_size = 32"))
    assert main(["status", str(experiment.path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "seed 0: another run, its record is of one whose training.batch_size was 64 and is now 32" in said
    assert "6 runs: 1 another run, 5 waiting" in said
