#!/usr/bin/env bash
# The runs of configs/<dataset>/<grid>.toml that are missing, then tables and figures. Usage: scripts/sweep.sh DATASET GRID
# A bundled data set is prepared first where it isn't there. An experiment that a data set has none of is the flights',
# copied to configs/<dataset>.
set -euo pipefail
dataset=$1
grid=$2
config=configs/$dataset/$grid.toml
of_flights=configs/flights/$grid.toml
case $dataset in
    flights | complete-journey*)
        if [ ! -e "data/$dataset/schema.json" ]; then
            scripts/preprocess.sh "$dataset"
        fi
        ;;
esac
if [ -e "data/$dataset/schema.json" ] && [ -e "$of_flights" ] && [ ! -e "$config" ]; then
    mkdir -p "configs/$dataset"
    sed -e '1i # Copied from '"$of_flights"', with another data set.' -e "s|^dataset = .*|dataset = \"$dataset\"|" \
        "$of_flights" > "$config.partial"
    mv "$config.partial" "$config"
    echo "$config: copied from $of_flights"
fi
exec dlrm-mlet sweep "$config"
