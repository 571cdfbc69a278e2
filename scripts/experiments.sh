#!/usr/bin/env bash
# What docs/reproduction.md is drawn from, on one data set; what is done already is kept. Usage: scripts/experiments.sh
# DATASET [EXPERIMENT...]. Without names those that answer most.
set -euo pipefail
dataset=$1
shift
if [ $# -eq 0 ]; then
    case $dataset in
        complete-journey-by-time) set -- paper-grid fair-fight-adam-512 ;;
        criteo-kaggle | avazu) set -- paper-grid controls fair-fight-sgd fair-fight-adagrad mechanism depth narrow rivals rivals-tuned ;;
        avazu-as-published) set -- paper-grid ;;
        *) set -- paper-grid controls fair-fight-sgd fair-fight-adam-512 mechanism depth narrow ;;
    esac
fi
for experiment in "$@"; do
    scripts/sweep.sh "$dataset" "$experiment"
done
python scripts/equation_6.py
