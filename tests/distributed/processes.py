"""Processes of one group, as torchrun starts them: by torchrun, or faster, with TorchRec imported once for all."""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
SCRIPTS = ("runs", "others", "sequences")
CONTEXT = multiprocessing.get_context("forkserver")


def torchrun(processes: int, script: str, *arguments: object, ok: bool = True) -> None:
    """Run a script of this directory; `ok` is whether it has to end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    call = subprocess.run(
        [*map(str, command), HERE / f"{script}.py", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
    )  # fmt: skip
    assert (call.returncode == 0) == ok, call.stderr[-4000:]


def together(processes: int, script: str, *arguments: object) -> None:
    """The same without torchrun's own process, from one that has imported all of it; it has to end well."""
    CONTEXT.set_forkserver_preload([__name__, *(f"{__package__}.{name}" for name in SCRIPTS)])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = [CONTEXT.Process(target=_rank, args=(script, rank, processes, port, [*map(str, arguments)]))
             for rank in range(processes)]  # fmt: skip
    for process in group:
        process.start()
    left = {process.sentinel: process for process in group}
    try:
        while left:
            ended = multiprocessing.connection.wait(left, timeout=300)
            assert ended, "300 seconds without an end"
            assert [left.pop(sentinel).exitcode for sentinel in ended] == [0] * len(ended)
    finally:
        for process in group:
            process.kill()


def _rank(script: str, rank: int, processes: int, port: int, arguments: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    module = importlib.import_module(f"{__package__}.{script}")
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    module.main()
