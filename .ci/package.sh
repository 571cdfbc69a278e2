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
from torch import nn

from dlrm_mlet import collapse, convert, export, quantize

model = nn.Sequential(nn.Embedding(1000, 8), nn.Flatten(), nn.Linear(8, 1))
model = convert(model, inner_dim=64, min_rows=100)
model = collapse(model)
small: nn.Sequential = quantize(model)
print(export, small)
PY
sed 's/inner_dim=64/inner_dim="64"/' "$work/user.py" > "$work/wrong.py"
cd "$work"

python3 -m venv core
core/bin/python -m pip install --quiet --constraint "$constraint" "$wheel"
echo "core: $(core/bin/python -m pip list --format=freeze | cut -d= -f1 | tr '\n' ' ')"
core/bin/python core.py
mypy() { "$checkout/.venv/bin/python" -m mypy --strict --python-executable core/bin/python --config-file /dev/null "$@"; }
mypy user.py
if said=$(mypy wrong.py); then echo "a wrong argument of convert went unseen"; exit 1; fi
echo "$said" | grep 'wrong.py:6: error: Argument "inner_dim" to "convert" has incompatible type "str"'

core/bin/python -m pip install --quiet --constraint "$constraint" "dlrm-mlet[all] @ file://$wheel"
core/bin/dlrm-mlet preprocess flights
core/bin/dlrm-mlet sweep flights/smoke
