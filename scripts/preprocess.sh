#!/usr/bin/env bash
# Raw file -> data/<dataset>. Usage: scripts/preprocess.sh DATASET [RAW]
set -euo pipefail
dataset=$1
raw=${2:-}
exec dlrm-mlet preprocess "$dataset" ${raw:+--raw "$raw"}
