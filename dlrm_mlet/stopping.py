"""A command's process: asked to end by Ctrl-C, SIGTERM or SIGHUP, it does within seconds; without streams, it works."""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

SECONDS = 8.0
"""Within which a process ends that was asked to, whatever it is doing: all that it has written is whole."""
AGAIN = 1.0
"""After so many seconds a second signal ends the process at once; before, it is the same one, sent to a whole group."""

_asked: list[tuple[int, float]] = []
_lost: list[bool] = []


def asked() -> int | None:
    """The signal by which this process was asked to end, if it was."""
    return _asked[0][0] if _asked else None


def heed() -> None:
    """From now on this process, of the command line, ends as it is asked to. A signal that is ignored stays ignored."""
    ours = []
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
            ours.append(number)
    sys.unraisablehook = _unraisable
    told, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(told, tell, ours), daemon=True).start()


def over(status: int) -> NoReturn:
    """Exit with this status; nothing is left that a signal could interrupt."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)
    if asked():  # a KeyboardInterrupt that went through code run from C makes Python end by SIGINT, whatever the status
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def open_streams() -> None:
    """Give what was started without output or errors a place for them, so that no file that it opens becomes theirs."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def _end(number: int, frame: object) -> None:
    if not _asked:
        _asked.append((number, time.monotonic()))
        raise KeyboardInterrupt
    if time.monotonic() - _asked[0][1] > AGAIN:
        os._exit(128 + number)


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """A KeyboardInterrupt that fell into a place that passes nothing on, such as a __del__, is raised once more."""
    if isinstance(found.exc_value, KeyboardInterrupt) and _asked:
        _lost.append(True)
    else:
        sys.__unraisablehook__(found)


def _end_in_time(told: socket.socket, tell: socket.socket, ours: list[int]) -> None:
    """In a thread of its own, which no lock that the main one waits for can stop."""
    while (number := told.recv(1)[0]) not in ours:
        pass
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        time.sleep(0.1)
        if _lost:
            _lost.clear()
            _asked.clear()
            os.kill(os.getpid(), number)
    os._exit(128 + number)
