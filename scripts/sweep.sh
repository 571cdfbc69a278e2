#!/usr/bin/env bash
# The runs of configs/<dataset>/<grid>.toml that are missing, then tables and figures.
# Usage: scripts/sweep.sh DATASET GRID [OPTION...], options of dlrm-mlet sweep, such as --jobs 1 or --dry-run
# A bundled data set is prepared first where it isn't there. An experiment that a data set has none of is the flights',
# copied to configs/<dataset>.
set -euo pipefail
dataset=$1
grid=$2
shift 2
config=configs/$dataset/$grid.toml
of_flights=configs/flights/$grid.toml
case $dataset in
    flights | complete-journey*)
        if [ ! -e "data/$dataset/schema.json" ]; then
            scripts/preprocess.sh "$dataset"
        fi
        ;;
esac
if [ ! -e "$config" ]; then
    if [ ! -e "$of_flights" ]; then
        echo "make: error: GRID=$grid: no such experiment; expected one of" \
            "$(cd configs && ls "$dataset" flights 2> /dev/null | sed -n 's/\.toml$//p' | sort -u | paste -sd ' ')" >&2
        exit 1
    fi
    if [ ! -e "data/$dataset/schema.json" ]; then
        echo "make: error: data/$dataset: no such data set; expected its columns, as dlrm-mlet preprocess writes them" >&2
        exit 1
    fi
    mkdir -p "configs/$dataset"
    sed -e '1i # Copied from '"$of_flights"', with another data set.' -e "s|^dataset = .*|dataset = \"$dataset\"|" \
        -e "/^#/s|configs/flights/|configs/$dataset/|; /^#/s|DATASET=flights|DATASET=$dataset|" \
        -e "/^#/s| on NYC flights||; /^#/s|\(make [a-z]*\)  *(or|\1 DATASET=$dataset (or|" "$of_flights" > "$config.partial"
    mv "$config.partial" "$config"
    echo "$config: copied from $of_flights"
fi
exec dlrm-mlet sweep "$config" "$@"
