"""A command ends as it is asked to, at any moment, and works without the streams that others give it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrm_mlet import stopping
from dlrm_mlet.__main__ import main

LONG = """
dataset = "clicks"

[model]
embedding_dim = 4
bottom_mlp = [16]
top_mlp = [16]

[training]
epochs = 100000
"""
COMMAND = [sys.executable, "-m", "dlrm_mlet"]


@pytest.fixture
def call(clicks_directory, tmp_path):
    """Of a run that takes longer than any test waits."""
    path = tmp_path / "long.toml"
    path.write_text(LONG)
    return ["train", str(path), "--data", str(clicks_directory), "--out", str(tmp_path / "run")]


def heeds(pid):
    """Whether the process has come so far that it catches SIGTERM; before, Python itself ends."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return int(caught, 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("seconds", [0, 0.1, 0.3, 0.8, 1.5])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_ends_a_command_in_one_line(call, number, seconds):
    process = subprocess.Popen([*COMMAND, *call], stderr=subprocess.PIPE, text=True)
    while not heeds(process.pid):
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does, to the process and to its group
    errors = process.communicate(timeout=stopping.SECONDS + 5)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("dlrm-mlet: stopped; the same call goes on from here")


def test_what_hangs_is_ended_in_time(tmp_path):
    code = (
        "import threading, time; from dlrm_mlet import stopping; stopping.SECONDS = 0.5; stopping.heed()\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    threading.Lock().acquire() and time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    process.stdout.close()


def test_an_interrupt_that_falls_into_a_del_is_raised_once_more():
    code = (
        "import time; from dlrm_mlet import stopping; stopping.heed()\n"
        "class Slow:\n    def __del__(self):\n        print('ready', flush=True)\n        time.sleep(5)\n"
        "try:\n    slow = Slow()\n    del slow\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    stopping.over(7)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=stopping.SECONDS - 2)[1]
    assert process.returncode == 7
    assert errors == ""


def test_what_others_ignore_stays_ignored():
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from dlrm_mlet import stopping; stopping.heed(); os.kill(os.getpid(), signal.SIGHUP); print('here')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"here\n"


@pytest.mark.skipif(os.name == "nt", reason="a shell of its own")
def test_a_command_works_without_streams_and_no_file_takes_their_place(call, tmp_path):
    call[1] = str(tmp_path / "short.toml")
    (tmp_path / "short.toml").write_text(LONG.replace("100000", "1"))
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, *call], check=False)
    assert done.returncode == 0
    assert main(["verify", str(tmp_path / "run")]) == 0


@pytest.mark.skipif(os.name == "nt", reason="a shell of its own")
def test_a_reader_that_goes_is_no_trace(run, tmp_path):
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *COMMAND, "verify", str(run)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_memory_that_ends_is_said_in_one_line(monkeypatch, capsys):
    def ends(path):
        raise MemoryError

    monkeypatch.setattr("dlrm_mlet.verify.verify", ends)
    assert main(["verify", "."]) == 1
    assert capsys.readouterr().err.startswith("dlrm-mlet: error: the memory ends here")
