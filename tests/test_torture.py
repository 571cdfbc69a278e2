"""A short `make torture`: some kills, and some damaged bytes for each reader."""

import importlib
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def torture():
    """The script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module("torture")


@pytest.fixture(scope="module")
def ground(torture, tmp_path_factory):
    """What is tortured."""
    torture.CONTEXT.set_forkserver_preload(["torture"])
    return torture.Ground(tmp_path_factory.mktemp("ground")).make(sweeps=False)


def test_killed_commands_lose_nothing_and_go_on_to_the_same_end(torture, ground):
    rows = list(torture.kills(ground, 4, random.Random(0), only=("train", "preprocess", "predict")))
    assert sum(row.came["killed"] for row in rows) >= 3
    assert [row.examples for row in rows] == [[], [], []]


def test_damaged_bytes_end_in_errors_of_ours(torture, ground):
    rows = list(torture.fuzz(ground, 500, random.Random(0)))
    assert sum(row.times for row in rows) >= 500
    assert [example for row in rows for example in row.examples] == []


def test_threads_and_files_of_refused_raw_files_are_gone(torture, ground):
    """Once, 40 of them left 50 threads and 49 open files."""
    assert torture._leaks(ground, 40).examples == []
