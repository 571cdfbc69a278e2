"""The first moments of a sweep's worker process, before torch is imported: from then on it ends with its parent."""

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any


def start(data: Path, places: Any, lock: Any) -> None:
    """Once in each worker: see `sweep.prepare`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from dlrm_mlet.sweeping import sweep  # noqa: PLC0415  takes seconds, in which the parent may be killed

    sweep.prepare(data, places, lock)


def _end_with_parent() -> None:
    """Whatever ended the process that started this one: a worker without it would hold its memory for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
