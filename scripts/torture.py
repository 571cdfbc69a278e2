"""Does to every command and every reader what machines, disks and people do, and counts what was lost, torn or wrong.

    make torture        (or: python scripts/torture.py [--share 0.01] [--only fuzz] [--out torture.md])

Runs are killed at random moments, commands are started twice at once, disks are small, read-only or gone, files are
damaged. After each the same call is made again, and what then lies there has to be what an undisturbed call leaves.
`--share` is of the full counts, which took 41 minutes on two busy cores. The exit status is 1 where anything was lost.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from dlrm_mlet import config
from dlrm_mlet.__main__ import command as command_line
from dlrm_mlet.data import columns, datasets
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.rows import open_rows
from dlrm_mlet.files import replacing
from dlrm_mlet.reporting import curves, page, report, results
from dlrm_mlet.serving import bundle
from dlrm_mlet.training import checkpoint, device, record
from dlrm_mlet.verify import verify

CONTEXT = multiprocessing.get_context("forkserver")
DATASET = """
name = "clicks"
label = "clicked"
dense = ["age", "price"]
categorical = ["user", "ad"]
split = "random"
split_seed = {seed}
"""
EXPERIMENT = """
dataset = "clicks"
seeds = [0, 1]

[model]
embedding_dim = 4
bottom_mlp = [16]
top_mlp = [16]

[training]
batch_size = 32
evaluate_every = 8

[grid]
single = { embedding_dim = [4] }
mlet = { inner_dim = [8], embedding_dim = [4] }
"""
SINGLE = EXPERIMENT.partition("[grid]")[0].replace("embedding_dim = 4", "embedding_dim = 4\ninner_dim = 8")
PUBLISHED = Path(__file__).parents[1] / "results" / "flights"
TOKENS = re.compile(rb'-?\d+(?:\.\d+)?|"[^"\n]*"|true|false|null|[{}\[\],:=]')
SPECIAL = [
    b"-1",
    b"1e999",
    b"NaN",
    b"",
    b"null",
    b"{}",
    b"[]",
    b'"x"',
    b"9" * 30,
    b"0",
    b"true",
    b"[[[[",
    b"\xff",
    b"'",
]


@dataclass
class Row:
    """One kind of harm: what was done, how often, and what came of it."""

    what: str
    kind: str = ""
    times: int = 0
    came: dict[str, int] = field(default_factory=dict)
    """How the calls ended that were harmed."""
    faults: dict[str, int] = field(default_factory=dict)
    """What must not be: lost, torn, loaded differently, orphans, tracebacks."""
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, ending: str) -> None:
        """One more harm that ended so."""
        self.times += 1
        self.came[ending] = self.came.get(ending, 0) + 1

    def fault(self, kind: str, example: str) -> None:
        """One more of what must not be."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        if len(self.examples) < 5:
            self.examples.append(f"{kind}: {example}")


# ---------------------------------------------------------------- what is harmed


@dataclass(frozen=True)
class Ground:
    """A raw file, its data set, an experiment and what undisturbed calls make of them."""

    home: Path

    @property
    def raw(self) -> Path:
        """600 rows."""
        return self.home / "clicks.csv"

    def make(self, sweeps: bool = True) -> "Ground":
        """Everything, undisturbed; a sweep takes longest."""
        rng = random.Random(1)
        lines = ["user,ad,age,price,clicked"]
        for _ in range(600):
            ad = rng.randrange(9)
            lines.append(
                f"u{rng.randrange(80)},{ad},{rng.randrange(90)},{rng.random():.3f},{int(rng.random() < ad / 9)}"
            )
        self.raw.write_text("\n".join(lines) + "\n")
        (self.home / "clicks.toml").write_text(DATASET.format(seed=0))
        (self.home / "other.toml").write_text(DATASET.format(seed=1))
        (self.home / "one.toml").write_text(SINGLE)
        (self.home / "grid.toml").write_text(EXPERIMENT)
        commands = [
            ["preprocess", "clicks.toml", "--raw", "clicks.csv", "--out", "data"],
            ["preprocess", "other.toml", "--raw", "clicks.csv", "--out", "other-data"],
            ["train", "one.toml", "--data", "data", "--out", "run"],
            ["export", "run/checkpoint.pt", "--data", "data", "--bundle", "bundle"],
            ["export", "run/checkpoint.pt", "--data", "data", "--out", "model.onnx"],
            ["predict", "bundle", "clicks.csv", "--out", "predicted.csv"],
            ["sweep", "grid.toml", "--data", "data", "--out", "grid", "--jobs", "1"],
        ]
        for command in commands if sweeps else commands[:-1]:
            assert run(command, self.home, self.home / "log").wait() == 0, (self.home / "log").read_text()
        return self


class Started:
    """A command in a process of its own, forked from one that has imported everything."""

    def __init__(self, process: Any):
        self.process = process

    def wait(self, seconds: float = 120) -> int:
        """Its exit status, negative for a signal."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return 1000
        return int(self.process.exitcode)

    def send(self, number: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


def run(command: Sequence[str], home: Path, log: Path, before: Callable[[], None] | None = None) -> Started:
    """Start a command in the directory `home`, its output going to `log`."""
    process = CONTEXT.Process(target=_command, args=(list(command), home, log, before))
    process.start()
    return Started(process)


def _command(command: list[str], home: Path, log: Path, before: Callable[[], None] | None) -> None:
    try:
        os.chdir(home)
        with log.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
    except KeyboardInterrupt:  # this process isn't the command yet
        os._exit(128 + signal.SIGINT)
    if before is not None:
        before()
    sys.argv = ["dlrm-mlet", *command]
    command_line()


def contents(path: Path) -> dict[str, str]:
    """What lies in a directory or file, without what no two calls have alike: times, and where and when it was made."""
    found = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file() or file.name.endswith((".png", ".svg", ".md")):
            continue
        name = file.relative_to(path).as_posix()
        if file.name == record.FILE:
            its = json.loads(file.read_text())
            said: Any = [its[key] for key in ("config", "seed", "steps", "metrics", "curve", "status")]
            found[name] = json.dumps(said, sort_keys=True)
        elif file.name == checkpoint.FILE:
            state = checkpoint.read(file)
            found[name] = hashlib.sha256(b"".join(t.numpy().tobytes() for t in state["model"].values())).hexdigest()
        elif file.name in ("manifest.json", "schema.json") or file.suffix in (".onnx", ".csv"):
            found[name] = "there"  # versions, names and seconds are in them; verify looks at them
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def not_whole(path: Path) -> list[str]:
    """What isn't whole at a path, where there is anything."""
    if not path.exists():
        return []
    try:
        return [f"{found.path}: {found.said}" for found in verify(path) if not found.whole]
    except ValueError:
        return []  # nothing of ours yet


def told_trace(log: Path, row: Row) -> None:
    """Count a fault where a command has shown Python's own trace."""
    text = log.read_text(errors="replace") if log.exists() else ""
    if "Traceback" in text or "Exception ignored" in text:
        row.fault("traceback", text[-600:])


# ---------------------------------------------------------------- kills


def kills(ground: Ground, times: int, rng: random.Random, only: Sequence[str] = ()) -> Iterator[Row]:
    """Each command is killed at random moments, and made again until it ends; then all has to be as undisturbed."""
    data = str(ground.home / "data")
    whole = {"train": ground.home / "run", "preprocess": ground.home / "data", "export": ground.home / "bundle",
             "predict": ground.home / "predicted.csv", "sweep": ground.home / "grid"}  # fmt: skip
    commands = {
        "train": ["train", str(ground.home / "one.toml"), "--data", data, "--out", "out/run"],
        "preprocess": ["preprocess", str(ground.home / "clicks.toml"), "--raw", str(ground.raw), "--out", "out/data",
                       "--force"],
        "export": ["export", str(ground.home / "run/checkpoint.pt"), "--data", data, "--bundle", "out/bundle"],
        "predict": ["predict", str(ground.home / "bundle"), str(ground.raw), "--out", "out/predicted.csv"],
        "sweep": ["sweep", str(ground.home / "grid.toml"), "--data", data, "--out", "out/grid", "--jobs", "1"],
    }  # fmt: skip
    shares = {"train": 0.46, "preprocess": 0.3, "export": 0.04, "predict": 0.17, "sweep": 0.03}
    for name, command in commands.items():
        if only and name not in only:
            continue
        row = Row(f"`{name}` killed (SIGKILL, SIGTERM, SIGINT or SIGHUP) at a random moment")
        wanted, took = max(round(times * shares[name]), 2), []
        while row.came.get("killed", 0) < wanted:
            with tempfile.TemporaryDirectory(dir=ground.home) as place:
                home, log = Path(place), Path(place) / "log"
                out = home / command[command.index("--out" if "--out" in command else "--bundle") + 1]
                if name == "preprocess":  # of which another one lies there
                    shutil.copytree(ground.home / "other-data", out)
                if len(took) < 2:  # the first two are undisturbed, to know how long one takes
                    began = time.monotonic()
                    assert run(command, home, log).wait() == 0, log.read_text()
                    took.append(time.monotonic() - began)
                    continue
                for _ in range(min(6, wanted - row.came.get("killed", 0))):
                    one = run(command, home, log)
                    time.sleep(rng.uniform(0, min(took)))
                    number = rng.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP], [7, 1, 1, 1])[
                        0
                    ]
                    one.send(number)
                    began = time.monotonic()
                    status = one.wait(30)
                    if time.monotonic() - began > 10 or status == 1000:
                        row.fault("not ended after 10 s", f"{number}: {log.read_text()[-300:]}")
                    row.count("ended before" if status == 0 else "killed")
                    for said in not_whole(out):
                        row.fault("torn", said)
                    if name == "preprocess" and not (out / "schema.json").exists():
                        row.fault("lost", f"the data set that was there, after {number}")
                    if name == "sweep" and (left := _orphans(home)):
                        row.fault("orphan", left)
                    if status == 0:
                        break
                status = run(command, home, log).wait()
                if status != 0:
                    row.fault("not gone on", f"{status}: {log.read_text()[-600:]}")
                elif contents(out) != contents(whole[name]):
                    row.fault("wrong", f"{name} after its kills isn't what an undisturbed one leaves")
                told_trace(log, row)
        yield row
    if not only:
        yield _kill_workers(ground, max(round(times * 0.02), 1), rng)


def _orphans(home: Path, seconds: float = 10) -> str | None:
    """A process that still works in a directory after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        found = None
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if int(entry.name) != os.getpid() and os.readlink(entry / "cwd") == str(home):
                    found = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if found is None or time.monotonic() > until:
            return found
        time.sleep(0.1)


def _kill_workers(ground: Ground, times: int, rng: random.Random) -> Row:
    row = Row("a sweep's worker killed, as where memory runs out: the sweep goes on by itself")
    command = ["sweep", str(ground.home / "grid.toml"), "--data", str(ground.home / "data"), "--out", "out/grid"]
    command += ["--jobs", "1"]
    for _ in range(times):
        with tempfile.TemporaryDirectory(dir=ground.home) as place:
            home, log = Path(place), Path(place) / "log"
            one = run(command, home, log)
            time.sleep(rng.uniform(2, 5))
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError, ValueError):
                    line = (entry / "cmdline").read_bytes()
                    if os.readlink(entry / "cwd") == str(home) and b"spawn_main" in line:
                        os.kill(int(entry.name), signal.SIGKILL)
            status = one.wait()
            if status != 0:  # the same call tries again
                status = run(command, home, log).wait()
            row.count("done in the end" if status == 0 else "not done")
            if status != 0 or contents(home / "out/grid") != contents(ground.home / "grid"):
                row.fault("wrong", log.read_text()[-600:])
            told_trace(log, row)
    return row


# ---------------------------------------------------------------- pairs


def pairs(ground: Ground, times: int, rng: random.Random) -> Iterator[Row]:
    """Two of each command at once, into one place."""
    data = str(ground.home / "data")
    commands = {
        "preprocess": (
            ["preprocess", str(ground.home / "clicks.toml"), "--raw", str(ground.raw), "--out", "out"],
            "data",
        ),
        "train": (["train", str(ground.home / "one.toml"), "--data", data, "--out", "out"], "run"),
        "export": (["export", str(ground.home / "run/checkpoint.pt"), "--data", data, "--bundle", "out"], "bundle"),
        "predict": (["predict", str(ground.home / "bundle"), str(ground.raw), "--out", "out.csv"], "predicted.csv"),
        "sweep": (["sweep", str(ground.home / "grid.toml"), "--data", data, "--out", "out", "--jobs", "1"], "grid"),
    }  # fmt: skip
    for name, (command, whole) in commands.items():
        row = Row(f"two of `{name}` at once into one place")
        for _ in range(max(times, 1)):
            with tempfile.TemporaryDirectory(dir=ground.home) as place:
                home, logs = Path(place), [Path(place) / "log-0", Path(place) / "log-1"]
                first = run(command, home, logs[0])
                time.sleep(rng.choice([0, 0, 0.02, 0.1, 0.3]))
                second = run(command, home, logs[1])
                ended = sorted([first.wait(), second.wait()])
                said = "".join(log.read_text() for log in logs)
                told = "is working on this" in said or "already" in said
                row.count({0: "both done", 1: "one done, one told who is at work"}.get(ended[1], "neither"))
                if ended[0] != 0 or ended[1] not in (0, 1) or (ended[1] == 1 and not told):
                    row.fault("lost", f"{ended}: {said[-600:]}")
                    continue
                out = home / ("out.csv" if name == "predict" else "out")
                if contents(out) != contents(ground.home / whole):
                    row.fault("wrong", f"{name}: {said[-300:]}")
                for one in not_whole(out):
                    row.fault("torn", one)
                for log in logs:
                    told_trace(log, row)
        yield row


# ---------------------------------------------------------------- faults


def faults(ground: Ground, times: int, rng: random.Random) -> Iterator[Row]:
    """Disks that are full or can't be written to, files that go, clocks that jump, runs that can't be made."""
    yield _limited(ground, max(times, 4))
    if os.geteuid() == 0 and shutil.which("mount"):
        yield _small_disk(ground, max(round(times / 2), 2))
    yield _read_only(ground, 2)
    yield _clock(ground, 4)
    yield _one_of_ten(ground)
    yield _leaks(ground, max(round(times * 4), 20))


def _all_commands(ground: Ground) -> list[list[str]]:
    data = str(ground.home / "data")
    return [
        ["preprocess", str(ground.home / "clicks.toml"), "--raw", str(ground.raw), "--out", "out/data"],
        ["train", str(ground.home / "one.toml"), "--data", data, "--out", "out/run"],
        ["export", str(ground.home / "run/checkpoint.pt"), "--data", data, "--bundle", "out/bundle"],
        ["export", str(ground.home / "run/checkpoint.pt"), "--data", data, "--out", "out/model.onnx"],
        ["predict", str(ground.home / "bundle"), str(ground.raw), "--out", "out/predicted.csv"],
        ["report", str(ground.home / "tables"), "--out", "out/drawn"],
        ["synthesize", "avazu", "--rows", "2000", "--out", "out/avazu.csv"],
    ]


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _refused(row: Row, status: int, log: Path, out: Path, home: Path) -> None:
    text = log.read_text()
    row.count("refused" if status == 1 else "done" if status == 0 else "otherwise")
    if status not in (0, 1) or (status == 1 and "dlrm-mlet: error" not in text):
        row.fault("traceback", f"{status}: {text[-500:]}")
    told_trace(log, row)
    for said in not_whole(out):
        row.fault("torn", said)
    if left := list(home.rglob("*.partial")):
        row.fault("left behind", str(left[0]))


def _limited(ground: Ground, times: int) -> Row:
    row = Row("files that may not grow beyond a size, at each of many sizes")
    (ground.home / "tables" / "clicks").mkdir(parents=True, exist_ok=True)
    shutil.copy(PUBLISHED / "depth.csv", ground.home / "tables" / "clicks" / "depth.csv")
    for command in _all_commands(ground):
        for i in range(times):
            with tempfile.TemporaryDirectory(dir=ground.home) as place:
                home = Path(place)
                size = int(10 ** (1 + 4 * i / times))
                log = home / "log"
                status = run(command, home, log, functools.partial(_limit, size + 4096)).wait()
                _refused(row, status, log, home / "out", home)
    return row


def _small_disk(ground: Ground, times: int) -> Row:
    row = Row("a small disk (tmpfs) that fills up, then the same call with room")
    for command in _all_commands(ground)[:5]:
        for i in range(times):
            with tempfile.TemporaryDirectory(dir=ground.home) as place:
                home = Path(place)
                (home / "out").mkdir()
                size = int(8192 * 2**i)
                mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(home / "out")]
                if subprocess.run(mounted, capture_output=True, check=False).returncode:
                    return row
                try:
                    status = run(command, home, home / "log").wait()
                    _refused(row, status, home / "log", home / "out", home / "out")
                    subprocess.run(["mount", "-o", "remount,size=64m", str(home / "out")], check=True)
                    if run(command, home, home / "log-2").wait() != 0:
                        row.fault("not gone on", (home / "log-2").read_text()[-400:])
                finally:
                    subprocess.run(["umount", str(home / "out")], check=True)
    return row


def _read_only(ground: Ground, times: int) -> Row:
    row = Row("a directory that can't be written to")
    for command in _all_commands(ground):
        for _ in range(times):
            with tempfile.TemporaryDirectory(dir=ground.home) as place:
                home = Path(place)
                (home / "out").write_text("a file where a directory is asked for")
                status = run(command, home, home / "log").wait()
                _refused(row, status, home / "log", home / "nothing", home)
                if status == 0:
                    row.fault("lost", " ".join(command))
                if (home / "out").read_text() != "a file where a directory is asked for":
                    row.fault("lost", "the user's own file")
    return row


def _clock(ground: Ground, times: int) -> Row:
    row = Row("a clock that jumps by years while a run is at work: a second one is refused all the same")
    for i in range(times):
        with tempfile.TemporaryDirectory(dir=ground.home) as place:
            home = Path(place)
            command = ["train", str(ground.home / "one.toml"), "--data", str(ground.home / "data"), "--out", "run"]
            first = run([*command, "--set", "training.epochs=400"], home, home / "log-0")
            until = time.monotonic() + 20
            while not (home / ".run.lock").exists() and time.monotonic() < until:
                time.sleep(0.01)
            jump = time.time() + (i % 2 * 2 - 1) * 3e8
            with contextlib.suppress(FileNotFoundError):
                os.utime(home / ".run.lock", (jump, jump))
            status = run([*command, "--set", "training.epochs=400"], home, home / "log-1").wait()
            row.count("refused" if status == 1 else "otherwise")
            if status != 1 or "is working on this" not in (home / "log-1").read_text():
                row.fault("wrong", (home / "log-1").read_text()[-300:])
            first.send(signal.SIGKILL)
            first.wait()
    return row


def _one_of_ten(ground: Ground) -> Row:
    row = Row("a sweep of ten runs of which one can't be trained")
    with tempfile.TemporaryDirectory(dir=ground.home) as place:
        home = Path(place)
        grid = EXPERIMENT.replace("seeds = [0, 1]", "seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]").partition("mlet =")[0]
        (home / "ten.toml").write_text(grid)
        blocked = home / "out/single/embedding_dim=4,seed=3"
        blocked.mkdir(parents=True)
        (blocked / checkpoint.FILE).write_bytes(b"not a checkpoint")
        command = ["sweep", "ten.toml", "--data", str(ground.home / "data"), "--out", "out", "--jobs", "1"]
        status = run(command, home, home / "log").wait()
        records, reasons = len(list(home.rglob(record.FILE))), len(list(home.rglob("failed.json")))
        row.count(f"{records} records, {reasons} reason, exit status {status}")
        if (records, reasons, status) != (9, 1, 1):
            row.fault("wrong", (home / "log").read_text()[-400:])
        (blocked / checkpoint.FILE).unlink()
        if run(command, home, home / "log").wait() != 0:
            row.fault("not gone on", (home / "log").read_text()[-400:])
    return row


def _leaks(ground: Ground, times: int) -> Row:
    row = Row("refused raw files, read in one process: threads and open files afterwards as before")
    bad = ground.home / "bad.csv"
    bad.write_text(ground.raw.read_text() + "u1,1,x,0.5,1\n")
    packed = ground.home / "bad.csv.gz"
    packed.write_bytes(gzip.compress(bad.read_bytes())[:-20])
    dataset = datasets.load(str(ground.home / "clicks.toml"))

    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    def refuse(path: Path) -> None:
        with contextlib.suppress(ValueError):
            preprocess(dataset, ground.home / "never", path)

    refuse(bad)
    before = held()
    for i in range(times):
        refuse((bad, packed)[i % 2])
        row.count("refused")
    time.sleep(0.2)
    after = held()
    if after[0] > before[0] + 1 or after[1] > before[1] + 1:
        row.fault("left behind", f"threads and files {before}, then {after}")
    return row


# ---------------------------------------------------------------- fuzz


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same bytes after one to three small accidents, or a value in the place of another one."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(data)) if data else 0
        size = min(rng.choice([1, 1, 2, 8, 64]), len(data) - at)
        kind = rng.randrange(8)
        if kind == 0 and data:
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + rng.randbytes(size) + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at + size :]
        elif kind == 3:
            data = data[:at] + data[at : at + size] * 2 + data[at + size :]
        elif kind == 4:
            data = data[:at]
        elif kind == 5:
            data = data[:at] + rng.choice(SPECIAL) + data[at:]
        elif places := list(TOKENS.finditer(data[: 1 << 14])):
            one, other = rng.choice(places), rng.choice(places)
            new = rng.choice([*SPECIAL, other.group()])
            data = data[: one.start()] + new + data[one.end() :]
    return data


Read = Callable[[Path], Any]


def readers(ground: Ground) -> list[tuple[str, Path, float, Read]]:
    """What reads bytes from outside: its name, a whole file, its share of the inputs, a call with the damaged one."""
    home, dataset = ground.home, datasets.load(str(ground.home / "clicks.toml"))

    def raw(path: Path) -> None:
        reader = open_rows(dataset, [path], (), dataset.format)
        for _ in reader.blocks():
            pass

    def within(directory: Path, name: str, read: Read) -> Read:
        """Read the directory with this one file damaged."""
        copy = home / f"fuzzed-{directory.name}-{Path(name).name}"
        shutil.copytree(directory, copy, dirs_exist_ok=True)

        def call(path: Path) -> Any:
            shutil.copyfile(path, copy / name)
            return read(copy)

        return call

    def steps(path: Path) -> None:
        shutil.copyfile(path, home / "step-cpu.json")
        report.draw_steps(home / "step-cpu.json", home / "drawn")

    def table(path: Path) -> None:
        page.markdown(results.read(path), curves.make_curves(results.read(path)), "x", "x")

    timings = home / "timings" / "step-cpu.json"
    timings.parent.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).parents[1] / "results" / "benchmarks" / "step-cpu.json", timings)
    return [
        ("experiment's TOML", home / "grid.toml", 0.2, config.load),
        ("data set's TOML", home / "clicks.toml", 0.2, lambda path: datasets.load(str(path))),
        ("record.json", home / "run" / record.FILE, 0.15, within(home / "run", record.FILE, record.read)),
        ("schema.json", home / "data" / "schema.json", 0.15, within(home / "data", "schema.json", columns.load)),
        ("dense.npy", home / "data" / "dense.npy", 0.06, lambda p: columns._map(p, (600, 2), np.float32)),
        ("sparse.npy", home / "data" / "sparse.npy", 0.04, within(home / "data", "sparse.npy", columns.load)),
        ("label.npy", home / "data" / "label.npy", 0.04, within(home / "data", "label.npy", columns.load)),
        ("table of results", PUBLISHED / "depth.csv", 0.06, table),
        ("table of spectra", PUBLISHED / "mechanism-spectra.csv", 0.002, results.read_spectra),
        ("step-cpu.json", timings, 0.01, steps),
        (
            "bundle's manifest",
            home / "bundle" / bundle.MANIFEST,
            0.04,
            within(home / "bundle", bundle.MANIFEST, bundle.read),
        ),
        ("raw CSV", ground.raw, 0.04, raw),
        ("raw CSV, gzip", home / "clicks.csv.gz", 0.01, raw),
    ]


def fuzz(ground: Ground, times: int, rng: random.Random) -> Iterator[Row]:
    """Damaged bytes into every reader: it has to end in one of the package's errors, with the file's name."""
    (ground.home / "clicks.csv.gz").write_bytes(gzip.compress(ground.raw.read_bytes()))
    pl.read_csv(ground.raw).write_parquet(ground.home / "clicks.parquet")
    for name, whole, share, read in readers(ground):
        row = Row(f"damaged bytes: {name}")
        data = whole.read_bytes()
        path = ground.home / f"fuzzed-{whole.name}"
        for _ in range(max(round(times * share), 10)):
            damaged = mutated(data, rng)
            path.write_bytes(damaged)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    read(path)
                row.count("read")
            except Exception as error:
                ours = type(error).__module__.startswith("dlrm_mlet")
                row.count("refused" if ours else "escaped")
                if not ours:
                    row.fault("traceback", f"{type(error).__name__}: {_place(error)}")
                elif whole.name.rpartition(".")[0] not in str(error):
                    row.fault("unnamed", str(error)[:200])
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                row.count("escaped")
                row.fault("traceback", f"{type(error).__name__}: {_place(error)}")
        yield row
    yield _parquet(ground, max(round(times * 0.02), 10), rng)
    yield _checkpoints(ground, max(round(times / 5), 50), rng)


def _parquet(ground: Ground, times: int, rng: random.Random) -> Row:
    """In processes of their own: a damaged size can end one, where polars asks for more memory than there is."""
    row = Row("damaged bytes: raw Parquet")
    data = (ground.home / "clicks.parquet").read_bytes()
    path, told = ground.home / "fuzzed-clicks.parquet", ground.home / "told"
    while row.times < times:
        inputs = [mutated(data, rng) for _ in range(min(50, times - row.times))]
        while inputs:
            told.write_text("")
            process = CONTEXT.Process(target=_read_parquet, args=(ground.home / "clicks.toml", path, inputs, told))
            process.start()
            process.join()
            lines = told.read_text().splitlines()
            for line in lines:
                ending, _, what = line.partition(" ")
                row.count(ending)
                if ending == "escaped":
                    row.fault("traceback", what)
            inputs = inputs[len(lines) :]
            if inputs:  # of which the first has ended the process
                row.count("the reader's process ended by polars")
                inputs = inputs[1:]
    return row


def _read_parquet(description: Path, path: Path, inputs: Sequence[bytes], told: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    dataset = datasets.load(str(description))
    with told.open("a") as file:
        for damaged in inputs:
            path.write_bytes(damaged)
            try:
                for _ in open_rows(dataset, [path], (), dataset.format).blocks():
                    pass
                file.write("read\n")
            except BaseException as error:
                ours = type(error).__module__.startswith("dlrm_mlet") and path.name in str(error)
                file.write("refused\n" if ours else f"escaped {type(error).__name__}: {_place(error)}\n")
            file.flush()


def _place(error: BaseException) -> str:
    return " ".join(traceback.format_exception(error)[-2:])[-400:].replace("\n", " ")


def _checkpoints(ground: Ground, times: int, rng: random.Random) -> Row:
    row = Row("damaged bytes: checkpoint.pt, every one of which has to be refused")
    data, path = (ground.home / "run" / checkpoint.FILE).read_bytes(), ground.home / "damaged.pt"
    while row.times < times:
        damaged = bytearray(data)
        if row.times % 2:
            at = rng.randrange(len(data))
            damaged[at] ^= 1 << rng.randrange(8)
        else:
            damaged = bytearray(mutated(data, rng))
        if bytes(damaged) == data:
            continue
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
            row.count("loaded")
            row.fault("loaded differently", f"input {row.times}")
        except checkpoint.CheckpointError as error:
            row.count("refused")
            if path.name not in str(error):
                row.fault("unnamed", str(error))
        except Exception as error:
            row.count("escaped")
            row.fault("traceback", f"{type(error).__name__}: {_place(error)}")
    return row


# ---------------------------------------------------------------- what checkpoints cost


def cost(gib: float, home: Path) -> str:
    """The seconds and the memory that a checkpoint of tables of so many GiB takes, as a sentence."""
    rows = int(gib * 2**30 / 4 / 64)
    tables = torch.full((rows, 64), 0.5)  # zeros would be in memory from their first use alone
    before = _peak()
    began = time.perf_counter()
    with replacing(home / checkpoint.FILE) as partial:
        checkpoint.write(partial, {"model": {"tables.weight": tables}, "served": False})
    seconds = time.perf_counter() - began
    more = _peak() - before
    (home / checkpoint.FILE).unlink()
    return (
        f"A checkpoint with tables of {gib:g} GiB takes {seconds:.1f} s, hash and fsync included: "
        f"{seconds / 6:.1f} % of the time at intervals of 10 minutes; it takes {more:.2f} GiB of memory beside them."
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# ---------------------------------------------------------------- all of it

KINDS: dict[str, tuple[int, Callable[[Ground, int, random.Random], Iterator[Row]]]] = {
    "fuzz": (100_000, fuzz), "kills": (520, kills), "pairs": (60, pairs), "faults": (6, faults),
}  # fmt: skip
"""Each kind of harm, and how often it is done at a share of 1."""


def torture(share: float, only: Sequence[str], seed: int, home: Path) -> Iterator[Row]:
    """All that is done, a row a kind."""
    CONTEXT.set_forkserver_preload(["dlrm_mlet.reporting.report", "dlrm_mlet.serving.finished", "dlrm_mlet.verify",
                                    "dlrm_mlet.data.preprocess", "dlrm_mlet.serving.predict", __name__])  # fmt: skip
    ground = Ground(home).make()
    for name in only:
        times, harm = KINDS[name]
        began = time.perf_counter()
        for row in harm(ground, max(round(times * share), 1), random.Random(seed)):
            row.kind = name
            row.seconds, began = time.perf_counter() - began, time.perf_counter()
            yield row


HEAD = "| kind | what was done | times | how it ended | faults | s |"


def markdown(rows: Sequence[Row], before: str, said: str) -> str:
    """The page; of kinds that weren't done again it has the rows that it had `before`."""
    lines = {kind: [line for line in before.splitlines() if line.startswith(f"| {kind} |")] for kind in KINDS}
    lines |= {row.kind: [] for row in rows}
    for row in rows:
        came = ", ".join(f"{count:,} {ending}" for ending, count in sorted(row.came.items()))
        bad = ", ".join(f"{count:,} {kind}" for kind, count in row.faults.items()) or "0"
        lines[row.kind].append(f"| {row.kind} | {row.what} | {row.times:,} | {came} | {bad} | {row.seconds:.0f} |")
    cells = [line.split(" | ") for its in lines.values() for line in its]
    times, faults, seconds = (sum(sum(_numbers(row[-i])) for row in cells) for i in (4, 2, 1))
    return "\n".join([
        "# What was done to it, and what was lost", "",
        "By `make torture`, or its parts one after another (--only), on "
        f"{device.describe(device.CPU)}, torch {torch.__version__.partition('+')[0]}.", "",
        HEAD, "|---|---|--:|---|---|--:|",
        *(line for its in lines.values() for line in its),
        f"| **all** | | **{times:,}** | | **{faults}** | {seconds} |", "", said, "",
    ])  # fmt: skip


def _numbers(cell: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", cell)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gib", type=float, default=8.0, help="of the tables in the checkpoint that is timed")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/torture.md"))
    options = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory() as place:
        for found in torture(options.share, options.only, options.seed, Path(place)):
            done.append(found)
            print(
                f"{found.what}: {found.times:,} times, {found.came}, faults {found.faults}, {found.seconds:.0f} s",
                flush=True,
            )
            for example in found.examples:
                print(f"    {example}", flush=True)
        before = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
        page = markdown(done, before, cost(options.gib, Path(place)))
    with replacing(options.out) as partial:
        partial.write_text(page, encoding="utf-8")
    print(page)
    sys.exit(any(found.faults for found in done))
