"""Figures and tables come from the tables of results alone, the same bytes each time."""

import csv
import dataclasses
import re
import shutil
import statistics
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from scipy import stats

from dlrm_mlet.__main__ import main
from dlrm_mlet.reporting import curves, judging, ledger, questions, reproduction, results, step_law
from dlrm_mlet.reporting.claims import CLAIMS
from dlrm_mlet.reporting.curves import difference, gains, make_curves, shrink_factors, zero_cost
from dlrm_mlet.reporting.judging import AUC, Tables
from dlrm_mlet.reporting.questions import QUESTIONS
from dlrm_mlet.reporting.report import draw, report
from dlrm_mlet.reporting.results import ResultsError
from dlrm_mlet.reporting.step_law import by_row_rate

ROOT = Path(__file__).parents[2]
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
                more = 1e-9 * seed  # so that differences have a spread
                auc = 0.7 + (0.01 + more) * i + 0.0001 * seed + (0.011 + more if k else 0)
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
        assert gains(mlet, single, 4, measure) == pytest.approx([0.011] * 3)
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
    assert "Largest gain of validation LogLoss: +0.0110 ± 0.0000 [+0.0110, +0.0110], n=3, MLET k=16" in page


def test_the_same_results_give_the_same_bytes(table, tmp_path):
    first, second = (list(report(table.parent.parent, tmp_path / name)) for name in ("one", "two"))
    assert {path.name for path in first} == {"grid.md", "grid.png", "grid.svg"}
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_committed_pages_are_those_of_the_committed_results(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.touch())  # the pages don't show in them
    for page in report(ROOT / "results", tmp_path):
        if page.suffix == ".md" and not page.stem.startswith("smoke"):
            assert page.read_text() == (ROOT / "results" / page.parent.name / page.name).read_text()


def test_a_difference_has_students_interval():
    found = difference([0.1, 0.2, 0.3])
    assert (found.mean, found.std, found.n) == pytest.approx((0.2, 0.1, 3))
    assert (found.low, found.high) == pytest.approx(
        (0.2 - 4.30265 * 0.1 / 3**0.5, 0.2 + 4.30265 * 0.1 / 3**0.5), abs=1e-6
    )
    assert str(difference([0.1])) == "+0.1000"


def test_zero_cost_points_need_no_more_training_memory_and_serve_less(table):
    single, mlet = make_curves(results.read(table))
    assert zero_cost([mlet], single, "validation_auc") == []  # k = 16 is above every d of the single layer
    wide = dataclasses.replace(mlet, inner_dim="4")
    found = [(d, base) for _, d, base, _ in zero_cost([wide], single, "validation_auc")]
    assert found == [(2, 4), (4, 8)]  # 0.001 better than twice the d


def claims_of(directory, *datasets):
    return [(claim, reproduction.judge(claim, directory, datasets)) for claim in (*CLAIMS, *QUESTIONS)]


def test_the_claims_page_says_what_was_not_run_and_judges_the_rest(table, tmp_path):
    page = reproduction.text(claims_of(tmp_path / "nothing", "flights"), ["flights"], "x", "x")
    assert page.count("Not run yet: `") == page.count("\n### ")
    assert (
        "the benefits begin to be observed even for k = d. Not run yet: `make sweep DATASET=flights GRID=narrow`."
        in page
    )
    (tmp_path / "none" / "flights").mkdir(parents=True)  # as before the first sweep
    assert not any(found for claim, found in claims_of(tmp_path / "none", "flights") if claim.groups or claim.table)
    assert "| NYC flights: 327,346 rows, 11 categorical columns with 10,604 values in all | waiting for records" in page
    mine = tmp_path / "results" / "mine"
    mine.mkdir()
    text = table.read_text()
    text += text.partition("\n")[2].replace("mlet,16", "mlet,64").replace("single", "other")
    for name in ("paper-grid", "fair-fight-sgd"):
        (mine / f"{name}.csv").write_text(text)
    written = list(reproduction.publish(tmp_path / "results", tmp_path / "page.md", tmp_path / "drawn", ["mine"]))
    page = (tmp_path / "page.md").read_text()
    assert "(#a-single-layer-gets-better-with-d-figure-1) | mine | shown | shown | 4 / 0 / 0 |" in page
    assert "at-the-same-d-figures-2-and-3) | mine | shown | plain SGD: shown | 8 / 0 / 0 |" in page
    assert "(#the-gain-grows-with-k) | mine | no difference at all |  | 0 / 0 / 2 |" in page  # both k are the same
    assert "| at the paper's rate, SGD | MLET k=16 | 2x (d=4) |" in page
    rows = list(csv.DictReader((tmp_path / "drawn" / "claims.csv").read_text().splitlines()))
    differences = [row for row in rows if row["group"] != ledger.TABLE]
    for row in differences:  # every difference of the page is a row of it
        place = f"| {row['group']} | {row['point']} | {row['measure'].replace('_', ' ')} | {float(row['mean']):+.4f} |"
        assert place in page
        assert 0.95 <= float(row["level"]) < 1
        low, high = float(row["low"] or "-inf"), float(row["high"] or "inf")
        if row["claim"] != "saturation":  # of no difference
            assert row["verdict"] == ("for" if low > 0 else "against" if high < 0 else "open")
    groups = re.compile(r"\| (at the paper's rate|tuned|tuned, plain SGD) \| ")
    of_differences = [line for line in page.splitlines() if groups.match(line)]
    assert len(differences) == sum(line.count("|") == 8 for line in of_differences)
    assert {row["point"] for row in rows if row["claim"] == "smaller"} >= {"at the paper's rate, SGD, MLET k=16"}
    assert f"![{CLAIMS[0].text}: differences with their intervals](drawn/claims/d.svg)" in page
    assert all(path.exists() for path in written)


def test_joint_intervals_are_holms():
    """By a plain loop: the smallest p-value has to be below 0.05 / m, the next below 0.05 / (m - 1), and so on."""
    values = [[0.01, 0.011, 0.012], [0.01, 0.011, 0.013], [0.01, 0.03, 0.05], [-1.0, 1.0, 0.2]]
    found = {("", f"d={i}", AUC): its for i, its in enumerate(values)}
    p_values = {key: stats.ttest_1samp(values, 0).pvalue for key, values in found.items()}
    ordered = sorted(found, key=p_values.get)
    joint, failed = judging.jointly(found), None
    for i, key in enumerate(ordered):
        level = 0.05 / (len(found) - i) if failed is None else failed
        if p_values[key] > level and failed is None:
            failed = level
        assert joint[key] == difference(found[key], 1 - level)
        assert (joint[key].low > 0 or joint[key].high < 0) == (failed is None)
    assert failed is not None


def test_intervals_of_a_claim_of_no_difference_hold_all_at_once():
    """Once: at Holm's levels, which are those of a difference."""
    values = [[0.01, 0.011, 0.012], [0.01, 0.011, 0.013], [-1.0, 1.0, 0.2]]
    found = {("", f"d={i}", AUC): its for i, its in enumerate(values)}
    joint = judging.jointly(found, is_equality=True)
    assert joint == {key: difference(its, 1 - 0.05 / 3) for key, its in found.items()}


def test_a_claim_that_nothing_is_gained_is_judged_by_its_margin():
    claim = dataclasses.replace(CLAIMS[0], is_equality=True)
    gains = {"equal": (-0.001, 0.001), "better": (0.0025, 0.004), "open": (-0.003, 0.001), "small": (0.0001, 0.0009)}
    gains |= {"not 0, perhaps small": (0.0005, 0.004), "worse": (-0.009, -0.0021)}
    points = [
        judging.Point("", name, AUC, curves.Difference((low + high) / 2, 0.1, low, high, 5), ())
        for name, (low, high) in gains.items()
    ]
    assert [judging.side(claim, point.gain) for point in points] == [1, -1, 0, 1, 0, 1]
    assert judging.verdict(claim, points) == (
        "shown at equal, small, worse; opposite shown at better; not decided at open, not 0, perhaps small (±0.0020)"
    )
    assert str(judging.count(claim, points)) == "3 / 1 / 2"


def test_a_verdict_names_points_by_what_they_share():
    def points(*of):
        return [
            judging.Point("", name, measure, curves.Difference(sign * 0.01, 0.1, sign * 0.01 - half, 0.01, 5), ())
            for name, measure, sign, half in of
        ]

    both = [(f"d={d}", measure, 1, 0.001) for d in (2, 16) for measure in (AUC, "test_log_loss")]
    open_ = [("d=4", AUC, 1, 0.03), ("d=4", "test_log_loss", 1, 0.05), ("d=8", AUC, 1, 0.01)]
    assert judging.verdict(CLAIMS[1], points(*both, *open_)) == (
        "shown at d=2, 16 (AUC and LogLoss); not decided at d=4 (AUC and LogLoss), d=8 (AUC) "
        "(±0.0150 AUC, ±0.0250 LogLoss)"
    )
    of_k = [(f"k={k}, d={d}", AUC, 1, 0.001 if k < 4 else 0.02) for k in (2, 4) for d in (8, 16)]
    assert judging.verdict(CLAIMS[1], points(*of_k)) == "shown at d=8, 16 (k=2); not decided at d=8, 16 (k=4) (±0.0100)"
    assert judging.verdict(CLAIMS[1], points(*of_k), 13) == judging.verdict(CLAIMS[1], points(*of_k))
    assert judging.verdict(CLAIMS[1], points(*of_k), 12) == (
        "shown at 2 of 4 points; not decided at 2 of 4 points (±0.0100)"
    )
    many = [(f"({k}, 2) over 8", AUC, 1, 0.001 if k else 0.02) for k in range(6)]
    assert judging.verdict(CLAIMS[1], points(*many)) == (
        "shown at 5 of 6 points; not decided at (0, 2) over 8 (±0.0100)"
    )


def test_two_tables_are_compared_by_arm(table, capsys):
    assert main(["compare", f"{table}:mlet", f"{table}:single"]) == 0
    out = capsys.readouterr().out
    assert "| 2 | validation auc | +0.0110 | 0.0000 | +0.0110 to +0.0110 | 3 |" in out
    assert out.count("\n|") == 2 + 8
    assert main(["compare", f"{table}:mlet:16", f"{table}:other"]) == 1
    assert "grid.csv:other: 0 curves; expected one of single, mlet:16" in capsys.readouterr().err
    assert main(["compare", "nowhere.csv:mlet", f"{table}:single"]) == 1
    assert "nowhere.csv:mlet: no such table" in capsys.readouterr().err
    other = table.with_name("other.csv")
    other.write_text(table.read_text().replace("single,,2,", "single,,3,").replace("single,,4,", "single,,5,"))
    assert main(["compare", f"{table}:mlet", f"{other}:single"]) == 1
    assert "no d and seed in common" in capsys.readouterr().err


def test_one_data_set_has_a_page_of_its_own(table, tmp_path, capsys):
    table.rename(table.with_name("paper-grid.csv"))
    assert main(["report", str(table.parent.parent), "--dataset", "clicks"]) == 0
    page = (table.parent / "claims.md").read_text()
    assert "| clicks | here |" in page
    assert "](./claims/d.svg)" in page
    assert "](../clicks/paper-grid.md)" in page
    assert main(["report", str(table.parent.parent), "--dataset", "clocks"]) == 1
    assert "clocks: no results" in capsys.readouterr().err


def test_a_claim_of_an_arm_that_was_not_run_has_no_curve(table):
    tables = Tables(table.parent)
    assert tables.curve("grid", "mlet", "16").label == "MLET k=16"
    with pytest.raises(FileNotFoundError, match="grid: no arm mlet with inner_dim '64'"):
        tables.curve("grid", "mlet", "64")
    table.write_text(table.read_text().replace("mlet,16", "other,16"))
    with pytest.raises(FileNotFoundError, match=r"grid: no arm mlet with one inner_dim$"):
        tables.mlet("grid")


def test_committed_claims_are_those_of_the_committed_results():
    names = list(reproduction.DATASETS)
    judged = claims_of(ROOT / "results", *names)
    assert (
        reproduction.text(judged, names, "../results", "../results") == (ROOT / "docs" / "reproduction.md").read_text()
    )
    assert ledger.as_csv(judged) == (ROOT / "results" / "claims.csv").read_text()


def test_served_bytes_have_a_pareto_front():
    points = [("a", 10, 0.5), ("b", 20, 0.4), ("c", 20, 0.6), ("d", 30, 0.6), ("e", 5, 0.1)]
    front = curves.pareto([curves.Served(name, name, 4, size, (mean,), 0) for name, size, mean in points])
    assert [point.arm for point in front] == ["e", "a", "c"]


@pytest.mark.parametrize("there", [("rivals",), ("rivals-tuned",), ("rivals", "rivals-tuned"), ()], ids=" ".join)
def test_the_best_at_equal_bytes_is_told_by_the_tables_that_are_there(tmp_path, there):
    for name in there:
        shutil.copy(ROOT / "results" / "flights" / f"{name}.csv", tmp_path / f"{name}.csv")
    tables = Tables(tmp_path)
    if not there:
        with pytest.raises(FileNotFoundError):
            questions._front_table(tables)
        return
    rates = [row[0] for row in questions._front_table(tables)[1:]]
    assert set(rates) == {rates for rates, name in questions.RIVALS.items() if name in there}
    said = questions._front(tables)
    assert said.startswith(f"{rates[-1]}, from the smallest: mlet int8" if "rivals-tuned" in there else rates[-1])


@pytest.mark.parametrize(("change", "line"), [(("0.7,", "high,"), 2), ((",c", ""), 2), (("embedding_dim,", "d,"), 2)])
def test_a_damaged_table_is_named_by_line(table, change, line):
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(ResultsError, match=rf"grid\.csv:{line}: not a run"):
        list(report(table.parent.parent))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("clicks/flat.csv", f"{HEADER}\nsingle,,0,0,finished,0.7,0.3,0.7,0.3,9,99,50,400,320,1.5,cpu,2,c\n",
         r"flat\.csv:2: not a run: .*a dimension of 0"),
        ("clicks/empty.csv", "", r"empty\.csv: has no runs; expected"),
        ("clicks/grid-spectra.csv", "arm,inner_dim,embedding_dim,seed,step,feature,num_embeddings,values\n"
         "mlet,32,2,0,10,user,9,1.0 0.5\n", r"grid-spectra\.csv: has mlet k=32 d=2 seed 0, which the table hasn't"),
        ("clicks/grid-frequency.csv", "arm,inner_dim,embedding_dim,seed,ids,rows,at_most,auc,log_loss\n"
         "single,,2,99,rare,9,3,0.5,0.5\n", r"grid-frequency\.csv: has single k=- d=2 seed 99, which the table"),
        ("benchmarks/step-cpu.json", "{}", r"step-cpu\.json: not what dlrm-mlet benchmark writes: KeyError"),
        ("benchmarks/step-cpu.json", "[" * 10**5, r"step-cpu\.json: not what dlrm-mlet benchmark writes: Recursion"),
    ],
)  # fmt: skip
def test_what_another_sweep_or_a_damage_left_is_named_and_not_drawn(table, name, text, message):
    path = table.parent.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        list(report(table.parent.parent))


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "1.1"])
def test_an_auc_that_can_not_be_is_refused(table, value):
    rows = list(csv.DictReader(table.read_text().splitlines()))
    rows[0]["validation_auc"] = value
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ResultsError, match=rf"grid\.csv:2: not a run: .*validation_auc = {value}"):
        results.read(table)


def test_without_results_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results; expected"):
        list(report(tmp_path))


def test_without_test_metrics_a_page_is_drawn_with_dashes(table):
    table.write_text("\n".join(_without_test(line) for line in table.read_text().splitlines()) + "\n")
    draw(table, table.parent)
    assert "| MLET k=16 | 4 | 3 | 0.7211 ± 0.0001 | 0.2789 ± 0.0001 | – | – |" in (table.parent / "grid.md").read_text()


def _without_test(line: str) -> str:
    cells = line.split(",")
    if "finished" in cells:
        cells[7:9] = "", ""
    return ",".join(cells)


def test_the_law_of_the_step_compares_rates_per_row_and_tells_what_diverged(tmp_path):
    path = tmp_path / "results" / "clicks" / "batch-size.csv"
    path.parent.mkdir(parents=True)
    head = HEADER.replace("embedding_dim,", "embedding_dim,batch_size,learning_rate,table_learning_rate,")
    lines = [head]
    for k, size, rate, mlp, auc in [
        ("", 100, 10, 0.2, 0.7), ("", 100, 20, 0.2, 0.8), ("", 100, 20, 0.4, 0.81), ("", 100, 40, 0.2, None),
        ("64", 100, 5, 0.2, 0.75),
    ]:  # fmt: skip
        for seed in (0, 1):
            lost = auc is None and seed == 1
            measures = "diverged,,,," if lost else f"finished,{(auc or 0.9) + 0.002 * seed},0.5,,"
            lines.append(f"{'mlet' if k else 'single'},{k},8,{size},{mlp},{rate},{seed},{measures},9,9,9,9,9,1,cpu,2,c")
    path.write_text("\n".join(lines) + "\n")
    scores = _by_label(path)
    assert scores["single layer", 8, 100] == {0.1: [0.7, 0.702], 0.2: [0.81, 0.812], 0.4: None}
    assert scores["MLET k=64", 8, 100] == {0.2: [0.75, 0.752]}  # 5 / 100 * 64 / 16
    draw(path, path.parent)
    page = path.with_suffix(".md").read_text()
    assert "| single layer | 8 | 100 | 20 | 0.2 | 0.8110 ± 0.0014 | 0.2 |" in page
    assert "| MLET k=64 | 8 | 100 | 5 | 0.2 (the largest tried) | 0.7510 ± 0.0014 | 0.2 (the largest tried) |" in page


def _by_label(path: Path) -> dict[tuple[str, int, int], step_law.Scores]:
    found = by_row_rate(results.read(path)).items()
    return {(model.label, model.embedding_dim, size): scores for (model, size), scores in found}


STEPS = HEADER.replace("embedding_dim,", "embedding_dim,batch_size,table_learning_rate,")


def _with_settings(path: Path, points: list[tuple[str, str, int, str, str, float]]) -> None:
    """A table of points (arm, k, d, batch size, table rate, AUC), of two seeds each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{arm},{k},{d},{size},{rate},{seed},finished,{auc + 0.002 * seed},0.5,,,9,9,9,9,9,1,cpu,2,c"
        for arm, k, d, size, rate, auc in points
        for seed in (0, 1)
    ]
    path.write_text("\n".join([STEPS, *lines]) + "\n")


def test_the_law_of_the_step_takes_any_grid(tmp_path):
    """Two d are two models, three layers move k/16 squared as far, and not every model has every batch size."""
    path = tmp_path / "clicks" / "batch-size.csv"
    plain = [(4, "100", "10", 0.7), (8, "100", "10", 0.8), (8, "50", "5", 0.9)]
    _with_settings(path, [*(("single", "", *point) for point in plain), ("mlet", "64x32", 8, "100", "1", 0.6)])
    scores = _by_label(path)
    assert scores["single layer", 4, 100] == {0.1: [0.7, 0.702]}
    assert scores["single layer", 8, 100] == {0.1: [0.8, 0.802]}
    assert scores["MLET k=64x32", 8, 100] == {0.08: [0.6, 0.602]}
    edge = "(an edge of what was tried)"
    said = f"best rate per row 0.1 {edge} at B = 50, 0.08 to 0.1 {edge} at B = 100"
    assert step_law.verdict(results.read(path)) == said
    draw(path, path.parent)
    assert (
        "| single layer | 8 | 50 | 5 | 0.1 (the largest tried) | 0.9010 ± 0.0014 |"
        in path.with_suffix(".md").read_text()
    )


def test_a_run_that_blew_up_is_none_to_go_by(tmp_path):
    """Once its rate was said to be one that never diverged, as its numbers were finite to the end."""
    path = tmp_path / "clicks" / "batch-size.csv"
    _with_settings(path, [("single", "", 8, "100", rate, 0.7) for rate in ("10", "20", "40")])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].replace("0.702,0.5,", "0.702,15.9,")]) + "\n")
    assert _by_label(path)["single layer", 8, 100] == {0.1: [0.7, 0.702], 0.2: [0.7, 0.702], 0.4: None}
    [_, row] = step_law.table(results.read(path))
    assert row[6] == "0.2"


def test_the_law_of_the_step_mixes_no_two_models_and_no_two_rates(tmp_path):
    """Arms are models of their own, but for the batch size at the end of their name; rates may be tiny."""
    path = tmp_path / "clicks" / "batch-size.csv"
    points = [("single-100", "", 8, "100", "10", 0.7), ("single-50", "", 8, "50", "5", 0.71)]
    points += [("single-int8", "", 8, "100", "10", 0.9), ("single-small", "", 8, "2048", "0.0005", 0.8)]
    _with_settings(path, [*points, ("single-small", "", 8, "2048", "0.001", 0.6)])
    scores = _by_label(path)
    assert scores["single layer", 8, 100] == {0.1: [0.7, 0.702]}
    assert scores["single layer", 8, 50] == {0.1: [0.71, 0.712]}
    assert scores["single int8", 8, 100] == {0.1: [0.9, 0.902]}
    small = {2.44141e-07: [0.8, 0.802], 4.88281e-07: [0.6, 0.602]}
    assert scores["single small", 8, 2048] == small
    assert ["single small", "8", "2048", "0.0005", "2.44141e-07 (the smallest tried)"] in [
        row[:5] for row in step_law.table(results.read(path))
    ]
    assert "2.44141e-07 (an edge of what was tried) at B = 2048" in step_law.verdict(results.read(path))


def test_a_table_of_batch_sizes_alone_is_no_law_and_no_error(tmp_path):
    _with_settings(tmp_path / "clicks" / "batch-size.csv", [("single", "", 8, size, "", 0.7) for size in ("50", "100")])
    page = tmp_path / "claims.md"
    list(reproduction.publish(tmp_path, page, tmp_path, ["clicks"]))
    assert "has one rate, 0.2 at batch 128, for everything: 0.0016 per row. Not run yet: `make" in page.read_text()


def test_the_best_rate_is_told_for_rare_and_frequent_ids_too(tmp_path):
    path = tmp_path / "clicks" / "batch-size.csv"
    _with_settings(path, [("single", "", 8, "100", rate, auc) for rate, auc in (("10", 0.7), ("20", 0.8))])
    lines = ["arm,inner_dim,embedding_dim,batch_size,table_learning_rate,seed,ids,rows,at_most,auc,log_loss"]
    for rate, rare, frequent in (("10", 0.75, 0.6), ("20", 0.65, 0.9)):
        for seed in (0, 1):
            lines += [f"single,,8,100,{rate},{seed},rare,5,3,{rare},0.5"]
            lines += [f"single,,8,100,{rate},{seed},frequent,5,9,{frequent},0.5"]
    path.with_name("batch-size-frequency.csv").write_text("\n".join(lines) + "\n")
    draw(path, path.parent)
    page = path.with_suffix(".md").read_text()
    assert "| best for rare ids (at most 3 times) | best for frequent ids (at most 9 times) |" in page
    assert "| 20 | 0.2 (the largest tried) | 0.8010 ± 0.0014 | 0.2 (the largest tried) | 0.1 | 0.2 |" in page


def test_what_lies_beside_a_table_is_told_apart_by_all_that_was_varied(tmp_path, monkeypatch):
    """Two table rates of one arm are two curves in each figure and page: neither mixed, nor the last one alone."""
    drawn: list[str] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.extend(_said(self)))
    path = tmp_path / "clicks" / "rates.csv"
    points = [("single", "", 2, "", "0.2", 0.7), ("mlet", "16", 2, "", "0.2", 0.8), ("mlet", "16", 2, "", "3.2", 0.9)]
    _with_settings(path, points)
    head = "arm,inner_dim,embedding_dim,batch_size,table_learning_rate,seed"
    beside = {"frequency": "ids,rows,at_most,auc,log_loss", "spectra": "step,feature,num_embeddings,values",
              "curve": "step,auc,log_loss"}  # fmt: skip
    for name, columns in beside.items():
        lines = [f"{head},{columns}"]
        for arm, k, d, size, rate, auc in points:
            for seed in (0, 1):
                run = f"{arm},{k},{d},{size},{rate},{seed}"
                many = f"1 {0.5 if rate == '0.2' else 0.001}"
                lines += {"frequency": [f"{run},rare,5,3,{auc},0.5"], "curve": [f"{run},9,{auc},0.5"],
                          "spectra": [f"{run},{step},user,10,{many}" for step in (0, 9)]}[name]  # fmt: skip
        path.with_name(f"rates-{name}.csv").write_text("\n".join(lines) + "\n")
    draw(path, path.parent)
    page = path.with_suffix(".md").read_text()
    slow, fast = (f"MLET k=16, table learning rate {rate}" for rate in ("0.2", "3.2"))
    assert f"| {slow} | 2 | rare | 5 | 3 | +0.1000" in page
    assert f"| {fast} | 2 | rare | 5 | 3 | +0.2000" in page
    assert f"| table | n | single layer, d=2 | {slow}, d=2 | {fast}, d=2 |" in page
    assert "| user | 10 | 2.0 | 2.0 | 1.0 |" in page
    for said in (slow, fast, f"{slow} d=2", f"{fast} d=2"):
        assert said in drawn
    lines = path.with_name("rates-curve.csv").read_text().replace("3.2", "6.4")
    path.with_name("rates-curve.csv").write_text(lines)
    with pytest.raises(ResultsError, match="which the table hasn't"):
        draw(path, path.parent)


def test_spectra_of_runs_of_unlike_length_are_drawn(tmp_path, monkeypatch):
    """Each at its own last step; and where MLET lacks the widest d there is nothing to judge."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.touch())
    path = tmp_path / "clicks" / "mechanism.csv"
    points = [("single", "", d, "100", "", 0.7) for d in (2, 4)] + [("mlet", "16", 2, "50", "", 0.7)]
    _with_settings(path, points)
    lines = ["arm,inner_dim,embedding_dim,batch_size,table_learning_rate,seed,step,feature,num_embeddings,values"]
    for arm, k, d, size, *_ in points:
        for step in (0, 900 // int(size)):
            lines += [f"{arm},{k},{d},{size},,{seed},{step},user,10,{' '.join(['1'] * d)}" for seed in (0, 1)]
    path.with_name("mechanism-spectra.csv").write_text("\n".join(lines) + "\n")
    draw(path, path.parent)
    assert "| user | 10 | 2.0 | 4.0 | 2.0 |" in path.with_suffix(".md").read_text()
    rank = next(claim for claim in CLAIMS if claim.name == "rank")
    assert judging.points(rank, Tables(path.parent)) == []
    assert rank.table(Tables(path.parent))[1:] == [["user", "single layer", "4.0", "2"]]


def test_arms_whose_names_read_alike_are_told_apart(tmp_path):
    path = tmp_path / "clicks" / "grid.csv"
    _with_settings(path, [("single", "", 2, "", "", 0.7), ("single-layer", "", 2, "", "", 0.8)])
    assert [curve.label for curve in make_curves(results.read(path))] == [
        "single layer (single)", "single layer (single-layer)",
    ]  # fmt: skip


def test_what_can_not_be_judged_says_so_on_the_page_beside_all_else(tmp_path):
    directory, page = tmp_path / "clicks", tmp_path / "claims.md"
    _with_settings(directory / "paper-grid.csv", [("single", "", d, "", "", 0.7 + d / 100) for d in (2, 4)])
    _with_settings(directory / "controls.csv", [("single", "", 2, "", rate, 0.7) for rate in ("0.2", "3.2")])
    with pytest.raises(
        ResultsError, match=r"claims\.md: some claims couldn't be judged or drawn, all else is there:\n  can't be"
    ):
        list(reproduction.publish(tmp_path, page, tmp_path, ["clicks"]))
    assert "| at the paper's rate | d=2 to 4 | validation auc | +0.0200 |" in page.read_text()
    assert "**clicks: can't be judged: " in page.read_text()


def test_a_point_of_which_all_runs_diverged_is_in_the_table_of_its_claim(tmp_path):
    """Depth with N = 3 alone: no point to judge at d = 4, and the page says why."""
    path = tmp_path / "clicks" / "depth.csv"
    points = [("single", "", 2, "", "", 0.7), ("mlet", "8", 2, "", "", 0.7), ("mlet", "8x8", 2, "", "", 0.7)]
    _with_settings(path, [*points, ("mlet", "8", 4, "", "", 0.7), ("mlet", "8x8", 4, "", "", 0.7)])
    lines = path.read_text().splitlines()
    lost = [f"{','.join(line.split(',')[:6])},diverged,,,,,9,9,9,9,9,1,cpu,2,c" for line in lines[-2:]]
    path.write_text("\n".join([*lines[:-2], *lost]) + "\n")
    depth = next(claim for claim in CLAIMS if claim.name == "depth")
    assert [point.name for point in judging.points(depth, Tables(path.parent))] == ["N=3, d=2"]
    assert ["MLET k=8x8", "4", "0", "2", "–", "–"] in depth.table(Tables(path.parent))
    path.rename(path.with_name("fair-fight-sgd.csv"))
    text = path.with_name("fair-fight-sgd.csv").read_text().replace("mlet,8x8,4", "mlet,8,8")
    path.with_name("fair-fight-sgd.csv").write_text(text)
    fight = next(claim for claim in QUESTIONS if claim.name == "fair-fight-sgd")
    assert ["MLET k=8", "8", "0", "2", "–", "–", "not kept", "–", "–"] in fight.table(Tables(path.parent))


def test_pairs_without_a_seed_in_common_are_no_pairs(tmp_path, table):
    """MLET's seeds 0 and 1, the single layer's 2 and 3."""
    lines = table.read_text().splitlines()
    kept = [line for line in lines[1:] if (line.startswith("mlet") and ",16,2," in line) == (line.split(",")[3] == "0")]
    path = table.with_name("paper-grid.csv")
    path.write_text("\n".join([lines[0], *kept]) + "\n")
    list(report(table.parent.parent))
    list(reproduction.publish(table.parent.parent, tmp_path / "claims.md", tmp_path, ["clicks"]))
    assert "d=2 to 4" in (tmp_path / "claims.md").read_text()


def _said(figure: Figure) -> list[str]:
    labels = [label for ax in figure.axes for label in ax.get_legend_handles_labels()[1]]
    return [*labels, *(ax.get_title() for ax in figure.axes)]


def test_arms_of_several_settings_are_compared_by_these(tmp_path, capsys):
    path = tmp_path / "a.csv" / "rates.csv"
    _with_settings(path, [("single", "", 2, "9", rate, auc) for rate, auc in (("0.2", 0.7), ("3.2", 0.8))])
    assert main(["compare", f"{path}:single:table_learning_rate=3.2", f"{path}:single:table_learning_rate=0.2"]) == 0
    assert "| 2 | validation auc | +0.1000 |" in capsys.readouterr().out
    assert main(["compare", f"{path}:single:table_learning_rate=3.2", f"{path}:single:batch_size=9"]) == 1
    expected = "2 curves; expected one of single:table_learning_rate=0.2, single:table_learning_rate=3.2\n"
    assert capsys.readouterr().err.endswith(expected)


def test_no_figure_writes_mathematics_as_it_is_typed():
    assert not [path for path in ROOT.glob("results/**/*.svg") if "mathdefault" in path.read_text()]


def test_gains_name_the_single_layer_that_they_are_over(tmp_path):
    path = tmp_path / "clicks" / "rates.csv"
    _with_settings(path, [("single", "", 2, "", rate, 0.7) for rate in ("0.2", "3.2")])
    draw(path, path.parent)
    assert "Difference to the single layer (table learning rate 0.2) of" in path.with_suffix(".md").read_text()


def test_a_claim_is_judged_by_one_curve_or_refused(tmp_path):
    """A table with several curves of an arm doesn't say which one is meant."""
    _with_settings(tmp_path / "paper-grid.csv", [("single", "", d, "", "0.2", 0.7) for d in (2, 4)])
    assert judging.points(next(claim for claim in CLAIMS if claim.name == "d"), Tables(tmp_path))
    _with_settings(tmp_path / "paper-grid.csv", [("single", "", 2, "", rate, 0.7) for rate in ("0.2", "3.2")])
    with pytest.raises(ResultsError, match=r"one curve of arm single, and there are 2: single layer, table learning"):
        Tables(tmp_path).curve("paper-grid", "single")


def test_claims_take_the_k_that_is_there(tmp_path):
    """Controls, depth and mechanism with k = 32 are judged as with 64; of two k the larger one alone."""
    path = tmp_path / "controls.csv"
    single = ("single", "", 4, "", "", 0.7)
    others = (("mlet", 0.8), ("mlet-starts-as-single", 0.75))
    _with_settings(path, [single, *((arm, "32", 4, "", "", auc) for arm, auc in others)])
    deeper = [("mlet", "x".join(["32"] * layers), 4, "", "", 0.8 + layers / 100) for layers in (1, 2, 3)]
    _with_settings(path.with_name("depth.csv"), [single, *deeper])
    both = [single, *(("mlet", k, 4, "", "", 0.7) for k in ("16", "32"))]
    _with_settings(path.with_name("mechanism.csv"), both)
    lines = ["arm,inner_dim,embedding_dim,batch_size,table_learning_rate,seed,ids,rows,at_most,auc,log_loss"]
    for (arm, k, *_), gain in zip(both, (0.0, 0.01, 0.03), strict=True):
        for seed in (0, 1, 2):  # MLET's last one has no single layer to be paired with
            if arm == "mlet" or seed < 2:
                run = f"{arm},{k},4,,,{seed}"
                lines += [f"{run},rare,5,3,0.7,{0.5 - gain}", f"{run},frequent,5,3,0.7,0.5"]
    path.with_name("mechanism-frequency.csv").write_text("\n".join(lines) + "\n")
    found = {
        (claim.name, point.group, point.name): point.gain.mean
        for claim in (*CLAIMS, *QUESTIONS)
        for point in judging.points(claim, Tables(tmp_path))
        if claim.groups
    }
    at_the_papers = "at the paper's rate"
    assert found == {
        ("depth", f"{at_the_papers}, std 0.25", "N=3, d=4"): pytest.approx(0.01),
        ("depth", f"{at_the_papers}, std 0.25", "N=4, d=4"): pytest.approx(0.02),
        ("rare", at_the_papers, "d=4"): pytest.approx(0.03),
        ("own-part", "MLET", "d=4"): pytest.approx(0.1),
        ("small-step", "the single layer's start", "d=4"): pytest.approx(0.05),
    }


def test_a_table_that_can_not_be_drawn_does_not_stop_the_others(table):
    """Nor do names that read as mathematics, or an experiment of which all runs diverged."""
    lines = table.read_text().splitlines()
    odd = table.parent.parent / "cli$cks"
    odd.mkdir()
    (odd / "mle$t.csv").write_text(table.read_text().replace("mlet", "mle$t"))
    lost = [_without_test(line).replace("finished", "diverged") for line in lines if "diverged" in line]
    for name in ("grid", "paper-grid"):
        (odd / f"{name}.csv").write_text("\n".join([lines[0], *lost]) + "\n")
    (table.parent / "bad.csv").write_text(lines[0] + "\nnonsense\n")
    told = []
    with pytest.raises(ResultsError, match=r"1 couldn't be drawn, all others were:\n  .*bad\.csv:2: not a run"):
        told.extend(report(table.parent.parent))
    drawn = {path for path in table.parent.parent.rglob("*") if path.suffix in (".md", ".png", ".svg")}
    pages = {path.relative_to(table.parent.parent).as_posix() for path in drawn if path.suffix == ".md"}
    assert pages == {"clicks/grid.md", "cli$cks/mle$t.md", "cli$cks/grid.md", "cli$cks/paper-grid.md"}
    assert set(told) == drawn
