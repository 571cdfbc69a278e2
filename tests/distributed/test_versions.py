"""Whether newer versions of TorchRec have begun to work with the torch of requirements.lock: for a job each night."""

import os
import subprocess
import sys

import pytest
import torch


@pytest.mark.nightly
@pytest.mark.skipif("DLRM_MLET_NIGHTLY" not in os.environ, reason="asks the package index; set DLRM_MLET_NIGHTLY=1")
def test_no_newer_torchrec_works_yet(tmp_path):
    """Fails on the day when the pins can go up: in setup.cfg, requirements.lock, extras.py and docs/torchrec.md."""
    newest = ["torchrec", "fbgemm-gpu-cpu", "tensordict", "pyre-extensions"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, *newest]
    subprocess.run(install, check=True)
    call = subprocess.run(
        [sys.executable, "-c", "import torchrec; print(torchrec.__file__, torchrec.__version__)"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if call.returncode == 0:
        assert str(tmp_path) in call.stdout
        version = call.stdout.split()[-1]
        assert version == "1.8.0", f"torchrec {version} works with torch {torch.__version__}"
