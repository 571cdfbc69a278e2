#!/usr/bin/env bash
# The runs of configs/<dataset>/<grid>.toml that are missing, then tables and figures. Usage: scripts/sweep.sh DATASET GRID
# The embedded data set is prepared first where it isn't there.
set -euo pipefail
dataset=$1
grid=$2
if [ "$dataset" = flights ] && [ ! -e data/flights/schema.json ]; then
    scripts/preprocess.sh flights
fi
exec dlrm-mlet sweep "configs/$dataset/$grid.toml"
