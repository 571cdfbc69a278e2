#!/usr/bin/env bash
# What docs/reproduction.md is drawn from, on one data set; what is done already is kept. Usage: scripts/experiments.sh
# DATASET [EXPERIMENT...]. Without names: on a bundled data set those that answer most, otherwise all that there are.
set -euo pipefail
dataset=$1
shift
if [ $# -eq 0 ]; then
    case $dataset in
        flights) set -- paper-grid controls fair-fight-sgd fair-fight-adam-512 mechanism depth narrow rivals-tuned ;;
        complete-journey) set -- paper-grid controls fair-fight-sgd fair-fight-adam-512 mechanism depth narrow ;;
        *) set -- $(basename --suffix .toml "configs/$dataset"/*.toml) ;;
    esac
fi
for experiment in "$@"; do
    scripts/sweep.sh "$dataset" "$experiment"
done
python scripts/equation_6.py
