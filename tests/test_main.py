"""The command line from end to end: what people type, and what they are told when it goes wrong."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import dlrm_mlet
from dlrm_mlet import config
from dlrm_mlet.__main__ import EXAMPLES, _parser, main

MINE = """
name = "mine"
label = "clicked"
dense = ["age", "price"]
categorical = ["user", "ad", "site"]
split = "ordered"
"""

RUN = """
dataset = "mine"
seeds = [7]
[model]
embedding_dim = 4
inner_dim = 8
bottom_mlp = [16]
top_mlp = [16]
"""


@pytest.fixture
def here(tmp_path, monkeypatch, clicks_csv) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "clicks.csv").write_bytes(clicks_csv.read_bytes())
    return tmp_path


def test_a_data_set_of_ones_own_from_raw_file_to_record(here, capsys):
    assert main(["preprocess", "mine.toml", "--raw", "clicks.csv"]) == 0
    assert "data/mine: train 2,400, validation 300, test 300 rows" in capsys.readouterr().out
    assert main(["train", "run.toml", "--set", "model.inner_dim=16", "--set", "training.epochs=2"]) == 0
    variant = "run,model.inner_dim=16,training.epochs=2"
    record = json.loads((here / "results/mine" / variant / "seed=7/record.json").read_text())
    assert record["config"]["model"]["inner_dim"] == 16
    assert record["steps"] == 2 * 19
    out = capsys.readouterr().out
    assert f"test: AUC {record['metrics']['test']['auc']:.4f}" in out
    assert main(["sweep", "run.toml", "--out", "results/mine/alone"]) == 0
    assert (here / "results/mine/alone.csv").read_text().count("\n") == 2
    assert (here / "results/mine/alone.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preprocess", "mine.toml"], "expected the path of its raw file"),
        (["preprocess", "mine.toml", "--raw", "gone.csv"], "gone.csv: no such file"),
        (["preprocess", "gone.toml"], "gone.toml: no such file"),
        (
            ["train", "run.toml"],
            "data/mine/schema.json: no such file; expected a data set that dlrm-mlet preprocess wrote",
        ),
        (
            ["train", "run.toml", "--set", "model.inner_dim=2"],
            "run.toml: model.inner_dim = 2 is below embedding_dim = 4",
        ),
        (["train", "gone.toml"], "gone.toml: no such file"),
        (["train", "flights/paper-grid"], "flights/paper-grid: a grid of 18 points; expected one: see sweep"),
        (["train", "run.toml", "--seed", "-1"], "--seed -1: expected 0 or more"),
        (["sweep", "run.toml"], "data/mine/schema.json: no such file"),
        (["report", "."], "no results"),
    ],
)
def test_bad_input_is_one_line_and_status_1(here, capsys, arguments, message):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("dlrm-mlet: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_finished_run_is_not_overwritten(here, capsys):
    main(["preprocess", "mine.toml", "--raw", "clicks.csv"])
    assert main(["train", "run.toml"]) == 0
    before = (here / "results/mine/run/seed=7/record.json").read_bytes()
    assert main(["train", "run.toml", "--set", "training.epochs=2", "--out", "results/mine/run/seed=7"]) == 1
    assert "is of another run (training.epochs was 1 and is now 2)" in capsys.readouterr().err
    assert main(["train", "run.toml", "--set", "training.epochs=2"]) == 0  # a directory of its own
    assert main(["train", "run.toml"]) == 0
    assert (here / "results/mine/run/seed=7/record.json").read_bytes() == before


def test_training_needs_no_table_reader_and_no_plotting():
    modules = "dlrm_mlet.sweeping.benchmark, dlrm_mlet.sweeping.sweep"
    code = f"import sys, {modules}; print({{'polars', 'matplotlib'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_help_says_what_each_option_is_for_and_gives_an_example(capsys):
    for command in EXAMPLES:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert f"example: dlrm-mlet {command} {EXAMPLES[command]}" in shown


@pytest.mark.parametrize("command", EXAMPLES)
def test_each_example_is_a_call_that_the_parser_takes(command):
    assert _parser().parse_args([command, *shlex.split(EXAMPLES[command])]).run


def test_a_name_that_the_package_does_not_have_is_named():
    with pytest.raises(AttributeError, match="module 'dlrm_mlet' has no attribute 'nonsense'"):
        dlrm_mlet.nonsense  # noqa: B018


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dlrm-mlet {dlrm_mlet.__version__}\n"


def test_built_in_experiments_go_by_name_and_are_listed_where_one_is_mistyped(here, capsys):
    assert config.load("flights/paper-grid").points == config.load("configs/flights/paper-grid.toml").points
    assert main(["sweep", "flights/paper-gird"]) == 1
    error = capsys.readouterr().err
    said = "flights/paper-gird: no such file (did you mean flights/paper-grid?); expected a TOML file, or a built-in"
    assert error.startswith(f"dlrm-mlet: error: {said}")
    assert "flights/{batch-size,cafe-protocol," in error


def test_columns_to_keep_are_named_as_in_csv():
    call = ["predict", "model", "rows.csv", "--out", "out.csv", "--keep"]
    assert _parser().parse_args([*call, "user,ad"]).keep == ["user", "ad"]
    assert _parser().parse_args([*call, 'user,"price, EUR"']).keep == ["user", "price, EUR"]
