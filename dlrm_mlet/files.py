"""Writing whole: a file or a directory appears under its name when it is finished; and one writer at a time."""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEARTBEAT = 20.0
"""Seconds between two signs of life of a lock's holder."""
DEAD_AFTER = 120.0
"""Seconds without one after which a holder on another machine counts as dead."""
TEMPORARY = "?" * 8 + ".partial"
"""How names end that tempfile makes for us."""
UMASK = os.umask(0o022)
os.umask(UMASK)
EXCHANGE = 2
"""RENAME_EXCHANGE of Linux's renameat2."""


class BusyError(RuntimeError):
    """Another process is at work on a directory: says which, where and since when."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what was written there takes the name `path` when the block succeeds.

    It is on the disk by then. A link is followed: what it points to is replaced.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory; expected the name of a file to write")
    path = _followed(path)
    _make(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{_short(path.name)}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~UMASK)
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path, check: Callable[[Path], object]) -> Iterator[Path]:
    """The same for a directory, which starts empty; one that was there before goes when the new one is whole.

    `check` is called with one that is there and holds anything, before anything else and again before it is replaced:
    it raises where that mustn't be lost. Raises NotADirectoryError where `path` is a file.
    """
    path = _followed(path)
    recover(path)
    _refuse(path, check)
    _make(path.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{_short(path.name)}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~UMASK)
        for file in (*partial.rglob("*"), partial):
            _sync(file)
        _refuse(path, check)
        _swap(partial, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # by now perhaps the old one


def _refuse(path: Path, check: Callable[[Path], object]) -> None:
    if path.is_dir():
        if any(path.iterdir()):
            check(path)
    elif path.exists():
        raise NotADirectoryError(f"{path}: is a file; expected the name of a directory to write")


def _make(path: Path) -> list[Path]:
    """A directory, and what isn't there above it; returns those that are new, the innermost first."""
    new = []
    for place in (path, *path.parents):
        if place.is_dir():
            break
        if place.exists():
            raise NotADirectoryError(f"{place}: is a file; expected the name of a directory to write")
        new.append(place)
    path.mkdir(parents=True, exist_ok=True)
    return new


def _swap(new: Path, path: Path) -> None:
    """The directory takes the name `path`; one that was there goes, or has its name. Neither is ever without a name."""
    if not path.exists():
        new.rename(path)
        return
    if _exchanged(new, path):
        return
    aside = new.with_name(new.name.removesuffix(".partial") + ".old")
    path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two have changed names, in one step, as Linux can on most file systems."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here = -100  # AT_FDCWD: paths are as they are
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), EXCHANGE) == 0)


def recover(path: Path) -> None:
    """Give a directory its name back which a process that was killed had put aside, on a system without exchange."""
    if not path.exists() and path.parent.is_dir():
        aside = path.parent.glob(f".{_literal(_short(path.name))}.{'?' * 8}.old")
        if latest := max(aside, key=lambda one: one.stat().st_mtime, default=None):
            latest.rename(path)


def _short(name: str) -> str:
    """The name, or one of its own that leaves room for an ending: file systems end at 255 bytes."""
    return name if len(name.encode()) <= 150 else hashlib.sha256(name.encode()).hexdigest()


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """The only process, on any machine that shares the disk, that works on the directory within the block.

    Beside it lies .<name>.lock then. One whose process is dead is none, and what it left half-written is removed.
    Raises BusyError where another one lives, NotADirectoryError where a file has the directory's name.
    """
    if path.is_file():
        raise NotADirectoryError(f"{path}: is a file; expected the name of a directory to write")
    lock = _lock_of(path)
    new = _make(lock.parent)
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M")
    mine = {"pid": pid, "host": socket.gethostname(), "since": since, "seen": _seen(), "started": _started(pid)}
    text = json.dumps(mine | {"token": os.urandom(8).hex()})
    while not _created(lock, text):
        if (holder := _holder(lock)) is not None:
            raise BusyError(
                f"{path}: pid {holder['pid']} on {holder['host']} is working on this {what} since {holder['since']}; "
                f"expected to be alone (if it isn't running any more, delete {lock})"
            )
        with contextlib.suppress(FileNotFoundError):  # another one may have been faster
            lock.unlink()
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(lock)

    threading.Thread(target=beat, daemon=True).start()
    try:
        for left in (*path.parent.glob(f".{_literal(_short(path.name))}.{TEMPORARY}"), *path.glob(f".*.{TEMPORARY}")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            if lock.read_text(encoding="utf-8") == text:
                lock.unlink()
            for place in new:  # if nothing was written
                place.rmdir()


def at_work(path: Path) -> str | None:
    """Which process works on the directory, where and since when; None where none does."""
    lock = _lock_of(path)
    holder = _holder(lock) if lock.exists() else None
    return None if holder is None else f"pid {holder['pid']} on {holder['host']} since {holder['since']}"


def _lock_of(path: Path) -> Path:
    return _followed(path).with_name(f".{_short(path.name)}.lock")


def _created(lock: Path, text: str) -> bool:
    """Whether the file is there now with this text, and wasn't before: a link is made in one step, also over NFS."""
    while True:
        _make(lock.parent)
        with contextlib.suppress(FileNotFoundError):  # another one that wrote nothing may just have removed it
            handle, name = tempfile.mkstemp(prefix=lock.name, dir=lock.parent)
            break
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        os.link(name, lock)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(text)
            return True
        except FileExistsError:
            return False
    finally:
        os.unlink(name)


def _holder(lock: Path) -> dict[str, Any] | None:
    """What the lock says of who holds it; None where that process is dead, or the file is gone."""
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        pid, seen, started = int(holder["pid"]), holder["seen"], holder["started"]
        holder["since"], holder["host"] = str(holder["since"]), str(holder["host"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError):
        return None if _age(lock) > DEAD_AFTER else {"pid": "?", "host": "?", "since": "?"}
    if seen == _seen() and os.name != "nt":
        return holder if _lives(pid) and _started(pid) == started else None
    return holder if _age(lock) < DEAD_AFTER else None


def _seen() -> str:
    """From where the processes are seen that this one sees: the machine, and there the container."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """When the process started, where that is known, so that another one with its number isn't taken for it."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return None


def _age(file: Path) -> float:
    """Seconds since the file's last sign of life, by the clock of the disk that it lies on."""
    try:
        handle, name = tempfile.mkstemp(prefix=file.name, dir=file.parent)
        os.close(handle)
        try:
            return Path(name).stat().st_mtime - file.stat().st_mtime
        finally:
            os.unlink(name)
    except FileNotFoundError:
        return float("inf")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _followed(path: Path) -> Path:
    """What a link, or a path that ends in dots, points to; else the path itself."""
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def _sync(path: Path) -> None:
    """Have the file or directory on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around calls that write to `path`, or beside it, and say neither where nor why they failed."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path}: couldn't be written ({error}); the disk has {free:,} bytes free") from None


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, written whole."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
