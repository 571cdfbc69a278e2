"""An experiment with a [tuning] section -> the same experiment, with each point's best keys, chosen on validation."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from dlrm_mlet import config
from dlrm_mlet.config import Config, Experiment, Keep, Point, Tuning, as_trained
from dlrm_mlet.sweeping.keeping import score
from dlrm_mlet.sweeping.sweep import Launcher, PlannedRun
from dlrm_mlet.training.record import Record

Values = tuple[float, ...]
"""One trial: a value of each key that is tuned."""


class Search:
    """The trials of one point. Which comes next depends on the scores alone, so that a stopped search goes on."""

    def __init__(self, point: Point, tuning: Tuning):
        self.point, self.tuning = point, tuning
        self.keys = tuple(tuning.start)
        self.scores: dict[Values, float] = {}

    def next_trials(self) -> list[Values]:
        """What to try next; nothing when the search is over.

        At first all of `start`. Then the untried neighbours of the best; when there are none and trials are left, those
        of the second best, and so on: every point of an experiment so spends at least the same number of trials.
        """
        if not self.scores:
            return list(itertools.product(*self.tuning.start.values()))
        for rank, values in enumerate(sorted(self.scores, key=self.scores.__getitem__, reverse=True)):
            left = self.tuning.trials - len(self.scores)
            if rank and left <= 0:
                break
            untried = [other for other in self._neighbours(values) if other not in self.scores]
            if untried:
                return untried if rank == 0 else untried[:left]
        return []

    def _neighbours(self, values: Values) -> list[Values]:
        found = []
        for i, value in enumerate(values):
            for other in (value / self.tuning.factor, value * self.tuning.factor):
                found.append((*values[:i], float(f"{other:.6g}"), *values[i + 1 :]))
        return found

    def trial(self, values: Values) -> Point:
        """The point with the keys of one trial, which leaves test unread."""
        return config.tuned(self.point, {**dict(zip(self.keys, values, strict=True)), "read_test": False})

    @property
    def best(self) -> Point:
        """The point with the keys of the trial of the highest score."""
        values = max(self.scores, key=self.scores.__getitem__)
        return config.tuned(self.point, dict(zip(self.keys, values, strict=True)))


def tune(
    experiment: Experiment, data: Path, out: Path, launch: Launcher
) -> tuple[Experiment, list[tuple[PlannedRun, Record]]] | None:
    """Search for the best keys of every point, all points at once; returns the tuned experiment and all trials.

    Points that differ in what is served alone make the trials of each other, so that none is trained twice, and each
    chooses by its own form of serving.

    `launch` makes the trials of a round. Where it leaves them to others, there is nothing to return yet: the search
    goes on when they are done.

    The score is the mean validation AUC over the trials' seeds; a trial that diverged scores below all others. Trials
    leave records in `out` like any run, so that a stopped search goes on where it was.
    """
    assert experiment.tuning is not None
    searches = [Search(point, experiment.tuning) for point in experiment.points]
    runs: list[tuple[PlannedRun, Record]] = []
    for number in itertools.count(1):
        trials = next_of_all(searches)
        if not trials:
            break
        print(f"tuning, round {number}: {len(trials)} trials for {len(searches)} points", flush=True)
        points = tuple(search.trial(values) for search, values in trials)
        keep: Keep = "all" if experiment.keep == "all" else "none"  # of trials nobody wants the best seed
        batch = dataclasses.replace(experiment, seeds=experiment.tuning.seeds, points=points, keep=keep)
        found = launch(batch, data, out)
        if found is None:
            return None
        runs += found
        for (search, values), point in zip(trials, points, strict=True):
            of_trial = [score(record) for run, record in found if run.point is point]
            assert len(of_trial) == len(batch.seeds)
            search.scores[values] = statistics.fmean(of_trial)
        for search in dict.fromkeys(search for search, _ in trials):
            print(
                f"  {search.best.short}: validation AUC {max(search.scores.values()):.4f}, the best so far", flush=True
            )
    return dataclasses.replace(experiment, points=tuple(search.best for search in searches), tuning=None), runs


def next_of_all(searches: Sequence[Search]) -> list[tuple[Search, Values]]:
    """The trials of a round: of each search what it wants next, and what those want that train as it does."""
    wanted: dict[Config, dict[Values, None]] = {}
    for search in searches:
        wanted.setdefault(as_trained(search.point.config), {}).update(dict.fromkeys(search.next_trials()))
    return [(search, values) for search in searches for values in wanted[as_trained(search.point.config)]]
