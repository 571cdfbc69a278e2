"""Tables of results -> pages and figures, drawn beside each table from it alone, the same bytes each time."""

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from dlrm_mlet.config import TrainingConfig
from dlrm_mlet.files import replacing
from dlrm_mlet.reporting import drawing, figures, rate_figures, results, step_law
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
from dlrm_mlet.reporting.results import OfRun, ResultsError, Row, Spectrum, Third
from dlrm_mlet.sweeping import benchmark
from dlrm_mlet.tables.spectrum import count_above

STEP_WORDS = (
    "Of the rates at which no seed diverged, with the better of the MLPs' rates. Per row: the table's rate divided by "
    "the batch size B, times k/16 for MLET; so far a row moves, of its own gradient, where it occurs once in the "
    "batch. Rare, middle and frequent: validation in thirds by how often the rarest id of a row occurs in training."
)
SMALLER = ("tables", "served_as", "served_rank")
"""Settings that change served bytes by other means than d."""
BOTH = ("validation_auc", "validation_log_loss")
RATE, AUC = "table_learning_rate", "validation_auc"
BAR = "\\|"
"""In a cell of a Markdown table."""


def report(directory: Path, out: Path | None = None, dataset: str | None = None) -> Iterator[Path]:
    """Draw every <dataset>/<experiment>.csv of `directory`, and its benchmarks; or those of one data set alone.

    Yields what was written, beside the tables or in `out`. Raises FileNotFoundError where there is no table, and
    ResultsError where one can't be drawn, when all others are.
    """
    tables = [path for path in sorted(directory.glob("*/*.csv")) if not path.stem.endswith(results.COMPANIONS)]
    tables = [path for path in tables if path.stem != results.CLAIMS and dataset in (None, path.parent.name)]
    if not tables and dataset:
        raise FileNotFoundError(f"{directory / dataset}: no results; expected <experiment>.csv, as a sweep writes it")
    if not tables:
        raise FileNotFoundError(f"{directory}: no results; expected <dataset>/<experiment>.csv, as a sweep writes it")
    works: list[tuple[Callable[[Path, Path], list[Path]], Path, Path]] = [(draw, path, path.parent) for path in tables]
    for path in sorted(directory.glob("*/fair-fight-sgd-trials.csv")):
        if dataset in (None, path.parent.name):
            works.append((draw_rates, path.parent, path.parent))
    for path in sorted(directory.glob("benchmarks/step-*.json")) if dataset is None else ():
        works.append((draw_steps, path, path.parent))
    failed: list[str] = []
    for drawn, source, place in works:
        try:
            yield from drawn(source, out / place.name if out else place)
        except (ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            failed.append(str(error) if isinstance(error, ResultsError) else f"{source}: {error!r}")
    if failed:
        raise ResultsError(f"{len(failed)} couldn't be drawn, all others were:\n  " + "\n  ".join(failed))


def draw(table: Path, target: Path) -> list[Path]:
    """The figures and the Markdown page of one table of results, written into `target`."""
    if table.stem == "equation-6":
        return _draw_equation_6(table, target)
    rows = results.read(table)
    curves = make_curves(rows)
    name = f"{table.parent.name}, {table.stem}"
    place = target / table.stem
    written: list[Path] = []
    if table.stem == "paper-grid":
        for number, chosen, measures in (
            (1, [curve for curve in curves if curve.single], BOTH),
            (2, curves, BOTH[:1]),
            (3, curves, BOTH[1:]),
        ):
            if any(curve.points for curve in chosen):
                path = target / f"{table.stem}-figure-{number}"
                figures.over_dimension(chosen, measures, name, path)
                written += drawing.files(path)
    elif not any(row.measures for row in rows):  # all diverged: the page says so
        pass
    elif any(key in SMALLER for row in rows for key in row.settings):
        figures.over_bytes(rows, compared_on(rows), name, place)
        written += drawing.files(place)
    elif step_law.is_one(rows):
        rate_figures.over_row_rate(rows, TrainingConfig.learning_rate, name, place)
        written += drawing.files(place)
    elif any(curve.points for curve in curves):
        figures.over_dimension(curves, BOTH, name, place)
        written += drawing.files(place)
    thirds: list[Third] = []
    if (beside := table.with_name(f"{table.stem}-frequency.csv")).exists():
        thirds = results.read_thirds(beside)
        _check_of(rows, thirds, beside)
    beside = table.with_name(f"{table.stem}-trials.csv")
    page = markdown(rows, curves, name, table.name, thirds, results.read(beside) if beside.exists() else ())
    if (beside := table.with_name(f"{table.stem}-spectra.csv")).exists():
        found = results.read_spectra(beside)
        _check_of(rows, found, beside)
        figures.spectra(found, name, target / f"{table.stem}-spectra")
        figures.growth(found, name, target / f"{table.stem}-growth")
        written += drawing.files(target / f"{table.stem}-spectra") + drawing.files(target / f"{table.stem}-growth")
        page += "\n".join(["", *_spectra_table(found), ""])
    if not step_law.is_one(rows) and (gained := _frequency_table(thirds)):
        page += "\n".join(["", *gained, ""])
    if (beside := table.with_name(f"{table.stem}-curve.csv")).exists():
        looks = results.read_looks(beside)
        _check_of(rows, looks, beside)
        figures.over_steps(looks, name, target / f"{table.stem}-curve")
        written += drawing.files(target / f"{table.stem}-curve")
    with replacing(target / f"{table.stem}.md") as partial:
        partial.write_text(page, encoding="utf-8")
    return [*written, target / f"{table.stem}.md"]


def _check_of(rows: Sequence[Row], found: Sequence[OfRun], beside: Path) -> None:
    """Raises ResultsError where what lies beside a table has runs that the table hasn't: it is of another one."""
    known = {row.run for row in rows}
    for one in found:
        if one.run not in known:
            raise ResultsError(
                f"{beside}: has {one.arm or 'a run'} k={one.inner_dim or '-'} d={one.embedding_dim} seed {one.seed}, "
                "which the table hasn't; expected its own runs: delete what another sweep has left there"
            )


def draw_rates(dataset: Path, target: Path) -> list[Path]:
    """The figure of validation AUC against the tables' learning rate, from the trials of a data set's fair fights.

    Of the trials those count in which nothing else differs: what else was tuned is at the value that most have, and
    the tables start as the paper's; at d = 4 and 8, or where neither is there, at the smallest two. Rates at which some
    seed diverged are left out. Nothing is drawn where no rates of the tables were tried.
    """
    trials: dict[str, list[Row]] = {}
    for name, optimizer in (("sgd", "SGD"), ("adagrad", "row-wise Adagrad")):
        path = dataset / f"fair-fight-{name}-trials.csv"
        rows = results.read(path) if path.exists() else []
        rows = [
            row for row in rows if RATE in row.tuned and row.arm in ("single", "mlet") and _starts_as_the_paper(row)
        ]
        lost = {_tried(row) for row in rows if row.diverged}
        rows = [row for row in rows if AUC in row.measures and _tried(row) not in lost]
        dims = sorted({row.embedding_dim for row in rows})
        shown = [d for d in dims if d in (4, 8)] or dims[:2]
        rows = [row for row in rows if row.embedding_dim in shown]
        for key in rows[0].tuned if rows else ():
            if key != RATE:
                common = statistics.mode(row.tuned[key] for row in rows)
                rows = [row for row in rows if row.tuned[key] == common]
        if rows:
            trials[optimizer] = rows
    if not trials:
        return []
    place = target / "table-learning-rate"
    rate_figures.over_table_rate(trials, TrainingConfig.learning_rate, dataset.name, place)
    return drawing.files(place)


def _tried(row: Row) -> tuple[object, ...]:
    """What the seeds of a point share."""
    return (*row.series, row.embedding_dim, *row.tuned.values())


def _starts_as_the_paper(row: Row) -> bool:
    return float(row.tuned.get("initial_scale", 1)) == 1


def draw_steps(timings: Path, target: Path) -> list[Path]:
    """The figure and the Markdown page of what `dlrm-mlet benchmark` measured (the paper's Table 2)."""
    page = target / f"{timings.stem}.md"
    source = f"Measured by `make benchmark`: [{timings.name}]({timings.name})."
    try:
        result = json.loads(timings.read_text(encoding="utf-8"))
        lines = [f"# Table 2 of the paper on {result['device']}", "", source, "", benchmark.markdown(result), ""]
        figures.steps(result, target / timings.stem)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ResultsError(f"{timings}: not what dlrm-mlet benchmark writes: {error!r}; expected it again") from None
    with replacing(page) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")
    return [*drawing.files(target / timings.stem), page]


def _draw_equation_6(table: Path, target: Path) -> list[Path]:
    with table.open(newline="", encoding="utf-8") as file:
        figures.equation_6(list(csv.DictReader(file)), target / table.stem)
    return drawing.files(target / table.stem)


def markdown(
    rows: Sequence[Row],
    curves: Sequence[Curve],
    name: str,
    source: str,
    thirds: Sequence[Third] = (),
    trials: Sequence[Row] = (),
) -> str:
    """The table of all points with mean ± standard deviation and n, and what a reader wants to know of the curves."""
    seconds = sum(row.seconds for row in rows) / 60
    where = sorted({f"{row.provenance['device']}, torch {row.provenance['torch']}" for row in rows})
    made = (_made(rows, "of them"), _made(trials, f"of the {len(trials)} trials behind them"))
    lines = [
        f"# {name}",
        "",
        f"Drawn from [{source}]({quote(source)}) by `make figures`. {len(rows)} runs, {seconds:.0f} core-minutes of "
        f"training on {'; '.join(where)}."
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


def _spectra_table(found: Sequence[Spectrum]) -> list[str]:
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


def _frequency_table(thirds: Sequence[Third]) -> list[str]:
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
