"""Run by a group: some runs, one after another, on as many processes as there are; killed before STEP, or RANK alone.

python -m torch.distributed.run --nproc-per-node 2 runs.py COLUMNS OUT CONFIGS.json [STEP [RANK]]
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from dlrm_mlet.config import Config
from dlrm_mlet.data import columns
from dlrm_mlet.distributed import engine, parallel
from dlrm_mlet.toml import build


def kill_at(step: int, rank: int | None) -> None:
    """End one process the hard way before a step, or all of them."""
    take = engine.Run._take_step

    def dying(self, chosen):
        if self.step == step and rank in (self.rank, None):
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, chosen)

    engine.Run._take_step = dying


def main() -> None:
    data, out = columns.load(Path(sys.argv[1])), Path(sys.argv[2])
    if len(sys.argv) > 4:
        kill_at(int(sys.argv[4]), int(sys.argv[5]) if len(sys.argv) > 5 else None)
    with parallel.processes("cpu") as device:
        for name, config in json.loads(Path(sys.argv[3]).read_text()).items():
            engine.train(build(Config, config), data, 0, out / name, device)
            dist.barrier()


if __name__ == "__main__":
    main()
