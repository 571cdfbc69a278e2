#!/usr/bin/env bash
# The runs of configs/<dataset>/<grid>.toml that are missing, then tables and figures. Usage: scripts/sweep.sh DATASET GRID
# A bundled data set is prepared first where it isn't there.
set -euo pipefail
dataset=$1
grid=$2
case $dataset in
    flights | complete-journey*)
        if [ ! -e "data/$dataset/schema.json" ]; then
            scripts/preprocess.sh "$dataset"
        fi
        ;;
esac
exec dlrm-mlet sweep "configs/$dataset/$grid.toml"
