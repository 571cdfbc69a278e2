#!/usr/bin/env bash
# The package, not the checkout: a core of torch and numpy alone, and a wheel that trains where nothing else is.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(echo "$work"/dist/*.whl)
checkout=$PWD
constraint=$checkout/requirements.lock
cp .ci/core.py "$work/"
cat > "$work/user.py" <<'PY'
from pathlib import Path

import torch
from torch import nn

from dlrm_mlet import MLETEmbedding, collapse, convert, export, find_table_learning_rate, parameter_groups, quantize

model = nn.Sequential(nn.Embedding(1000, 8), nn.Flatten(), nn.Linear(8, 1))
model = convert(model, inner_dim=64, min_rows=100)
optimizer = torch.optim.SGD(parameter_groups(model, learning_rate=0.1, table_learning_rate=6.4))
table: nn.Embedding = MLETEmbedding.from_pretrained(torch.zeros(9, 4), inner_dim=8)
model = collapse(model)
small: nn.Sequential = quantize(model, {"*": 4}, offset=True)
path: Path = export(small, (torch.arange(16),), "model.onnx", dynamic={"input_0": {0: "batch"}})


def train(model: nn.Module, rate: float, seed: int) -> None:
    print(model, rate, seed)


found = find_table_learning_rate(lambda: model, train, lambda model: 0.5, "rates", start=0.1)
print(found.sentence, path, optimizer, table, convert(small, {"0": [16, 8]}))
PY
sed 's/inner_dim=64,/inner_dim="64",/' "$work/user.py" > "$work/wrong.py"
cd "$work"

python3 -m venv core
core/bin/python -m pip install --quiet --constraint "$constraint" "$wheel"
echo "core: $(core/bin/python -m pip list --format=freeze | cut -d= -f1 | tr '\n' ' ')"
core/bin/python core.py
mypy() { "$checkout/.venv/bin/python" -m mypy --strict --python-executable core/bin/python --config-file /dev/null "$@"; }
mypy user.py
if said=$(mypy wrong.py); then echo "a wrong argument of convert went unseen"; exit 1; fi
echo "$said" | grep 'wrong.py:9: error: Argument "inner_dim" to "convert" has incompatible type "str"'

core/bin/python -m pip install --quiet --constraint "$constraint" "dlrm-mlet[all] @ file://$wheel"
core/bin/dlrm-mlet preprocess flights
core/bin/dlrm-mlet sweep flights/smoke
