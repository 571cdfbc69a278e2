"""What is loaded is what was served, and whatever else a file may be is said."""

import dataclasses
import io
import pickle
import random
import zipfile

import pytest
import torch

from dlrm_mlet.data.schema import ColumnsError
from dlrm_mlet.training import checkpoint, evaluation, metrics, record
from dlrm_mlet.training.checkpoint import CheckpointError
from dlrm_mlet.training.run import train


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "SingleLayerTables"),
        ({"served_as": "int8"}, "QuantizedTables"),
        ({"inner_dim": None, "served_rank": 2}, "LowRankTables"),
        ({"inner_dim": None, "tables": "hashed"}, "HashedTables"),
        ({"inner_dim": None, "tables": "robe"}, "RobeTables"),
        ({"inner_dim": None, "tables": "tensor-train"}, "TensorTrainTables"),
        ({"inner_dim": None, "tables": "min-count", "min_count": 20}, "MinCountTables"),
        ({"served_as": "int4"}, "QuantizedTables"),
        ({"served_density": 0.3}, "QuantizedTables"),
        ({"start_as": ()}, "SingleLayerTables"),
    ],
)
def test_the_loaded_model_has_the_metrics_of_the_record(clicks, small_mlet, tmp_path, keys, kind):
    config = dataclasses.replace(small_mlet, model=dataclasses.replace(small_mlet.model, **keys))
    made = train(config, clicks, 0, tmp_path)
    served = checkpoint.load(tmp_path / checkpoint.FILE)
    assert served.config == config
    assert type(served.model.tables).__name__ == kind
    assert served.model.tables.nbytes == made.bytes["served_tables"]
    logits, labels = evaluation.scores(served.model, clicks.in_order("test", 1000))
    assert metrics.measure(logits, labels)._asdict() == pytest.approx(made.metrics["test"], abs=1e-6)
    served.check(clicks)


def test_a_stopped_runs_checkpoint_is_not_collapsed(clicks, small_mlet, tmp_path, monkeypatch):
    monkeypatch.setattr(record.Record, "write", lambda self, directory: None)
    train(small_mlet, clicks, 0, tmp_path)
    path = tmp_path / checkpoint.FILE
    state = torch.load(path) | {"served": False, "step": 20}
    checkpoint.write(path, state)
    with pytest.raises(CheckpointError, match=r"stopped after step 20: its tables aren't collapsed yet"):
        checkpoint.load(path)


def test_another_data_sets_columns_are_refused(run, clicks):
    served = checkpoint.load(run / checkpoint.FILE)
    other = dataclasses.replace(clicks, schema=dataclasses.replace(clicks.schema, dataset="other"))
    with pytest.raises(ColumnsError, match=r"trained on clicks .*, and these columns are other"):
        served.check(other)


def flipped(whole: bytes) -> bytes:
    """One bit of a weight is another."""
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]


def zipped(name: str, text: str) -> bytes:
    """An archive, as torch's files are, of something else."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, text)
    return file.getvalue()


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_a_file_that_is_no_checkpoint_is_named_and_nothing_in_it_runs(run, tmp_path):
    whole = (run / checkpoint.FILE).read_bytes()
    for name, content, message in (
        ("cut", whole[: len(whole) // 2], "damaged, or no checkpoint"),
        ("text", b"hello, world", "damaged, or no checkpoint"),
        ("empty", b"", "damaged, or no checkpoint"),
        ("harmful", pickle.dumps(Harmful(), 2), "damaged, or no checkpoint"),
        ("flipped", flipped(whole), "damaged: "),
        ("zip", zipped("thesis.txt", "all of it"), "damaged, or no checkpoint"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: {message}"):
            checkpoint.load(tmp_path / name)
    torch.save({"it": Harmful()}, tmp_path / "harmful inside")
    with pytest.raises(CheckpointError, match="harmful inside: holds more than numbers and text"):
        checkpoint.load(tmp_path / "harmful inside")
    torch.save({"model": {}}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="other: has no columns, config, seed, served"):
        checkpoint.load(tmp_path / "other")
    checkpoint.write(tmp_path / "part", torch.load(run / checkpoint.FILE) | {"model": {}})
    with pytest.raises(CheckpointError, match="part: not a model of this version"):
        checkpoint.load(tmp_path / "part")
    for key in ("model", "config", "columns"):
        checkpoint.write(tmp_path / key, torch.load(run / checkpoint.FILE) | {key: 3})
        with pytest.raises(CheckpointError, match=f"{key}: not a model of this version"):
            checkpoint.load(tmp_path / key)
    with pytest.raises(CheckpointError, match="gone: no such file"):
        checkpoint.load(tmp_path / "gone")


def test_no_damaged_byte_is_read(run, tmp_path):
    """Once a flipped bit of the zip's directory gave memory that nobody had written: probabilities of 1."""
    whole = (run / checkpoint.FILE).read_bytes()
    rng, path = random.Random(0), tmp_path / checkpoint.FILE
    ends = [*range(200), *range(len(whole) - 400, len(whole))]
    for place in [*ends, *(rng.randrange(len(whole)) for _ in range(600))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    for _ in range(200):
        begin, end = sorted(rng.randrange(len(whole)) for _ in range(2))
        for damaged in (whole[:begin], whole[:begin] + whole[end:], whole[:end] + whole[begin:]):
            if damaged != whole:
                path.write_bytes(damaged)
                with pytest.raises(CheckpointError):
                    checkpoint.load(path)
    path.write_bytes(whole)
    checkpoint.load(path)


def test_a_checkpoint_of_an_older_version_is_read(run, tmp_path):
    state = checkpoint.read(run / checkpoint.FILE)
    del state["sealed"]
    torch.save(state, tmp_path / checkpoint.FILE)
    checkpoint.load(tmp_path / checkpoint.FILE)
    (tmp_path / "flipped").write_bytes(flipped((tmp_path / checkpoint.FILE).read_bytes()))
    with pytest.raises(CheckpointError, match=r"flipped: damaged: .*data/\d+ isn't what was written; expected the"):
        checkpoint.load(tmp_path / "flipped")
    torch.save(state | {"sealed": True}, tmp_path / checkpoint.FILE)
    with pytest.raises(CheckpointError, match="its hash is gone"):
        checkpoint.load(tmp_path / checkpoint.FILE)


def test_a_directory_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a directory; expected the checkpoint\.pt of a run"):
        checkpoint.load(tmp_path)
