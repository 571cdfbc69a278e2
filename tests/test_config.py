"""Every key of an experiment's file is checked, and errors name the file, the key and what was expected."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dlrm_mlet.config import TrainingConfig, load
from dlrm_mlet.toml import ConfigError, read_toml

CONFIGS = Path(__file__).parent.parent / "configs"

EXPERIMENT = """
dataset = "clicks"
seeds = [3, 4]

[model]
embedding_dim = 4
inner_dim = 64
bottom_mlp = [256, 128]
top_mlp = [512, 256]

[training]
learning_rate = 1
"""

TUNING = "[tuning]\nstart = {{ learning_rate = [0.2] }}\nseeds = {}\ntrials = 1\n[training]"

GRID = (
    EXPERIMENT.replace("embedding_dim = 4\ninner_dim = 64\n", "")
    + """
[grid]
single = { embedding_dim = [4, 32] }
mlet = { inner_dim = [16, [64, 32]], embedding_dim = [4, 32], learning_rate = [0.1, 0.2] }
"""
)


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str) -> Path:
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return path

    return write_file


def test_a_file_without_a_grid_is_one_point(write):
    experiment = load(write(EXPERIMENT), ["model.inner_dim=[32, 16]", "training.batch_size=256"])
    (point,) = experiment.points
    assert experiment.seeds == (3, 4)
    assert point.config.model.inner_dims == (32, 16)
    assert point.config.model.bottom_mlp == (256, 128)
    assert point.config.training.learning_rate == 1.0
    assert point.config.training.batch_size == 256
    assert point.config.training.epochs == 1


def test_a_grid_is_every_combination_without_those_of_k_below_d(write):
    points = load(write(GRID)).points
    found = [
        (p.arm, p.config.model.inner_dims, p.config.model.embedding_dim, p.config.training.learning_rate)
        for p in points
    ]
    mlet = [((16,), 4), ((64, 32), 4), ((64, 32), 32)]
    assert found == [("single", (), 4, 1.0), ("single", (), 32, 1.0)] + [
        ("mlet", k, d, rate) for k, d in mlet for rate in (0.1, 0.2)
    ]
    assert len({point.label for point in points}) == len(points)


def test_a_bottleneck_is_kept_where_it_is_meant(write):
    points = load(write(GRID.replace("[training]", "allow_bottleneck = true\n[training]"))).points
    assert ((16,), 32) in {(p.config.model.inner_dims, p.config.model.embedding_dim) for p in points}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("learning_rate = 1", "learning_rat = 1"), "unknown key training.learning_rat: expected one of learning_rate"),
        (("learning_rate = 1", "learning_rate = 'fast'"), "training.learning_rate = 'fast': expected float"),
        (("learning_rate = 1", "learning_rate = true"), "training.learning_rate = True: expected float"),
        (("learning_rate = 1", "learning_rate = 0"), "training.learning_rate = 0.0: expected a positive number"),
        (("embedding_dim = 4", "embedding_dim = 4.0"), "model.embedding_dim = 4.0: expected int"),
        (("embedding_dim = 4", ""), "missing key model.embedding_dim"),
        (("embedding_dim = 4", "embedding_dim = 128"), "model.inner_dim = 64 is below embedding_dim = 128"),
        (("inner_dim = 64", "inner_dim = [64, 2]"), "model.inner_dim = 2 is below embedding_dim = 4"),
        (("inner_dim = 64", "inner_dim = []"), "model.inner_dim = []: expected at least one width"),
        (("[256, 128]", "[256, '128']"), "model.bottom_mlp[1] = '128': expected int"),
        (("[256, 128]", "[256, 0]"), "model.bottom_mlp"),
        (("[3, 4]", "[3, 3]"), "seeds = [3, 3]: expected distinct"),
        (("learning_rate = 1", "learning_rate = nan"), "training.learning_rate = nan: expected a finite number"),
        (("learning_rate = 1", "table_learning_rate = inf"), "table_learning_rate = inf: expected"),
        (("learning_rate = 1", "warm_up = 1.0"), "training.warm_up = 1.0: expected a share of the steps, below 1"),
        (("[training]", TUNING.format("[9, 9]")), "tuning.seeds = [9, 9]: expected distinct numbers from 0 up"),
        (("[training]", TUNING.format("[-1]")), "tuning.seeds = [-1]: expected distinct numbers from 0 up"),
        (
            ("[model]", "[modle]"),
            "unknown key modle: expected one of dataset, model, training, seeds, grid, tuning, keep",
        ),
        (('dataset = "clicks"', "dataset = ["), "not TOML"),
    ],
)
def test_an_error_names_the_file_the_key_and_what_was_expected(write, change, message):
    path = write(EXPERIMENT.replace(*change))
    with pytest.raises(ConfigError) as error:
        load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("single = { embedding_dim = 4 }", "grid.single.embedding_dim = 4: expected a list"),
        ("single = { embeding_dim = [4] }", "unknown key grid.single.embeding_dim: expected one of embedding_dim"),
        ("mlet = { inner_dim = [4], embedding_dim = [8] }", "no combination has inner_dim >= embedding_dim"),
        ("", "expected named arms"),
        ("single = { embedding_dim = [4, 8, 4] }", "grid.single.embedding_dim = [4, 8, 4]: expected each value once"),
        ("single = { embedding_dim = [4], learning_rate = [nan] }", "learning_rate = nan: expected a finite number"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(write, grid, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load(write(GRID.partition("[grid]")[0] + "[grid]\n" + grid))


def test_a_missing_file_and_a_bad_override_are_named(write, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"nowhere.toml: no such file"):
        load(tmp_path / "nowhere.toml")
    (tmp_path / "data/shop").mkdir(parents=True)
    (tmp_path / "data/shop/schema.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"shop/paper-grid: no such file \(in a checkout `make sweep DATASET=shop "):
        load("shop/paper-grid")
    with pytest.raises(ConfigError, match=r"flihts/paper-grid: no such file \(did you mean flights/paper-grid\?\)"):
        load("flihts/paper-grid")
    with pytest.raises(ConfigError, match=r"--set model.inner_dim: expected section.key=value"):
        load(write(EXPERIMENT), ["model.inner_dim"])
    with pytest.raises(ConfigError, match=r"--set dataset.name=flights: dataset is not a table"):
        load(write(EXPERIMENT), ["dataset.name=flights"])
    with pytest.raises(ConfigError, match=r"unknown key model.k"):
        load(write(EXPERIMENT), ["model.k=64"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_config_of_the_project_can_be_run(path):
    assert load(path).dataset == path.parent.name


def test_the_experiments_that_a_data_set_makes_by_itself_are_there():
    script = (CONFIGS.parent / "scripts" / "experiments.sh").read_text()
    named = re.findall(r"^ +(\S.*)\) set -- ([a-z0-9 -]+) ;;$", script, re.MULTILINE)
    own = ["complete-journey-by-time", "criteo-kaggle | avazu", "avazu-as-published"]
    assert [datasets for datasets, _ in named] == [*own, "*"]
    for datasets, names in named:
        for dataset in datasets.replace("*", "flights | complete-journey").split(" | "):
            assert all((CONFIGS / dataset / f"{name}.toml").exists() for name in names.split())


def test_a_data_set_takes_the_experiments_of_the_flights_that_it_has_none_of(tmp_path):
    def call(*arguments):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        command = ["bash", "scripts/sweep.sh", *arguments]
        return subprocess.run(command, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=False)

    def sweep(*arguments):
        done = call(*arguments)
        assert done.returncode == 0
        return done.stdout

    for name in ("scripts", "configs/flights"):
        shutil.copytree(CONFIGS.parent / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dlrm-mlet").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/dlrm-mlet").chmod(0o755)
    (tmp_path / "data/shop").mkdir(parents=True)
    (tmp_path / "data/shop/schema.json").touch()

    mine = tmp_path / "configs/shop/batch-size.toml"
    said = sweep("shop", "batch-size").splitlines()
    assert said[-1] == "sweep configs/shop/batch-size.toml"
    assert len(said) == 2
    copied, of_flights = load(mine), load(CONFIGS / "flights/batch-size.toml")
    assert copied.dataset == "shop"
    assert (copied.seeds, len(copied.points)) == (of_flights.seeds, len(of_flights.points))
    assert "#   make sweep DATASET=shop GRID=batch-size\n" in mine.read_text()
    assert mine.read_text().count("flights") == 1  # from where it was copied
    mine.write_text(mine.read_text() + "# mine\n")
    assert sweep("shop", "batch-size", "--jobs", "1") == "sweep configs/shop/batch-size.toml --jobs 1\n"
    assert mine.read_text().endswith("# mine\n")
    sweep("shop", "paper-grid")
    text = (tmp_path / "configs/shop/paper-grid.toml").read_text()
    assert "make sweep DATASET=shop (or: dlrm-mlet sweep configs/shop/paper-grid.toml)" in text
    (tmp_path / "data/avazu").mkdir()
    (tmp_path / "data/avazu/schema.json").touch()
    assert sweep("avazu", "fair-fight-adam").splitlines()[-1] == "sweep configs/avazu/fair-fight-adam.toml"
    assert load(tmp_path / "configs/avazu/fair-fight-adam.toml").dataset == "avazu"
    for dataset, grid, said in (
        ("shpo", "batch-size", "data/shpo: no such data set; expected its columns"),
        ("shop", "nosuch", "GRID=nosuch: no such experiment; expected one of batch-size cafe-protocol"),
        ("criteo-kaggle", "batch-size", "data/criteo-kaggle: no such data set"),
    ):
        done = call(dataset, grid)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert not (tmp_path / f"configs/{dataset}/{grid}.toml").exists()
    assert sorted(path.name for path in (tmp_path / "configs").iterdir()) == ["avazu", "flights", "shop"]


def test_a_section_that_is_no_table_is_refused(write):
    with pytest.raises(ConfigError, match=r"model = 1: expected a table"):
        load(write('dataset = "clicks"\nmodel = 1\n[grid]\nsingle = { embedding_dim = [4] }'))


def test_a_directory_in_the_place_of_a_file_and_too_many_threads_are_said(tmp_path):
    with pytest.raises(ConfigError, match=r"can't be read \(.*directory.*\); expected a TOML file"):
        read_toml(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.threads = 100000: expected at most 1024"):
        TrainingConfig(threads=100_000)
    deep = tmp_path / "deep.toml"
    deep.write_text("x = " + "[" * 10_000)
    with pytest.raises(ConfigError, match=r"deep\.toml: not TOML"):
        read_toml(deep)


def test_what_an_experiment_varies_is_no_part_of_its_base(tmp_path):
    def base(text):
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return load(path).base

    plain = base(GRID)
    assert base(GRID.replace("seeds", "# seeds")) == plain
    assert base(GRID.replace("embedding_dim = [", "embedding_dim = [8, ")) == plain
    assert base(GRID.replace("embedding_dim = [", "batch_size = [64, 128], embedding_dim = [", 1)) == plain
    assert base(GRID.replace("[training]", "[training]\nbatch_size = 128")) == plain  # the default
    assert base(GRID.replace("[training]", "[training]\nbatch_size = 64")) != plain
    assert base(GRID.replace("[model]", "[model]\nprojection_std = 0.5")) != plain
    assert base(GRID.replace('dataset = "', 'dataset = "other')) != plain


def test_a_directory_is_no_experiment(tmp_path):
    with pytest.raises(ConfigError, match="is a directory; expected a TOML file, or the name of a built-in experiment"):
        load(tmp_path)
