"""What is timed is what is trained, and the page says what the measurement has."""

import json

import pytest
import torch

from dlrm_mlet.__main__ import main
from dlrm_mlet.reporting import report
from dlrm_mlet.sweeping import benchmark

MEASURED = {}
"""The result on each device, measured once."""


@pytest.fixture
def result(monkeypatch, device):
    if device.type not in MEASURED:
        monkeypatch.setattr(benchmark, "POINTS", {4: (None, 8)})
        monkeypatch.setattr(benchmark, "STEPS", 2)
        monkeypatch.setattr(benchmark, "FEED_ROWS", 1 << 10)
        MEASURED[device.type] = benchmark.benchmark(device, cores=1, max_rows=100, rounds=3)
    return MEASURED[device.type]


def test_every_point_has_its_times_and_ratios(result, device):
    assert [(point["inner_dim"], point["embedding_dim"]) for point in result["points"]] == [(None, 4), (8, 4)]
    for point in result["points"]:
        for name in ("textbook", "ours", "floor", *(["plain"] if device.type != "cpu" else [])):
            low, high = point[f"{name}_ms_quartiles"]
            assert 0 < low <= high
            assert point[f"{name}_ms"] > 0
    assert "ours_over_single_layer" in result["points"][1]
    assert result["seeds_together"]["together_over_alone"] > (0 if device.type == "cuda" else 1)


def test_the_points_are_those_of_the_papers_table_2():
    single = [d for d, inner_dims in benchmark.POINTS.items() if None in inner_dims]
    mlet = [(k, d) for d, inner_dims in benchmark.POINTS.items() for k in inner_dims if k]
    assert single == [4, 8, 16, 32, 64]
    assert mlet == [(k, d) for d in single for k in (8, 16, 32, 64) if k >= d]


def test_the_feed_holds_ids_within_their_tables():
    columns = benchmark.feed_columns((3, 100, 10**6))
    assert columns.sparse.min() >= 0
    assert (columns.sparse.amax(dim=0) < torch.tensor([3, 100, 10**6])).all()
    assert len(columns.sparse[:, 2].unique()) > 10_000


def test_the_page_and_the_figure_are_drawn_from_the_file_alone(result, tmp_path):
    timings = tmp_path / "step-cpu.json"
    timings.write_text(json.dumps(result))
    written = report.draw_steps(timings, tmp_path)
    assert [path.suffix for path in written] == [".png", ".svg", ".md"]
    assert written[-1].read_text().count("\n| ") == 3


def test_the_command_writes_the_file_and_prints_the_table(monkeypatch, result, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "benchmark", lambda *_: result)
    assert main(["benchmark", "--out", str(tmp_path / "step.json"), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "step.json").read_text()) == json.loads(json.dumps(result))
    assert "| MLET k=8 | 4 |" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_named(capsys):
    assert main(["benchmark", "--device", "cuda:99"]) == 1
    assert "--device cuda:99: expected cpu, or cuda:N below the number of GPUs here" in capsys.readouterr().err
