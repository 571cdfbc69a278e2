"""A run's validation curve while it goes: in its directory, in TensorBoard, and as a sweep's table and figure."""

import csv
import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlrm_mlet.__main__ import main
from dlrm_mlet.extras import MissingExtraError
from dlrm_mlet.reporting import results
from dlrm_mlet.training import tensorboard
from dlrm_mlet.training.run import train
from tests.sweeping.test_sweep import GRID
from tests.training.test_run import stopped_at


def test_each_point_is_told_and_written_while_the_run_goes(clicks, small_mlet, tmp_path, monkeypatch):
    told = []
    with stopped_at(27, monkeypatch):
        train(small_mlet, clicks, 0, tmp_path, watch=lambda point: told.append(dict(point)))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == told
    assert [point["step"] for point in told] == [10, 20]
    record = train(small_mlet, clicks, 0, tmp_path, watch=lambda point: told.append(dict(point)))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == told == record.curve


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_reads_the_curve(clicks_directory, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID.partition("[grid]")[0].replace("[model]", "[model]\nembedding_dim = 4"))
    call = ["train", str(path), "--data", str(clicks_directory), "--out", str(tmp_path / "run")]
    assert main([*call, "--set", "training.evaluate_every=10", "--tensorboard", str(tmp_path / "events")]) == 0
    found = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("validation/auc")
    curve = json.loads((tmp_path / "run" / "record.json").read_text())["curve"]
    assert [(event.step, pytest.approx(event.value)) for event in found] == [(at["step"], at["auc"]) for at in curve]
    assert len(curve) > 2


def test_without_tensorboard_the_command_to_install_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"'dlrm-mlet\[tensorboard\]'"), tensorboard.watching(tmp_path):
        pass


@pytest.mark.usefixtures("in_process")
def test_a_sweep_that_asks_for_it_has_a_table_and_a_figure_of_curves(clicks_directory, tmp_path):
    path, out = tmp_path / "grid.toml", tmp_path / "results" / "clicks" / "grid"
    path.write_text(GRID.replace("[grid]", 'also_measure = ["curve"]\n\n[grid]'))
    assert main(["sweep", str(path), "--data", str(clicks_directory), "--jobs", "2", "--out", str(out)]) == 0
    looks = results.read_looks(out.with_name("grid-curve.csv"))
    runs = list(csv.DictReader(out.with_name("grid.csv").read_text().splitlines()))
    assert {(look.arm, look.embedding_dim, look.seed) for look in looks} == {
        (run["arm"], int(run["embedding_dim"]), int(run["seed"])) for run in runs
    }
    assert min(look.step for look in looks) == 10
    assert out.with_name("grid-curve.png").stat().st_size > 10_000
