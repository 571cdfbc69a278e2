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
from dlrm_mlet.__main__ import main
from dlrm_mlet.config import Experiment
from dlrm_mlet.files import BusyError, alone
from dlrm_mlet.sweeping import sweep as sweeping
from dlrm_mlet.sweeping.sweep import FailedRuns, plan, sweep
from dlrm_mlet.sweeping.worker import train as train_job
from dlrm_mlet.training import checkpoint
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
    path.write_text(GRID.replace("[grid]", "epochs = 3\n[grid]"))
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


def children(pid: int) -> set[int]:
    """The processes that a process has started, and theirs."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found |= {child} | children(child)
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.thorough)])
def test_no_worker_outlives_its_sweep(clicks_directory, tmp_path, number):
    """Once they stayed for ever, each with its memory."""
    path = tmp_path / "long.toml"
    path.write_text(GRID.replace("[grid]", "epochs = 200\n[grid]"))
    command = [sys.executable, "-m", "dlrm_mlet", "sweep", str(path), "--data", str(clicks_directory), "--jobs", "2",
               "--out", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    # under nohup a hang-up is ignored, and a sweep ignores it then too
    heard = None if number == signal.SIGKILL else lambda: signal.signal(number, signal.SIG_DFL)
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=environment,
                               preexec_fn=heard)  # fmt: skip  # noqa: PLW1509
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)  # the parent alone
    errors = process.communicate(timeout=90)[1]
    deadline = time.monotonic() + 10
    while any(map(lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if lives(pid)]
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "stopped; the same call goes on from here" in errors
        assert "Traceback" not in errors


@pytest.mark.usefixtures("in_process")
def test_a_run_that_can_not_be_made_does_not_stop_the_others(clicks_directory, tmp_path, capsys):
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(GRID)
    call = ["sweep", str(path), "--data", str(clicks_directory), "--jobs", "2", "--out", str(out)]
    bad = out / "mlet" / "inner_dim=8,embedding_dim=4,seed=0"
    bad.mkdir(parents=True)
    (bad / "checkpoint.pt").mkdir()  # which no run can write, nor read
    assert main(call) == 1
    said = capsys.readouterr()
    assert "1 runs failed, and the same call tries them again" in said.err
    assert f"{bad}: " in said.err
    assert "5 runs; 0 diverged" in said.out
    assert len(times(out)) == 5
    assert "reason" in json.loads((bad / "failed.json").read_text())
    (bad / "checkpoint.pt").rmdir()
    before = times(out)
    assert main(call) == 0
    assert before.items() <= times(out).items()
    assert not (bad / "failed.json").exists()


def killing(job):
    """Instead of the work: the process is killed, as where memory runs out, at one of the points."""
    if job.point.config.model.embedding_dim == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_job(job)


def test_a_worker_that_is_killed_takes_no_other_run_with_it(experiment, clicks_directory, tmp_path, monkeypatch):
    monkeypatch.setattr("dlrm_mlet.sweeping.worker.train", killing)
    with pytest.raises(FailedRuns) as failed:
        sweep(experiment, clicks_directory, tmp_path / "out", 2 * CPU)
    assert len(failed.value.runs) == len(times(tmp_path / "out")) == 4
    assert len(failed.value.reasons) == 2
    assert all("its process died" in reason for reason in failed.value.reasons.values())


def test_two_sweeps_do_not_meet(experiment, clicks_directory, tmp_path):
    with alone(tmp_path / "out", "sweep"), pytest.raises(BusyError, match=r"pid \d+ on .* is working on this sweep"):
        sweep(experiment, clicks_directory, tmp_path / "out", CPU)


SERVED = (
    GRID.partition("[grid]")[0]
    + """
[grid]
single = { embedding_dim = [2] }
int8 = { embedding_dim = [2], served_as = ["int8"] }
pruned = { embedding_dim = [2], served_density = [0.5] }
mlet = { inner_dim = [8], embedding_dim = [2] }
"""
)


@pytest.mark.usefixtures("in_process")
def test_what_differs_in_serving_alone_is_trained_once_with_the_bits_of_a_run_alone(clicks, clicks_directory, tmp_path):
    path = tmp_path / "served.toml"
    path.write_text(SERVED)
    experiment = config.load(path)
    planned = plan(experiment, tmp_path / "out")
    jobs = list(sweeping.jobs_of(planned, clicks.schema, CPU))
    assert [(job.point.arm, [(run.point.arm, run.seed) for run in job.others]) for job in jobs] == [
        ("single", [("int8", seed), ("pruned", seed)]) if arm == "single" else ("mlet", [])
        for arm in ("single", "mlet")
        for seed in (0, 1)
    ]
    assert all(job.bytes == max(memory_needed(run.point.config, clicks.schema) for run in job.runs) for job in jobs)
    runs = sweep(experiment, clicks_directory, tmp_path / "out", CPU)
    assert [record.config["model"]["served_as"] for _, record in runs[2:4]] == ["int8", "int8"]
    for run, _ in runs:
        train(run.point.config, clicks, run.seed, tmp_path / "alone" / run.directory.name)
        assert_same_bits(run.directory, tmp_path / "alone" / run.directory.name)
        assert checkpoint.load(run.directory / checkpoint.FILE).config == run.point.config


@pytest.mark.usefixtures("in_process")
def test_ways_to_serve_that_come_later_are_of_the_same_weights(clicks, clicks_directory, tmp_path):
    """Also where the first run was stopped between its served checkpoint and its record."""
    path = tmp_path / "served.toml"
    path.write_text(SERVED.replace("seeds = [0, 1]", "seeds = [0]"))
    experiment = config.load(path)
    single, *others, _ = plan(experiment, tmp_path / "out")
    train(single.point.config, clicks, 0, single.directory)
    (single.directory / "record.json").unlink()
    sweep(experiment, clicks_directory, tmp_path / "out", CPU)
    for run in (single, *others):
        train(run.point.config, clicks, 0, tmp_path / "alone" / run.directory.name)
        assert_same_bits(run.directory, tmp_path / "alone" / run.directory.name)


@pytest.mark.usefixtures("in_process")
def test_a_way_to_serve_that_diverged_is_said_of_each(clicks_directory, tmp_path):
    path = tmp_path / "served.toml"
    path.write_text(SERVED.replace("batch_size = 64", "batch_size = 64\ntable_learning_rate = 1e9"))
    runs = sweep(config.load(path), clicks_directory, tmp_path / "out", CPU)
    assert {record.status for _, record in runs} == {"diverged"}
    assert not list((tmp_path / "out").rglob("checkpoint.pt"))
