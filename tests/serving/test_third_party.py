"""Models of other libraries on flights: converted, trained, collapsed, quantized, exported."""

import copy
import threading
from unittest import mock

import pytest
import torch
from torch import nn
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import DCN

from dlrm_mlet import MLETEmbedding, collapse, convert
from dlrm_mlet.data import columns
from dlrm_mlet.data.datasets import FLIGHTS
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.serving.checking import check
from dlrm_mlet.serving.export import export
from dlrm_mlet.serving.session import open_session
from dlrm_mlet.tables.quantize import QuantizedEmbedding, quantize
from dlrm_mlet.training import metrics

D, STEPS = 4, 300


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "flights"
    preprocess(FLIGHTS, out)
    return columns.load(out)


class DeepFM:
    """deepctr-torch's: one matrix of ids and numbers, tables in two dictionaries."""

    def __init__(self, schema):
        # its import asks the network for a newer version
        with mock.patch("requests.get", side_effect=OSError):
            from deepctr_torch.inputs import DenseFeat, SparseFeat  # noqa: PLC0415
            from deepctr_torch.models import DeepFM  # noqa: PLC0415

            for thread in threading.enumerate():
                if thread.name.endswith("(check)"):
                    thread.join()
        sparse = [SparseFeat(n, rows, D) for n, rows in zip(schema.categorical, schema.table_rows, strict=True)]
        features = sparse + [DenseFeat(n, 1) for n in schema.dense]
        self.model = DeepFM(features, features, dnn_hidden_units=(64, 32))
        self.only = "embedding_dict.*"

    def inputs(self, batch):
        return (torch.cat((batch.sparse.float(), batch.dense), dim=1),)


class CrossNetwork:
    """torch-rechub's DCN: a dictionary of columns, tables in one dictionary."""

    def __init__(self, schema):
        sparse = [
            SparseFeature(n, rows, embed_dim=D) for n, rows in zip(schema.categorical, schema.table_rows, strict=True)
        ]
        self.names = [*schema.categorical, *schema.dense]
        self.model = DCN(sparse + [DenseFeature(n) for n in schema.dense], 2, {"dims": [64, 32]})
        self.only = "embedding.embed_dict.*"

    def inputs(self, batch):
        return (dict(zip(self.names, (*batch.sparse.unbind(1), *batch.dense.unbind(1)), strict=True)),)


@pytest.mark.filterwarnings("ignore:.*still in 'regularization_weight'")  # deepctr-torch's, as told
@pytest.mark.thorough
@pytest.mark.parametrize("kind", [DeepFM, pytest.param(CrossNetwork, marks=pytest.mark.zoo)])
def test_a_librarys_model_is_trained_collapsed_quantized_and_exported(kind, flights, tmp_path):
    torch.manual_seed(0)
    wrapped, quiet = kind(flights.schema), {"report": lambda line: None}
    model = wrapped.model
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    convert(model, 32, only=wrapped.only, **quiet)
    trained = [module for module in model.modules() if isinstance(module, MLETEmbedding)]
    assert len(trained) == len(flights.schema.table_rows)
    optimizer = torch.optim.Adagrad(model.parameters(), 0.02)
    for step, batch in enumerate(flights.shuffled("train", 256, torch.Generator().manual_seed(0))):
        loss = nn.functional.binary_cross_entropy(model(*wrapped.inputs(batch)).flatten(), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == STEPS:
            break
    model.eval()
    validation = flights.rows(slice(*flights.range("validation")))
    inputs = wrapped.inputs(validation)

    def probabilities():
        with torch.no_grad():
            return model(*inputs).flatten()

    before = probabilities()
    collapse(model, **quiet)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes
    torch.testing.assert_close(probabilities(), before, rtol=0, atol=1e-5)
    auc = metrics.measure(before.double().logit(eps=1e-9), validation.label).auc
    assert auc > 0.7  # what flights give within a pass; chance is 0.5
    few = wrapped.inputs(flights.rows(slice(0, 33)))
    path = export(model, few, tmp_path / "m.onnx")
    assert check(open_session(path), model, inputs) < 1e-5
    plain = copy.deepcopy(model.state_dict())
    quantize(model, **quiet)
    assert sum(isinstance(module, QuantizedEmbedding) for module in model.modules()) >= len(trained)
    assert metrics.measure(probabilities().double().logit(eps=1e-9), validation.label).auc == pytest.approx(
        auc, abs=2e-3
    )
    export(model, few, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < path.stat().st_size
    assert plain.keys() != model.state_dict().keys()


@pytest.mark.filterwarnings("ignore:.*still in 'regularization_weight'", "ignore:W2 of .* was never trained")
@pytest.mark.parametrize("kind", [DeepFM, CrossNetwork])
def test_a_librarys_trained_model_loses_nothing_by_conversion(kind, flights):
    wrapped = kind(flights.schema)
    for module in wrapped.model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
    model, inputs = wrapped.model.eval(), wrapped.inputs(flights.rows(slice(0, 500)))
    before = model(*inputs)
    assert before.std() > 1e-3
    convert(model, 64, from_pretrained=True, report=lambda line: None)
    torch.testing.assert_close(model(*inputs), before, rtol=0, atol=1e-5)
    collapse(model, report=lambda line: None)
    torch.testing.assert_close(model(*inputs), before, rtol=0, atol=1e-5)
