"""Where a run takes place: the device, its name and free memory, and how its processor multiplies matrices."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

CPU = torch.device("cpu")
USABLE = 0.9
"""The share of a device's free memory that is planned with: torch itself takes some, and more on a GPU."""


class DeviceError(ValueError):
    """A device that isn't there, or has not the memory that a run needs."""


def find(name: str | None) -> torch.device:
    """The device of this name, such as cpu or cuda:1; None: the first GPU where there is one, else the CPU.

    Raises DeviceError where there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = None
    gpus = torch.cuda.device_count()
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
        raise DeviceError(f"--device {name}: expected cpu, or cuda:N below the number of GPUs here, {gpus}")
    return device


def workers(jobs: int | None) -> list[torch.device]:
    """The device of each of `jobs` worker processes: GPUs where there are any, else the CPU.

    By default one a GPU, or one a core of the CPU. Raises DeviceError below 1, and above one a GPU.
    """
    gpus = torch.cuda.device_count()
    count = (gpus or os.cpu_count() or 1) if jobs is None else jobs
    if count < 1 or count > gpus > 0:
        raise DeviceError(f"--jobs {count}: expected at least 1" + (f" and at most {gpus}, one a GPU" if gpus else ""))
    return [torch.device("cuda", i) if gpus else torch.device("cpu") for i in range(count)]


def describe(device: torch.device) -> str:
    """What the device is called; for a processor its name as the system gives it, and its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # only Linux has the file
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
    return f"{name}, {os.cpu_count()} cores"


def free_memory(device: torch.device) -> int:
    """Bytes that new arrays on the device can take now, without swapping."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch has kept of a run before
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):  # only Linux has the files; the second one in a container or a job of Slurm's
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        free = free if limit == "max" else min(free, int(limit))
    return free


def wait(device: torch.device) -> None:
    """Until all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


@contextlib.contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Within the block GPUs multiply float32 matrices in TF32 if `precision` says so, else in float32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _keeps_float32() -> bool:
    """Whether products of a layer's size are exact where bfloat16, with 8 bits, would round 1 + 2^-11 to 1."""
    left, right = torch.full((128, 512), 1 + 2**-11), torch.ones(512, 256)
    return bool(((left @ right) == 512 + 2**-2).all() and ((right.t() @ left.t()) == 512 + 2**-2).all())
