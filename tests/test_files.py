"""What is written is whole, nothing of others is lost, and two writers don't meet."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrm_mlet import files
from dlrm_mlet.files import BusyError, alone, recover, replacing, replacing_directory, writing


def everything(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def fine(directory: Path) -> None:
    pass


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    with replacing(path) as partial:
        partial.write_text("one")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("two")
        raise KeyboardInterrupt
    assert path.read_text() == "one"
    assert everything(tmp_path) == ["sub", "sub/a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~files.UMASK


def test_a_full_disk_is_said_with_the_bytes_it_has():
    full, said = Path("/dev/full"), r"/dev/full: couldn't be written \(.* No space .*\); the disk has [\d,]+ bytes free"
    with pytest.raises(OSError, match=said), writing(full):
        full.write_text("one")


def test_names_of_others_are_left_alone(tmp_path):
    mine = ["data.old", "data.partial", "a.txt.partial"]
    for name in mine:
        (tmp_path / name).mkdir() if name.startswith("data") else (tmp_path / name).write_text("mine")
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("one")
    for _ in range(2):
        with replacing_directory(tmp_path / "data", fine) as partial:
            (partial / "x").write_text("x")
    assert everything(tmp_path) == sorted([*mine, "a.txt", "data", "data/x"])


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    with replacing_directory(tmp_path / "data", fine) as partial:
        (partial / "x").write_text("x")
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("one")
    assert (tmp_path / "data").is_symlink()
    assert everything(tmp_path / "disk") == ["x"]
    assert (tmp_path / "b.txt").read_text() == "one"


def refuse(directory: Path) -> None:
    raise ValueError(f"{directory}: isn't ours")


def test_what_is_not_ours_is_not_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    with replacing_directory(tmp_path / "data", refuse) as partial:  # an empty one is nobody's
        (partial / "thesis").write_text("mine")
    begun = False
    with pytest.raises(ValueError, match="isn't ours"), replacing_directory(tmp_path / "data", refuse):
        begun = True
    assert not begun
    with pytest.raises(NotADirectoryError), replacing_directory(tmp_path / "data" / "thesis", fine):
        pass
    assert (tmp_path / "data" / "thesis").read_text() == "mine"
    with pytest.raises(ValueError, match="isn't ours"), replacing_directory(tmp_path / "new", refuse) as partial:
        (tmp_path / "new").mkdir()  # meanwhile, by somebody else
        (tmp_path / "new" / "y").write_text("theirs")
    assert everything(tmp_path) == ["data", "data/thesis", "new", "new/y"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("fails", [None, 0, 1])
def test_the_old_directory_comes_back(tmp_path, monkeypatch, exchange, fails):
    """Whichever of the renames fails, there is a whole directory under the name; after a kill too."""
    path, rename, calls = tmp_path / "data", Path.rename, iter(range(9))
    with replacing_directory(path, fine) as partial:
        (partial / "old").write_text("old")

    def failing(self, target):
        if next(calls) == fails:
            raise OSError("no more")
        return rename(self, target)

    if not exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", failing)
    try:
        with replacing_directory(path, fine) as partial:
            (partial / "new").write_text("new")
    except OSError:
        pass
    assert everything(path) in (["old"], ["new"])
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    path.rename(tmp_path / ".data.abcdef12.old")  # as a kill between the two renames leaves it
    recover(tmp_path / "dat")  # another one's
    recover(path)
    assert everything(path) in (["old"], ["new"])
    path.rename(tmp_path / ".data.b.abcdef12.old")
    recover(path)
    assert not path.exists()


def test_only_one_works_on_a_directory(tmp_path):
    with alone(tmp_path / "run", "run"):
        with pytest.raises(BusyError) as error, alone(tmp_path / "run", "run"):
            pass
        assert f"pid {os.getpid()} on {socket.gethostname()} is working on this run since 20" in str(error.value)
        with alone(tmp_path / "other", "run"):
            pass
    assert everything(tmp_path) == []
    with alone(tmp_path / "run", "run"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from dlrm_mlet.files import alone
with alone(Path(sys.argv[1]), "run"):
    print("here", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_dead_process_is_none(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE) as held:
        assert held.stdout.readline() == b"here\n"
        with pytest.raises(BusyError, match=f"pid {held.pid} on "), alone(tmp_path / "run", "run"):
            pass
        held.send_signal(signal.SIGKILL)
    with alone(tmp_path / "run", "run"):
        pass
    assert everything(tmp_path) == []


def test_what_a_dead_process_left_is_removed(tmp_path):
    for name in (".run.abcdef12.partial", ".run2.abcdef12.partial", "run/.checkpoint.pt.abcdef12.partial", "run/mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with alone(tmp_path / "run", "run"):
        pass
    assert everything(tmp_path) == [".run2.abcdef12.partial", "run", "run/mine"]


@pytest.mark.parametrize(
    ("change", "age", "busy"),
    [
        ({}, 0, True),
        ({}, 1e6, True),  # it sleeps, as a closed laptop does
        ({"started": "1"}, 0, False),  # another process has the number now
        ({"seen": "elsewhere", "pid": 2**22 + 1}, 0, True),
        ({"seen": "elsewhere", "pid": 2**22 + 1}, 1e6, False),
        (None, 0, True),
        (None, 1e6, False),
    ],
)
def test_whose_lock_counts(tmp_path, change, age, busy):
    lock = tmp_path / ".run.lock"
    with alone(tmp_path / "run", "run"):
        text = lock.read_text()
    lock.write_text("{" if change is None else json.dumps(json.loads(text) | change))
    os.utime(lock, (time.time() - age,) * 2)
    if busy:
        with pytest.raises(BusyError), alone(tmp_path / "run", "run"):
            pass
        assert lock.exists()
    else:
        with alone(tmp_path / "run", "run"):
            pass
        assert everything(tmp_path) == []


def test_a_file_in_the_way_of_a_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in ("file", "file/run"):
        with (
            pytest.raises(NotADirectoryError, match="file: is a file; expected the name of a directory"),
            alone(tmp_path / path, "run"),
        ):
            pass
    with pytest.raises(NotADirectoryError, match="file: is a file"), replacing(tmp_path / "file" / "table.csv"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_what_was_made_for_a_lock_alone_goes_with_it(tmp_path):
    with pytest.raises(ValueError, match="no data"), alone(tmp_path / "a" / "b" / "c", "sweep"):
        raise ValueError("no data")
    assert list(tmp_path.iterdir()) == []
    with alone(tmp_path / "a" / "b" / "c", "sweep"):
        (tmp_path / "a" / "b" / "mine").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["mine"]
