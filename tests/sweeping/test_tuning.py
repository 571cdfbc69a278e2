"""The search spends the same trials on each point, and goes on until the best lies at no edge of what was tried."""

import functools
import math

import pytest

from dlrm_mlet import config
from dlrm_mlet.sweeping.keeping import score
from dlrm_mlet.sweeping.sweep import sweep
from dlrm_mlet.sweeping.tuning import Search, next_of_all, tune
from dlrm_mlet.toml import ConfigError
from tests.sweeping.test_sweep import CPU, times

TUNED = """
dataset = "clicks"
seeds = [0]

[model]
bottom_mlp = [8]
top_mlp = [8]

[training]
batch_size = 64

[tuning]
start = { learning_rate = [0.2], table_learning_rate = [0.2, 0.8] }
seeds = [100, 101]
trials = 8

[grid]
single = { embedding_dim = [2] }
mlet = { inner_dim = [8], embedding_dim = [2] }
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(TUNED)
    return config.load(path)


def searched(experiment, score):
    search = Search(experiment.points[0], experiment.tuning)
    while trials := search.next_trials():
        assert not search.scores.keys() & set(trials)
        for values in trials:
            search.scores[values] = score(*values)
    return search


def test_the_best_is_found_and_has_no_neighbour_that_was_not_tried(experiment):
    search = searched(
        experiment, lambda rate, table_rate: -abs(math.log(rate / 0.05)) - abs(math.log(table_rate / 12.8))
    )
    assert search.best.config.training.learning_rate == 0.05
    assert search.best.config.training.table_learning_rate == 12.8
    assert search.best.config.training.read_test
    assert {(0.025, 12.8), (0.1, 12.8), (0.05, 6.4), (0.05, 25.6)} <= search.scores.keys()


def test_a_search_that_ends_early_spends_its_trials_around_the_next_best(experiment):
    search = searched(experiment, lambda rate, table_rate: -abs(math.log(rate / 0.2)) - abs(math.log(table_rate / 0.2)))
    assert search.best.config.training.learning_rate == 0.2
    assert len(search.scores) == experiment.tuning.trials


@pytest.mark.usefixtures("in_process")
def test_points_are_tuned_on_validation_alone_and_a_second_call_makes_no_run(experiment, clicks_directory, tmp_path):
    tuned, trials = tune(experiment, clicks_directory, tmp_path / "trials", functools.partial(sweep, devices=2 * CPU))
    before = times(tmp_path / "trials")
    assert len(before) == len(trials) >= 2 * 2 * experiment.tuning.trials
    assert any(record.metrics for _, record in trials)
    assert all(set(record.metrics) == {"validation"} for _, record in trials if record.metrics)
    again, _ = tune(experiment, clicks_directory, tmp_path / "trials", functools.partial(sweep, devices=2 * CPU))
    assert (tuned.points, tuned.tuning) == (again.points, None)
    assert times(tmp_path / "trials") == before
    for point in tuned.points:
        mine = [(run, record) for run, record in trials if run.point.arm == point.arm]
        means = {}
        for run, record in mine:
            means.setdefault(tuple(run.point.tuned.values())[:2], []).append(score(record))
        best = max(means, key=lambda key: sum(means[key]))
        assert tuple(point.tuned.values()) == best


def test_what_differs_in_serving_alone_makes_the_same_trials_and_chooses_for_itself(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(TUNED.replace("mlet = {", 'int8 = { embedding_dim = [2], served_as = ["int8"] }\nmlet = {'))
    experiment = config.load(path)
    searches = single, int8, mlet = [Search(point, experiment.tuning) for point in experiment.points]
    best = {single: 6.4, int8: 0.1, mlet: 0.4}
    while asked := next_of_all(searches):
        assert len({(id(search), values) for search, values in asked}) == len(asked)
        for search, values in asked:
            assert values not in search.scores
            search.scores[values] = -abs(math.log(values[0] / 0.2)) - abs(math.log(values[1] / best[search]))
    assert single.scores.keys() == int8.scores.keys()
    assert single.scores.keys() - mlet.scores.keys()
    for search, rate in best.items():
        assert search.best.config.training.table_learning_rate == rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[100, 101]", "[0, 101]"), "tuning.seeds = .*: expected other seeds"),
        (("learning_rate = [0.2], ", "rate = [0.2], "), r"unknown key tuning\.start\.rate"),
        (("[0.2, 0.8]", "[0, 0.8]"), "tuning.start.table_learning_rate = .*: expected positive"),
        (("trials = 8", "trials = 0"), "trials of at least 1"),
        (("trials = 8", "trails = 8"), r"unknown key tuning\.trails"),
    ],
)
def test_a_tuning_that_cannot_be_meant_is_refused(change, message, tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(TUNED.replace(*change))
    with pytest.raises(ConfigError, match=message):
        config.load(path)
