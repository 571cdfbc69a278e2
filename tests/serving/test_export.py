"""ONNX files give torch's outputs for any batch, keep int8 tables int8, and appear only when they are right."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dlrm_mlet import convert
from dlrm_mlet.__main__ import main
from dlrm_mlet.data import columns
from dlrm_mlet.serving import export
from dlrm_mlet.serving.export import ExportError, check, open_session
from dlrm_mlet.serving.finished import export_served
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.training import checkpoint

QUIET = {"report": lambda line: None}


@pytest.fixture
def small():
    """An embedding, a bag of the same ids, and a dictionary of inputs."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.user, self.item = nn.Embedding(500, 4), nn.Embedding(30, 4)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.user(x["user"]) * self.item(x["item"])).squeeze(1)

    return Model()


def inputs(rows):
    return ({"user": torch.randint(500, (rows,)), "item": torch.randint(30, (rows,))},)


@pytest.mark.parametrize("as_int8", [False, True])
def test_a_model_of_any_shape_has_named_inputs_and_a_batch_of_any_size(small, tmp_path, as_int8):
    model = quantize(small, **QUIET) if as_int8 else small
    path = export.export(model, inputs(16), tmp_path / "new" / "m.onnx", output_names=["logit"])
    session = open_session(path)
    assert [node.name for node in session.get_inputs()] == ["user", "item"]
    assert [node.name for node in session.get_outputs()] == ["logit"]
    for rows in (1, 7, 3000):
        assert check(session, model, inputs(rows)) < 1e-5
    assert [file.name for file in path.parent.iterdir()] == ["m.onnx"]
    onnx.checker.check_model(path, full_check=True)


def test_int8_tables_stay_int8_in_the_runtime_too(small, tmp_path):
    path = export.export(quantize(small, **QUIET), inputs(16), tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options)
    for file in ("m.onnx", "optimized.onnx"):
        tables = [t for t in onnx.load(tmp_path / file).graph.initializer if t.dims and t.dims[0] == 500]
        assert sorted((t.data_type, list(t.dims)) for t in tables) == [
            (onnx.TensorProto.INT8, [500, 4]),
            (onnx.TensorProto.BFLOAT16, [500, 1]),
        ]


def test_large_weights_lie_beside_the_model_and_go_with_it(small, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    path = export.export(small, inputs(16), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size >= 500 * 4 * 4
    assert check(open_session(path), small, inputs(5)) < 1e-5
    monkeypatch.setattr(export, "LARGEST_FILE", 10**9)
    export.export(small, inputs(16), tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_differs_does_not_appear(small, tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(b"before")
    run = export.run
    monkeypatch.setattr(export, "run", lambda *arguments: [output + 1e-4 for output in run(*arguments)])
    with pytest.raises(ExportError, match=r"ONNX Runtime differs from torch by 0.0001; expected 1e-05 at most"):
        export.export(small, inputs(16), tmp_path / "m.onnx")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("m.onnx", b"before")]


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(8, 4).sum(1)


class Half(nn.Module):
    def forward(self, x):
        return x[: x.shape[0] // 2]


def test_a_batch_of_one_size_is_refused_and_so_is_what_torch_cannot_export(tmp_path):
    with pytest.raises(ExportError, match=r"batches of 8 rows alone|batches of any size"):
        export.export(Fixed(), (torch.randn(8, 4),), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"m\.txt: expected a name that ends in \.onnx"):
        export.export(Half(), (torch.randn(8, 4),), tmp_path / "m.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("as_int8", [False, True])
def test_bags_of_one_length_have_a_batch_of_any_size(tmp_path, mode, as_int8):
    model = nn.Sequential(nn.EmbeddingBag(50, 4, mode=mode, padding_idx=0))
    model = quantize(model, **QUIET) if as_int8 else model
    path = export.export(model, (torch.randint(50, (16, 3)),), tmp_path / "m.onnx")
    check(open_session(path), model, (torch.randint(3, (5, 3)),))


def test_large_outputs_are_compared_by_their_size_and_names_decide_the_order(tmp_path, small):
    small.head.weight.data.mul_(1e5)
    path = export.export(small, inputs(16), tmp_path / "m.onnx")
    swapped = ({"item": torch.randint(30, (5,)), "user": torch.randint(500, (5,))},)
    check(open_session(path), small, swapped)


def test_what_is_not_collapsed_is_refused(small, tmp_path):
    with pytest.raises(ExportError, match="user: isn't collapsed"):
        export.export(convert(small, 8, **QUIET), inputs(16), tmp_path / "m.onnx")


def test_what_is_no_onnx_file_is_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"hello")
    with pytest.raises(ExportError, match=r"m\.onnx: damaged, or no ONNX model"):
        open_session(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="no such file"):
        open_session(tmp_path / "gone.onnx")


@pytest.mark.parametrize("as_int8", [False, True])
def test_a_runs_model_is_exported_with_its_scores(run, clicks, clicks_directory, tmp_path, as_int8, capsys):
    report = export_served(checkpoint.load(run / checkpoint.FILE), clicks, tmp_path / "m.onnx", as_int8)
    assert report.rows == clicks.schema.rows["validation"]
    assert report.worst < 1e-5
    assert report.onnx == pytest.approx(report.torch, abs=0.01 if as_int8 else 1e-6)
    assert report.nbytes == (tmp_path / "m.onnx").stat().st_size
    assert report.table_bytes == sum(clicks.schema.table_rows) * (4 + 2 if as_int8 else 4 * 4)
    arguments = [
        "export",
        str(run / checkpoint.FILE),
        "--data",
        str(clicks_directory),
        "--out",
        str(tmp_path / "n.onnx"),
    ]
    assert main([*arguments, "--quantize", "int8"] if as_int8 else arguments) == 0
    out = capsys.readouterr().out
    assert f"ONNX Runtime: validation AUC {report.onnx.auc:.6f}" in out
    assert f"{report.table_bytes:,} of them tables" in out


def test_the_command_says_what_is_wrong(run, clicks_directory, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in clicks_directory.iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes().replace(b'"clicks"', b'"kitsch"'))
    columns.load(other)
    checkpoint_file = str(run / checkpoint.FILE)
    assert main(["export", checkpoint_file, "--data", str(other), "--out", str(tmp_path / "m.onnx")]) == 1
    assert "trained on clicks" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_singular_values_are_printed_a_table_a_line(run, capsys):
    assert main(["spectrum", str(run / checkpoint.FILE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["user", "ad", "site"]
    assert all(" of 4" in line for line in lines[1:])


class Apart(nn.Module):
    """A table and something that torch and the exported graph may see in different ways."""

    def __init__(self, way):
        super().__init__()
        self.table, self.way = nn.Embedding(50, 4), way

    def forward(self, ids):
        return self.way(self.table(ids).sum(dim=1))


def disguised(session, outputs):
    """A session whose outputs are changed on the way."""

    class Disguised:
        def get_inputs(self):
            return session.get_inputs()

        def run(self, *arguments):
            return [outputs(found) for found in session.run(*arguments)]

    return Disguised()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda found: found * float("nan"), "differs from torch by inf"),
        (lambda found: found + float("inf"), "differs from torch by inf"),
        (lambda found: found[:, None], r"has shape \(5, 1\); expected \(5,\), as in torch"),
    ],
)
def test_outputs_that_only_look_equal_are_refused(tmp_path, outputs, message):
    model = Apart(lambda vectors: vectors)
    session = open_session(export.export(model, (torch.arange(16),), tmp_path / "m.onnx"))
    with pytest.raises(ExportError, match=message):
        check(disguised(session, outputs), model, (torch.arange(5),))


def test_what_is_not_finite_has_to_be_the_same(tmp_path):
    model = Apart(lambda vectors: vectors.abs().log())
    model.table.weight.data[3] = 0  # log(0)
    model.table.weight.data[4] = float("nan")
    session = open_session(export.export(model, (torch.arange(16),), tmp_path / "m.onnx"))
    assert check(session, model, (torch.arange(16),)) < 1e-5
    with pytest.raises(ExportError, match=r"output 0 differs from torch's where that isn't finite"):
        check(disguised(session, np.nan_to_num), model, (torch.arange(16),))


def test_a_model_that_treats_one_row_in_another_way_is_refused(tmp_path):
    model = Apart(lambda vectors: vectors * 2 if vectors.shape[0] > 1 else vectors)
    with pytest.raises(ExportError, match=r"on a batch of 1 ONNX Runtime differs"):
        export.export(model, (torch.arange(16),), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
