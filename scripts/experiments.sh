#!/usr/bin/env bash
# All that docs/reproduction.md is drawn from, on one data set; what is done already is kept.
# Usage: scripts/experiments.sh DATASET
set -euo pipefail
dataset=$1
for experiment in paper-grid controls fair-fight-sgd fair-fight-adagrad mechanism depth narrow rivals rivals-tuned; do
    scripts/sweep.sh "$dataset" "$experiment"
done
python scripts/equation_6.py
