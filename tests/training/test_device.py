"""Which devices work and what is free on them; products keep float32's precision; settings are handed back."""

import subprocess
import sys

import pytest
import torch

from dlrm_mlet.training import device


def test_products_are_float32_within_the_block():
    left, right = torch.randn(128, 367), torch.randn(367, 512)
    exact = left.double() @ right.double()
    with device.threads(1):
        error = (left @ right - exact).abs().max()
    assert error < 1e-3  # of sums of 367 terms of size 1; bfloat16 would be off by 0.1


def test_without_float32_kernels_nothing_is_left_to_onednn(monkeypatch):
    monkeypatch.setattr(device, "_keeps_float32", lambda: False)
    with device.threads(1):
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_settings_are_handed_back():
    before = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision
    with device.threads(1):
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision) == before


@pytest.mark.parametrize(
    ("gpus", "jobs", "found"), [(0, 3, ["cpu"] * 3), (2, None, ["cuda:0", "cuda:1"]), (2, 1, ["cuda:0"])]
)
def test_a_worker_has_a_gpu_of_its_own_where_there_are_any(gpus, jobs, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert list(map(str, device.workers(jobs))) == found


@pytest.mark.parametrize(
    ("gpus", "jobs", "expected"),
    [(0, 0, "1 to 4096$"), (0, 10**14, "1 to 4096$"), (2, 3, "1 to 2, one a GPU$")],
)
def test_workers_that_cannot_be_are_refused(gpus, jobs, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(device.DeviceError, match=f"--jobs {jobs}: expected .*{expected}"):
        device.workers(jobs)


def test_what_torch_keeps_of_a_run_before_is_free(monkeypatch):
    kept = [60]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 - sum(kept), 80))
    assert device.free_memory(torch.device("cuda")) == 70


def group(home, **files):
    home.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (home / name.replace("_of_", ".")).write_text(text)


def test_the_memory_of_nested_groups_is_what_the_tightest_leaves(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/slurm/job\n")
    stat = {"memory_of_stat": "anon 5\ninactive_file 30\n"}
    group(tmp_path / "fs", memory_of_max="max\n", memory_of_current="9\n", **stat)
    group(tmp_path / "fs/slurm", memory_of_max="1000\n", memory_of_current="900\n", **stat)
    group(tmp_path / "fs/slurm/job", memory_of_max="500\n", memory_of_current="100\n", **stat)
    assert sorted(device._of_groups(own, tmp_path / "fs")) == [130, 430]


def test_the_memory_of_groups_of_the_first_version(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    group(tmp_path / "fs/memory/job", **{"memory_of_limit_in_bytes": "500", "memory_of_usage_in_bytes": "450",
                                         "memory_of_stat": "total_inactive_file 20"})  # fmt: skip
    assert list(device._of_groups(own, tmp_path / "fs")) == [70]
    assert list(device._of_groups(tmp_path / "none", tmp_path / "fs")) == []


def test_a_processor_is_told_from_one_of_its_name_by_its_vectors():
    assert f"({torch.backends.cpu.get_cpu_capability()}), " in device.describe(device.CPU)


def test_where_the_system_says_nothing_there_is_no_bound(monkeypatch):
    """As on Windows, which has neither os.sysconf nor /proc, resource or affinity."""
    monkeypatch.delattr("os.sysconf")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr(device, "Path", Nothing)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert device.free_memory(device.CPU) == device.UNKNOWN
    assert device.cores() >= 1
    assert device.describe(device.CPU)


class Nothing:
    """A path to no file."""

    def __init__(self, *_):
        pass

    def read_text(self, **_):
        raise FileNotFoundError


def test_a_limit_of_the_process_counts():
    call = (
        "ulimit -v 8000000; exec %s -c 'from dlrm_mlet.training import device; print(device.free_memory(device.CPU))'"
    )
    done = subprocess.run(["bash", "-c", call % sys.executable], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 8_000_000 << 10
