"""Tables that are unlike ours: a search of one rate, runs that diverged, one seed, equal counts."""

import csv
import itertools
import math
import re
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes

from dlrm_mlet import config
from dlrm_mlet.__main__ import main
from dlrm_mlet.reporting import (
    drawing,
    failures,
    fights,
    forest,
    judging,
    ledger,
    publishing,
    rate_figures,
    reproduction,
    results,
    trained,
)
from dlrm_mlet.reporting.claims import CLAIMS
from dlrm_mlet.reporting.compare import compare
from dlrm_mlet.reporting.curves import Difference, Served, as_markdown, by_bytes, compared_on, difference, pareto
from dlrm_mlet.reporting.judging import AUC, GRID, PAPER, TUNED, Tables
from dlrm_mlet.reporting.questions import QUESTIONS
from dlrm_mlet.reporting.report import draw, draw_rates
from dlrm_mlet.reporting.results import ResultsError
from tests.reporting.test_report import HEADER

TAIL = "9,99,50,400,320,1.5,cpu,2,c"


def write(path: Path, rows: list[tuple[str, int, int, float | None]], tuned: dict[str, str] | None = None) -> Path:
    """A table of (arm, d, seed, AUC), None where the run diverged; `tuned`: what else was chosen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = dict(tuned or {})
    lines = [HEADER.replace("seed,", ",".join(["seed", *keys, ""]))]
    for arm, d, seed, auc in rows:
        measures = f"finished,{auc},{1 - auc},{auc},{1 - auc}" if auc else "diverged,,,,"
        lines.append(",".join([arm, "16" if arm == "mlet" else "", str(d), str(seed), *keys.values(), measures, TAIL]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of the results of one data set."""
    return tmp_path / "results" / "shop"


def claim(name: str) -> judging.Claim:
    return next(claim for claim in (*CLAIMS, *QUESTIONS) if claim.name == name)


@pytest.mark.parametrize(
    ("tuned", "names"),
    [
        ({"table_learning_rate": "3.2"}, ["table-learning-rate.png", "table-learning-rate.svg"]),
        ({"table_learning_rate": "3.2", "initial_scale": "1"}, ["table-learning-rate.png", "table-learning-rate.svg"]),
        ({"learning_rate": "0.1"}, []),
        ({"table_learning_rate": "3.2", "initial_scale": "0.5"}, []),
    ],
)
def test_any_search_of_the_tables_rate_is_drawn(directory, tuned, names):
    rows = [(arm, 2, seed, 0.7 + seed / 100) for arm in ("single", "mlet") for seed in range(2)]
    write(directory / "fair-fight-sgd-trials.csv", rows, tuned)
    assert [path.name for path in draw_rates(directory, directory)] == names


@pytest.mark.parametrize("name", ["fair-fight-sgd", "rivals-tuned"])
def test_a_table_of_which_all_runs_diverged_has_a_page(directory, name):
    tuned = {"table_learning_rate": "99"}
    table = write(directory / f"{name}.csv", [("single", 2, 0, None), ("mlet", 2, 0, None)], tuned)
    if name == "rivals-tuned":
        table.write_text(
            table.read_text().replace("embedding_dim,", "embedding_dim,served_as,").replace(",2,0,", ",2,,0,")
        )
    assert [path.name for path in draw(table, directory)] == [f"{name}.md"]
    page = (directory / f"{name}.md").read_text()
    assert "| MLET k=16 | 2 | 0 (1 diverged) |" in page
    assert "| single layer | 2 | 99 |" in page


def test_a_divergence_is_a_failure(directory):
    rows = [("single", 4, seed, 0.7) for seed in range(4)] + [
        ("mlet", 4, seed, 0.7 if seed else None) for seed in range(4)
    ]
    write(directory / "paper-grid.csv", rows)
    said = failures.verdict(Tables(directory))
    both = "and where both have the point MLET fails less often at 0, more often at 1 (sign test, p = 1)"
    assert said == f"at the paper's rate single layer 0 of 4 runs, MLET 1 of 4, {both}"

    write(directory / "fair-fight-adam.csv", rows[::-1])
    assert failures.verdict(Tables(directory)) == f"{said}; {said.replace(PAPER, TUNED)}"
    for name in ("paper-grid", "fair-fight-adam"):
        write(directory / f"{name}.csv", [row for row in rows if row[0] == "single"])
    with pytest.raises(FileNotFoundError, match="no runs of both"):
        failures.verdict(Tables(directory))


def test_failures_are_compared_where_both_sides_have_the_point(directory):
    """A single layer alone has d=1, whose failures say nothing of MLET; seeds of a point count as one."""
    runs = [("single", d, seed, None if (d, seed) in {(1, 0), (1, 1), (2, 0), (2, 1)} else 0.7)
            for d in (1, 2, 4) for seed in range(5)]  # fmt: skip
    runs += [("mlet", d, seed, None if (d, seed) == (4, 0) else 0.7) for d in (2, 4) for seed in range(5)]
    write(directory / "paper-grid.csv", runs)
    said = failures.verdict(Tables(directory))
    both = "and where both have the point MLET fails less often at 1, more often at 1 (sign test, p = 1)"
    assert said == f"at the paper's rate single layer 4 of 15 runs, MLET 1 of 10, {both}"


@pytest.mark.parametrize(("name", "experiment"), [("d", "fair-fight-sgd"), ("same-d", "fair-fight-sgd"),
                                                  ("deepfm-adam-w2", "deepfm-adam")])  # fmt: skip
def test_what_is_tuned_is_compared_on_test(directory, name, experiment):
    """Its rates were chosen on validation."""
    arms = ("single", "mlet", "frozen")
    path = write(directory / f"{experiment}.csv", [(arm, d, seed, 0.7 + (len(arm) + d * seed) / 999)
                                                   for arm in arms for d in (2, 4) for seed in range(3)])  # fmt: skip
    path.write_text(path.read_text().replace("frozen,,", "frozen,16,"))
    points = judging.points(claim(name), Tables(directory))
    measures = {point.measure for point in points if point.group.startswith(TUNED)}
    assert measures == ({"test_auc"} if name == "d" else {"test_auc", "test_log_loss"})


def test_the_fights_together_are_the_mean_over_points_seed_by_seed(directory):
    """By a plain loop; what one side didn't finish isn't in its seed's mean."""
    gains: dict[int, list[float]] = {seed: [] for seed in range(4)}
    for i, name in enumerate(("fair-fight-sgd", "fair-fight-adam")):
        rows = []
        for d in (2, 4):
            for seed in range(4):
                gain = 0.001 * (i + 1) * d + 0.0001 * seed
                lost = (name, d, seed) == ("fair-fight-adam", 4, 3)
                rows += [("single", d, seed, 0.7), ("mlet", d, seed, None if lost else 0.7 + gain)]
                gains[seed] += [] if lost else [gain]
        write(directory / f"{name}.csv", rows)
    write(directory / "deepfm-adam.csv", [(arm, 2, seed, 0.5) for arm in ("single", "mlet") for seed in range(4)])
    points = {point.name: point for point in judging.points(claim("all-fights"), Tables(directory))}
    assert list(points) == ["d=2", "d=4", "all d"]
    assert claim("all-fights").table(Tables(directory))[1:] == [["2", "8", "0"], ["4", "7", "1"]]
    expected = [statistics.fmean(its) for its in gains.values()]
    assert points["all d"].gain.mean == pytest.approx(statistics.fmean(expected))
    assert points["all d"].gain.std == pytest.approx(statistics.stdev(expected))
    points = {point.name: point.gain.mean for point in judging.points(claim("half-as-wide"), Tables(directory))}
    assert points == {
        "DLRM, plain SGD, batch 128, d=2 over 4": pytest.approx(0.00215),
        "DLRM, Adam, batch 128, d=2 over 4": pytest.approx(0.00415),
    }
    judged = [(claim("all-fights"), reproduction.judge(claim("all-fights"), directory.parent, ["shop"]))]
    row, *of_table = [row for row in csv.reader(ledger.as_csv(judged).splitlines()) if row[3] == "d=2"]
    assert [(cell[4], cell[5]) for cell in of_table] == [("pairs of runs", "8"), ("without one of the two", "0")]
    assert row[-1] == "shop/fair-fight-sgd.csv shop/fair-fight-adam.csv"  # those that there are


def test_a_divergence_counts_whichever_table_has_it_and_a_missing_measure_does_not(directory):
    """Once: the last table of a point won, and a run whose validation has no AUC counted as diverged."""
    rows = [(arm, 4, seed, 0.7) for arm in ("single", "mlet") for seed in range(3)]
    write(
        directory / "paper-grid.csv", [(arm, d, seed, None if arm == "single" else auc) for arm, d, seed, auc in rows]
    )
    write(directory / "controls.csv", rows)
    fight = write(directory / "fair-fight-sgd.csv", rows)
    fight.write_text(
        fight.read_text().replace("single,,4,0,finished,0.7,0.30000000000000004", "single,,4,0,finished,,")
    )
    assert [row[1:] for row in failures.table(Tables(directory))[1:]] == [
        ["single layer", "3", "3"], ["MLET, k = 16", "0", "3"], ["single layer", "0", "2"], ["MLET, k = 16", "0", "3"],
    ]  # fmt: skip


def test_a_run_is_in_a_table_once_whatever_was_chosen_for_it(directory):
    """Once: its old row and its new one were taken together. In a table of trials each choice has a row."""
    table = write(directory / "fair-fight-sgd.csv", [("single", 4, 0, 0.7)], {"table_learning_rate": "3.2"})
    row = table.read_text().splitlines()[1]
    table.write_text(table.read_text() + row.replace("3.2", "6.4") + "\n")
    with pytest.raises(ResultsError, match=r"fair-fight-sgd.csv: has single k=- d=4 seed 0 twice"):
        results.read(table)
    trials = table.rename(directory / "fair-fight-sgd-trials.csv")
    assert len(results.read(trials)) == 2
    with pytest.raises(ResultsError, match=r"not a table of an experiment's own runs; expected fair-fight-sgd\.csv"):
        compare(f"{trials}:single", f"{trials}:single")


def test_what_diverged_has_no_measures_and_what_is_measured_of_a_run_is_there_once(directory):
    table = write(directory / "a.csv", [("single", 4, 0, 0.7)])
    table.write_text(table.read_text().replace("finished", "diverged"))
    with pytest.raises(ResultsError, match=r"a\.csv:2: not a run: .*status diverged, and measures"):
        results.read(table)
    thirds, spectra = directory / "a-frequency.csv", directory / "a-spectra.csv"
    line = "single,,4,0,rare,9,3,0.5,0.5\n"
    thirds.write_text("arm,inner_dim,embedding_dim,seed,ids,rows,at_most,auc,log_loss\n" + 2 * line)
    with pytest.raises(ResultsError, match=r"a-frequency\.csv: has single k=- d=4 seed 0 twice"):
        results.read_thirds(thirds)
    for values in ("", "1.0 nan", "1.0 -1"):
        spectra.write_text(
            f"arm,inner_dim,embedding_dim,seed,step,feature,num_embeddings,values\nsingle,,4,0,10,user,9,{values}\n"
        )
        with pytest.raises(ResultsError, match=r"a-spectra\.csv:2: not a run: .*singular values"):
            results.read_spectra(spectra)


def test_a_table_that_one_question_can_not_read_costs_that_question_alone(directory, capsys):
    """Once: a traceback, and no page."""
    rows = [(arm, 4, seed, 0.7 + seed / 99) for arm in ("single", "mlet", "mine") for seed in range(3)]
    write(directory / "paper-grid.csv", rows[:6])
    write(directory / "deepfm-controls.csv", rows)
    (directory / "deepfm-controls-frequency.csv").write_text(
        "arm,inner_dim,embedding_dim,seed,ids,rows,at_most,auc,log_loss\n"
    )
    assert main(["report", str(directory.parent), "--dataset", "shop"]) == 1
    assert "deepfm-controls: StatisticsError" in capsys.readouterr().err
    page = (directory / "claims.md").read_text()
    assert "**shop: can't be judged: " in page
    assert "MLET beats the single layer" in page


def test_a_way_of_which_a_run_diverged_is_not_on_the_front():
    """Once: the one seed that was left of five stood for it."""
    points = [Served("single", "single", 4, 100, (0.7, 0.7), 0), Served("hashed", "hashed", 4, 50, (0.9,), 4)]
    assert [point.arm for point in pareto(points)] == ["single"]


def test_rates_at_which_a_seed_diverged_and_other_arms_are_not_drawn(directory, monkeypatch):
    """Once: by those of its seeds that were left, and frozen W2s as MLET's."""
    rows = [(arm, 4, seed, auc) for arm, auc in (("single", 0.7), ("frozen", 0.5)) for seed in range(2)]
    text = write(directory / "fair-fight-sgd-trials.csv", rows, {"table_learning_rate": "3.2"}).read_text()
    more = write(
        directory / "more.csv", [("single", 4, 0, 0.9), ("single", 4, 1, None)], {"table_learning_rate": "6.4"}
    )
    (directory / "fair-fight-sgd-trials.csv").write_text(text + more.read_text().partition("\n")[2])
    drawn = []
    monkeypatch.setattr(rate_figures, "over_table_rate", lambda trials, *others: drawn.extend(trials["SGD"]))
    draw_rates(directory, directory)
    assert {(row.arm, row.tuned["table_learning_rate"]) for row in drawn} == {("single", "3.2")}


def test_equal_differences_have_no_interval_though_their_last_digits_differ():
    gain = difference([0.71 - 0.7, 0.72 - 0.71, 0.735 - 0.725])
    assert gain.interval == difference([0.01] * 3).interval


def test_what_was_run_and_diverged_is_not_called_not_run(directory, capsys):
    write(directory / "paper-grid.csv", [("single", 4, 0, 0.7), ("single", 4, 1, 0.7), ("mlet", 4, 0, None)])
    assert main(["report", str(directory.parent), "--dataset", "shop/"]) == 0  # with a slash, as completion writes it
    page = (directory / "claims.md").read_text()
    assert "**shop: no two runs to compare that both finished**" in page
    assert "MLET beats the single layer" not in page[page.index("Not run yet") :].partition("\n")[0]
    assert "not run; tuned not run" not in page
    capsys.readouterr()


def test_a_table_that_can_not_be_drawn_does_not_cost_the_page_of_claims(directory, capsys):
    rows = [(arm, 4, seed, 0.7 + seed / 99) for arm in ("single", "mlet") for seed in range(3)]
    write(directory / "paper-grid.csv", rows)
    (directory / "mine.csv").write_text("no,table\n1,2\n")
    assert main(["report", str(directory.parent), "--dataset", "shop"]) == 1
    assert "mine.csv:2: not a run" in capsys.readouterr().err
    assert "MLET beats the single layer" in (directory / "claims.md").read_text()


@pytest.mark.parametrize("name", ["claims", "learning-curve", "my-trials", "a-spectra", "b-frequency"])
def test_an_experiment_has_no_name_that_report_takes_for_another_table(name, tmp_path):
    publishing.check_name(tmp_path / f"{name}s")
    with pytest.raises(ResultsError, match=rf"{name}.csv is the name of a table that report writes"):
        publishing.check_name(tmp_path / name)


def test_two_data_sets_are_not_compared(tmp_path, capsys):
    rows = [("single", 4, seed, 0.7 + seed / 99) for seed in range(3)]
    one, two = (write(tmp_path / "results" / name / "grid.csv", rows) for name in ("shop", "flights"))
    with pytest.raises(ResultsError, match="of shop and flights; expected one data set"):
        compare(f"{one}:single", f"{two}:single")
    elsewhere = write(tmp_path / "old" / "grid.csv", rows)
    assert "| 4 | validation auc | +0.0000 |" in compare(f"{one}:single", f"{elsewhere}:single")


def test_runs_of_unlike_columns_are_not_judged_as_one_data_set(directory, capsys):
    rows = [(arm, 4, seed, 0.7 + seed / 99) for arm in ("single", "mlet") for seed in range(3)]
    for name, data in (("paper-grid", "one"), ("controls", "two")):
        table = write(directory / f"{name}.csv", rows)
        head, *lines = table.read_text().splitlines()
        table.write_text("\n".join([f"{head},experiment", *(f"{line},digest-{data}" for line in lines)]) + "\n")
    with pytest.raises(ResultsError, match=r"single: made from columns one and two; expected the same ones"):
        compare(f"{directory / 'paper-grid.csv'}:mlet", f"{directory / 'controls.csv'}:single")
    assert main(["report", str(directory.parent), "--dataset", "shop"]) == 1
    assert "unlike columns (controls.csv from two; paper-grid.csv from one)" in capsys.readouterr().err
    assert not (directory / "claims.md").exists()


def test_a_run_that_is_there_twice_is_refused(directory):
    table = write(directory / "grid.csv", [("single", 4, 0, 0.7), ("single", 4, 1, 0.7), ("single", 4, 0, 0.7)])
    with pytest.raises(ResultsError, match=r"grid.csv: has single k=- d=4 seed 0 twice; expected a row a run"):
        results.read(table)


def test_equal_differences_and_single_ones_have_no_interval():
    same, none, one = difference([1.0, 1.0]), difference([0.0, 0.0]), difference([0.01])
    assert (same.low, same.high, same.interval, same.spread) == (-math.inf, math.inf, "none", "0.0000")
    assert (none.low, none.high) == (0, 0)
    assert (one.interval, one.spread, str(same)) == ("none", "–", "+1.0000 ± 0.0000")
    found = {("", "d=4", AUC): [1.0, 1.0]}
    points = [judging.Point(*key, gain, ()) for key, gain in judging.jointly(found).items()]
    assert judging.verdict(claim("same-d"), points) == "not decided (one seed, or no spread: no interval)"


def test_a_name_with_a_blank_is_linked_and_quoted(tmp_path, capsys):
    rows = [(arm, 4, seed, 0.7 + seed / 99) for arm in ("single", "mlet") for seed in range(3)]
    write(tmp_path / "results" / "my shop" / "paper-grid.csv", rows)
    assert main(["report", str(tmp_path / "results"), "--dataset", "my shop"]) == 0
    page = (tmp_path / "results" / "my shop" / "claims.md").read_text()
    assert "`make sweep DATASET='my shop' GRID=paper-grid`" in page
    assert "[my shop/paper-grid.md](../my%20shop/paper-grid.md)" in page
    capsys.readouterr()


def test_a_bar_in_a_name_stays_in_its_cell():
    assert as_markdown([["a|b", "c"]]) == ["| a\\|b | c |", "| --- | --- |"]


def test_the_picture_of_all_fights_has_the_intervals_of_each(directory, monkeypatch):
    """A row through all panels, also where a fight lacks a d; where nothing can be compared there is no picture."""
    runs = [(arm, d, seed, 0.7 + gain + seed**2 / 9000) for arm, gain in (("single", 0), ("mlet", 0.01))
            for d in (2, 16) for seed in range(4)]  # fmt: skip
    fight = write(directory / "fair-fight-sgd.csv", [(arm, d, seed, auc + (arm == "mlet") * seed / 9999)
                                                     for arm, d, seed, auc in runs])  # fmt: skip
    write(directory / "deepfm-adam.csv", [(arm, d, seed, 1.4 - auc - (arm == "mlet") * seed / 999)
                                          for arm, d, seed, auc in runs if d == 16])  # fmt: skip
    drawn: dict[str, list[judging.Point]] = {}
    draw_all = forest.side_by_side
    monkeypatch.setattr(forest, "side_by_side", lambda found, *rest: (drawn.update(found), draw_all(found, *rest)))
    page, out = directory / "claims.md", directory.parent
    list(reproduction.publish(out, page, out, ["shop"]))
    assert "claims/all-fights-shop.svg" in page.read_text()
    names = {d: {point.name.split(",")[0]: point.group for point in points} for d, points in drawn.items()}
    assert names == {"d=2": {"DLRM": "MLET ahead"}, "d=16": {"DLRM": "MLET ahead", "DeepFM": "single layer ahead"}}
    alone = [
        its.gain for its in judging.points(claim("fair-fight-sgd"), Tables(directory)) if its.measure == "test_auc"
    ]
    assert alone == [drawn["d=2"][0].gain, drawn["d=16"][0].gain]

    picture = out / "claims" / "all-fights-shop.svg"
    picture.unlink()
    (directory / "deepfm-adam.csv").unlink()
    write(fight, [(arm, d, seed, None) for arm, d, seed, _ in runs])
    list(reproduction.publish(out, page, out, ["shop"]))
    assert "**shop: no two runs to compare that both finished**" in page.read_text()
    assert "all-fights-shop" not in page.read_text()
    assert not picture.exists()


@pytest.mark.parametrize("reach", [0.00002, 0.0023, 0.0158, 0.19])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_the_numbers_below_differences_stand_apart(tmp_path, monkeypatch, reach, side_by_side):
    """Of one panel and of its neighbour, whatever the range is."""
    figures_drawn: list[plt.Figure] = []
    monkeypatch.setattr(plt, "close", figures_drawn.append)
    gains = [Difference(sign * reach, reach / 9, reach * (sign - 0.1), reach * (sign + 0.1), 9) for sign in (-1, 0.1)]
    points = [
        judging.Point("of", name, "test_auc", gain, ()) for name, gain in zip(("a", "b" * 50), gains, strict=True)
    ]
    found = {f"d={d}": points for d in (2, 4, 8, 16)}
    if side_by_side:
        forest.side_by_side(found, ["a", "b" * 50], ["of", "not"], "title", tmp_path / "drawn")
    else:
        forest.differences(found, ["of"], 0.002, "title", tmp_path / "drawn")
    (figure,) = figures_drawn
    figure.canvas.draw()
    labels = [label for ax in figure.axes for label in ax.get_xticklabels()
              if ax.get_xlim()[0] <= label.get_position()[0] <= ax.get_xlim()[1]]  # fmt: skip
    boxes = sorted((label.get_window_extent().extents for label in labels), key=lambda box: box[0])
    assert len(boxes) >= 2 * len(figure.axes)
    assert all(left[2] < right[0] for left, right in itertools.pairwise(boxes))
    monkeypatch.undo()
    plt.close(figure)


def test_a_narrower_single_layer_that_is_as_good_is_told_beside_mlet(directory):
    """Where d is worth nothing, MLET's factors are no merit of its own."""
    aucs = {("single", 2): 0.8, ("single", 4): 0.7, ("single", 8): 0.75, ("mlet", 2): 0.8}
    write(directory / "paper-grid.csv", [(arm, d, seed, auc) for (arm, d), auc in aucs.items() for seed in range(2)])
    smaller, tables = claim("smaller"), Tables(directory)
    assert smaller.table(tables)[1:] == [
        ["at the paper's rate, SGD", "MLET k=16", "4x (d=2)"], ["at the paper's rate, SGD", "single layer", "4x (d=2)"]
    ]  # fmt: skip
    found = "MLET at 1 of 1, a narrower single layer at 1 of 1"
    assert smaller.verdict(tables) == f"at the paper's rate 4x or more: {found}, 2x or more: {found}"


def test_every_way_of_training_has_its_factors(directory):
    """Once that of SGD alone, which left out where MLET does save width."""
    aucs = {("single", 4): 0.7, ("single", 8): 0.75, ("mlet", 4): 0.76, ("mlet", 8): 0.77}
    for name in ("fair-fight-sgd", "deepfm-adam"):
        write(directory / f"{name}.csv", [(arm, d, seed, auc if name == "deepfm-adam" or arm == "single" else auc - 0.1)
                                          for (arm, d), auc in aucs.items() for seed in range(2)])  # fmt: skip
    smaller, tables = claim("smaller"), Tables(directory)
    assert [row[1:] for row in smaller.table(tables)[1:]] == [
        ["MLET k=16", "not reached"], ["single layer", "1x (d=8)"], ["MLET k=16", "2x (d=4)"],
        ["single layer", "1x (d=8)"]
    ]  # fmt: skip
    alone = "a narrower single layer at 0 of 2"
    assert smaller.verdict(tables) == f"tuned 4x or more: MLET at 0 of 2, {alone}, 2x or more: MLET at 1 of 2, {alone}"


def test_the_paper_s_rate_is_where_its_step_is(tmp_path, monkeypatch):
    """Once at the single layer's place in MLET's panel too, where the axis counts its larger step."""
    path = tmp_path / "shop" / "batch-size.csv"
    path.parent.mkdir()
    head = HEADER.replace("embedding_dim,", "embedding_dim,batch_size,table_learning_rate,")
    lines = [f"{arm},{k},8,128,{rate},{seed},finished,0.7,0.5,,,{TAIL}" for arm, k in (("single", ""), ("mlet", "64"))
             for rate in (12.8, 25.6) for seed in (0, 1)]  # fmt: skip
    path.write_text("\n".join([head, *lines]) + "\n")
    places: list[float] = []
    axvline = Axes.axvline
    monkeypatch.setattr(Axes, "axvline", lambda ax, x, **how: places.append(x) or axvline(ax, x, **how))
    draw(path, path.parent)
    assert places == pytest.approx([0.2 / 128, 0.2 / 128 * 64 / 16])


def test_the_rule_is_judged_where_its_rate_was_run(directory):
    """A plain table at 0.1 x B beside MLET's at 16/k of that, and no run of another batch or MLPs' rate."""
    head = HEADER.replace("embedding_dim,", "embedding_dim,batch_size,learning_rate,table_learning_rate,")
    points = {("single-128", "", 128, 0.2, 12.8): 0.75, ("single-128", "", 128, 0.4, 12.8): 0.9,
              ("single-32", "", 32, 0.2, 12.8): 0.9, ("mlet-128", "16", 128, 0.2, 12.8): 0.76}  # fmt: skip
    lines = [f"{arm},{k},8,{b},{mlp},{rate},{seed},finished,{auc + seed / 999},0.5,,,{TAIL}"
             for (arm, k, b, mlp, rate), auc in points.items() for seed in (0, 1)]  # fmt: skip
    write(directory / "paper-grid.csv", [("mlet", 8, seed, 0.7 + seed / 999) for seed in (0, 1)])
    assert judging.points(claim("rule"), Tables(directory)) == []
    (directory / "batch-size.csv").write_text("\n".join([head, *lines]) + "\n")
    assert [point.gain.mean for point in judging.points(claim("rule"), Tables(directory))] == [
        pytest.approx(0.05), pytest.approx(0.01)
    ]  # fmt: skip


def test_all_points_are_drawn_and_what_goes_on_has_an_arrow(tmp_path, monkeypatch):
    """Once LogLoss was not drawn, though the verdicts count it, and a bar that was cut looked like a short one."""
    marks: list[str] = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda ax, *all_of, **how: marks.append(all_of[2]) or plot(ax, *all_of, **how))
    rows: list[float] = []
    errorbar = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda ax, *all_of, **how: rows.append(all_of[0]) or
                        errorbar(ax, *all_of, **how))  # fmt: skip
    short = [difference([0.001, 0.002, 0.003]) for _ in range(4)]
    far = Difference(0.001, 1.0, -1.0, 1.002, 3)
    found = [judging.Point("of", f"d={d}", measure, gain, ()) for measure in ("test_auc", "test_log_loss")
             for d, gain in enumerate([*short, far])]  # fmt: skip
    forest.differences({"a": found, "b": found[:5]}, ["of"], None, "title", tmp_path / "drawn")
    assert len(rows) == 15
    assert marks == ["<", ">"] * 3


def test_looks_of_many_are_told_apart_in_grey():
    looks = [(look["marker"], look.get("markerfacecolor")) for look in map(drawing.look, range(len(drawing.MARKERS)))]
    assert len(set(looks)) == len(looks)
    colours = [(drawing.look(i)["color"], drawing.look(i).get("markerfacecolor")) for i in range(14)]
    assert len(set(colours)) == 14


def test_what_was_tuned_is_ranked_by_bytes_on_test(directory):
    """Its rates were chosen on validation."""
    runs = [(arm, 4, seed, 0.7 + seed / 99) for arm in ("single", "mlet") for seed in range(2)]
    for rates, measure in ((None, AUC), ({"table_learning_rate": "1.6"}, "test_auc")):
        assert compared_on(results.read(write(directory / "rivals.csv", runs, rates))) == measure
    [row, *_] = results.read(write(directory / "rivals.csv", [("single", 4, 0, 0.75)], {"table_learning_rate": "1.6"}))
    row.measures["test_auc"] = 0.6
    assert [point.mean for measure in (AUC, "test_auc") for point in by_bytes([row], measure)] == [0.75, 0.6]


def test_the_command_of_another_model_makes_what_its_table_has(directory):
    """Once without its options, so that it trained other widths and arms."""
    runs = {
        "deepfm-adam": (("single", "mlet"), (4, 16)),
        "deepfm-controls": (("single", "l2-1"), (4,)),
        "dcnv2-adam": (("single", "mlet", "frozen"), (2, 4, 8, 16)),
    }
    for name, (arms, widths) in runs.items():
        write(directory / f"{name}.csv", [(arm, d, 0, 0.7) for arm in arms for d in widths])
    options = [fights.options(Tables(directory), name) for name in runs]
    assert options == [" --arms single mlet --embedding-dim 4 16", " --arms single l2-1 --embedding-dim 4", ""]
    assert set(runs) <= fights.OTHERS


def test_trials_of_a_changed_checkout_are_counted(directory):
    runs = [("single", 4, seed, 0.7) for seed in range(2)]
    page = write(directory / "fair-fight-sgd.csv", runs, {"table_learning_rate": "1"})
    trials = write(directory / "fair-fight-sgd-trials.csv", runs, {"table_learning_rate": "1"})
    trials.write_text(trials.read_text().replace(",c\n", ",c+\n"))
    draw(page, directory)
    assert " 2 of the 2 trials behind them are of checkouts with uncommitted" in page.with_suffix(".md").read_text()
    assert "of them are of checkouts" not in page.with_suffix(".md").read_text()


def test_every_number_of_a_table_is_a_row_of_the_claims():
    table = [
        ["model", "d", "n", "test AUC, mean", "std", "KiB", "tried", "gain", "range", "ranked (n)", "rate", "on"],
        ["MLET, 1", "4", "12", "0.78", "0.0027", "1,289", "not kept", "+9 %", "0.93 to 1.07", "0.7 ± 0.1 (5)",
         "1e-05 (the smallest tried)", "–"],
    ]  # fmt: skip
    judged = [(claim("loss"), {"shop": ledger.Outcome([], table, "", frozenset({"paper-grid"}))})]
    rows = list(csv.DictReader(ledger.as_csv(judged).splitlines()))
    assert {(row["point"], row["tables"]) for row in rows} == {("MLET, 1, d=4", "shop/paper-grid.csv")}
    assert [(row["measure"], row["mean"], row["std"], row["low"], row["high"], row["n"]) for row in rows] == [
        ("test AUC, mean", "0.78", "0.0027", "", "", "12"), ("KiB", "1289", "", "", "", "12"),
        ("gain", "+9", "", "", "", "12"), ("range", "", "", "0.93", "1.07", "12"),
        ("ranked (n)", "0.7", "0.1", "", "", "5"), ("rate", "1e-05", "", "", "", "12"),
    ]  # fmt: skip
    assert rows[-1]["verdict"] == "the smallest tried"


def test_no_two_rows_of_the_published_claims_are_of_one_thing():
    """Once the ranks by two protocols, and those of other depths."""
    with (Path(__file__).parents[2] / "results" / "claims.csv").open() as file:
        keys = [tuple(row[key] for key in ("claim", "dataset", "group", "point", "measure"))
                for row in csv.DictReader(file)]  # fmt: skip
    assert len(keys) > 1000
    assert len(set(keys)) == len(keys)


def test_factors_are_of_what_has_test_scores(directory):
    """Once a fight without them cost the claim those of the paper's grid."""
    runs = [(arm, d, seed, 0.7 + d / 99) for arm in ("single", "mlet") for d in (4, 8) for seed in range(2)]
    write(directory / "paper-grid.csv", runs)
    fight = write(directory / "fair-fight-sgd.csv", runs)
    fight.write_text("\n".join(re.sub(r"(finished,[\d.]+,[\d.]+),[\d.]+,[\d.]+", r"\1,,", line)
                               for line in fight.read_text().splitlines()) + "\n")  # fmt: skip
    smaller, tables = claim("smaller"), Tables(directory)
    assert [row[2] for row in smaller.table(tables)[1:]] == ["1x (d=8)", "1x (d=8)", "–", "–"]
    assert smaller.verdict(tables).startswith("at the paper's rate 4x or more: MLET at 0 of 1, ")


def test_a_fight_without_half_a_width_is_not_asked_about_it(directory):
    """Once it said on the page that there was nothing to compare among the runs that finished."""
    write(directory / "fair-fight-adam-512.csv", [(arm, d, seed, 0.7 + seed / 99) for arm in ("single", "mlet")
                                                  for d in (4, 16) for seed in range(2)])  # fmt: skip
    assert reproduction.judge(claim("half-as-wide"), directory.parent, ["shop"]) == {}
    widths = {point.name for point in judging.points(claim("d"), Tables(directory))}
    assert widths == {"DLRM, Adam, batch 512, d=4 to 16"}


def test_pairs_of_which_one_side_never_finished_are_counted(directory):
    """Once they were nowhere: the d had no row."""
    runs = [(arm, d, seed, None if (arm, d) == ("mlet", 16) else 0.7) for arm in ("single", "mlet") for d in (8, 16)
            for seed in range(3)]  # fmt: skip
    write(directory / "fair-fight-adam.csv", runs)
    assert fights.pairs(Tables(directory))[1:] == [["8", "3", "0"], ["16", "0", "3"]]


def say_trained(path: Path, **training: object) -> None:
    """Give a table's runs a column that says how they were trained."""
    values = {"optimizer": "sgd", "batch_size": 128, "epochs": 1, "schedule": "constant", "learning_rate": 0.2}
    said = " ".join(f"{key}={value}" for key, value in (values | training).items())
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{head},trained", *(f"{line},{said}" for line in lines)]) + "\n")


def test_a_fight_that_is_another_one_goes_by_what_it_is(directory, capsys):
    """Once a copy of a config that was changed stood on the page under the name of what it was copied from."""
    runs = [(arm, d, seed, 0.7 + seed / 99) for arm in ("single", "mlet") for d in (4, 8) for seed in range(3)]
    say_trained(write(directory / "fair-fight-adam-512.csv", runs), optimizer="adagrad", batch_size=64)
    say_trained(write(directory / "fair-fight-adam.csv", runs), optimizer="adam", learning_rate=0.01)
    grid = write(directory / "paper-grid.csv", runs)
    say_trained(grid, learning_rate=0.05, epochs=10)
    grid.write_text(grid.read_text().replace("rate=0.05", "rate=0.2", 4))
    assert main(["report", str(directory.parent), "--dataset", "shop"]) == 0
    capsys.readouterr()
    page = (directory / "claims.md").read_text()
    what = "optimizer adagrad, batch size 64"
    assert page.count(f"**shop/fair-fight-adam-512 isn't what its name says: {what}.**") > 1
    assert "**shop/paper-grid isn't what its name says: learning rate 0.05 (8 of 12 runs).**" in page
    assert "shop/fair-fight-adam isn't" not in page
    assert f"| DLRM, {what} (fair-fight-adam-512), d=4 over 8 |" in page
    assert "DLRM, Adam, batch 512, d=4 over 8" not in page
    assert "shop (trained otherwise: see there)" in page


def test_what_a_name_says_is_what_the_config_has():
    for name, its in trained.NAMED.items():
        for point in config.load(f"flights/{name}").points:
            training = point.config.training
            assert its == {key: str(getattr(training, key)) for key in its}, name
    for name in (*fights.DLRM, fights.CONTROLS, GRID, *failures.PLAIN):
        assert name in trained.NAMED


def test_runs_of_other_lengths_are_not_compared(directory):
    """Once ten epochs of one experiment and one of another gave a verdict."""
    head = HEADER.replace("embedding_dim,", "embedding_dim,batch_size,learning_rate,table_learning_rate,")
    lines = [f"single-128,,8,128,0.2,12.8,{seed},finished,0.5,0.5,,,{TAIL}" for seed in (0, 1)]
    write(directory / "paper-grid.csv", [("mlet", 8, seed, 0.7 + seed / 999) for seed in (0, 1)])
    (directory / "batch-size.csv").write_text("\n".join([head, *lines]) + "\n")
    assert judging.points(claim("rule"), Tables(directory))
    (directory / "batch-size.csv").write_text("\n".join([head, *lines]).replace(f",{TAIL}", f",90{TAIL[1:]}") + "\n")
    found = reproduction.judge(claim("rule"), directory.parent, ["shop"])["shop"]
    assert found.refused
    assert found.said.endswith(
        "results/shop: batch-size, paper-grid: single 128 d=8 has runs of 90 steps, MLET k=16 d=8 has runs of 9 steps; "
        "expected as many: the same epochs and batch size"
    )
    sides = (f"{directory / 'paper-grid.csv'}:mlet", f"{directory / 'batch-size.csv'}:single-128")
    assert "Not alike: runs of 9 and of 90 steps" in compare(*sides)


def test_a_fight_of_unlike_lengths_is_in_no_mean(directory, monkeypatch):
    """Once refused in its own section, and taken in by all fights together, widths and the picture."""
    runs = [(arm, d, seed, 0.7 + d * seed / 999) for arm in ("single", "mlet") for d in (4, 8) for seed in range(3)]
    write(directory / "fair-fight-sgd.csv", runs)
    before = {name: judging.points(claim(name), Tables(directory)) for name in ("all-fights", "half-as-wide")}
    unlike = write(directory / "fair-fight-adam.csv", [(arm, d, seed, auc + 0.1 * (arm == "mlet"))
                                                      for arm, d, seed, auc in runs])  # fmt: skip
    changed = [line.replace(",9,", ",90,", 1) if line.startswith("mlet") else line
               for line in unlike.read_text().splitlines()]  # fmt: skip
    unlike.write_text("\n".join(changed) + "\n")
    rows = {row.arm: row.steps for row in results.read(unlike)}
    assert rows == {"single": 9, "mlet": 90}
    for name, points in before.items():
        assert [point[:4] for point in judging.points(claim(name), Tables(directory))] == [
            point[:4] for point in points
        ]
    shown = []
    monkeypatch.setattr(forest, "side_by_side", lambda found, *_: shown.append(found))
    fights.draw(Tables(directory), directory / "x")
    assert {point.name for points in shown[0].values() for point in points} == {"DLRM, plain SGD, batch 128"}
    assert {row[0] for row in claim("smaller").table(Tables(directory))[1:]} == {"DLRM, plain SGD, batch 128"}
    assert reproduction.judge(claim("fair-fight-adam"), directory.parent, ["shop"])["shop"].refused


def test_a_fight_keeps_its_row_where_the_first_panel_lacks_it(directory, monkeypatch):
    """Once it went below all that the first panel has."""
    for name, widths in (("fair-fight-sgd", (4, 8)), ("fair-fight-adam", (8,)), ("fair-fight-adam-512", (4, 8))):
        write(
            directory / f"{name}.csv",
            [(arm, d, seed, 0.7 + seed / 999) for arm in ("single", "mlet") for d in widths for seed in range(3)],
        )
    shown = []
    monkeypatch.setattr(forest, "side_by_side", lambda found, names, *_: shown.append(names))
    fights.draw(Tables(directory), directory / "x")
    assert shown == [["DLRM, plain SGD, batch 128", "DLRM, Adam, batch 128", "DLRM, Adam, batch 512"]]


def test_kinds_of_mlet_are_compared_with_both_sides_of_their_fight(directory):
    """At the widths and seeds that they have."""
    auc = {"single": 0.7, "mlet": 0.703, "mlet-frozen": 0.702}
    runs = [(arm, d, seed, auc[arm] + d * seed / 999) for arm in auc for d in (4, 8) for seed in range(3)]
    write(directory / "fair-fight-adam-512.csv", [run for run in runs if run[0] != "mlet-frozen"])
    assert judging.points(claim("dlrm-controls"), Tables(directory)) == []
    frozen = write(directory / "controls-adam-512.csv", [run for run in runs if run[:2] == ("mlet-frozen", 4)][:2])
    frozen.write_text(frozen.read_text().replace("mlet-frozen,,", "mlet-frozen,16,"))
    points = judging.points(claim("dlrm-controls"), Tables(directory))
    assert [(point.group, point.name, point.gain.n, round(point.gain.mean, 6)) for point in points] == [
        (TUNED, "the fight's MLET k=16, d=4", 3, 0.003),
        (TUNED, "mlet frozen k=16, d=4", 2, 0.002),
        (f"{TUNED}, MLET over them", "mlet frozen k=16, d=4", 2, 0.001),
    ]


def test_another_way_to_tables_is_no_plain_table_by_the_rule(directory):
    """Once whichever arm came first."""
    head = HEADER.replace("embedding_dim,", "embedding_dim,batch_size,learning_rate,table_learning_rate,")
    lines = [f"hashed-128,,8,128,0.2,12.8,{seed},finished,0.5,0.5,,,{TAIL}" for seed in (0, 1)]
    write(directory / "paper-grid.csv", [("mlet", 8, seed, 0.7 + seed / 999) for seed in (0, 1)])
    (directory / "batch-size.csv").write_text("\n".join([head, *lines]) + "\n")
    assert judging.points(claim("rule"), Tables(directory)) == []


def test_two_runs_by_the_rule_are_refused(directory):
    """Of two arms, such as an old one's beside single-128."""
    head = HEADER.replace("embedding_dim,", "embedding_dim,batch_size,learning_rate,table_learning_rate,")
    lines = [f"{arm},,8,128,0.2,12.8,{seed},finished,0.5,0.5,,,{TAIL}" for arm in ("single-128", "single")
             for seed in (0, 1)]  # fmt: skip
    write(directory / "paper-grid.csv", [("mlet", 8, seed, 0.7 + seed / 999) for seed in (0, 1)])
    (directory / "batch-size.csv").write_text("\n".join([head, *lines]) + "\n")
    with pytest.raises(ResultsError, match=r"batch-size\.csv: single at 0\.1 x 128 is there 2 times; expected once"):
        judging.points(claim("rule"), Tables(directory))
