"""What the core does with torch and numpy alone, and what each room says that it lacks."""

import importlib
import importlib.util
import subprocess
import sys
import time

import torch
from torch import nn

for package in ("polars", "sklearn", "tqdm", "matplotlib", "scipy", "onnx", "onnxruntime"):
    assert importlib.util.find_spec(package) is None, f"{package} came with the core"

from dlrm_mlet import __version__, collapse, convert, quantize  # noqa: E402


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(1000, 8), nn.Linear(8, 1)

    def forward(self, ids):
        return self.head(self.table(ids))


ids = torch.arange(64)
model = convert(Model(), inner_dim=32)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
model(ids).square().mean().backward()
optimizer.step()
trained = model(ids)
model = collapse(model)
assert type(model.table) is nn.Embedding
torch.testing.assert_close(model(ids), trained, rtol=1e-4, atol=1e-5)
assert (quantize(model)(ids) - trained).abs().max() < 0.05

LACKS = {
    "dlrm_mlet.data.preprocess": "data",
    "dlrm_mlet.training.run": "training",
    "dlrm_mlet.sweeping.sweep": "training",
    "dlrm_mlet.serving.export": "serving",
    "dlrm_mlet.reporting.figures": "reporting",
}
for module, extra in LACKS.items():
    try:
        importlib.import_module(module)
    except ImportError as error:
        assert str(error).endswith(f"isn't installed; expected pip install 'dlrm-mlet[{extra}]'"), error
        print(f"{module}: {error}")
    else:
        raise AssertionError(f"{module} needs nothing")
said = subprocess.run(["core/bin/dlrm-mlet", "preprocess", "flights"], capture_output=True, text=True, check=False)
assert said.returncode == 1
assert said.stderr == "dlrm-mlet: error: polars isn't installed; expected pip install 'dlrm-mlet[data]'\n", said.stderr


def seconds(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


pairs = [(seconds("import torch"), seconds("import dlrm_mlet")) for _ in range(7)]
more = sorted(ours - torchs for torchs, ours in pairs)[3]
print(f"dlrm_mlet {__version__} takes {1000 * more:.0f} ms more to import than torch (median of 7 pairs)")
