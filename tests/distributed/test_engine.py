"""TorchRec's engine makes the runs that the plain one makes: on any number of processes, and after any of them died."""

import dataclasses
import json
import logging
import math
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchrec")

from torchrec.inference.modules import quantize_inference_model

from dlrm_mlet.__main__ import main
from dlrm_mlet.config import Config
from dlrm_mlet.data.columns import load
from dlrm_mlet.distributed import checkpoints, engine, parallel, serving_collection
from dlrm_mlet.distributed.collapsing import CollapsedError
from dlrm_mlet.distributed.model import CollectionTables
from dlrm_mlet.tables.collections import tables_of
from dlrm_mlet.training import checkpoint, record
from dlrm_mlet.training.run import TrainingError, train
from dlrm_mlet.verify import verify
from tests import pretend_gpu
from tests.distributed.processes import together, torchrun
from tests.training.test_bags import write_bags

TOLERANCE = 2e-5
"""Of a weight after a few steps: sums in another order. A ReLU whose input is 0 up to rounding would show as more, and
so would an element of Adagrad's whose gradient is 0 up to rounding: so there are few steps, at a small rate."""
SHORT = {"learning_rate": 0.01, "max_steps": 25}


def runs(small_mlet: Config) -> dict[str, Config]:
    """One for each thing that sharding could get wrong, on the smallest config."""

    def of(model: dict | None = None, **training: object) -> Config:
        return dataclasses.replace(
            small_mlet,
            model=dataclasses.replace(small_mlet.model, **(model or {})),
            training=dataclasses.replace(small_mlet.training, **SHORT | {"table_learning_rate": 0.5, **training}),
        )

    single, narrow = {"inner_dim": None, "embedding_dim": 8}, {"inner_dim": None, "embedding_dim": 2}
    found = {f"mlet-{kind}": of(sharding=kind) for kind in ("planner", "table_wise", "column_wise", "data_parallel")}
    found |= {f"single-{kind}": of(single, sharding=kind) for kind in ("table_wise", "column_wise", "data_parallel")}
    adagrad = {"optimizer": "adagrad", "table_learning_rate": 0.02, "schedule": "linear", "warm_up": 0.1}
    return found | {
        "narrow": of(narrow, sharding="table_wise"),
        "narrow-adagrad": of(narrow, sharding="table_wise", **adagrad),
        "deep": of({"inner_dim": (6, 16)}, sharding="table_wise", schedule="linear", table_learning_rate=0.05),
        "adagrad-table_wise": of(sharding="table_wise", **adagrad),
        "adagrad-data_parallel": of(sharding="data_parallel", **adagrad),
        "frozen": of(sharding="table_wise", freeze_projections=True),
        "uneven": of(sharding="table_wise", batch_size=125, epochs=2, max_steps=30),
    }


def written(configs: dict[str, Config], path: Path) -> Path:
    path.write_text(json.dumps({name: record.as_json(config) for name, config in configs.items()}))
    return path


def assert_same(out: Path, plain: Path, tolerance: float = TOLERANCE) -> None:
    mine, theirs = (checkpoint.read(each / checkpoint.FILE) for each in (out, plain))
    assert mine["model"].keys() == theirs["model"].keys()
    for key, value in theirs["model"].items():
        assert (mine["model"][key] - value).abs().max() < tolerance, (out.name, key)
    one, other = record.read(out), record.read(plain)
    for split, measured in other.metrics.items():
        for key, value in measured.items():
            assert math.isclose(one.metrics[split][key], value, abs_tol=1e-5)
    for key in ("config", "seed", "steps", "parameters", "bytes", "status", "absent"):
        assert getattr(one, key) == getattr(other, key), key
    assert [point["step"] for point in one.curve] == [point["step"] for point in other.curve]


@pytest.mark.thorough
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_trains_what_the_plain_engine_does(
    processes, clicks_directory, clicks, small_mlet, tmp_path
):
    configs = runs(small_mlet)
    together(processes, "runs", clicks_directory, tmp_path, written(configs, tmp_path / "configs.json"))
    for name, config in configs.items():
        plain = tmp_path / "plain" / name
        train(config, clicks, 0, plain)
        assert_same(tmp_path / name, plain)
        assert (plain / checkpoint.FILE).exists()
        assert not (tmp_path / name / checkpoints.DIRECTORY).exists()


def test_multi_valued_columns_and_weights_are_sharded_too(small_mlet, tmp_path):
    directory = write_bags(tmp_path)
    training = dataclasses.replace(small_mlet.training, **SHORT)
    config = dataclasses.replace(small_mlet, dataset="bags", training=training)
    together(2, "runs", directory, tmp_path, written({"bags": config}, tmp_path / "configs.json"))
    train(config, load(directory), 0, tmp_path / "plain")
    assert_same(tmp_path / "bags", tmp_path / "plain")


@pytest.mark.thorough
def test_a_run_whose_processes_died_goes_on_on_another_number_of_them(clicks_directory, clicks, small_mlet, tmp_path):
    adagrad = {"optimizer": "adagrad", "table_learning_rate": 0.02, "sharding": "table_wise"}
    configs = {
        name: dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, **SHORT | keys))
        for name, keys in {"sgd": {"sharding": "column_wise"}, "adagrad": adagrad}.items()
    }
    for (name, config), killed in zip(configs.items(), ([1], []), strict=True):  # one of them, and all
        one = written({name: config}, tmp_path / "configs.json")
        torchrun(2, "runs", clicks_directory, tmp_path, one, 23, *killed, ok=False)
        assert [path.name for path in (tmp_path / name / checkpoints.DIRECTORY).iterdir()] == ["step-20"]
    together(3, "runs", clicks_directory, tmp_path, written(configs, tmp_path / "configs.json"))
    for name, config in configs.items():
        train(config, clicks, 0, tmp_path / "plain" / name)
        assert_same(tmp_path / name, tmp_path / "plain" / name)


def test_what_is_collapsed_is_a_whole_checkpoint_of_ours(clicks_directory, clicks, small_mlet, tmp_path):
    """Its archive's checksums are right, its hash too, and it is served as any."""
    narrow = dataclasses.replace(small_mlet.model, embedding_dim=2)
    config = dataclasses.replace(small_mlet, model=narrow)
    together(2, "runs", clicks_directory, tmp_path, written({"run": config}, tmp_path / "configs.json"))
    path = tmp_path / "run" / checkpoint.FILE
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert all(finding.whole for finding in verify(path))
    served, said = checkpoint.load(path), []
    collection = serving_collection(served, said.append)
    assert "no multiple of 4" in said[0]
    offsets = torch.tensor([0, *served.columns.table_rows]).cumsum(0)
    for i, table in enumerate(tables_of(collection).values()):
        assert torch.equal(table.weight[:, :2], served.model.tables.weight[offsets[i] : offsets[i + 1]])
        assert not table.weight[:, 2:].any()
    features = CollectionTables(served.config.model, served.columns).keyed(clicks.sparse[:50])
    whole = collection(features).values()
    with warnings.catch_warnings(action="ignore"):
        packed = quantize_inference_model(torch.nn.ModuleDict({"tables": collection}))["tables"](features).values()
    assert 0 < (packed - whole).abs().max() < whole.abs().max() / 100


@pytest.mark.parametrize(
    ("model", "training", "said"),
    [
        ({"tables": "hashed", "inner_dim": None}, {}, "model.tables"),
        ({"inner_dim": None, "served_rank": 1}, {}, "served_rank"),
        ({"served_as": "int8"}, {}, "served_as"),
        ({"served_density": 0.5}, {}, "served_density"),
        ({"start_as": ()}, {}, "start_as"),
        ({}, {"optimizer": "adam"}, "training.optimizer"),
        ({}, {"precision": "bfloat16"}, "training.precision"),
        ({}, {"also_measure": ("spectra",)}, "also_measure"),
        ({}, {"sharding": "row_wise"}, "row_wise"),
        ({}, {"sharding": "column_wise", "optimizer": "adagrad"}, "column_wise"),
    ],
)
def test_what_torchrec_cannot_do_is_refused(model, training, said, small_mlet):
    config = dataclasses.replace(
        small_mlet,
        model=dataclasses.replace(small_mlet.model, **model),
        training=dataclasses.replace(small_mlet.training, **training),
    )
    with pytest.raises(parallel.EngineError, match=said):
        engine.check(config, torch.device("cpu"))


@pytest.fixture
def alone_here(monkeypatch):
    """This process as a group of one; what the engine silences is heard again afterwards."""
    # the stand-in for a GPU, which other tests have, is none that torch could copy checkpoints from
    if not torch.cuda.is_available():
        monkeypatch.setattr(getattr(torch, pretend_gpu.NAME), "is_available", lambda: False)
    with warnings.catch_warnings(), parallel.processes("cpu") as device:
        warnings.simplefilter("ignore")
        yield device
    logging.disable(logging.NOTSET)


def test_another_runs_shards_are_refused(clicks, small_mlet, tmp_path, alone_here):
    class Stopped(Exception):
        pass

    def stop(self):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(engine.Run, "finish", stop)
        engine.train(small_mlet, clicks, 0, tmp_path, alone_here)
    for config, seed, said in (
        (small_mlet, 1, "another seed"),
        (dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, **SHORT)), 0, "config"),
    ):
        with pytest.raises(TrainingError, match=said):
            engine.train(config, clicks, seed, tmp_path, alone_here)
    (shard,) = (tmp_path / checkpoints.DIRECTORY).iterdir()
    (shard / checkpoints.PROGRESS).write_text("{}")
    with pytest.raises(TrainingError, match="not a sharded run's checkpoint"):
        engine.train(small_mlet, clicks, 0, tmp_path, alone_here)
    fresh = engine.train(small_mlet, clicks, 0, tmp_path, alone_here, resume=False)
    assert fresh.status == "finished"
    assert engine.train(small_mlet, clicks, 0, tmp_path, alone_here) == fresh


def test_a_sharded_run_that_diverges_says_so_and_leaves_no_model(clicks, small_mlet, tmp_path, alone_here):
    wild = dataclasses.replace(small_mlet, training=dataclasses.replace(small_mlet.training, table_learning_rate=1e9))
    found = engine.train(wild, clicks, 0, tmp_path, alone_here)
    assert (found.status, found.metrics) == ("diverged", None)
    assert not (tmp_path / checkpoint.FILE).exists()


def test_a_run_that_serves_int8_has_no_collection_of_torchrecs(clicks, small_mlet, tmp_path):
    small = dataclasses.replace(small_mlet, model=dataclasses.replace(small_mlet.model, served_as="int8"))
    train(small, clicks, 0, tmp_path)
    with pytest.raises(CollapsedError, match="serves QuantizedTables"):
        serving_collection(checkpoint.load(tmp_path / checkpoint.FILE))


def test_the_command_line_has_the_engine(clicks_directory, tmp_path, capsys):
    config = tmp_path / "my.toml"
    config.write_text(
        'dataset = "clicks"\n[model]\nembedding_dim = 4\ninner_dim = 8\nbottom_mlp = [8]\ntop_mlp = [8]\n'
        "[training]\nmax_steps = 3\n"
    )
    call = [
        "train",
        str(config),
        "--data",
        str(clicks_directory),
        "--out",
        str(tmp_path / "run"),
        "--engine",
        "torchrec",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(call) == 0
        assert main([*call, "--set", "training.sharding='row_wise'"]) == 1
        assert main([*call, "--device", "cuda:1"]) == 1
        assert main([*call, "--from", str(tmp_path / "run" / "checkpoint.pt")]) == 1
    logging.disable(logging.NOTSET)
    said = capsys.readouterr().err
    assert "row_wise" in said
    assert "--device cuda:1: each process has a GPU of its own" in said
    assert "--from: expected --engine plain" in said
    assert record.read(tmp_path / "run").provenance["engine"] == "torchrec, 1 processes"
