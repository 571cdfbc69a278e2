"""TorchRec's models with MLET's collections: sharded, trained and collapsed they are what one process makes of them."""

import warnings

import pytest
import torch

pytest.importorskip("torchrec")

from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)
from torchrec.modules.feature_processor_ import PositionWeightedModule
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from dlrm_mlet import collapse, convert, parameter_groups, quantize
from dlrm_mlet.distributed import load_collapsed, load_tables, save_collapsed
from dlrm_mlet.distributed.collapsing import CollapsedError
from tests.distributed import others, sequences
from tests.distributed.processes import together

QUIET = {"report": lambda line: None}
FEATURES = KeyedJaggedTensor(
    ["f0", "f1", "f2"], torch.randint(0, 5, (12,)), lengths=torch.tensor([1, 2, 0, 1, 1, 1, 3, 2, 1])
)


TABLES = (100, 4, ["f0", "f1"]), (37, 8, ["f2"]), (5, 4, ["f1"])


def bags(**arguments) -> EmbeddingBagCollection:
    configs = [EmbeddingBagConfig(name=f"t{i}", embedding_dim=d, num_embeddings=n, feature_names=names)
               for i, (n, d, names) in enumerate(TABLES)]  # fmt: skip
    return EmbeddingBagCollection(configs, **arguments)


def singles() -> EmbeddingCollection:
    return EmbeddingCollection(
        [EmbeddingConfig(name=f"t{i}", embedding_dim=4, num_embeddings=n, feature_names=[f"f{i}"])
         for i, n in enumerate((100, 37, 5))]
    )  # fmt: skip


def values(found) -> torch.Tensor:
    return (
        torch.cat([each.values().flatten() for each in found.values()]) if isinstance(found, dict) else found.values()
    )


@pytest.mark.parametrize("make", [bags, singles])
@pytest.mark.parametrize("inner_dim", [16, (16, 32)])
def test_a_collection_is_converted_and_collapsed_with_the_same_outputs(make, inner_dim):
    model = torch.nn.ModuleDict({"tables": make()})
    before, kind = values(model["tables"](FEATURES)), type(model["tables"])
    with warnings.catch_warnings(action="error"):
        convert(model, inner_dim, from_pretrained=True, **QUIET)
    assert type(model["tables"]) is not kind
    assert torch.allclose(values(model["tables"](FEATURES)), before, atol=1e-6)
    groups = parameter_groups(model, learning_rate=1, table_learning_rate=2)
    assert len(groups) == 1  # W1 and W2 are tables
    for wrong in (lambda: convert(model, 16, **QUIET), lambda: quantize(model, **QUIET)):
        with pytest.raises(ValueError, match=r"converted|collapsed"):
            wrong()
    values(model["tables"](FEATURES)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    collapse(model, **QUIET)
    assert type(model["tables"]) is kind
    assert torch.allclose(values(model["tables"](FEATURES)), before, atol=1e-6)


def test_keys_and_configs_are_the_plain_collections():
    plain, ours = bags(), convert(bags(), 16, min_rows=30, **QUIET)
    one, other = plain(FEATURES), ours(FEATURES)
    assert one.keys() == other.keys()
    assert one.length_per_key() == other.length_per_key()
    assert [config.embedding_dim for config in ours.embedding_bag_configs()] == [4, 8, 4]
    assert set(ours.projections) == {"t0", "t1"}
    assert ours.device == plain.device
    assert not ours.is_weighted()
    sequence = convert(singles(), 16, **QUIET)
    assert sequence.embedding_dim() == singles().embedding_dim()
    assert sequence.embedding_names_by_table() == singles().embedding_names_by_table()
    assert [config.name for config in sequence.embedding_configs()] == ["t0", "t1", "t2"]
    assert not sequence.need_indices()


def test_what_would_drop_w2_is_left():
    processed = FeatureProcessedEmbeddingBagCollection(
        bags(is_weighted=True), {f"f{i}": PositionWeightedModule(5) for i in range(3)}
    )
    with pytest.raises(ValueError, match="it is in FeatureProcessedEmbeddingBagCollection"):
        convert(processed, 16, **QUIET)
    with pytest.raises(ValueError, match="one width"):
        convert(singles(), 16, min_rows=30, **QUIET)
    held = torch.nn.ModuleDict({"tables": bags()})
    held["alias"] = held["tables"].embedding_bags["t0"]
    convert(held, 16, **QUIET)
    assert set(held["tables"].projections) == {"t1", "t2"}
    tied = bags()
    tied.embedding_bags["t2"].weight = tied.embedding_bags["t0"].weight
    convert(tied, 16, **QUIET)
    assert set(tied.projections) == {"t1"}


@pytest.fixture(scope="module")
def trained():
    """Of TorchRec's DLRM, converted and trained by torch's own autograd and SGD on one process without TorchRec's."""
    model = convert(others.model(), 16, from_pretrained=True, **QUIET)
    groups = parameter_groups(model, learning_rate=others.RATE, table_learning_rate=others.TABLE_RATE)
    tables = model.sparse_arch.embedding_bag_collection
    w2 = set(tables.projections.parameters())
    groups[0]["params"] = [parameter for parameter in groups[0]["params"] if parameter not in w2]
    groups[1]["params"] += list(w2)
    optimizer = torch.optim.SGD(groups)
    for batch in others.batches(0, 1):
        optimizer.zero_grad()
        logits = model(batch.dense_features, batch.sparse_features).squeeze(-1)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        optimizer.step()
    return collapse(model, **QUIET).state_dict()


@pytest.mark.parametrize(
    ("sharding", "more"), [("table_wise", ["pipeline"]), ("column_wise", []), ("data_parallel", [])]
)
def test_torchrecs_own_dlrm_on_two_processes_is_that_of_one(sharding, more, trained, tmp_path):
    together(2, "others", sharding, tmp_path / "collapsed", *more)
    model = others.model()
    load_collapsed(model, tmp_path / "collapsed")
    for key, value in model.state_dict().items():
        assert torch.allclose(value, trained[key], atol=1e-6), key


def test_a_collection_of_single_vectors_on_two_processes_is_that_of_one(tmp_path):
    together(2, "sequences", tmp_path / "collapsed")
    model = convert(sequences.Scorer(), 16, from_pretrained=True, **QUIET)
    optimizer = torch.optim.SGD(model.parameters(), lr=sequences.RATE)
    for features in sequences.batches(0, 1):
        optimizer.zero_grad()
        model(features).backward()
        optimizer.step()
    plain = sequences.Scorer()
    start = {key: value.clone() for key, value in plain.state_dict().items()}
    load_collapsed(plain, tmp_path / "collapsed")
    for key, value in collapse(model, **QUIET).state_dict().items():
        assert torch.allclose(plain.state_dict()[key], value, atol=1e-6), key
        assert not torch.equal(value, start[key])


def test_what_is_no_collapsed_model_is_refused(tmp_path):
    model = others.model()
    with pytest.raises(CollapsedError, match=r"has no rest\.pt"):
        load_collapsed(model, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(CollapsedError, match="holds something else"):
        save_collapsed(model, tmp_path / "mine")
    save_collapsed(model, tmp_path / "whole")
    load_collapsed(others.model(), tmp_path / "whole")
    with pytest.raises(CollapsedError, match="of another model"):
        load_collapsed(bags(), tmp_path / "whole")
    wider = others.model()
    wider.sparse_arch.embedding_bag_collection.embedding_bags["t0"] = torch.nn.EmbeddingBag(301, 8)
    with pytest.raises(CollapsedError, match=r"\(300, 8\); expected \(301, 8\)"):
        load_collapsed(wider, tmp_path / "whole")
    with pytest.raises(ValueError, match="0 collections of tables; expected 1"):
        load_tables(torch.nn.Linear(1, 1), model)
    with pytest.raises(ValueError, match="expected one as in the model to copy from"):
        load_tables(bags(), others.model().sparse_arch)
