#!/usr/bin/env bash
# The package, not the checkout: a core of torch and numpy alone, and a wheel that trains where nothing else is.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m build --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(echo "$work"/dist/*.whl)
constraint=$PWD/requirements.lock
cp .ci/core.py "$work/"
cd "$work"

python3 -m venv core
core/bin/python -m pip install --quiet --constraint "$constraint" "$wheel"
echo "core: $(core/bin/python -m pip list --format=freeze | cut -d= -f1 | tr '\n' ' ')"
core/bin/python core.py

core/bin/python -m pip install --quiet --constraint "$constraint" "dlrm-mlet[all] @ file://$wheel"
core/bin/dlrm-mlet preprocess flights
core/bin/dlrm-mlet sweep flights/smoke
