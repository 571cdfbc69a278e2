"""ONNX files give torch's outputs for any batch, keep int8 tables int8, and appear only when they are right."""

import dataclasses
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dlrm_mlet import convert
from dlrm_mlet.__main__ import main
from dlrm_mlet.config import ModelConfig
from dlrm_mlet.data import columns
from dlrm_mlet.data.vocabulary import load_all
from dlrm_mlet.extras import MissingExtraError
from dlrm_mlet.serving import checking, export
from dlrm_mlet.serving.checking import check
from dlrm_mlet.serving.finished import export_served
from dlrm_mlet.serving.session import ExportError, open_session
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.training import checkpoint
from dlrm_mlet.training.model import build, served
from dlrm_mlet.training.run import train

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


@pytest.mark.parametrize(
    "keys",
    [{"tables": "robe"}, {"tables": "tensor-train"}, {"tables": "min-count"}, {"served_density": 0.25},
     {"served_as": "int4"}],
    ids=str,
)  # fmt: skip
def test_rivals_are_exported_as_they_are_served(keys, tmp_path):
    config, table_rows = ModelConfig(8, (4,), (4,), **keys), (7, 500)
    model = served(build(config, 2, table_rows, None), config)
    ids = torch.stack([torch.randint(n, (64,)) for n in table_rows], dim=1)
    session = open_session(export.export(model, (torch.randn(64, 2), ids), tmp_path / "m.onnx"))
    assert check(session, model, (torch.randn(3, 2), ids[:3])) < 1e-5


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
    run = checking.run
    monkeypatch.setattr(checking, "run", lambda *arguments: [output + 1e-4 for output in run(*arguments)])
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
    with pytest.raises(ExportError, match=r"the model takes a batch of 8 alone|batches of any size"):
        export.export(Fixed(), (torch.randn(8, 4),), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"m\.txt: expected the name of a file that ends in \.onnx"):
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
    torch.manual_seed(0)  # a sum of large numbers that is small itself would be off by more
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter)
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


@pytest.mark.parametrize(
    ("how", "bits", "row"),
    [
        (None, 32, 4 * 4),
        ("int8", 8, 4 + 2),
        pytest.param("int4", 4, 2 + 2, marks=pytest.mark.thorough),
        pytest.param("fp16", 16, 4 * 2, marks=pytest.mark.thorough),
    ],
)
def test_a_runs_model_is_exported_with_its_scores(run, clicks, clicks_directory, tmp_path, how, bits, row, capsys):
    report = export_served(checkpoint.load(run / checkpoint.FILE), clicks_directory, tmp_path / "m.onnx", bits)
    assert report.rows == clicks.schema.rows["validation"]
    assert report.worst < 1e-5
    assert report.onnx == pytest.approx(report.torch, abs={32: 1e-6, 4: 0.05}.get(bits, 0.01))
    assert report.nbytes == (tmp_path / "m.onnx").stat().st_size
    assert report.table_bytes == sum(clicks.schema.table_rows) * row
    arguments = [
        "export",
        str(run / checkpoint.FILE),
        "--data",
        str(clicks_directory),
        "--out",
        str(tmp_path / "n.onnx"),
    ]
    assert main([*arguments, "--quantize", how] if how else arguments) == 0
    out = capsys.readouterr().out
    assert f"ONNX Runtime: validation AUC {report.onnx.auc:.6f}" in out
    assert f"{report.table_bytes:,} of them tables" in out


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        ({"served_rank": 2}, 2 * 4),
        ({"served_as": "int4"}, 2 + 2 + 2),
        pytest.param({"served_as": "int8"}, 4 + 2, marks=pytest.mark.thorough),
        pytest.param({"served_density": 0.5}, None, marks=pytest.mark.thorough),
        pytest.param({"tables": "tensor-train", "tensor_rank": 2}, None, marks=pytest.mark.thorough),
        pytest.param({"tables": "robe", "collisions": 4}, None, marks=pytest.mark.thorough),
    ],
)
def test_small_tables_are_exported_as_they_are_served(
    small_mlet, clicks, clicks_directory, tmp_path, keys, row, capsys
):
    model = dataclasses.replace(small_mlet.model, inner_dim=None, **keys)
    train(dataclasses.replace(small_mlet, model=model), clicks, 0, tmp_path / "run")
    served = checkpoint.load(tmp_path / "run" / checkpoint.FILE)
    report = export_served(served, clicks_directory, tmp_path / "m.onnx")
    assert report.worst < 1e-5
    projections = 4 * 2 * 4 * len(clicks.schema.table_rows) if "served_rank" in keys else 0
    assert report.table_bytes == (
        sum(clicks.schema.table_rows) * row + projections if row else served.model.tables.nbytes
    )
    if "served_rank" in keys:
        with pytest.raises(ValueError, match="nothing to quantize"):
            export_served(served, clicks_directory, tmp_path / "n.onnx", 8)
    capsys.readouterr()


@pytest.mark.parametrize("bits", [32, 8])
def test_an_id_that_a_run_does_not_have_counts_as_predict_takes_it(run, clicks, clicks_directory, tmp_path, bits):
    """Once: id n of a feature was the next one's first row, -1 the last row of the one before."""
    served = checkpoint.load(run / checkpoint.FILE)
    export_served(served, clicks_directory, tmp_path / "m.onnx", bits)
    session = open_session(tmp_path / "m.onnx")
    said = session.get_modelmeta().custom_metadata_map
    unknown = json.loads(said["dlrm_mlet.unknown"])
    known = load_all(clicks_directory / "vocabulary", clicks.schema)
    assert unknown == {name: vocabulary.fallback for name, vocabulary in known.items()}
    assert "counts as the one that dlrm_mlet.unknown has" in said["dlrm_mlet.ids"]
    rows = clicks.rows(slice(0, 1))
    for f, (name, n) in enumerate(zip(clicks.schema.categorical, clicks.schema.table_rows, strict=True)):
        expected = rows.sparse.clone()
        expected[0, f] = unknown[name]
        for wrong in (-1, -n, n, 2**31 - 1):
            outside = rows.sparse.clone()
            outside[0, f] = wrong
            found = checking.run(session, (rows.dense, outside))[0]
            assert found == checking.run(session, (rows.dense, expected))[0]
            with pytest.raises(IndexError, match=f"feature {name}: id {wrong}; expected 0 to {n - 1}"):
                served.model(rows.dense, outside)


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


class Function(nn.Module):
    """Tables, and what is made of a call."""

    def __init__(self, way, **tables):
        super().__init__()
        self.tables, self.way = nn.ModuleDict(tables or {"user": nn.Embedding(50, 4)}), way

    def forward(self, *inputs, **keywords):
        return self.way(self, *inputs, **keywords)


def user(model, ids):
    return model.tables["user"](ids)


IDS = torch.arange(16)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Function(lambda m, ids: (user(m, ids), ids)), "gives 2 outputs; expected 1, as torch gives"),
        (Function(lambda m, ids: user(m, ids) > 0), "output 0 is bool; expected torch.float32, as in torch"),
        (Function(user, user=nn.Embedding(9, 4)), "ONNX Runtime can't run what torch wrote of the model: Invalid"),
    ],
)
def test_the_file_of_another_model_is_found_out(tmp_path, other, message):
    session = open_session(export.export(other, (torch.arange(9),), tmp_path / "m.onnx"))
    with pytest.raises(ExportError, match=f"^on a batch of 16 .*{message}"):
        check(session, Function(user), (IDS,))


@pytest.mark.parametrize("prepare", [lambda model: model, lambda model: quantize(model, **QUIET)])
@pytest.mark.parametrize(
    ("way", "table"),
    [
        (user, lambda: nn.Embedding(50, 4)),
        (lambda model, ids: nn.functional.embedding(ids, model.tables["user"].weight), lambda: nn.Embedding(50, 4)),
        (lambda model, ids: model.tables["user"](ids.unsqueeze(1)), lambda: nn.EmbeddingBag(50, 4, mode="max")),
        (lambda model, ids: model.tables["user"](ids.unsqueeze(1)), lambda: nn.EmbeddingBag(50, 4, padding_idx=0)),
    ],
)
def test_an_id_outside_of_its_table_is_an_error_as_in_torch(tmp_path, way, table, prepare):
    """Once: -1 was the last row, and in a bag of int8 the padding."""
    model = prepare(Function(way, user=table()))
    path = export.export(model, (IDS,), tmp_path / "m.onnx")
    session = open_session(path)
    for wrong in (-1, -50, 50, 10**6):
        ids = torch.tensor([3, wrong])
        with pytest.raises((IndexError, RuntimeError)):
            model(ids)
        with pytest.raises(Exception, match=r"out of data bounds|indices element"):
            checking.run(session, (ids,))
    assert session.get_modelmeta().custom_metadata_map["dlrm_mlet.ids"] == "an id outside of its table is an error"


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(("padding", "norm"), [(None, None), (0, 0.5), (-1, None)])
@pytest.mark.parametrize(
    "prepare",
    [lambda model: model, pytest.param(lambda model: quantize(model, 4, **QUIET), marks=pytest.mark.thorough)],
)
def test_a_bag_is_no_loop_and_takes_an_empty_batch(tmp_path, mode, padding, norm, prepare):
    weights = (torch.rand(16, 3),) if mode == "sum" else ()
    bag = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=padding, max_norm=norm)
    model = prepare(Function(lambda model, ids, *w: model.tables["user"](ids, None, *w), user=bag))
    path = export.export(model, (torch.randint(9, (16, 3)), *weights), tmp_path / "m.onnx")
    assert not {"Loop", "Scan", "If"} & {node.op_type for node in onnx.load(path).graph.node}
    session = open_session(path)
    for rows in (0, 1, 5):
        check(session, model, (torch.randint(9, (rows, 3)), *(w[:rows] for w in weights)))


def test_a_row_is_renormed_as_torch_does_it(tmp_path):
    model = Function(user, user=nn.Embedding(50, 4, max_norm=0.7, norm_type=1.0))
    before = model.tables["user"].weight.detach().clone()
    path = export.export(model, (IDS,), tmp_path / "m.onnx")
    check(open_session(path), model, (torch.arange(50),))
    assert not torch.equal(model.tables["user"].weight, before)  # by the calls that the file was checked with


def two(model, a, b):
    return user(model, a) - 2 * user(model, b)


CALLS = {
    "a key that is a parameter's name": (lambda m, x: user(m, x["tables.user.weight"]), [{"tables.user.weight": IDS}]),
    "a key that is a node's name": (lambda m, x: user(m, x["embedding"]) * 2, [{"embedding": IDS}]),
    "the same key twice": (lambda m, a, b: two(m, a["id"], b["id"]), [{"id": IDS}, {"id": IDS.flip(0)}]),
    "None": (lambda m, a, mask, b: two(m, a, b), [IDS, None, IDS.flip(0)]),
    "a float": (lambda m, a, scale: user(m, a) * scale, [IDS, 0.3]),
    "a bool": (lambda m, a, double: user(m, a) * (2 if double else 1), [IDS, True]),
    "text and an int": (lambda m, a, kind, n: user(m, a) * (n if kind == "times" else 0), [IDS, "times", 3]),
    "keywords": (lambda m, a, *, other=None: two(m, a, other), [IDS], {"other": IDS.flip(0)}),
    "keywords alone": (lambda m, *, x=None: user(m, x), [], {"x": IDS}),
    "lists in a dictionary": (lambda m, x: two(m, *x["a"]), [{"a": [IDS, IDS.flip(0)]}]),
    "the same tensor twice": (two, [IDS, IDS]),
    "one that isn't used": (lambda m, a, b: user(m, a), [IDS, torch.rand(16)]),
    "many outputs": (lambda m, a: {"x": user(m, a), "y": (user(m, a).sum(1), None, 3)}, [IDS]),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_of_any_kind_is_exported(tmp_path, case):
    way, inputs, *more = CALLS[case]
    inputs, keywords = tuple(inputs), more[0] if more else {}
    model = Function(way)
    path = export.export(model, inputs, str(tmp_path / "m.onnx"), keywords=keywords)
    session = open_session(path)
    others = torch.utils._pytree.tree_map(
        lambda leaf: torch.cat((leaf, leaf.flip(0)))[:21] if isinstance(leaf, torch.Tensor) else leaf,
        (inputs, keywords),
    )
    check(session, model, *others)
    onnx.checker.check_model(path, full_check=True)
    names = [node.name for node in session.get_inputs()]
    if case == "the same key twice":
        assert names == ["id", "id_2"]
    if "name" in case:
        assert names == list(inputs[0])


def test_what_is_no_tensor_and_no_number_is_refused(tmp_path):
    with pytest.raises(ExportError, match="an input is a object; expected tensors, lists"):
        export.export(Function(user), (object(),), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"input_names = \['a', 'b'\]: expected 1 names, as input_0"):
        export.export(Function(user), (IDS,), tmp_path / "m.onnx", ["a", "b"])
    with pytest.raises(ExportError, match="input input_0 has 1 of batch; expected an example of at least 2"):
        export.export(Function(user), (IDS[:1],), tmp_path / "m.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("prepare", [lambda model: model, lambda model: quantize(model, **QUIET)])
def test_a_model_in_another_type_is_exported(tmp_path, dtype, prepare):
    model = Function(lambda m, ids, numbers: m.head(m.tables["user"](ids) * numbers).sigmoid())
    model.head = nn.Linear(4, 2)
    prepare(model.to(dtype))
    path = export.export(model, (IDS, torch.rand(16, 4, dtype=dtype)), tmp_path / "m.onnx")
    session, few = open_session(path), (IDS[:5], torch.rand(5, 4, dtype=dtype))
    assert check(session, model, few) < 4 * torch.finfo(dtype).eps + 1e-5
    found = checking.run(session, few)[0].dtype
    assert found == (np.float32 if dtype == torch.bfloat16 else model(*few).detach().numpy().dtype)
    assert model(*few).dtype == dtype


def test_a_second_dimension_of_any_size_and_an_input_that_is_no_batch(tmp_path):
    def way(model, history, items):
        return model.tables["user"](history).mean(1) @ model.tables["user"](items).T

    model, history, items = Function(way), torch.randint(50, (16, 6)), torch.arange(7)
    with pytest.raises(ExportError, match=r"input items has 7 in dimension 0, others 16 of batch.*dynamic=.'items': "):
        export.export(model, (history, items), tmp_path / "m.onnx", ["history", "items"])
    dynamic = {"history": {0: "batch", 1: "length"}, "items": {}}
    path = export.export(model, (history, items), tmp_path / "m.onnx", ["history", "items"], dynamic=dynamic)
    session = open_session(path)
    for rows, length in ((1, 1), (3, 20), (40, 2)):
        check(session, model, (torch.randint(50, (rows, length)), items))
    with pytest.raises(ExportError, match="dynamic: no input historie; expected one of history, items"):
        export.export(model, (history, items), tmp_path / "n.onnx", ["history", "items"], dynamic={"historie": {}})
    with pytest.raises(ExportError, match="dynamic: input items has no dimension 1"):
        export.export(model, (history, items), tmp_path / "n.onnx", ["history", "items"], dynamic={"items": {1: "x"}})


def test_a_length_that_the_model_treats_in_another_way_is_refused(tmp_path):
    model = Function(lambda m, ids: m.tables["user"](ids).sum(1) * (2 if ids.shape[1] == 1 else 1))
    with pytest.raises(ExportError, match="ONNX Runtime differs from torch"):
        export.export(model, (torch.randint(50, (16, 6)),), tmp_path / "m.onnx", dynamic={"input_0": {0: "b", 1: "l"}})


def test_nobodys_weights_are_deleted(tmp_path, monkeypatch):
    """Once: exporting m.onnx deleted any m.onnx.data."""
    (tmp_path / "m.onnx.data").write_bytes(b"mine")
    export.export(Function(user), (IDS,), tmp_path / "m.onnx")
    export.export(Function(user), (IDS,), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == b"mine"
    monkeypatch.setattr(export, "LARGEST_FILE", 100)
    with pytest.raises(ExportError, match=r"m.onnx.data: isn't of m.onnx; expected another name"):
        export.export(Function(user), (IDS,), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == b"mine"
    (tmp_path / "m.onnx.data").unlink()
    for _ in range(2):
        export.export(Function(user), (IDS,), tmp_path / "m.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_a_refusal_is_a_line_and_says_what_is_not_there(tmp_path, capfd):
    """Once: 433 lines, or "damaged" of a file that torch had just written."""

    def depends(model, ids):
        return model.tables["user"](ids) if ids.sum() > 3 else model.tables["user"](ids) * 2

    def bfloat(model, ids):
        return model.tables["user"](ids).bfloat16().cumsum(0).erfinv()

    for way in (depends, bfloat):
        with pytest.raises(ExportError, match=r"torch can't export the model|can't run what torch wrote") as error:
            export.export(Function(way), (IDS,), tmp_path / "m.onnx")
        assert len(str(error.value).splitlines()) == 1
        assert "damaged" not in str(error.value)
    assert not list(tmp_path.iterdir())
    out, err = capfd.readouterr()
    assert len((out + err).splitlines()) < 5, out + err


def test_what_onnx_runtime_has_no_code_for_is_refused(tmp_path):
    way = Function(lambda m, ids: user(m, ids).double().atan())
    with pytest.raises(ExportError, match=r"^ONNX Runtime can't run what torch wrote of the model: NotImplemented"):
        export.export(way, (IDS,), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if there were none
    with pytest.raises(
        MissingExtraError, match=r"onnxscript isn't installed; expected pip install 'dlrm-mlet\[serving"
    ):
        export.export(Function(user), (IDS,), tmp_path / "m.onnx")


def test_a_file_says_nothing_of_where_it_was_made(tmp_path):
    path = export.export(Function(user), (IDS,), tmp_path / "m.onnx")
    assert b".py" not in path.read_bytes()


def test_a_model_that_fails_on_one_row_itself_is_exported_for_the_others(tmp_path):
    """Once: its own error, as if the export had failed."""

    def way(model, ids):
        return torch.stack((user(model, ids).sum(1, keepdim=True).squeeze(), ids.float()), dim=1)

    model = Function(way)
    with pytest.raises(IndexError):
        model(IDS[:1])
    path = export.export(model, (IDS,), tmp_path / "m.onnx")
    check(open_session(path), model, (IDS[:5],))


def test_a_model_without_inputs_is_exported(tmp_path):
    """As LightGCN's, which gives the vectors of all users and items."""
    model = Function(lambda m: m.tables["user"].weight.softmax(1))
    path = export.export(model, (), tmp_path / "m.onnx")
    assert check(open_session(path), model, ()) < 1e-5


def other(model, ids):
    return user(model, ids) * 2


FORKS = {
    "longer histories": lambda m, h: user(m, h[:, -50:] if h.shape[1] > 50 else h).mean(1),
    "large batches": lambda m, h: user(m, h).mean(1) * (2 if h.shape[0] > 1000 else 1),
    "batches of threes": lambda m, h: user(m, h).mean(1) * (2 if h.shape[0] % 3 == 0 else 1),
    "even lengths": lambda m, h: user(m, h).mean(1) * (2 if h.shape[1] % 2 == 0 else 1),
    "squares": lambda m, h: user(m, h).mean(1) * (2 if h.shape[0] == h.shape[1] else 1),
}


@pytest.mark.parametrize("case", FORKS)
def test_a_size_that_takes_another_way_is_refused(tmp_path, case):
    """Once: torch's exporter dropped the condition, and the file was wrong beyond it."""
    dynamic = {"input_0": {0: "batch", 1: "length"}}
    with pytest.raises(ExportError, match=r"treats a dimension of more than|differs from torch|can't export"):
        export.export(Function(FORKS[case]), (torch.randint(50, (8, 20)),), tmp_path / "m.onnx", dynamic=dynamic)


class Result:
    def __init__(self, logits):
        self.logits = logits


WRONG = {
    "an output of a class of its own": (lambda m, a: (user(m, a), Result(user(m, a))), {}, "an output is a Result"),
    "no output": (lambda m, a: None, {}, "the model gives no tensor"),
    "too few output names": (lambda m, a: (user(m, a), a), {"output_names": ["a"]}, "expected 2 names"),
    "a text of output names": (user, {"output_names": "logit"}, "output_names = 'logit': expected 1 names"),
    "a name that is no name": (user, {"dynamic": {"input_0": {0: "batch size"}}}, "dynamic: input_0 = .*; expected as"),
    "a list of dimensions": (user, {"dynamic": {"input_0": [0]}}, "dynamic: input_0 = .*; expected as"),
    "metadata of numbers": (user, {"metadata": {"v": 1}}, "metadata: expected texts"),
    "whole numbers that differ": (lambda m, a: a + 500_000 + torch.compiler.is_compiling(), {}, "has other numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_would_be_lost_or_misread_is_refused(tmp_path, case):
    way, arguments, message = WRONG[case]
    with pytest.raises(ExportError, match=message):
        export.export(Function(way), (IDS,), tmp_path / "m.onnx", **arguments)


def test_inputs_are_a_tuple_and_the_path_a_file(tmp_path):
    with pytest.raises(ExportError, match="inputs = a Tensor: expected a tuple"):
        export.export(Function(user), IDS, tmp_path / "m.onnx")
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(ExportError, match=r"d\.onnx: expected the name of a file"):
        export.export(Function(user), (IDS,), tmp_path / "d.onnx")


def test_the_same_tensor_twice_is_two_inputs(tmp_path):
    """Once: one input in the file, under two names."""
    model = Function(two)
    session = open_session(export.export(model, (IDS, IDS), tmp_path / "m.onnx", ["x", "y"]))
    check(session, model, (IDS, IDS.flip(0)))


def test_what_a_model_writes_into_its_inputs_is_nobodys(tmp_path):
    def way(model, features):
        features["vector"] = user(model, features["ids"].add_(1).remainder_(50))
        return features["vector"]

    features = {"ids": IDS.clone()}
    export.export(Function(way), (features,), tmp_path / "m.onnx")
    assert list(features) == ["ids"]
    assert torch.equal(features["ids"], IDS)


def test_a_compiled_model_is_exported_and_one_around_it_is_not_forgotten(tmp_path):
    class Around(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("base"), name)

        def forward(self, ids):
            return torch.sigmoid(self.base(ids))

    compiled = torch.compile(Function(user), backend="eager")
    export.export(compiled, (IDS,), tmp_path / "m.onnx")
    around = Around(compiled)
    try:
        path = export.export(around, (IDS,), tmp_path / "n.onnx")
    except ExportError:
        return
    assert check(open_session(path), around, (IDS,)) < 1e-5


def test_hooks_around_a_compiled_model_are_not_lost(tmp_path):
    compiled = torch.compile(Function(user), backend="eager")
    compiled.register_forward_hook(lambda model, inputs, output: output * 2)
    with pytest.raises(ExportError, match="the compiled model has hooks, which would be lost; expected them on"):
        export.export(compiled, (IDS,), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "way",
    [
        lambda m, a: torch.index_select(m.tables["user"].weight, 0, a),
        lambda m, a: m.tables["user"].weight.index_select(0, a),
        lambda m, a: torch.embedding(m.tables["user"].weight, a),
        lambda m, a: m.tables["user"].weight[:, 0].gather(0, a),
    ],
)
def test_other_lookups_refuse_ids_below_0_too(tmp_path, way):
    session = open_session(export.export(Function(way), (IDS,), tmp_path / "m.onnx"))
    with pytest.raises(Exception, match=r"out of data bounds|indices element|GatherElements"):
        checking.run(session, (torch.tensor([-1, 2]),))


def test_a_squeeze_of_what_is_not_1_is_none(tmp_path):
    export.export(Function(lambda m, a: user(m, a).squeeze(1)), (IDS,), tmp_path / "m.onnx")


def test_a_model_stays_in_the_mode_that_it_was_in(tmp_path):
    model = nn.Sequential(nn.Embedding(100, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    model[2].eval()  # as where statistics are frozen
    export.export(model, (torch.arange(16),), tmp_path / "model.onnx")
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    with pytest.raises(ExportError):
        export.export(model, (torch.arange(16),), tmp_path / "other.onnx", output_names=["a", "b"])
    assert model.training
