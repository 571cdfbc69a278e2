"""Tables of results -> pages and figures, drawn beside each table from it alone, the same bytes each time."""

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dlrm_mlet.config import TrainingConfig
from dlrm_mlet.files import replacing
from dlrm_mlet.reporting import drawing, figures, page, rate_figures, results, step_law
from dlrm_mlet.reporting.curves import compared_on, make_curves
from dlrm_mlet.reporting.results import OfRun, ResultsError, Row, Third
from dlrm_mlet.sweeping import benchmark

RATE, AUC = "table_learning_rate", "validation_auc"


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
            (1, [curve for curve in curves if curve.single], page.BOTH),
            (2, curves, page.BOTH[:1]),
            (3, curves, page.BOTH[1:]),
        ):
            if any(curve.points for curve in chosen):
                path = target / f"{table.stem}-figure-{number}"
                figures.over_dimension(chosen, measures, name, path)
                written += drawing.files(path)
    elif not any(row.measures for row in rows):  # all diverged: the page says so
        pass
    elif any(key in page.SMALLER for row in rows for key in row.settings):
        figures.over_bytes(rows, compared_on(rows), name, place)
        written += drawing.files(place)
    elif step_law.is_one(rows):
        rate_figures.over_row_rate(rows, TrainingConfig.learning_rate, name, place)
        written += drawing.files(place)
    elif any(curve.points for curve in curves):
        figures.over_dimension(curves, page.BOTH, name, place)
        written += drawing.files(place)
    thirds: list[Third] = []
    if (beside := table.with_name(f"{table.stem}-frequency.csv")).exists():
        thirds = results.read_thirds(beside)
        _check_of(rows, thirds, beside)
    beside = table.with_name(f"{table.stem}-trials.csv")
    text = page.markdown(rows, curves, name, table.name, thirds, results.read(beside) if beside.exists() else ())
    if (beside := table.with_name(f"{table.stem}-spectra.csv")).exists():
        found = results.read_spectra(beside)
        _check_of(rows, found, beside)
        figures.spectra(found, name, target / f"{table.stem}-spectra")
        figures.growth(found, name, target / f"{table.stem}-growth")
        written += drawing.files(target / f"{table.stem}-spectra") + drawing.files(target / f"{table.stem}-growth")
        text += "\n".join(["", *page.spectra_table(found), ""])
    if not step_law.is_one(rows) and (gained := page.frequency_table(thirds)):
        text += "\n".join(["", *gained, ""])
    if (beside := table.with_name(f"{table.stem}-curve.csv")).exists():
        looks = results.read_looks(beside)
        _check_of(rows, looks, beside)
        figures.over_steps(looks, name, target / f"{table.stem}-curve")
        written += drawing.files(target / f"{table.stem}-curve")
    with replacing(target / f"{table.stem}.md") as partial:
        partial.write_text(text, encoding="utf-8")
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
