"""The rows of one table of results -> its Markdown page, and a few lines for a terminal."""

import statistics
from collections.abc import Sequence
from urllib.parse import quote

from dlrm_mlet.reporting import figures, results, step_law, trained
from dlrm_mlet.reporting.curves import (
    Curve,
    Difference,
    as_markdown,
    by_bytes,
    compared_on,
    difference,
    gains,
    labels,
    make_curves,
    pareto,
    shrink_factors,
    spread,
    zero_cost,
)
from dlrm_mlet.reporting.results import Row, Spectrum, Third
from dlrm_mlet.tables.spectrum import count_above

STEP_WORDS = (
    "Of the rates at which no seed diverged or ended with twice a coin's LogLoss, with the better of the MLPs' rates. "
    "Per row: the table's rate divided by "
    "the batch size B, times k/16 for MLET; so far a row moves, of its own gradient, where it occurs once in the "
    "batch. Rare, middle and frequent: validation in thirds by how often the rarest id of a row occurs in training."
)
SMALLER = ("tables", "served_as", "served_rank")
"""Settings that change served bytes by other means than d."""
BOTH = ("validation_auc", "validation_log_loss")
BAR = "\\|"
"""In a cell of a Markdown table."""


def markdown(
    rows: Sequence[Row],
    curves: Sequence[Curve],
    name: str,
    source: str,
    thirds: Sequence[Third] = (),
    trials: Sequence[Row] = (),
) -> str:
    """The table of all points with mean ± standard deviation and n, and what a reader wants to know of the curves."""
    seconds = sum(row.seconds for row in rows)
    took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    of_steps = f" of {its} steps" if (its := trained.steps(rows)) else ""
    where = sorted({f"{row.provenance['device']}, torch {row.provenance['torch']}" for row in rows})
    made = (_made(rows, "of them"), _made(trials, f"of the {len(trials)} trials behind them"))
    lines = [
        f"# {name}",
        "",
        f"Drawn from [{source}]({quote(source)}) by `dlrm-mlet report`. {len(rows)} runs{of_steps}, {took} of "
        f"training in all, on {'; '.join(where)}."
        + "".join(made)
        + " Mean ± sample standard deviation over n seeds; d is the dimension that is served, k the inner dimension "
        "that is trained.",
        "",
        *_points_table(curves),
    ]
    if any(row.tuned for row in rows):
        lines += ["", "## What was chosen on validation", "", *_tuned_table(rows, curves)]
    if any(key in SMALLER for row in rows for key in row.settings):
        return "\n".join([*lines, "", "## The Pareto front of served bytes and AUC", "", *_pareto_table(rows)]) + "\n"
    if step_law.is_one(rows):
        head = ["## The best table learning rate for each batch size", "", STEP_WORDS, ""]
        return "\n".join([*lines, "", *head, *as_markdown(step_law.table(rows, thirds))]) + "\n"
    single = next((curve for curve in curves if curve.single), None)
    others = [curve for curve in curves if curve is not single]
    if single and others:
        for measure, title in zip(BOTH, ("AUC", "LogLoss"), strict=True):
            lines += ["", f"## How much smaller d is at equal {title}", "", *_shrink_table(others, single, measure)]
        lines += ["", "## What is gained at equal d", "", *_gain_table(others, single)]
        if free := zero_cost(others, single, "validation_auc"):
            lines += ["", "## Better and smaller at no larger training memory", "", *_zero_cost_table(free)]
    return "\n".join(lines) + "\n"


def _made(rows: Sequence[Row], which: str) -> str:
    """How many runs are of a checkout that differs from its commit, as a sentence; nothing where none is."""
    changed = sum(row.provenance["commit"].endswith("+") for row in rows)
    return f" {changed} {which} are of checkouts with uncommitted changes." if changed else ""


def summary(rows: Sequence[Row]) -> str:
    """The points of a table for a terminal: validation's mean ± standard deviation over seeds, in 80 columns."""
    lines = [f"{'model':<32} {'d':>4} {'n':>3}  {'validation AUC':<17} {'LogLoss':<17}"]
    for curve in make_curves(rows):
        for d in sorted(curve.points.keys() | curve.diverged.keys()):
            measures = (f"{spread(curve.values(d, m)):<17}" if d in curve.points else f"{'–':<17}" for m in BOTH)
            count = len(curve.points.get(d, []))
            lines.append(f"{curve.label:<32} {d:>4} {count:>3}  {' '.join(measures)}".rstrip())
    return "\n".join(lines)


def _points_table(curves: Sequence[Curve]) -> list[str]:
    lines = [
        "| model | d | n | validation AUC | validation LogLoss | test AUC | test LogLoss | KiB trained | KiB served "
        "| s per run |",
        "|---|--:|--:|---|---|---|---|--:|--:|--:|",
    ]
    for curve in curves:
        for d in sorted(curve.points.keys() | curve.diverged.keys()):
            lost = f" ({curve.diverged[d]} diverged)" if d in curve.diverged else ""
            if not (found := curve.points.get(d, [])):
                lines.append(f"| {curve.label} | {d} | 0{lost} | | | | | | | |")
                continue
            measures = " | ".join(spread(curve.values(d, m)) for m in results.MEASURES)
            sizes = (found[0].trained_table_bytes / 1024, found[0].served_table_bytes / 1024)
            seconds = statistics.median(row.seconds for row in found)
            cells = [*(f"{size:,.0f}" for size in sizes), f"{seconds:.1f}"]
            lines.append(f"| {curve.label} | {d} | {len(found)}{lost} | {measures} | {' | '.join(cells)} |")
    return lines


def _tuned_table(rows: Sequence[Row], curves: Sequence[Curve]) -> list[str]:
    keys = list(rows[0].tuned)
    lines = [f"| model | d | {' | '.join(key.replace('_', ' ') for key in keys)} |", "|---|--:|" + "--:|" * len(keys)]
    for curve in curves:
        for d in sorted(curve.points.keys() | curve.diverged.keys()):
            first = next(row for row in rows if (row.series, row.embedding_dim) == (curve.series, d))
            chosen = " | ".join(f"{float(value):g}" for value in first.tuned.values())
            lines.append(f"| {curve.label} | {d} | {chosen} |")
    return lines


def _pareto_table(rows: Sequence[Row]) -> list[str]:
    measure = compared_on(rows)
    lines = [f"| model | d | KiB served | {measure.partition('_')[0]} AUC |", "|---|--:|--:|---|"]
    for point in pareto(by_bytes(rows, measure)):
        lines.append(f"| {point.label} | {point.embedding_dim} | {point.nbytes / 1024:,.0f} | {spread(point.values)} |")
    return lines


def _named(label: str) -> str:
    """A curve's label within a sentence."""
    name, _, settings = label.partition(", ")
    return f"{name} ({settings})" if settings else name


def _shrink_table(others: Sequence[Curve], single: Curve, measure: str) -> list[str]:
    lines = [
        f"The smallest measured d whose mean over seeds is at least as good as that of the {_named(single.label)} at "
        "the column's d, "
        "and the factor between the two; – where no measured d is.",
        "",
        "| model | " + " | ".join(f"single d={d}" for d in single.points) + " |",
        "|---|" + "---|" * len(single.points),
    ]
    for curve in others:
        cells = [f"d={f[0]}, {f[1]:g}x" if f else "–" for f in shrink_factors(curve, single, measure).values()]
        lines.append(f"| {curve.label} | " + " | ".join(cells) + " |")
    return lines


def _gain_table(others: Sequence[Curve], single: Curve) -> list[str]:
    lines = [
        f"Difference to the {_named(single.label)} of the same d, paired by seed (a seed draws the same order of the "
        "rows for both): mean ± standard deviation [95 % confidence interval of the mean]; positive is better.",
        "",
        "| model | d | n | validation AUC | validation LogLoss | test AUC | test LogLoss |",
        "|---|--:|--:|---|---|---|---|",
    ]
    best: tuple[float, str] | None = None
    for curve in others:
        for d in curve.points:
            found = [gains(curve, single, d, measure) for measure in results.MEASURES]
            if all(found[:2]):
                auc, loss, *test = (difference(values) if values else "–" for values in found)
                assert isinstance(loss, Difference)
                cells = " | ".join(map(str, (auc, loss, *test)))
                lines.append(f"| {curve.label} | {d} | {loss.n} | {cells} |")
                best = max(filter(None, (best, (loss.mean, f"{loss}, n={loss.n}, {curve.label} at d={d}"))))
    return [*lines, "", f"Largest gain of validation LogLoss: {best[1]}."] if best else lines


def _zero_cost_table(free: Sequence[tuple[Curve, int, int, Difference]]) -> list[str]:
    lines = [
        "MLET at (k, d) against the single layer at a wider d' with k <= d': served smaller, and trained in no more "
        "memory. All pairs with a better mean validation AUC, paired by seed.",
        "",
        "| MLET | d | single layer's d' | validation AUC gain |",
        "|---|--:|--:|---|",
    ]
    return lines + [f"| {curve.label} | {d} | {wide} | {gain} |" for curve, d, wide, gain in free]


def spectra_table(found: Sequence[Spectrum]) -> list[str]:
    names = labels(found)
    models = list(dict.fromkeys((s.series, s.embedding_dim) for s in found))
    heads = " | ".join(f"{names[series]}, d={d}" for series, d in models)
    lines = [
        "## How many singular values are above 1 % of the largest",
        "",
        "Of the collapsed tables at the end of training, mean over seeds (paper, section 2.2.1).",
        "",
        f"| table | n | {heads} |",
        "|---|--:|" + "--:|" * len(models),
    ]
    at_the_end = figures.at_the_end(found)
    for feature, n in figures.largest_tables(found):
        cells = []
        for model in models:
            counts = [
                count_above(s.values)
                for s in at_the_end
                if s.feature == feature and (s.series, s.embedding_dim) == model
            ]
            cells.append(f"{statistics.fmean(counts):.1f}" if counts else "–")
        lines.append(f"| {feature.replace('|', BAR)} | {n:,} | {' | '.join(cells)} |")
    return lines


def frequency_table(thirds: Sequence[Third]) -> list[str]:
    names = labels(thirds)
    single = next((third.series for third in thirds if third.single), None)
    if single is None or len(names) == 1:
        return []
    lines = [
        "## What is gained where ids are rare",
        "",
        "Validation in thirds by how often the rarest id of a row occurs in training; the gain over the "
        f"{_named(names[single])} of the same d on the same third, paired by seed.",
        "",
        "| model | d | ids | rows | rarest id occurs at most | AUC gain | LogLoss gain |",
        "|---|--:|---|--:|--:|---|---|",
    ]
    base = {(t.embedding_dim, t.ids, t.seed): t for t in thirds if t.series == single}
    others = [t for t in thirds if t.series != single]
    for key in dict.fromkeys((t.series, t.embedding_dim, t.ids) for t in others):
        mine = [t for t in others if (t.series, t.embedding_dim, t.ids) == key]
        pairs = [(t, base[t.embedding_dim, t.ids, t.seed]) for t in mine if (t.embedding_dim, t.ids, t.seed) in base]
        if pairs:
            auc = difference([t.auc - other.auc for t, other in pairs])
            loss = difference([other.log_loss - t.log_loss for t, other in pairs])
            first = pairs[0][0]
            cells = [names[key[0]], *key[1:], f"{first.rows:,}", first.at_most, auc, loss]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines
