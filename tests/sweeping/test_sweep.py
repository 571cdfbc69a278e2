"""A sweep makes the runs that are missing, each the same bits as alone, and says why it won't go on."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlrm_mlet import config
from dlrm_mlet.config import Experiment
from dlrm_mlet.sweeping.sweep import FailedRuns, plan, sweep
from dlrm_mlet.training.device import DeviceError
from dlrm_mlet.training.record import RecordError
from dlrm_mlet.training.run import memory_needed, train
from tests.training.test_run import assert_same_bits

CPU = [torch.device("cpu")]
GRID = """
dataset = "clicks"
seeds = [0, 1]

[model]
bottom_mlp = [16]
top_mlp = [32, 16]

[training]
batch_size = 64
evaluate_every = 10

[grid]
single = { embedding_dim = [2] }
mlet = { inner_dim = [8], embedding_dim = [2, 4] }
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return config.load(path)


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}


def test_a_sweep_makes_what_is_missing_with_the_bits_of_a_run_alone(experiment, clicks, clicks_directory, tmp_path):
    out = tmp_path / "out"
    runs = sweep(experiment, clicks_directory, out, 2 * CPU)
    assert [(run.point.label, run.seed) for run, _ in runs] == [
        (label, seed)
        for label in ("single/embedding_dim=2", "mlet/inner_dim=8,embedding_dim=2", "mlet/inner_dim=8,embedding_dim=4")
        for seed in (0, 1)
    ]
    alone = runs[3][0]
    train(alone.point.config, clicks, alone.seed, tmp_path / "alone")
    assert_same_bits(alone.directory, tmp_path / "alone")

    before = times(out)
    (alone.directory / "record.json").unlink()
    sweep(experiment, clicks_directory, out, 2 * CPU)
    after = times(out)
    assert {path for path in after if after[path] != before[path]} == {alone.directory / "record.json"}
    assert_same_bits(alone.directory, tmp_path / "alone")


def test_a_record_of_another_config_or_data_set_stops_the_sweep(experiment, clicks, clicks_directory, tmp_path):
    out = tmp_path / "out"
    run = plan(experiment, out)[0]
    train(run.point.config, clicks, run.seed, run.directory)
    path = run.directory / "record.json"
    table = json.loads(path.read_text())
    table["config"]["training"]["learning_rate"] = 0.1
    path.write_text(json.dumps(table))
    with pytest.raises(
        RecordError, match=r"record\.json is of another run \(training.learning_rate was 0.1 and is now 0.2"
    ):
        sweep(experiment, clicks_directory, out, CPU)
    table["config"]["training"]["learning_rate"] = 0.2
    table["provenance"]["columns"] = "0" * 12
    path.write_text(json.dumps(table))
    with pytest.raises(RecordError, match="columns was 000000000000"):
        sweep(experiment, clicks_directory, out, CPU)
    path.write_text("{")
    with pytest.raises(RecordError, match=r"record\.json: not a record"):
        sweep(experiment, clicks_directory, out, CPU)


def test_a_stopped_sweep_keeps_what_is_finished_and_goes_on(clicks_directory, tmp_path):
    path = tmp_path / "long.toml"
    path.write_text(GRID.replace("[grid]", "epochs = 20\n[grid]"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dlrm_mlet", "sweep", str(path), "--data", str(clicks_directory), "--jobs", "1",
               "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not times(out) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same call goes on from here" in errors
    assert "Traceback" not in errors
    finished = times(out)
    assert 1 <= len(finished) < 6
    assert not (tmp_path / "out.csv").exists()
    again = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "6 runs; 0 diverged" in again.stdout
    assert again.stderr == ""  # no bars where nobody looks
    assert finished.items() <= times(out).items()


def test_a_point_that_cannot_fit_is_refused_before_any_run_starts(clicks_directory, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace("inner_dim = [8]", "inner_dim = [8, 1000000000000]"))
    with pytest.raises(DeviceError, match=r"inner_dim = 10+, embedding_dim = . needs [\d.]+ GiB"):
        sweep(config.load(path), clicks_directory, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


class Recorder:
    """Stands for the pool of processes: nothing is done, and at most so many runs went at once."""

    def __init__(self, workers, *_, **__):
        self.workers, self.running, self.most = workers, [], 0
        Recorder.latest = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()

    def submit(self, *_):
        self.running.append(Future())
        self.most = max(self.most, len(self.running))
        return self.running[-1]

    def wait(self, *_, **__):
        done = self.running.pop(0)
        done.set_result(None)
        return SimpleNamespace(done={done})

    def shutdown(self, **_):
        assert not self.running


@pytest.mark.parametrize(("fitting", "together"), [(1, 1), (2, 2), (100, 3)])
def test_only_runs_that_fit_together_go_at_once(
    fitting, together, experiment, clicks, clicks_directory, tmp_path, monkeypatch
):
    biggest = max(memory_needed(point.config, clicks.schema) for point in experiment.points)
    monkeypatch.setattr("dlrm_mlet.sweeping.sweep.free_memory", lambda _: int(fitting * biggest))
    monkeypatch.setattr("dlrm_mlet.sweeping.sweep.ProcessPoolExecutor", Recorder)
    monkeypatch.setattr("dlrm_mlet.sweeping.sweep.wait", lambda *_, **__: Recorder.latest.wait())
    with pytest.raises(FailedRuns, match="its record is gone"):  # nobody made any
        sweep(experiment, clicks_directory, tmp_path / "out", 3 * CPU)
    assert Recorder.latest.most == together
