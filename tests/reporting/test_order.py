"""The order of methods by two protocols: ranks within a range of bytes, Kendall's tau, and a figure of both."""

import pytest

from dlrm_mlet.reporting import order, reproduction
from dlrm_mlet.reporting.judging import Tables
from dlrm_mlet.reporting.questions import QUESTIONS
from tests.reporting.test_report import HEADER

METHODS = {  # arm: served bytes, collisions, test AUC at one rate, and at its own
    "single": (6400, "", 0.70, 0.75),
    "hashed": (1600, "4", 0.73, 0.70),
    "robe": (1500, "4", 0.72, 0.72),
    "mlet": (1700, "", 0.71, 0.71),
}


@pytest.fixture
def tables(tmp_path):
    directory = tmp_path / "results" / "mine"
    directory.mkdir(parents=True)
    for name, place in ((order.ONE_RATE, 2), (order.OWN_RATES, 3)):
        tuned = "table_learning_rate," if place == 3 else ""
        # the tables vary more than one another
        extra = "served_rank," if place == 3 else ""
        lines = [HEADER.replace("seed,", f"tables,{extra}collisions,seed,{tuned}")]
        for arm, (size, collisions, *auc) in METHODS.items():
            for seed in range(3):
                value = auc[place - 2] + 0.001 * seed * (-1 if arm == "robe" else 1)
                varied = f"{64 if arm == 'mlet' else ''},16,{arm},{',' if extra else ''}{collisions},{seed}"
                chosen = ",12.8" if tuned else ""
                lines.append(f"{arm},{varied}{chosen},finished,0.5,0.5,{value},0.5,9,99,50,400,{size},1.5,cpu,2,c")
        (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return Tables(directory)


def test_methods_are_ranked_among_those_of_about_the_same_bytes(tables):
    head, *rows = order.table(tables)
    assert len(head) == len(rows[0])
    assert [(row[0], row[1], row[4], row[6]) for row in rows] == [
        ("6 KiB", "single layer d=16", "1", "1"),
        ("1 to 2 KiB", "robe d=16, collisions 4", "2", "1"),
        ("1 to 2 KiB", "MLET k=64 d=16", "3", "2"),
        ("1 to 2 KiB", "hashed d=16, collisions 4", "1", "3"),
    ]
    assert rows[1][3] == "0.7190 ± 0.0010 (3)"
    assert rows[1][7] == "12.8"


def test_the_verdict_says_how_far_orders_agree_and_what_the_best_of_one_becomes(tables):
    # of the three pairs one is in the same order, and seeds have the same order throughout
    assert order.verdict(tables) == (
        "1 to 2 KiB, 3 methods: Kendall's tau -0.33 between the two orders (-0.33 to -0.33 with a seed left out), "
        "1.00 between two single seeds at one rate; the best at one rate, hashed d=16, collisions 4, is number 3 at "
        "its own"
    )


def test_runs_that_diverged_are_of_no_order(tables):
    path = tables.directory / f"{order.OWN_RATES}.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("robe")) + "\n")
    assert order.verdict(tables) == ""
    assert len(order.table(tables)) == 4


def test_the_page_has_the_table_and_the_figure_of_each_data_set(tables, tmp_path):
    claim = next(claim for claim in QUESTIONS if claim.name == "order")
    found = reproduction.judge(claim, tmp_path / "results", ["mine"])
    assert found["mine"].said == order.verdict(tables)
    written = list(reproduction.publish(tmp_path / "results", tmp_path / "page.md", tmp_path / "drawn", ["mine"]))
    assert tmp_path / "drawn" / "claims" / "order-mine.svg" in written
    assert all(path.exists() for path in written)
    page = (tmp_path / "page.md").read_text()
    assert f"![{claim.text}: mine](drawn/claims/order-mine.svg)" in page
    assert f"| {' | '.join(order.table(tables)[2])} |" in page
    assert "`make sweep DATASET=mine GRID=cafe-protocol`" in page
