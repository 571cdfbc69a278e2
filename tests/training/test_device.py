"""Which devices work and what is free on them; products keep float32's precision; settings are handed back."""

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


@pytest.mark.parametrize(("gpus", "jobs", "expected"), [(0, 0, "at least 1$"), (2, 3, "at most 2, one a GPU$")])
def test_workers_that_cannot_be_are_refused(gpus, jobs, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(device.DeviceError, match=f"--jobs {jobs}: expected .*{expected}"):
        device.workers(jobs)


def test_what_torch_keeps_of_a_run_before_is_free(monkeypatch):
    kept = [60]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 - sum(kept), 80))
    assert device.free_memory(torch.device("cuda")) == 70
