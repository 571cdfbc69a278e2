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


MOST_JOBS = 4096
UNKNOWN = 1 << 62
"""Bytes, where a system doesn't say what it has."""


def workers(jobs: int | None) -> list[torch.device]:
    """The device of each of `jobs` worker processes: GPUs where there are any, else the CPU.

    By default one a GPU, or one a core of the CPU. Raises DeviceError below 1, and above one a GPU.
    """
    gpus = torch.cuda.device_count()
    count = (gpus or cores()) if jobs is None else jobs
    most = gpus or MOST_JOBS
    if not 1 <= count <= most:
        raise DeviceError(f"--jobs {count}: expected 1 to {most}" + (", one a GPU" if gpus else ""))
    return [torch.device("cuda", i) if gpus else torch.device("cpu") for i in range(count)]


def describe(device: torch.device) -> str:
    """What the device is called; for a processor its name as the system gives it, its vectors, and its cores.

    The vectors (AVX2, AVX512) tell processors of one name apart that differ in speed by a factor of 2 and more.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # only Linux has the file
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores"


def free_memory(device: torch.device) -> int:
    """Bytes that new arrays on the device can take now, without swapping."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch has kept of a run before
        return torch.cuda.mem_get_info(device)[0]
    return min([*_of_machine(), *_of_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")), *_of_process()])


def _of_machine() -> Iterator[int]:
    with contextlib.suppress(OSError):  # only Linux has the file
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
                return
    try:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows: where it ends, allocation fails
        yield UNKNOWN


def _of_groups(own: Path, root: Path) -> Iterator[int]:
    """What the control groups leave that the process is in, of a container or a job of Slurm's, and those around them.

    `own` lists them, /proc/self/cgroup; `root` is where they lie. Files in the page cache count as free.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            home, files, cached = root, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            home = root / "memory"
            files, cached = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
        else:
            continue
        place = home / name.lstrip("/")
        for group in (place, *place.parents):
            if group == home.parent:
                break
            with contextlib.suppress(OSError, ValueError):  # no limit there, or "max"
                limit, used = (int((group / file).read_text(encoding="utf-8")) for file in files)
                stat = dict(row.split() for row in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
                yield max(limit - used + int(stat.get(cached, 0)), 0)


def _of_process() -> Iterator[int]:
    """What `ulimit -v` leaves."""
    try:
        import resource  # noqa: PLC0415  Windows has none

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
            yield max(limit - used, 0)
    except (ImportError, OSError):
        return


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux alone has it
        return os.cpu_count() or 1


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
