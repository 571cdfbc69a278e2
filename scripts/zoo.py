"""Models of other packages, each converted, trained, collapsed, quantized and exported; a table of what came of it.

    pip install torch-rechub deepctr-torch torchfm pytorch-widedeep pytorch-frame torch_geometric recbole \
        transformers sentence-transformers fuxictr kmeans_pytorch
    python scripts/zoo.py [--only 'torchfm*'] [--out results/benchmarks/zoo.md]

All models are small, all inputs random. A package that isn't installed is one row that says so.
"""
# ruff: noqa: PLC0415  # each package is imported where its models are, so that the others go on without it

import argparse
import copy
import dataclasses
import fnmatch
import importlib.metadata
import inspect
import logging
import math
import platform
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dlrm_mlet import MLETEmbedding, MLETEmbeddingBag, collapse, convert
from dlrm_mlet.serving.checking import check
from dlrm_mlet.serving.export import export
from dlrm_mlet.serving.session import ExportError, open_session
from dlrm_mlet.tables.quantize import QuantizedEmbedding, QuantizedEmbeddingBag, quantize

BATCH, ROWS, D, LENGTH, STEPS, RATE = 16, 120, 8, 6, 5, 0.05
TABLE, MLET = (nn.Embedding, nn.EmbeddingBag), (MLETEmbedding, MLETEmbeddingBag)
QUANTIZED = (QuantizedEmbedding, QuantizedEmbeddingBag)
BARS = {"collapse": 1e-5, "int8": 1e-5, "ONNX": 1e-5, "from_pretrained": 1e-4}
COLUMNS = ("found", "trains", *BARS)
DISTRIBUTIONS = [
    *("torch-rechub", "deepctr-torch", "torchfm", "pytorch-widedeep", "pytorch-frame", "torch_geometric", "recbole"),
    *("transformers", "sentence-transformers", "fuxictr"),
]

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Make = Callable[[], Made]
Cells = dict[str, str | float]


@dataclass
class Entry:
    """A model of a package: how to make it with its inputs, and which of them ONNX is not to take for a batch."""

    package: str
    name: str
    make: Make
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------- what is done with a model


def run(make: Make, dynamic: Mapping[str, Mapping[int, str]] | None = None) -> Cells:
    """One cell for each column: a number, or the reason why there is none."""
    try:
        model, inputs, keywords = fresh(make)
        random = apart(outputs(model, inputs, keywords), outputs(model, inputs, keywords, seed=2)) > 0
        reached = names_reached(model, inputs, keywords)
    except Exception as error:  # whatever another package raises
        return {"found": f"the plain model fails: {short(error)}"} | dict.fromkeys(COLUMNS[1:], "-")
    model, inputs, keywords = fresh(make)
    cells: Cells = {}
    try:
        cells["found"], names = found(model)
    except ValueError as error:
        return {"found": short(error)} | dict.fromkeys(COLUMNS[1:], "-")
    cells["found"] += "; random in evaluation too" if random else ""
    try:
        cells["trains"] = trains(model, inputs, keywords, names, reached)
    except Exception as error:
        return cells | {"trains": short(error)} | dict.fromkeys(BARS, "-")
    cells["collapse"] = attempt(collapsed, model, inputs, keywords)
    cells["int8"] = attempt(in_int8, model, inputs, keywords)
    cells["ONNX"] = attempt(in_onnx, model, inputs, keywords, dynamic or {})
    if isinstance(cells["ONNX"], str):
        plain = attempt(in_onnx, *fresh(make), dynamic or {})
        if isinstance(plain, float):
            cells["ONNX"] += "; but the plain model can be exported"
    cells["from_pretrained"] = attempt(from_pretrained, *fresh(make))
    return cells


def wrong(cells: Cells) -> str | None:
    """What of the cells isn't as it has to be; None where all is."""
    for column, bar in BARS.items():
        value = cells[column]
        if isinstance(value, float) and not value <= bar:
            return f"{column}: {value:.2g} is above {bar:g}"
        if isinstance(value, str) and ("crashed" in value or "but the plain" in value):
            return f"{column}: {value}"
    if "crashed" in str(cells["found"]) or "crashed" in str(cells["trains"]):
        return f"{cells['found']} {cells['trains']}"
    if numbers := re.match(r"(\d+)/(\d+)(?:, (\d+) )?", str(cells["trains"])):
        changed, all_of_them, idle = (int(number or 0) for number in numbers.groups())
        if changed + idle < all_of_them:
            return (
                f"trains: W2 of {all_of_them - changed - idle} tables didn't change, though plain ones have gradients"
            )
    return None


def attempt(step: Callable[..., str | float], *arguments: Any) -> str | float:
    """What a step gives, or the reason why it gives nothing."""
    try:
        return step(*arguments)
    except Exception as error:  # whatever another package raises
        return short(error)


def short(error: Exception, length: int = 120) -> str:
    """The first line of a reason; with its type where it isn't one that is meant to be read."""
    line = (str(error).strip().splitlines() or [""])[0]
    line = re.sub(r"\w+: \[ONNXRuntimeError\] : \d+ : \w+ : |for batches of any size", "", line).replace(" : ", ": ")
    text = line if len(line) <= length else f"{line[:length].rstrip()} ..."
    return text if isinstance(error, ValueError | ExportError) else f"crashed: {type(error).__name__}: {text}"


def fresh(make: Make) -> Made:
    """The model as the seed makes it, its tables with numbers large enough to matter."""
    torch.manual_seed(0)
    model, inputs, keywords = make()
    with torch.no_grad():
        for table in model.modules():
            if isinstance(table, TABLE) and table.weight.requires_grad:
                noise = torch.randn_like(table.weight) * 0.1
                if table.padding_idx is not None:
                    noise[table.padding_idx] = 0
                table.weight += noise
    return model, inputs, keywords


def tensors(nested: Any) -> list[Tensor]:
    """All floating tensors of a result, however nested."""
    leaves: list[Tensor] = []
    for leaf in pytree.tree_leaves(nested):
        if isinstance(leaf, Tensor):
            leaves += [leaf] if leaf.is_floating_point() else []
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            leaves += tensors(vars(leaf))
    return leaves


def call(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], seed: int = 1) -> list[Tensor]:
    """The outputs of one call with a seed; the model gets copies, since some write into their inputs."""
    torch.manual_seed(seed)
    inputs, keywords = copy.deepcopy((inputs, keywords))
    return tensors(model(*inputs, **keywords))


@torch.no_grad()
def outputs(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], seed: int = 1) -> list[Tensor]:
    """The outputs in evaluation mode."""
    return [tensor.clone() for tensor in call(model.eval(), inputs, keywords, seed)]


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest output where that is above 1."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        raise ValueError("the outputs have other shapes")
    worst = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        finite = theirs.isfinite()
        if not torch.equal(finite, mine.isfinite()):
            return math.inf
        if finite.any():
            largest = max(1.0, theirs[finite].abs().max().item())
            worst = max(worst, (mine[finite] - theirs[finite]).abs().max().item() / largest)
    return worst


def loss(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """The squared distance of all outputs from random targets."""
    results = [tensor for tensor in call(model.train(), inputs, keywords) if tensor.requires_grad]
    if not results:
        raise ValueError("no output has a gradient")
    return torch.stack([(tensor - torch.randn_like(tensor)).square().mean() for tensor in results]).sum()


def names_reached(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> set[str]:
    """The plain tables that get a gradient."""
    loss(model, inputs, keywords).backward()
    tables = {name: module for name, module in model.named_modules() if isinstance(module, TABLE)}
    return {name for name, table in tables.items() if table.weight.grad is not None and table.weight.grad.any()}


def inner_dim(model: nn.Module) -> int:
    """16, or twice the widest table."""
    return max(16, *(2 * table.embedding_dim for table in model.modules() if isinstance(table, TABLE)), 0)


def found(model: nn.Module) -> tuple[str, list[str]]:
    """Convert a model; what was found, and the names of what was converted."""
    count = sum(isinstance(module, TABLE) for module in model.modules())
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(model, inner_dim(model) if count else 16, min_rows=2, report=lines.append)
    names = [name for name, module in model.named_modules() if isinstance(module, MLET)]
    reasons = dict.fromkeys(line.split(" left: ", 1)[1][:60] for line in lines if " left: " in line)
    stale = [held[1] for one in caught if (held := re.search(r"are still in (.*?), and no longer", str(one.message)))]
    text = f"{len(names)}/{count}" + "".join(f"; {reason}" for reason in reasons)
    return text + "".join(f"; stale: {holders}" for holders in stale).replace("'", ""), names


def trains(
    model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], names: Sequence[str], reached: set[str]
) -> str:
    """A few steps; of how many tables W2 changed."""
    before = {name: model.get_submodule(name).projections[0].detach().clone() for name in names}
    optimizer = torch.optim.Adagrad(model.parameters(), RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model, inputs, keywords).backward()
        optimizer.step()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise ValueError("training gives numbers that aren't finite")
    changed = [name for name in names if not torch.equal(before[name], model.get_submodule(name).projections[0])]
    idle = [name for name in names if name not in changed and name not in reached]
    return f"{len(changed)}/{len(names)}" + (f", {len(idle)} without a gradient" if idle else "")


def collapsed(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> float:
    """Collapse a trained model; how far its outputs are from those before."""
    before = outputs(model, inputs, keywords)
    with warnings.catch_warnings(action="ignore"):  # of tables that aren't in the forward
        collapse(model, report=lambda line: None)
    return apart(outputs(model, inputs, keywords), before)


def in_int8(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> float:
    """Quantize a copy; how far it is from the model with the rows that the copy has."""
    small, twin = copy.deepcopy(model), copy.deepcopy(model)
    quantize(small, report=lambda line: None)
    with torch.no_grad():
        for name, module in small.named_modules():
            if isinstance(module, QUANTIZED):
                twin.get_submodule(name).weight.copy_(module.weight.detach())
    return apart(outputs(small, inputs, keywords), outputs(twin, inputs, keywords))


def in_onnx(
    model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], dynamic: Mapping[str, Mapping[int, str]]
) -> float:
    """Export; how far ONNX Runtime is from torch."""
    with tempfile.TemporaryDirectory() as directory:
        inputs, keywords = copy.deepcopy((inputs, keywords))
        path = export(model, inputs, Path(directory) / "model.onnx", keywords=keywords, dynamic=dynamic)
        return check(open_session(path, 1), model, inputs, keywords)


def from_pretrained(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> float:
    """Convert a model as it is; how far its outputs are from those before."""
    before = outputs(model, inputs, keywords)
    with warnings.catch_warnings(action="ignore"):
        convert(model, inner_dim(model), min_rows=2, from_pretrained=True, report=lambda line: None)
    return apart(outputs(model, inputs, keywords), before)


# -------------------------------------------------------------------------------------------------------- random inputs


def ids(*shape: int, rows: int = ROWS, first: int = 0) -> Tensor:
    """Random rows of a table, in a batch."""
    return torch.randint(first, rows, (BATCH, *shape))


def numbers(*shape: int) -> Tensor:
    """Random numbers between 0 and 1, in a batch."""
    return torch.rand(BATCH, *shape)


def padded(*shape: int) -> Tensor:
    """Histories: random rows but 0, and 0 after the last one."""
    history = ids(*shape, LENGTH, first=1)
    history[: BATCH // 2, ..., LENGTH // 2 :] = 0
    return history


# --------------------------------------------------------------------------------------------------------- torch-rechub


def torch_rechub() -> Iterator[Entry]:
    """All its models for ranking, matching, several tasks and generation."""
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models import generative, matching, multi_task, ranking
    from torch_rechub.models.matching import dssm_senet

    def sparse(*names: str, shared: str | None = None, padding: int | None = None) -> list[Any]:
        return [SparseFeature(n, ROWS, embed_dim=D, shared_with=shared, padding_idx=padding) for n in names]

    def sequence(name: str, shared: str | None = "item", pooling: str = "concat") -> list[Any]:
        return [SequenceFeature(name, ROWS, D, pooling=pooling, shared_with=shared, padding_idx=0)]

    columns = ("c0", "c1", "c2")
    history, item, user = sequence("history"), sparse("item", padding=0), sparse("user", "city")
    negative, negatives = sequence("negative_history"), sequence("negatives")
    mlp, one, two = {"dims": [16]}, [{"dims": [8]}] * 2, ["classification", "regression"]
    tower = {"dims": [16, D]}
    matched = (user, history, item, negatives)

    def columns_of(*extra: Any) -> list[Any]:  # new ones each time, since a feature keeps its table
        return [*sparse(*columns), *extra]

    def crossed() -> list[Any]:
        return [SparseFeature(name, len(columns) * ROWS, embed_dim=D) for name in columns]

    def dense() -> list[Any]:
        return [DenseFeature("d0"), DenseFeature("d1")]

    def features(*groups: list[Any]) -> list[Any]:
        return copy.deepcopy(list(groups))

    def table() -> dict[str, Tensor]:
        drawn = {name: ids() for name in (*columns, "user", "city", "tag")}
        drawn |= {"item": ids(first=1), "negative": ids(first=1)}
        drawn |= {"history": padded(), "negative_history": padded(), "negatives": ids(4, first=1), "tags": padded()}
        return drawn | {name: numbers() for name in ("d0", "d1")} | {"weight": numbers() + 0.1}

    def named(*names: str) -> dict[str, Tensor]:
        drawn = table()
        return {name: drawn[name] for name in names}

    plain, numeric = columns, (*columns, "d0", "d1")
    profile = ("user", "city", "history", "item")
    tags = [*columns, "tags", "d0", "d1"]
    match = (*profile, "negatives")

    def mixed() -> list[Any]:
        return columns_of(*sequence("tags", shared=None, pooling="mean"), *dense())

    def din(kind: Any, *extra: Any, **more: Any) -> nn.Module:
        groups = features(user, history, item)
        return kind(groups[0], groups[1], groups[2], mlp, *extra, **more)

    def negative_history(kind: Any) -> nn.Module:
        groups = features(user, history, negative, item)
        return kind(*groups, mlp)

    def of(kind: Any, *extra: Any, **more: Any) -> nn.Module:
        return kind(*features(*matched), *extra, **more)

    seq = [*sequence("seq", None), *sequence("pos", "seq"), *sequence("neg", "seq")]
    # name, what makes the model, the names of its inputs or what makes them
    r, m, t, g = ranking, matching, multi_task, generative
    models: list[tuple[str, Callable[[], nn.Module], Any]] = [
        ("ranking.WideDeep", lambda: r.WideDeep(mixed(), columns_of(*dense()), mlp), tags),
        ("ranking.DeepFM", lambda: r.DeepFM(columns_of(*dense()), columns_of(), mlp), numeric),
        ("ranking.DCN", lambda: r.DCN(mixed(), 2, mlp), tags),
        ("ranking.DCNv2", lambda: r.DCNv2(columns_of(*dense()), 2, mlp), numeric),
        ("ranking.EDCN", lambda: r.EDCN(columns_of(), 2, mlp), plain),
        ("ranking.AFM", lambda: r.AFM(columns_of(), D), plain),
        ("ranking.FiBiNet", lambda: r.FiBiNet(columns_of(), mlp), plain),
        ("ranking.DeepFFM", lambda: r.DeepFFM(columns_of(), crossed(), D, mlp), plain),
        ("ranking.FatDeepFFM", lambda: r.FatDeepFFM(columns_of(), crossed(), D, 2, mlp), plain),
        ("ranking.BST", lambda: din(r.BST, nhead=2, max_seq_len=LENGTH + 1), profile),
        ("ranking.DIN", lambda: din(r.DIN, {"dims": [16]}), profile),
        ("ranking.DIEN", lambda: negative_history(r.DIEN), (*profile, "negative_history")),
        ("ranking.AutoInt", lambda: r.AutoInt(columns_of(), dense(), mlp_params=mlp), numeric),
        ("multi_task.SharedBottom", lambda: t.SharedBottom(columns_of(*dense()), two, mlp, one), numeric),
        ("multi_task.ESMM", lambda: t.ESMM(sparse("user", "city"), sparse("item"), mlp, mlp), profile),
        ("multi_task.MMOE", lambda: t.MMOE(columns_of(*dense()), two, 3, mlp, one), numeric),
        ("multi_task.PLE", lambda: t.PLE(columns_of(*dense()), two, 2, 1, 1, mlp, one), numeric),
        ("multi_task.AITM", lambda: t.AITM(columns_of(*dense()), 2, {"dims": [32]}, one), numeric),
        ("matching.DSSM", lambda: m.DSSM(*features(user, item), tower, tower), profile),
        ("matching.dssm_senet.DSSM",
         lambda: dssm_senet.DSSM(*features(user, [*item, *sparse("c0", "c1")]), tower, tower),
         (*profile, "c0", "c1")),
        ("matching.FaceBookDSSM",
         lambda: m.FaceBookDSSM(*features(user, item, sparse("negative", shared="item")), tower, tower),
         (*profile, "negative")),
        ("matching.YoutubeDNN", lambda: m.YoutubeDNN(*features([*user, *sequence("history", pooling="mean")], item,
                                                              negatives), tower), match),
        ("matching.YoutubeSBC",
         lambda: m.YoutubeSBC(*features(user, item), [DenseFeature("weight")], tower, tower, BATCH),
         (*profile, "weight")),
        ("matching.MIND", lambda: of(m.MIND, LENGTH), match),
        ("matching.ComirecSA", lambda: of(m.ComirecSA), match),
        ("matching.ComirecDR", lambda: of(m.ComirecDR, LENGTH), match),
        ("matching.GRU4Rec", lambda: of(m.GRU4Rec, {"dims": [16, D]}), match),
        ("matching.NARM", lambda: m.NARM(copy.deepcopy(history[0]), D, 0.1, 0.1), ("history",)),
        ("matching.NARM, an item", lambda: m.NARM(*features(history, item)[0], D, 0.1, 0.1, item[0]),
         ("history", "item")),
        ("matching.STAMP", lambda: m.STAMP(copy.deepcopy(history[0]), 0.1, 0.1), ("history",)),
        ("matching.STAMP, an item", lambda: m.STAMP(copy.deepcopy(history[0]), 0.1, 0.1, item[0]), ("history", "item")),
        ("matching.SASRec", lambda: m.SASRec(features(seq)[0], max_len=LENGTH, dropout_rate=0.1),
         lambda: ({"seq": padded(), "pos": padded(), "neg": padded()},)),
        ("matching.SINE", lambda: m.SINE(["history"], ["item"], ["negatives"], ROWS, D, 16, 10, 3, LENGTH), match),
        ("generative.HSTUModel", lambda: g.HSTUModel(ROWS, 16, 2, 2, 8, 8, LENGTH),
         lambda: (padded(), ids(LENGTH, rows=10000))),
        ("generative.HSTUModel, untied", lambda: g.HSTUModel(ROWS, 16, 2, 2, 8, 8, LENGTH, tie_embeddings=False),
         lambda: (padded(), ids(LENGTH, rows=10000))),
        ("generative.HLLMModel", lambda: g.HLLMModel(torch.randn(ROWS, 16), ROWS, 16, 2, 1, LENGTH),
         lambda: (padded(), ids(LENGTH, rows=10000))),
        ("generative.RQVAEModel", lambda: g.RQVAEModel(20, [ROWS] * 2, D, [16], sk_epsilons=[0.0, 0.0]),
         lambda: (numbers(20),)),
    ]  # fmt: skip
    for name, model, what in models:
        draw = what if callable(what) else lambda what=what: (named(*what),)
        yield Entry("torch-rechub", name, lambda model=model, draw=draw: (model(), draw(), {}))
    yield Entry("torch-rechub", "generative.TIGERModel", lambda: (tiger(g), (), token_ids(decoder=True)))


def tiger(generative: Any) -> nn.Module:
    """torch-rechub's TIGER, which is a T5."""
    from transformers import T5Config

    return generative.TIGERModel(T5Config(**T5, tie_word_embeddings=False))


# -------------------------------------------------------------------------------------------------------- deepctr-torch


def deepctr_torch() -> Iterator[Entry]:
    """All its models, for one task and for several; one matrix of numbers as their input."""
    with mock.patch("requests.get", side_effect=OSError):  # its import asks the network for a newer version
        from deepctr_torch import models
        from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

        for thread in threading.enumerate():
            if thread.name.endswith("(check)"):
                thread.join()
    columns = [SparseFeat(f"c{i}", ROWS, D) for i in range(3)]
    everything = [*columns, DenseFeat("d0", 1), DenseFeat("d1", 1)]
    tags = VarLenSparseFeat(SparseFeat("tags", ROWS, D), LENGTH)

    def history(name: str) -> Any:
        return VarLenSparseFeat(SparseFeat(name, ROWS, D, embedding_name="item"), LENGTH, length_name="length")

    item = SparseFeat("item", ROWS, D)
    visited = [SparseFeat("user", ROWS, D), item, DenseFeat("d0", 1), history("hist_item")]
    matrix = lambda: (torch.cat((ids(3).float(), numbers(2)), 1),)  # noqa: E731
    tagged = lambda: (torch.cat((ids(3).float(), numbers(2), padded().float()), 1),)  # noqa: E731

    def lengths(more: int = 0) -> tuple[Tensor]:
        length = ids(1, rows=LENGTH, first=1)
        there = [padded() for _ in range(1 + more)]
        parts = [ids(), ids(first=1), numbers(), there[0], length, *there[1:]]
        return (torch.cat([part.float().reshape(BATCH, -1) for part in parts], 1),)

    small = {"dnn_hidden_units": (16, 8)}
    both = (everything, everything)
    two = {"expert_dnn_hidden_units": (16,), "gate_dnn_hidden_units": (8,), "tower_dnn_hidden_units": (8,)}
    negative = [*visited, history("neg_hist_item")]
    made: list[tuple[str, Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = [
        *(
            (name, lambda name=name: getattr(models, name)(*both, **small), matrix)
            for name in ["WDL", "xDeepFM", "DIFM", "IFM", "AutoInt", "DCN", "DCNMix", "FiBiNET", "NFM", "ONN"]
        ),
        ("DeepFM", lambda: models.DeepFM([*everything, tags], [*everything, tags], **small), tagged),
        ("AFM", lambda: models.AFM(everything, columns), matrix),
        ("CCPM", lambda: models.CCPM(everything, columns, **small), matrix),
        ("AFN", lambda: models.AFN(*both, afn_dnn_hidden_units=(16,), ltl_hidden_size=16), matrix),
        ("MLR", lambda: models.MLR(everything), matrix),
        ("PNN", lambda: models.PNN(everything, use_outter=True, **small), matrix),
        ("DIN", lambda: models.DIN(visited, ["item"], **small), lengths),
        ("DIEN", lambda: models.DIEN(visited, ["item"], gru_type="AUGRU", **small), lengths),
        ("DIEN, negatives", lambda: models.DIEN(negative, ["item"], use_negsampling=True, **small), lambda: lengths(1)),
        ("SharedBottom", lambda: models.SharedBottom(everything, (16,), (8,)), matrix),
        ("ESMM", lambda: models.ESMM(everything, (16,)), matrix),
        ("MMOE", lambda: models.MMOE(everything, **two), matrix),
        ("PLE", lambda: models.PLE(everything, **two), matrix),
    ]
    for name, model, draw in made:
        yield Entry("deepctr-torch", name, lambda model=model, draw=draw: (model(), draw(), {}))


# -------------------------------------------------------------------------------------------------------------- torchfm


def torchfm() -> Iterator[Entry]:
    """All its models; ids of four columns in one table."""
    from torchfm.model import afi, afm, afn, dcn, dfm, ffm, fm, fnfm, fnn, lr, ncf, nfm, pnn, wd, xdfm

    rows, mlp = [ROWS, 40, 20, 7], (16, 8)
    fixed = {"embed_dim": D}
    deep = fixed | {"mlp_dims": mlp, "dropout": 0.2}
    several = fixed | {"mlp_dims": mlp, "dropouts": (0.2, 0.2)}
    import numpy as np

    users, items = np.array([0]), np.array([1])
    made: list[tuple[type[nn.Module], dict[str, Any]]] = [
        (lr.LogisticRegressionModel, {}),
        (fm.FactorizationMachineModel, fixed),
        (ffm.FieldAwareFactorizationMachineModel, fixed),
        (fnn.FactorizationSupportedNeuralNetworkModel, deep),
        (wd.WideAndDeepModel, deep),
        (ncf.NeuralCollaborativeFiltering, deep | {"user_field_idx": users, "item_field_idx": items}),
        (fnfm.FieldAwareNeuralFactorizationMachineModel, several),
        (dfm.DeepFactorizationMachineModel, deep),
        (xdfm.ExtremeDeepFactorizationMachineModel, deep | {"cross_layer_sizes": (8, 8)}),
        (afm.AttentionalFactorizationMachineModel, fixed | {"attn_size": 8, "dropouts": (0.2, 0.2)}),
        (afi.AutomaticFeatureInteractionModel,
         several | {"atten_embed_dim": 8, "num_heads": 2, "num_layers": 2, "dropouts": (0.2, 0.2, 0.2)}),
        (afn.AdaptiveFactorizationNetwork, several | {"LNN_dim": 16}),
        (dcn.DeepCrossNetworkModel, deep | {"num_layers": 2}),
        (nfm.NeuralFactorizationMachineModel, several),
        (pnn.ProductNeuralNetworkModel, deep),
        (pnn.ProductNeuralNetworkModel, deep | {"method": "outer"}),
    ]  # fmt: skip
    for kind, keywords in made:
        name = kind.__name__ + (", outer" if keywords.get("method") else "")
        draw = lambda: (torch.stack([ids(rows=n) for n in rows], 1),)  # noqa: E731
        yield Entry("torchfm", name, lambda k=kind, w=keywords, draw=draw: (k(field_dims=rows, **w), draw(), {}))


# ----------------------------------------------------------------------------------------------------- pytorch-widedeep


def pytorch_widedeep() -> Iterator[Entry]:
    """Its models for tables, two for text, and the wide and deep one."""
    from pytorch_widedeep import models as w

    names = ["c0", "c1", "c2", "d0", "d1"]
    index = {name: place for place, name in enumerate(names)}
    sized = {"column_idx": index, "continuous_cols": names[3:]}
    widths = sized | {"cat_embed_input": [(name, ROWS, D) for name in names[:3]]}
    equal = sized | {"cat_embed_input": [(name, ROWS) for name in names[:3]], "input_dim": D}
    heads = {"n_heads": 2, "n_blocks": 1}
    matrix = lambda: (torch.cat((ids(3, first=1).float(), numbers(2)), 1),)  # noqa: E731
    wide = lambda: (ids(3, rows=3 * ROWS, first=1),)  # noqa: E731
    words = lambda: (padded(),)  # noqa: E731
    text = {"vocab_size": ROWS, "embed_dim": D, "hidden_dim": 8}

    def together() -> nn.Module:
        return w.WideDeep(w.Wide(3 * ROWS), w.TabMlp(**widths, mlp_hidden_dims=[16]), deeptext=w.BasicRNN(**text))

    made: list[tuple[str, Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = [
        ("Wide", lambda: w.Wide(3 * ROWS), wide),
        ("TabMlp", lambda: w.TabMlp(**widths, mlp_hidden_dims=[16]), matrix),
        ("TabResnet", lambda: w.TabResnet(**widths, blocks_dims=[16, 16]), matrix),
        ("TabNet", lambda: w.TabNet(**widths), matrix),
        ("ContextAttentionMLP", lambda: w.ContextAttentionMLP(**equal), matrix),
        ("SelfAttentionMLP", lambda: w.SelfAttentionMLP(**equal, n_heads=2), matrix),
        ("TabTransformer", lambda: w.TabTransformer(**equal, **heads), matrix),
        ("TabTransformer, shared", lambda: w.TabTransformer(**equal, **heads, shared_embed=True), matrix),
        ("FTTransformer", lambda: w.FTTransformer(**equal, **heads), matrix),
        ("SAINT", lambda: w.SAINT(**equal, **heads), matrix),
        ("TabFastFormer", lambda: w.TabFastFormer(**equal, **heads), matrix),
        ("TabPerceiver", lambda: w.TabPerceiver(**equal, n_latents=4, latent_dim=8, n_latent_heads=2), matrix),
        ("BasicRNN", lambda: w.BasicRNN(**text), words),
        ("AttentiveRNN", lambda: w.AttentiveRNN(**text), words),
        ("Transformer", lambda: w.Transformer(ROWS, LENGTH, input_dim=D, n_heads=2, n_blocks=1), words),
        ("WideDeep", together, lambda: ({"wide": wide()[0], "deeptabular": matrix()[0], "deeptext": padded()},)),
    ]
    for name, model, draw in made:
        yield Entry("pytorch-widedeep", name, lambda model=model, draw=draw: (model(), draw(), {}))


# -------------------------------------------------------------------------------------------------------- pytorch-frame


def pytorch_frame() -> Iterator[Entry]:
    """Its models on a table of three columns of categories, one of several at once, and two of numbers."""
    import numpy as np
    import pandas as pd
    import torch_frame
    from torch_frame import stype
    from torch_frame.data import Dataset
    from torch_frame.nn import encoder, models

    @cache
    def dataset(several: bool) -> Any:
        random = np.random.default_rng(0)
        frame = {f"c{i}": random.permutation(np.arange(4 * ROWS) % ROWS).astype(str) for i in range(3)}
        frame |= {f"d{i}": random.random(4 * ROWS) for i in range(2)} | {"y": random.random(4 * ROWS)}
        types = {name: stype.categorical if name[0] == "c" else stype.numerical for name in frame}
        if several:
            several_each = ["|".join(map(str, random.integers(ROWS, size=3))) for _ in range(4 * ROWS)]
            frame["m"] = pd.Series(several_each, dtype=object)
            types["m"] = stype.multicategorical
        made = Dataset(pd.DataFrame(frame), types, target_col="y", col_to_sep="|")
        return made.materialize()

    encoders = {
        torch_frame.categorical: encoder.EmbeddingEncoder(),
        torch_frame.numerical: encoder.LinearEncoder(),
        torch_frame.multicategorical: encoder.MultiCategoricalEmbeddingEncoder(),
    }
    heads = {"num_heads": 2, "num_layers": 1}
    made: list[tuple[str, type[nn.Module], bool, dict[str, Any]]] = [
        ("MLP", models.MLP, False, {"channels": D, "num_layers": 2}),
        ("MLP, several categories", models.MLP, True,
         {"channels": D, "num_layers": 2, "stype_encoder_dict": encoders}),
        ("ResNet", models.ResNet, False, {"channels": D, "num_layers": 2}),
        ("FTTransformer", models.FTTransformer, False, {"channels": D, "num_layers": 1}),
        ("TabTransformer", models.TabTransformer, False,
         {"channels": D, "encoder_pad_size": 2, "attn_dropout": 0.1, "ffn_dropout": 0.1} | heads),
        ("TabNet", models.TabNet, False,
         {"num_layers": 2, "split_feat_channels": 8, "split_attn_channels": 8, "gamma": 1.2}),
        ("Trompt", models.Trompt, False, {"channels": D, "num_prompts": 4, "num_layers": 2}),
    ]  # fmt: skip

    def make(kind: type[nn.Module], several: bool, keywords: dict[str, Any]) -> Made:
        rows = dataset(several)
        frame = rows.tensor_frame
        model = kind(
            out_channels=1, col_stats=rows.col_stats, col_names_dict=frame.col_names_dict, **copy.deepcopy(keywords)
        )
        return model, (frame[:BATCH],), {}

    for name, kind, several, keywords in made:
        yield Entry("pytorch-frame", name, lambda k=kind, s=several, w=keywords: make(k, s, w))


# ------------------------------------------------------------------------------------------------------ torch_geometric


def torch_geometric() -> Iterator[Entry]:
    """Its models with tables: of graphs, of knowledge graphs, of walks, of a molecule."""
    from torch_geometric import nn as g

    edges = lambda: torch.randint(ROWS, (2, 3 * BATCH))  # noqa: E731
    triple = lambda: (ids(), ids(rows=10), ids())  # noqa: E731
    walked = {"embedding_dim": D, "walk_length": 4, "context_size": 3}
    way = [("user", "buys", "item"), ("item", "bought", "user")]
    pair = {"edge_index": {1: "edges"}}

    def along() -> nn.Module:
        links = dict.fromkeys(way, torch.stack((torch.arange(ROWS), torch.arange(ROWS).roll(1))))
        return g.MetaPath2Vec(links, metapath=way, **walked)

    yield Entry(
        "torch_geometric",
        "LightGCN",
        lambda: (g.LightGCN(ROWS, D, 2), (), {"edge_index": edges(), "edge_label_index": torch.randint(ROWS, (2, 16))}),
        pair | {"edge_label_index": {1: "pairs"}},
    )
    for kind in (g.TransE, g.ComplEx, g.DistMult, g.RotatE):
        yield Entry("torch_geometric", kind.__name__, lambda kind=kind: (kind(ROWS, 10, D), triple(), {}))
    yield Entry("torch_geometric", "MetaPath2Vec", lambda: (along(), ("user", ids()), {}))

    every = torch.cartesian_prod(torch.arange(BATCH), torch.arange(BATCH)).T
    bonds = every[:, every[0] != every[1]]

    def near(position: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return bonds, (position[bonds[0]] - position[bonds[1]]).norm(dim=-1)

    yield Entry(
        "torch_geometric",
        "SchNet",
        lambda: (g.SchNet(D, D, 2, 8, interaction_graph=near), (ids(rows=90, first=1), torch.randn(BATCH, 3)), {}),
        {"input_0": {}, "input_1": {}},
    )
    yield Entry(
        "torch_geometric",
        "MaskLabel",
        lambda: (g.MaskLabel(ROWS, D), (torch.randn(BATCH, D), ids(), torch.arange(BATCH) % 2 == 0), {}),
    )


# -------------------------------------------------------------------------------------------------------------- recbole


class _Config(dict[str, Any]):
    """The package's settings; what isn't there is None, as it has it."""

    def __missing__(self, key: str) -> None:
        return None

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return self if key == "final_config_dict" else self[key]


def _config(name: str) -> _Config:
    """The package's own defaults for a model, but small."""
    import recbole
    import yaml

    folder, settings = Path(recbole.__file__).parent / "properties", _Config()
    files = [folder / "overall.yaml", folder / "dataset" / "sample.yaml", folder / "model" / f"{name}.yaml"]
    for file in files:
        settings.update(yaml.safe_load(file.read_text()) or {})
    for key, value in settings.items():
        if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value):
            settings[key] = float(value)
        elif key.endswith(("embedding_size", "hidden_size")) and isinstance(value, int) and name != "ConvNCF":
            settings[key] = D
    return _Config(settings | {"device": "cpu", "MAX_ITEM_LIST_LENGTH": LENGTH, "MASK_ITEM_SEQ": "mask"} | SMALL)


SMALL = {
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "numerical_features": [],
    "train_batch_size": BATCH,
    "inner_size": 16,
    "prototype_size": 10,
    "channels": D,
}


def _dataset() -> Any:
    """As much of the package's data set as models ask for."""
    import numpy as np
    from recbole.utils import FeatureSource, FeatureType
    from scipy.sparse import coo_matrix

    random = np.random.default_rng(0)
    users, items = random.integers(1, ROWS, 400), random.integers(1, ROWS, 400)
    matrix = coo_matrix((np.ones(400, dtype=np.float32), (users, items)), shape=(ROWS, ROWS))
    of_user, of_item = ["user_id", "city"], ["item_id", "genre"]
    sources = {FeatureSource.USER: of_user[1:], FeatureSource.USER_ID: of_user[:1]}
    sources |= {FeatureSource.ITEM: of_item[1:], FeatureSource.ITEM_ID: of_item[:1]}
    types = dict.fromkeys(of_user + of_item[:1], FeatureType.TOKEN) | {"genre": FeatureType.TOKEN_SEQ}

    def fields(ftype: Any = None, source: Any = None) -> list[str]:
        chosen = sources if source is None else source
        names = [name for one in chosen for name in sources.get(one, [])]
        return [name for name in names if ftype is None or types[name] in ftype]

    def history(*_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.from_numpy(random.integers(1, ROWS, (ROWS, LENGTH)))
        return rows, torch.ones(ROWS, LENGTH), torch.full((ROWS,), LENGTH)

    return SimpleNamespace(
        num=lambda name: 10 if "relation" in name else ROWS,
        user_num=ROWS,
        item_num=ROWS,
        inter_num=400,
        uid_field="user_id",
        iid_field="item_id",
        inter_feat={"user_id": torch.from_numpy(users), "item_id": torch.from_numpy(items)},
        inter_matrix=lambda form="coo", **_: matrix.asformat(form),
        history_item_matrix=history,
        history_user_matrix=history,
        fields=fields,
        field2type=types,
        field2seqlen={"item_id_list": LENGTH},
        kg_graph=lambda **_: matrix,
    )


GENERAL = [
    "BPR", "NeuMF", "LightGCN", "NGCF", "DMF", "ENMF", "ConvNCF", "SpectralCF", "FISM", "NAIS", "SimpleX", "DGCF",
]  # fmt: skip
CONTEXT = [
    "LR", "FM", "FNN", "NFM", "DeepFM", "WideDeep", "xDeepFM", "AFM", "FFM", "FwFM", "DCN", "DCNV2", "PNN", "AutoInt",
    "FiGNN", "DSSM", "KD_DAGFM", "EulerNet",
]  # fmt: skip
SEQUENTIAL = [
    "SASRec", "GRU4Rec", "BERT4Rec", "Caser", "NARM", "STAMP", "NextItNet", "FPMC", "HGN", "SHAN", "TransRec", "NPE",
    "FOSSIL", "SRGNN", "GCSAN", "CORE", "LightSANs", "SINE", "RepeatNet", "HRM",
]  # fmt: skip
KNOWLEDGE = ["CFKG", "CKE", "KTUP"]


def recbole() -> Iterator[Entry]:
    """Its models of four kinds, on a data set that is made up."""
    from recbole.model import context_aware_recommender as context
    from recbole.model import general_recommender as general
    from recbole.model import knowledge_aware_recommender as knowledge
    from recbole.model import sequential_recommender as sequential
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):  # which newer versions of scipy don't have, and the package uses
        dok_matrix._update = lambda self, values: self._dict.update(values)

    drawn: dict[str, Callable[[], Any]] = {
        **dict.fromkeys(("user", "next_item"), lambda: ids(first=1)),
        **dict.fromkeys(("item", "pos_item"), lambda: ids(first=1)),
        **dict.fromkeys(("item_seq", "seq_item"), padded),
        **dict.fromkeys(("item_seq_len", "seq_item_len"), lambda: torch.tensor([3] * 8 + [6] * 8)),
        "interaction": lambda: {"user_id": ids(), "city": ids(), "item_id": ids(), "genre": padded()},
        "history_item": padded,
        "history_len": lambda: torch.tensor([3] * 8 + [6] * 8),
        "neg_item_seq": lambda: ids(4, first=1),
    }

    def make(kind: Any) -> Made:
        model = kind(_config(kind.__name__), _dataset())
        taken = inspect.signature(model.forward).parameters
        inputs = {"u_inputs": getattr(model, "user_features", None), "i_inputs": getattr(model, "item_features", None)}
        return model, tuple(inputs[n] if n in inputs else drawn[n]() for n in taken if n in inputs or n in drawn), {}

    groups = ((general, GENERAL), (context, CONTEXT), (sequential, SEQUENTIAL), (knowledge, KNOWLEDGE))
    for group, names in groups:
        for name in names:
            title = f"{group.__name__.rsplit('.', 1)[1].split('_')[0]}.{name}"
            yield Entry("recbole", title, lambda group=group, name=name: make(getattr(group, name)))


# --------------------------------------------------------------------------------------------------------- transformers


T5 = {"vocab_size": ROWS, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "use_cache": False}
T5 |= {"decoder_start_token_id": 0}


def token_ids(decoder: bool = False) -> dict[str, Any]:
    """Two sentences' worth of tokens, as keywords."""
    keywords = {"input_ids": ids(LENGTH, first=3), "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long)}
    return keywords | ({"decoder_input_ids": ids(LENGTH, first=3)} if decoder else {})


def transformers() -> Iterator[Entry]:
    """Small models of it that are made from their settings; no weights are downloaded."""
    import transformers as h

    common = {"vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    common |= {"intermediate_size": 16, "max_position_embeddings": 32}
    cached = common | {"use_cache": False}
    distil = {"vocab_size": ROWS, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
    gpt = {"vocab_size": ROWS, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "use_cache": False}
    bart = {"vocab_size": ROWS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "use_cache": False}
    bart |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    made: list[tuple[str, Any, Any, dict[str, Any], bool]] = [
        ("BertModel", h.BertModel, h.BertConfig, common, False),
        ("BertForSequenceClassification", h.BertForSequenceClassification, h.BertConfig, common, False),
        ("BertForMaskedLM", h.BertForMaskedLM, h.BertConfig, common, False),
        ("RobertaModel", h.RobertaModel, h.RobertaConfig, common, False),
        ("DistilBertModel", h.DistilBertModel, h.DistilBertConfig, distil, False),
        ("ElectraModel", h.ElectraModel, h.ElectraConfig, common | {"embedding_size": D}, False),
        ("AlbertModel", h.AlbertModel, h.AlbertConfig, common | {"embedding_size": D}, False),
        ("GPT2Model", h.GPT2Model, h.GPT2Config, gpt, False),
        ("GPT2LMHeadModel", h.GPT2LMHeadModel, h.GPT2Config, gpt, False),
        ("OPTModel", h.OPTModel, h.OPTConfig, cached | {"ffn_dim": 16, "word_embed_proj_dim": 16}, False),
        ("LlamaModel", h.LlamaModel, h.LlamaConfig, cached, False),
        ("T5Model", h.T5Model, h.T5Config, T5, True),
        ("T5ForConditionalGeneration", h.T5ForConditionalGeneration, h.T5Config, T5, True),
        ("BartModel", h.BartModel, h.BartConfig, bart, True),
    ]
    for name, kind, config, settings, decoder in made:
        yield Entry(
            "transformers", name, lambda k=kind, c=config, s=settings, d=decoder: (k(c(**s)), (), token_ids(decoder=d))
        )


def sentence_transformers() -> Iterator[Entry]:
    """Its models that have tables of their own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    def static() -> Made:
        tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(ROWS)}, unk_token="w0"))
        model = SentenceTransformer(modules=[modules.StaticEmbedding(tokenizer, embedding_dim=D)], device="cpu")
        bags = {"input_ids": ids(LENGTH).flatten(), "offsets": torch.arange(0, BATCH * LENGTH, LENGTH)}
        return model, (bags,), {}

    yield Entry("sentence-transformers", "StaticEmbedding", static, {"input_ids": {}, "offsets": {}})


# -------------------------------------------------------------------------------------------------------------- fuxictr


def fuxictr() -> Iterator[Entry]:
    """Models from its blocks, and those of its zoo that come with it."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import (
        CrossNetV2,
        FactorizationMachine,
        FeatureEmbedding,
        LogisticRegression,
        MLP_Block,
    )
    from fuxictr.pytorch.models import BaseModel

    def features() -> Any:
        made = FeatureMap("zoo", "")
        one = {"type": "categorical", "source": "", "vocab_size": ROWS, "padding_idx": 0}
        made.features.update({f"c{i}": dict(one) for i in range(3)})
        made.features["tags"] = one | {"type": "sequence", "feature_encoder": "layers.MaskedAveragePooling()"}
        made.features["d0"] = {"type": "numeric", "source": ""}
        made.num_fields, made.default_emb_dim = len(made.features), D
        return made

    class Own(BaseModel):
        """A model of the package's blocks."""

        def __init__(self, block: str):
            feature_map = features()
            settings = {"verbose": 0, "model_root": "", "metrics": ["AUC"]}
            super().__init__(feature_map, embedding_regularizer=1e-5, **settings)
            self.block, width = block, D * feature_map.num_fields
            self.embedding_layer = FeatureEmbedding(feature_map, D)
            makes = {
                "FM": lambda: FactorizationMachine(feature_map),
                "DCNv2": lambda: nn.Sequential(CrossNetV2(width, 2), MLP_Block(width, [16], output_dim=1)),
                "LR": lambda: LogisticRegression(feature_map),
                "DNN": lambda: MLP_Block(width, [16], output_dim=1),
            }
            self.head = makes[block]()
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            columns = self.get_inputs(inputs)
            if self.block == "LR":
                return {"y_pred": self.output_activation(self.head(columns))}
            embedded = self.embedding_layer(columns, flatten_emb=self.block != "FM")
            scores = self.head(columns, embedded) if self.block == "FM" else self.head(embedded)
            return {"y_pred": self.output_activation(scores)}

    def draw() -> dict[str, Tensor]:
        return {f"c{i}": ids() for i in range(3)} | {"tags": padded(), "d0": numbers()}

    for block in ("LR", "FM", "DNN", "DCNv2"):
        yield Entry("fuxictr", f"BaseModel, {block}", lambda block=block: (Own(block), (draw(),), {}))


# ------------------------------------------------------------------------------------------------------------- the page


PACKAGES: dict[str, Callable[[], Iterator[Entry]]] = {
    "torch-rechub": torch_rechub,
    "deepctr-torch": deepctr_torch,
    "torchfm": torchfm,
    "pytorch-widedeep": pytorch_widedeep,
    "pytorch-frame": pytorch_frame,
    "torch_geometric": torch_geometric,
    "recbole": recbole,
    "transformers": transformers,
    "sentence-transformers": sentence_transformers,
    "fuxictr": fuxictr,
}


def entries(package: str) -> list[Entry] | str:
    """A package's models, or why there are none."""
    try:
        return list(PACKAGES[package]())
    except ImportError as error:
        return f"not installed: {error}"


def cell(value: str | float) -> str:
    """As it stands in the table."""
    return (f"{value:.1e}" if value else "0") if isinstance(value, float) else value.replace("|", "\\|")


def page(rows: Iterable[tuple[str, str, Cells]], missing: Mapping[str, str]) -> str:
    """The table, and what it was made with."""
    rows = list(rows)
    lines = [
        "# Models of other packages",
        "",
        "Each model is converted, trained for a few steps, collapsed, quantized and exported on random inputs. Made by",
        "`python scripts/zoo.py`.",
        "",
        "| column | what it says |",
        "|---|---|",
        "| found | tables that were converted, of all; why the others weren't; what still held old weights |",
        f"| trains | tables whose W2 changed in {STEPS} steps of Adagrad, of those converted; how many get no gradient "
        "in the plain model either |",
        "| collapse | largest difference of outputs before and after, as a share of the largest output above 1 |",
        "| int8 | the same between the quantized model and the plain one with the same rows |",
        "| ONNX | the same between ONNX Runtime and torch, or why torch can't export the model |",
        "| from_pretrained | the same before and after converting a model that is trained already |",
        "",
        f"| package | model | {' | '.join(COLUMNS)} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for package, name, cells in rows:
        lines.append(f"| {package} | {name} | {' | '.join(cell(cells[column]) for column in COLUMNS)} |")
    lines += [f"| {package} | - | {why} |{' - |' * (len(COLUMNS) - 1)}" for package, why in missing.items()]
    whole = sum(all(isinstance(cells[column], float) for column in BARS) for _, _, cells in rows)
    faults = [f"- {package} {name}: {why}" for package, name, cells in rows if (why := wrong(cells))]
    lines += ["", f"{len(rows)} models; {whole} have a number in every column."]
    lines += [
        "",
        "Above a bar, or crashed:" if faults else "Nothing is above its bar.",
        *([""] if faults else []),
        *faults,
    ]
    versions = [f"{name} {version(name)}" for name in DISTRIBUTIONS if version(name)]
    lines += ["", f"Python {platform.python_version()}, torch {torch.__version__}, {', '.join(versions)}.", ""]
    return "\n".join(lines)


def version(name: str) -> str | None:
    """A package's version, where it is installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Run all models, or those that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/zoo.md"), help="the page to write")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of 'package model', as 'torchfm *'")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows, missing = [], {}
    for package in PACKAGES:
        if not fnmatch.fnmatch(package, arguments.only.split(" ")[0]):
            continue
        of_package = entries(package)
        if isinstance(of_package, str):
            missing[package] = of_package
            continue
        for entry in of_package:
            if not fnmatch.fnmatch(f"{package} {entry.name}", arguments.only) and arguments.only != package:
                continue
            start = time.monotonic()
            cells = run(entry.make, entry.dynamic)
            rows.append((package, entry.name, cells))
            texts = " | ".join(cell(cells[column]) for column in COLUMNS)
            print(f"{package} | {entry.name} | {texts} | {time.monotonic() - start:.1f} s", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(rows, missing))
    for package, name, cells in rows:
        if why := wrong(cells):
            print(f"wrong: {package} {name}: {why}")


if __name__ == "__main__":
    main()
