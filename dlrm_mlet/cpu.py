"""How a run uses the processor: its number of threads, and the library that multiplies its matrices."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block torch uses `count` threads, and oneDNN for matrix products where that loses no precision.

    oneDNN's float32 kernels use AVX-512 on processors where MKL, torch's default, does not (AMD's), and are up to
    twice as fast there. torch hands float32 products to oneDNN only with leave to round to bfloat16, which oneDNN
    takes up just where the processor multiplies bfloat16 matrices faster. So leave is given on trial: one product
    that bfloat16 would get wrong decides.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = torch.get_num_threads(), matmul.fp32_precision
    torch.set_num_threads(count)
    matmul.fp32_precision = "bf16"
    if not _keeps_float32():
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        matmul.fp32_precision = before[1]


def _keeps_float32() -> bool:
    """Whether products of a layer's size are exact where bfloat16, with 8 bits, would round 1 + 2^-11 to 1."""
    left, right = torch.full((128, 512), 1 + 2**-11), torch.ones(512, 256)
    return bool(((left @ right) == 512 + 2**-2).all() and ((right.t() @ left.t()) == 512 + 2**-2).all())
