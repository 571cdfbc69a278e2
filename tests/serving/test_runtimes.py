"""Models with MLET's, collapsed and quantized tables in torch's other runtimes and formats: the same numbers."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from dlrm_mlet import collapse, convert, quantize

QUIET = {"report": lambda line: None}
N, D = 50, 5


class Model(nn.Module):
    """A table, a bag, and one of its weights used directly."""

    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(N, D, padding_idx=0), nn.EmbeddingBag(N, D, mode="mean", padding_idx=1)
        self.twin = nn.Embedding(N, D)
        self.twin.weight = self.user.weight
        self.head = nn.Linear(D, 3)

    def forward(self, user, items):
        vectors = self.user(user) + self.item(items) + self.twin(user.flip(0))
        return self.head(vectors), vectors @ self.item.weight.T


def trained(steps=3):
    torch.manual_seed(0)
    model = convert(Model(), 8, **QUIET)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        logits, scores = model(*batch(16))
        (logits.square().mean() + scores.square().mean()).backward()
        optimizer.step()
    return model.eval()


def batch(rows):
    return torch.randint(N, (rows,)), torch.randint(N, (rows, 4))


KINDS = {
    "trained": lambda model: model,
    "collapsed": lambda model: collapse(model, **QUIET),
    "8 bits": lambda model: quantize(collapse(model, **QUIET), **QUIET),
    "4 bits and an offset": lambda model: quantize(collapse(model, **QUIET), 4, offset=True, **QUIET),
    "16 bits": lambda model: quantize(collapse(model, **QUIET), 16, **QUIET),
}


@pytest.fixture(params=KINDS)
def model(request):
    return KINDS[request.param](trained())


def dynamic():
    rows = torch.export.Dim("rows")
    return ({0: rows}, {0: rows})


def test_torchs_export_gives_the_same_for_any_batch(model, tmp_path):
    torch.export.save(torch.export.export(model, batch(16), dynamic_shapes=dynamic()), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (2, 5, 300):
        some = batch(rows)
        torch.testing.assert_close(program(*some), model(*some), rtol=1e-6, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("kind", ["trained", pytest.param("4 bits and an offset", marks=pytest.mark.zoo)])
def test_aotinductor_gives_the_same_for_any_batch(kind, tmp_path):
    model = KINDS[kind](trained())
    program = torch.export.export(model, batch(16), dynamic_shapes=dynamic())
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    runner = torch._inductor.aoti_load_package(path)
    for rows in (2, 5, 300):
        some = batch(rows)
        torch.testing.assert_close(tuple(runner(*some)), model(*some), rtol=1e-5, atol=1e-5)


def test_safetensors_round_trip(model, tmp_path):
    save_model(model, str(tmp_path / "model.safetensors"))
    other = copy.deepcopy(model)
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.data.zero_()
    load_model(other, str(tmp_path / "model.safetensors"))
    some = batch(9)
    assert all(map(torch.equal, other(*some), model(*some)))
