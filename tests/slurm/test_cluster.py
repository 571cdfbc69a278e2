"""On a real Slurm of one node: a sweep whose jobs are requeued, run out of time and are cancelled, beside a local one.

The submitting process is gone all the while, and the records have the same bits.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlrm_mlet import config
from dlrm_mlet.__main__ import main
from dlrm_mlet.data.datasets import load
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.sweeping.sweep import PlannedRun, plan
from tests.training.test_run import assert_same_bits

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("DLRM_MLET_SLURM" not in os.environ, reason="installs and starts Slurm; set DLRM_MLET_SLURM=1"),
]

SCRIPT = Path(__file__).with_name("cluster.sh")
GRID = """
dataset = "flights"
seeds = [0, 1]

[model]
bottom_mlp = [16]
top_mlp = [16]

[training]
max_steps = 400
evaluate_every = 50

[grid]
single = { embedding_dim = [2, 4] }
mlet = { inner_dim = [8], embedding_dim = [2, 4] }
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slurm's commands find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    directory = tmp_path / "cluster"
    directory.mkdir()
    try:
        started = subprocess.run([SCRIPT, "start", directory, str(port)], capture_output=True, text=True, check=False)
        if started.returncode:
            pytest.skip(f"no Slurm: {started.stderr.strip()}")
        monkeypatch.setenv("SLURM_CONF", str(directory / "slurm.conf"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield
    finally:
        subprocess.run([SCRIPT, "stop", directory], check=True)


def until(holds: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def stop(run: PlannedRun) -> None:
    """Have the process of a run stand still at its first checkpoint, so that it isn't done before what comes next."""
    until((run.directory / "checkpoint.pt").exists, "a checkpoint")
    lock = run.directory.with_name(f".{run.directory.name}.lock")
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGSTOP)
    assert not (run.directory / "record.json").exists()


def test_a_sweep_through_the_queue_has_the_bits_of_a_local_one(cluster, tmp_path, capsys):
    path, data, out = tmp_path / "grid.toml", tmp_path / "data", tmp_path / "queued"
    path.write_text(GRID)
    preprocess(load("flights"), data)
    runs = plan(config.load(path), out)
    assert len(runs) == 8

    def call(command: str, *arguments: str, out: Path = out) -> str:
        capsys.readouterr()
        status = main([command, str(path), "--out", str(out), *arguments])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    def output(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    submit = ["--data", str(data), "--launcher", "slurm", "--time=10", "--partition", "main"]

    def job_of(run: PlannedRun) -> str:
        notes = [json.loads(note.read_text()) for note in out.glob("slurm/*/submission.json")]
        name = run.directory.relative_to(out).as_posix()
        return next(f"{note['job']}_{note['tasks'].index([name])}" for note in notes if [name] in note["tasks"])

    # the process that hands them over is gone while they are made
    said = output(sys.executable, "-m", "dlrm_mlet", "sweep", str(path), "--out", str(out), *submit)
    assert said.count(" runs handed to Slurm in ") == 2  # an array of six and one of two: MaxArraySize=6
    cancelled = runs[0]
    output("scancel", job_of(cancelled))
    # the largest go first
    timed_out, requeued = (run for run in runs if run.point.label == "mlet/inner_dim=8,embedding_dim=4")
    stop(requeued)
    output("scontrol", "requeue", job_of(requeued))
    stop(timed_out)
    output("scontrol", "update", f"JobId={job_of(timed_out)}", "TimeLimit=1")
    assert "at work, job " in call("status")
    # Slurm's signal wakes it
    until(lambda: "Restarts=1" in output("scontrol", "show", "job", job_of(timed_out)), "the end of its time")
    output("scontrol", "update", f"JobId={job_of(timed_out)}", "TimeLimit=10")

    until(lambda: all((run.directory / "record.json").exists() for run in runs[1:]), "the records")
    for run in (requeued, timed_out):
        assert "Restarts=1" in output("scontrol", "show", "job", job_of(run))
    until(lambda: not output("squeue", "--noheader"), "an empty queue")
    said = call("status")
    assert "8 runs: 7 finished, 1 failed" in said
    assert "single d=2, seed 0: failed, job " in said

    assert "1 runs handed to Slurm in 1 tasks" in call("sweep", *submit)  # what is missing, and no more
    until((cancelled.directory / "record.json").exists, "the last record")
    until(lambda: not output("squeue", "--noheader"), "an empty queue")
    assert "8 runs; 0 diverged" in call("sweep", *submit)

    local = tmp_path / "local"
    call("sweep", "--data", str(data), "--jobs", "2", out=local)
    for mine, theirs in zip(runs, plan(config.load(path), local), strict=True):
        assert_same_bits(mine.directory, theirs.directory)
