"""Matrix products keep float32's precision, whichever library multiplies, and the settings are handed back."""

import torch

from dlrm_mlet import device


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
