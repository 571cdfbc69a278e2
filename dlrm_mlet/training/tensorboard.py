"""Points of a run's validation curve -> the event files that TensorBoard reads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dlrm_mlet.extras import needs

Watch = Callable[[Mapping[str, float]], None]
"""What is told each point of a curve: its step, auc and log_loss."""


@contextmanager
def watching(directory: Path) -> Iterator[Watch]:
    """Yields what writes each point into `directory`, at once. Raises MissingExtraError without TensorBoard."""
    with needs("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an option of its own
    with SummaryWriter(str(directory)) as writer:

        def tell(point: Mapping[str, float]) -> None:
            for name in ("auc", "log_loss"):
                writer.add_scalar(f"validation/{name}", point[name], int(point["step"]))
            writer.flush()

        yield tell
