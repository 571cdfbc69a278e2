#!/usr/bin/env bash
# The runs of configs/<dataset>/<grid>.toml that are missing, then tables and figures. Usage: scripts/sweep.sh DATASET GRID
# A bundled data set is prepared first where it isn't there. One of your own takes the experiments of the flights, copied
# to configs/<dataset> where there is none of that name.
set -euo pipefail
dataset=$1
grid=$2
config=configs/$dataset/$grid.toml
case $dataset in
    flights | complete-journey*)
        if [ ! -e "data/$dataset/schema.json" ]; then
            scripts/preprocess.sh "$dataset"
        fi
        ;;
    criteo-kaggle | avazu*) ;;
    *)
        of_flights=configs/flights/$grid.toml
        if [ -e "data/$dataset/schema.json" ] && [ -e "$of_flights" ] && [ ! -e "$config" ]; then
            mkdir -p "configs/$dataset"
            sed -e '1i # Copied from '"$of_flights"', with another data set.' -e "s|^dataset = .*|dataset = \"$dataset\"|" \
                "$of_flights" > "$config.partial"
            mv "$config.partial" "$config"
            echo "$config: copied from $of_flights"
        fi
        ;;
esac
exec dlrm-mlet sweep "$config"
