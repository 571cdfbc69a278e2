"""A model, its optimizers, columns and the order of their rows -> the losses of its steps; on a GPU as one CUDA graph.

B rows of a batch; ... nothing, or the seeds that train together.
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dlrm_mlet.data.columns import Columns
from dlrm_mlet.training.device import multiplying
from dlrm_mlet.training.model import DLRM
from dlrm_mlet.training.optimizer import Optimizer
from dlrm_mlet.training.step import FusedStep, train_step

WARM_UP_STEPS = 3
"""Steps before one is captured: libraries set themselves up in the first, and Adagrad its memory."""
LOT_BYTES = 1 << 26
"""Of rows that stream to a GPU at a time, or of the order of resident ones."""


def losses(
    model: DLRM,
    optimizers: Sequence[Optimizer],
    columns: Columns,
    orders: Iterable[Tensor],
    batch_size: int,
    precision: str = "float32",
) -> Iterator[Tensor]:
    """Make a step for each batch of `orders`, places of rows (..., rows) each, and yield its loss, not waited for.

    A loss lies in the same memory as the one before, where steps are replayed: copy what is to be kept.

    The device decides how: a CPU makes a `train_step` (in bfloat16 a `FusedStep`), a GPU replays a `FusedStep` that it
    has captured, over columns that are resident there or, where they are the CPU's, stream there.
    """
    device = next(model.parameters()).device
    if device.type == "cpu" and precision == "float32":
        for order in orders:
            for batch in columns.batches(order, batch_size):
                yield train_step(model, optimizers, batch)
        return
    orders = iter(orders)
    first = next(orders, None)
    if first is None:
        return
    seeds, batch_size = first.shape[:-1], min(batch_size, columns.schema.rows["train"])
    feed = (Resident if columns.label.device == device else Streamed)(columns, seeds, batch_size, device)
    step = FusedStep(model, optimizers, torch.bfloat16 if precision == "bfloat16" else None)
    replayed = ReplayedStep(step, feed.columns, (*seeds, feed.rows), batch_size, precision)
    for order in itertools.chain([first], orders):
        for lot in feed.lots(order):
            yield from replayed.take(lot)


class ReplayedStep:
    """A step over rows that are always in the same memory, captured as one CUDA graph where there is a GPU.

    A graph reads and writes the memory that it was captured with. So there is one place for the order of the rows, and
    one for where in it the next batch lies, which each step moves on by itself: the CPU has only to start the graph.
    """

    def __init__(self, step: FusedStep, columns: Columns, longest: tuple[int, ...], batch_size: int, precision: str):
        """`longest`: the shape of the longest order that will be taken, (..., rows)."""
        self.step, self.columns, self.precision = step, columns, precision
        self.device = columns.label.device
        self.order = torch.zeros(longest, dtype=torch.int64, device=self.device)
        self.first = torch.arange(batch_size, device=self.device).expand(*longest[:-1], batch_size)
        self.place = self.first.clone()  # (..., B)
        self.warm_up = WARM_UP_STEPS
        self.replay: Callable[[], Tensor] | None = None

    def take(self, order: Tensor) -> Iterator[Tensor]:
        """The losses of a step for each batch of `order` (..., rows); a last short one isn't replayed."""
        rows, batch_size = order.shape[-1], self.place.shape[-1]
        self.order[..., :rows].copy_(order)
        self.place.copy_(self.first)
        for _ in range(rows // batch_size):
            yield self._next()
        if rows % batch_size:
            with _called(self.precision):
                loss = self.step(self.columns, self.order[..., rows - rows % batch_size : rows])
            yield loss

    def _next(self) -> Tensor:
        if self.replay is None:
            with _called(self.precision):
                if self.warm_up or self.device.type != "cuda":
                    self.warm_up -= 1
                    return self._step()
                self.replay = capture(self._step, self.device)
        return self.replay()

    def _step(self) -> Tensor:
        rows = self.order.gather(-1, self.place)
        with self.step.biases.begun():
            self.place.add_(self.place.shape[-1])
        return self.step(self.columns, rows)


@contextlib.contextmanager
def _called(precision: str) -> Iterator[None]:
    """Around a step that isn't replayed."""
    with multiplying(precision), warnings.catch_warnings():
        # torch says so of its own thread for backward passes, once in a process, and means no harm
        warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context")
        yield


def capture(function: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """What the function does, as one CUDA graph, whose result is always in the same memory."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    # only this thread's calls belong to the graph: another one may be gathering the next lot into pinned memory
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class Resident:
    """Columns that lie on the device; a lot is a part of the order of their rows."""

    def __init__(self, columns: Columns, seeds: torch.Size, batch_size: int, device: torch.device):
        self.columns = columns
        self.rows = _whole_batches(LOT_BYTES / (8 * seeds.numel()), batch_size)

    def lots(self, order: Tensor) -> Iterator[Tensor]:
        """(..., rows) -> (..., at most `self.rows`), one after another: places in `self.columns`."""
        yield from order.split(self.rows, dim=-1)


class Streamed:
    """Columns of the CPU; a lot's rows are gathered into pinned memory while those before are used, and then copied."""

    def __init__(self, columns: Columns, seeds: torch.Size, batch_size: int, device: torch.device):
        self.source = columns
        row_bytes = columns.nbytes / len(columns.label)
        self.rows = _whole_batches(LOT_BYTES / (row_bytes * seeds.numel()), batch_size)
        count = self.rows * seeds.numel()
        self.columns = columns.of(
            {
                name: array.new_empty((count, *array.shape[1:]), device=device)
                for name, array in columns.arrays().items()
            }
        )

    def lots(self, order: Tensor) -> Iterator[Tensor]:
        """(..., rows) -> (..., at most `self.rows`), one after another: places in `self.columns`, with the rows."""
        parts = order.split(self.rows, dim=-1)
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._gather, parts[0])
            for part, after in itertools.zip_longest(parts, parts[1:]):
                gathered = following.result()
                if after is not None:
                    following = pool.submit(self._gather, after)
                for array, rows in zip(self.columns.arrays().values(), gathered, strict=True):
                    array[: len(rows)].copy_(rows, non_blocking=True)
                yield torch.arange(part.numel(), device=self.columns.label.device).view(part.shape)

    def _gather(self, order: Tensor) -> list[Tensor]:
        gathered = [array[order.flatten()] for array in self.source.arrays().values()]
        return [array.pin_memory() for array in gathered] if self.columns.label.is_cuda else gathered


def _whole_batches(rows: float, batch_size: int) -> int:
    """About so many rows, but a multiple of the batch's."""
    return max(1, int(rows / batch_size)) * batch_size
