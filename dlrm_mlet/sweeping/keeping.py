"""The finished runs of a point and the experiment's `keep` -> those checkpoints are left that it asks for."""

from collections.abc import Iterable
from pathlib import Path

from dlrm_mlet.config import Keep
from dlrm_mlet.training import checkpoint, record
from dlrm_mlet.training.record import Record


def leave(keep: Keep, directories: Iterable[Path]) -> None:
    """Remove the checkpoints of some seeds of a point that `keep` doesn't want; records stay.

    A run without a record keeps its own, to go on from. Of the finished ones "best" leaves that of the best validation
    AUC, until a seed that is finished later beats it: so any of the seeds can be given, at any time. Raises RecordError
    where a record is damaged.
    """
    if keep == "all":
        return
    read = {directory: record.read(directory) for directory in directories}
    finished = {directory: found for directory, found in read.items() if found is not None}
    if keep == "best" and finished:
        # of two that are equal the one whose checkpoint is still there
        del finished[max(finished, key=lambda each: (score(finished[each]), (each / checkpoint.FILE).exists()))]
    for directory in finished:
        (directory / checkpoint.FILE).unlink(missing_ok=True)


def score(record: Record) -> float:
    """Validation AUC; 0 for a run that diverged."""
    return record.metrics["validation"]["auc"] if record.metrics else 0.0
