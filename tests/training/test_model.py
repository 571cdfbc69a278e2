"""DLRM's parts against their definitions."""

import pytest
import torch

from dlrm_mlet.config import ModelConfig
from dlrm_mlet.training.model import DotInteraction, build, mlp


def test_interaction_is_the_double_loop():
    dense, embedded = torch.randn(5, 8), torch.randn(5, 6, 8)
    out = DotInteraction(6)(dense, embedded)
    for b in range(5):
        vectors = [dense[b], *embedded[b]]
        pairs = [vectors[i] @ vectors[j] for i in range(7) for j in range(i)]
        torch.testing.assert_close(out[b], torch.cat((dense[b], torch.stack(pairs))))


@pytest.mark.parametrize(("features", "width"), [(26, 351), (21, 231)])
def test_interaction_widths_of_the_papers_data_sets(features, width):
    model = build(ModelConfig(16, (512,), (512, 256)), 13, [5] * features, None)
    assert model.top_mlp[0].in_features == 16 + width


def test_the_mlps_start_is_dlrms():
    layer = mlp((400, 600, 1), torch.Generator().manual_seed(0))[0]
    assert abs(layer.weight.std() / (2 / 1000) ** 0.5 - 1) < 0.01
    assert abs(layer.bias.std() / (1 / 600) ** 0.5 - 1) < 0.1


@pytest.mark.parametrize("inner_dim", [None, 16, (16, 8)])
def test_a_collapsed_model_gives_the_same_logits(inner_dim):
    config = ModelConfig(4, (16,), (16,), inner_dim)
    model = build(config, 3, (50, 20), torch.Generator().manual_seed(0))
    dense, ids = torch.randn(200, 3), torch.randint(20, (200, 2)).int()
    served = model.collapse()
    assert set(served.state_dict()) == set(build(ModelConfig(4, (16,), (16,)), 3, (50, 20), None).state_dict())
    # float32: the product is rounded once more when W1 W2 is formed before a row is taken
    torch.testing.assert_close(served(dense, ids), model(dense, ids), rtol=1e-5, atol=1e-5)


def test_weights_come_from_the_generator_alone():
    config = ModelConfig(4, (16,), (16,), 8)
    first, second, third = (
        build(config, 3, (50, 20), torch.Generator().manual_seed(s)).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], third[key]) for key in first)
