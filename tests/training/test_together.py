"""Seeds that train together give what each gives alone, up to rounding, whatever happens to one of them."""

import dataclasses

import pytest
import torch

from dlrm_mlet import config
from dlrm_mlet.config import ModelConfig
from dlrm_mlet.data.columns import Batch
from dlrm_mlet.sweeping import sweep
from dlrm_mlet.training import run as training
from dlrm_mlet.training.device import workers
from dlrm_mlet.training.model import build
from dlrm_mlet.training.optimizer import SGD
from dlrm_mlet.training.run import Run, generator, memory_needed, train, train_together
from dlrm_mlet.training.step import train_step
from dlrm_mlet.training.together import Together
from tests.sweeping.test_sweep import GRID
from tests.training.test_run import assert_close, assert_same_bits, stopped_at

SEEDS = (0, 1, 7)


def outs(directory, seeds=SEEDS):
    return {seed: directory / str(seed) for seed in seeds}


@pytest.fixture
def small_mlet(small_mlet):
    """With small steps: at large ones rounding is enough to send two runs apart."""
    return dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, learning_rate=0.02))


@pytest.mark.parametrize("inner_dim", [None, 16, (16, 8)])
def test_a_step_together_is_a_step_of_each(clicks, inner_dim, device):
    shape = ModelConfig(4, (16,), (32,), inner_dim)
    alone, models = (
        [build(shape, 2, clicks.schema.table_rows, generator(seed, "weights")).double().to(device) for seed in SEEDS]
        for _ in range(2)
    )
    together = Together(models, device)
    optimizers = [SGD(model.parameters(), 0.02) for model in alone]
    optimizer = SGD(together.parameters(), 0.02)
    orders = [generator(seed, "order") for seed in SEEDS]
    for dense, sparse, label, _ in clicks.shuffled("train", 50, orders):
        batch = Batch(dense.double(), sparse, label.double()).to(device)
        loss = train_step(together, [optimizer], batch)
        losses = [
            train_step(model, [its], Batch(*part))
            for model, its, *part in zip(alone, optimizers, *batch[:3], strict=True)
        ]
        torch.testing.assert_close(loss, torch.stack(losses))
    for mine, its in zip(models, alone, strict=True):
        for one, other in zip(mine.parameters(), its.parameters(), strict=True):
            torch.testing.assert_close(one, other)
        ids = torch.zeros(4, 3, dtype=torch.int32, device=device)
        dense = torch.ones(4, 2, dtype=torch.float64, device=device)
        torch.testing.assert_close(mine.collapse()(dense, ids), its.collapse()(dense, ids))


def by(config, optimizer):
    """The config with another optimizer, or schedule, at a small rate."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, learning_rate=0.002, **optimizer))


@pytest.mark.parametrize(("inner_dim", "frozen"), [(None, False), (16, True), ((16, 8), False)])
def test_seeds_together_give_what_each_gives_alone(clicks, small_mlet, tmp_path, inner_dim, frozen, device):
    run = dataclasses.replace(
        small_mlet,
        model=dataclasses.replace(small_mlet.model, inner_dim=inner_dim),
        training=dataclasses.replace(small_mlet.training, epochs=2, freeze_projections=frozen),
    )
    together = train_together(run, clicks, outs(tmp_path), device=device)
    assert [record.seed for record in together] == list(SEEDS)
    for seed, out in outs(tmp_path).items():
        train(run, clicks, seed, tmp_path / "alone" / str(seed), device=device)
        assert_close(tmp_path / "alone" / str(seed), out)
        # a file of one seed, not of all
        sizes = [path.joinpath("checkpoint.pt").stat().st_size for path in (out, tmp_path / "alone" / str(seed))]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


OPTIMIZERS = [{}, {"optimizer": "adagrad"}, {"optimizer": "adam"}, {"optimizer": "lazy-adam"}, {"schedule": "linear"}]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_seeds_that_were_stopped_together_go_on_to_the_same_bits(clicks, small_mlet, tmp_path, monkeypatch, optimizer):
    small_mlet = by(small_mlet, optimizer)
    train_together(small_mlet, clicks, outs(tmp_path / "whole"))
    with stopped_at(27, monkeypatch):
        train_together(small_mlet, clicks, outs(tmp_path / "stopped"))
    train_together(small_mlet, clicks, outs(tmp_path / "stopped"), resume=True)
    for seed in SEEDS:
        assert_same_bits(tmp_path / "whole" / str(seed), tmp_path / "stopped" / str(seed))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_the_rest_catches_up_with_a_seed_that_was_stopped_later(clicks, small_mlet, tmp_path, monkeypatch, optimizer):
    small_mlet = by(small_mlet, optimizer)
    with stopped_at(27, monkeypatch):
        train(small_mlet, clicks, 1, tmp_path / "1")
    take_steps, taken = training._take_steps, []

    def noted(runs, until, bar):
        taken.append(([run.seed for run in runs], runs[0].step, until))
        take_steps(runs, until, bar)

    monkeypatch.setattr(training, "_take_steps", noted)
    train_together(small_mlet, clicks, outs(tmp_path), resume=True)
    assert taken == [([0, 7], 0, 20), ([0, 1, 7], 20, 38)]
    for seed, out in outs(tmp_path).items():
        train(small_mlet, clicks, seed, tmp_path / "alone" / str(seed))
        assert_close(tmp_path / "alone" / str(seed), out)


@pytest.mark.parametrize("served_as", ["float32", "int8"])
def test_a_seed_that_diverges_leaves_the_others_as_they_are(clicks, small_mlet, tmp_path, monkeypatch, served_as):
    small_mlet = dataclasses.replace(small_mlet, model=dataclasses.replace(small_mlet.model, served_as=served_as))

    def spoil(run):
        if run.seed == 1:
            run.model.bottom_mlp[0].weight.data[0, 0] = torch.nan

    monkeypatch.setattr(Run, "restore", spoil)
    found = train_together(small_mlet, clicks, outs(tmp_path), resume=True)
    assert [record.status for record in found] == ["finished", "diverged", "finished"]
    assert found[1].metrics is None
    assert found[1].steps == 10  # the first look
    for seed in (0, 7):
        train(small_mlet, clicks, seed, tmp_path / "alone" / str(seed))
        assert_close(tmp_path / "alone" / str(seed), tmp_path / str(seed))


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace("seeds = [0, 1]", "seeds = [0, 1, 7]"))
    return config.load(path)


def jobs(experiment, clicks, tmp_path, device, monkeypatch, free):
    monkeypatch.setattr(sweep, "free_memory", lambda _: free)
    planned = sweep.plan(experiment, tmp_path / "out")[1:]  # the first is finished
    return [tuple(job.seeds) for job in sweep.jobs_of(planned, clicks.schema, [torch.device(device)])]


def test_a_sweep_on_a_gpu_trains_the_seeds_of_a_point_together_where_they_fit(
    experiment, clicks, tmp_path, monkeypatch
):
    small, _, big = (memory_needed(point.config, clicks.schema, 3) for point in experiment.points)
    arguments = (experiment, clicks, tmp_path)
    alone = [(0,), (1,), (7,)]
    assert jobs(*arguments, "cuda", monkeypatch, 1.2 * big) == [(1, 7), SEEDS, SEEDS]
    assert jobs(*arguments, "cuda", monkeypatch, 1.2 * small) == [(1, 7), *alone, *alone]
    assert jobs(*arguments, "cpu", monkeypatch, 1.2 * big) == [*alone[1:], *alone, *alone]


def test_rivals_train_alone(experiment, clicks, tmp_path, monkeypatch):
    points = tuple(
        dataclasses.replace(point, config=dataclasses.replace(
            point.config, model=dataclasses.replace(point.config.model, inner_dim=None, tables="hashed")))
        for point in experiment.points
    )  # fmt: skip
    hashed = dataclasses.replace(experiment, points=points)
    assert max(map(len, jobs(hashed, clicks, tmp_path, "cuda", monkeypatch, 2**40))) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_sweep_on_a_gpu_gives_what_its_runs_give_alone(experiment, clicks, clicks_directory, tmp_path):
    runs = sweep.sweep(experiment, clicks_directory, tmp_path / "out", workers(None))
    for run, _ in runs:
        alone = tmp_path / "alone" / run.directory.name
        train(run.point.config, clicks, run.seed, alone, device=torch.device("cuda"))
        assert_close(alone, run.directory)
