"""Figures and tables come from the tables of results alone, the same bytes each time."""

import csv
import statistics
from pathlib import Path

import pytest

from dlrm_mlet import results
from dlrm_mlet.report import draw, make_curves, paired_gains, report, shrink_factors
from dlrm_mlet.results import ResultsError

ROOT = Path(__file__).parent.parent
HEADER = (
    "arm,inner_dim,embedding_dim,seed,status,validation_auc,validation_log_loss,test_auc,test_log_loss,steps,"
    "trained_parameters,served_parameters,trained_table_bytes,served_table_bytes,seconds,device,torch,commit"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """AUC rises by 0.01 with each doubling of d; MLET k=16 is as good as twice its d, and 0.001 better."""
    path = tmp_path / "results" / "clicks" / "grid.csv"
    path.parent.mkdir(parents=True)
    lines = [HEADER]
    for k, dimensions in (("", (2, 4, 8)), ("16", (2, 4))):
        for i, d in enumerate(dimensions):
            for seed in range(3):
                auc = 0.7 + 0.01 * i + 0.0001 * seed + (0.011 if k else 0)
                measures = f"{auc},{1 - auc},{auc},{1 - auc}"
                lines.append(
                    f"{'mlet' if k else 'single'},{k},{d},{seed},finished,{measures},9,99,50,400,{40 * d},1.5,cpu,2,c"
                )
    lines.append("mlet,16,8,0,diverged,,,,,9,99,50,400,320,1.5,cpu,2,c")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_two_numbers_a_reader_wants(table):
    single, mlet = make_curves(results.read(table))
    assert (single.label, mlet.label) == ("single layer", "MLET k=16")
    for measure in ("validation_auc", "validation_log_loss"):
        assert shrink_factors(mlet, single, measure) == {2: (2, 1.0), 4: (2, 2.0), 8: (4, 2.0)}
        assert shrink_factors(single, mlet, measure)[4] is None
        assert paired_gains(mlet, single, 4, measure) == pytest.approx([0.011] * 3)
    assert mlet.diverged == {8: 1}


def test_the_page_holds_means_spreads_and_counts(table):
    draw(table, table.parent)
    page = (table.parent / "grid.md").read_text()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["inner_dim"] == "16" and row["embedding_dim"] == "4"]
    aucs = [float(row["validation_auc"]) for row in rows]
    assert f"| MLET k=16 | 4 | 3 | {statistics.fmean(aucs):.4f} ± {statistics.stdev(aucs):.4f} |" in page
    assert "| MLET k=16 | 8 | 0 (1 diverged) |" in page
    assert "Largest LogLoss gain: +0.0110 ± 0.0000 (n=3), MLET k=16" in page


def test_the_same_results_give_the_same_bytes(table, tmp_path):
    first, second = (report(table.parent.parent, tmp_path / name) for name in ("one", "two"))
    assert {path.name for path in first} == {"grid.md"} | {
        f"grid-figure-{i}.{kind}" for i in (1, 2, 3) for kind in ("png", "svg")
    }
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_committed_pages_are_those_of_the_committed_results(tmp_path):
    for page in report(ROOT / "results", tmp_path):
        if page.suffix == ".md" and not page.stem.startswith("smoke"):
            assert page.read_text() == (ROOT / "results" / page.parent.name / page.name).read_text()


@pytest.mark.parametrize(("change", "line"), [(("0.7,", "high,"), 2), ((",c", ""), 2), (("embedding_dim,", "d,"), 2)])
def test_a_damaged_table_is_named_by_line(table, change, line):
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(ResultsError, match=rf"grid\.csv:{line}: not a run"):
        report(table.parent.parent)


def test_without_results_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results; expected"):
        report(tmp_path)
