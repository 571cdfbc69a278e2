#!/usr/bin/env bash
# What docs/reproduction.md is drawn from, on one data set; what is done already is kept. Usage: scripts/experiments.sh
# DATASET [EXPERIMENT...]. Without names: on flights, Complete Journey and data of your own those that answer most,
# otherwise all that there are.
set -euo pipefail
dataset=$1
shift
if [ $# -eq 0 ]; then
    case $dataset in
        complete-journey) set -- paper-grid controls fair-fight-sgd fair-fight-adam-512 mechanism depth narrow ;;
        complete-journey-by-time | criteo-kaggle | avazu*) set -- $(basename --suffix .toml "configs/$dataset"/*.toml) ;;
        *) set -- paper-grid controls fair-fight-sgd fair-fight-adam-512 mechanism depth narrow rivals-tuned ;;
    esac
fi
for experiment in "$@"; do
    scripts/sweep.sh "$dataset" "$experiment"
done
python scripts/equation_6.py
