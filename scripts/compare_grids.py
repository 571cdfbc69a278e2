"""The same grid from two devices -> a Markdown table: point by point, whether they differ by more than seeds do.

python scripts/compare_grids.py results/flights/paper-grid.csv results/flights/paper-grid-h200.csv
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from dlrm_mlet.reporting import results
from dlrm_mlet.reporting.curves import make_curves

MEASURE = "validation_auc"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    options = parser.parse_args()
    (one, here), (other, there) = (by_point(path) for path in (options.one, options.other))
    print(f"| model | d | n | {here} | {there} | paired difference | within the seeds' spread |")
    print("|---|--:|--:|---|---|---|---|")
    within = 0
    for point, seeds in one.items():
        both = sorted(seeds.keys() & other[point].keys())
        mine, its = ([scores[seed] for seed in both] for scores in (seeds, other[point]))
        differences = [b - a for a, b in zip(mine, its, strict=True)]
        spread = max(statistics.stdev(mine), statistics.stdev(its))
        is_within = abs(statistics.fmean(differences)) <= spread
        within += is_within
        shown = (*point, len(both), *map(summary, (mine, its)), summary(differences, "+"), "yes" if is_within else "no")
        print(f"| {' | '.join(map(str, shown))} |")
    print(f"\n{within} of {len(one)} points: the mean difference is at most the larger standard deviation over seeds.")


def by_point(path: Path) -> tuple[dict[tuple[str, int], dict[int, float]], str]:
    """Each point's score by seed, and the device."""
    rows = results.read(path)
    found: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for curve in make_curves(rows):
        for d, runs in curve.points.items():
            found[curve.label, d] = {row.seed: row.measures[MEASURE] for row in runs}
    return found, rows[0].provenance["device"]


def summary(values: list[float], sign: str = "") -> str:
    """Mean ± sample standard deviation."""
    return f"{statistics.fmean(values):{sign}.4f} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
