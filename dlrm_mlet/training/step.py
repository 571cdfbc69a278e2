"""A model, its optimizers and rows -> a training step: forward, backward, update; by autograd, and written out.

B rows of a batch; F categorical features; D embedding dimension; ... nothing, or the seeds that train together.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.training.model import DLRM
from dlrm_mlet.training.optimizer import Optimizer


def train_step(model: DLRM, optimizers: Sequence[Optimizer], batch: Batch) -> Tensor:
    """Forward, backward, update; returns the batch's mean loss, one for each seed in it, not waited for."""
    logits = model.logits(batch.dense, model.embed(batch.sparse))
    loss = F.binary_cross_entropy_with_logits(logits, batch.label, batch.weight, reduction="none").mean(-1)
    loss.backward(torch.ones_like(loss))  # a seed's gradient comes from its own loss alone
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


NARROW = 128
"""Width below which a layer's products are asked for in other kernels than cuBLAS's choice. On an H200, at B = 128, a
product with bias and ReLU in one takes 13 µs from 128 to 16, and 10 in three kernels, but 9 and 12 from 367 to 512; the
gradient of the weight from 128 to 16 takes 53 µs as g'x, and 6 as (x'g)'."""


class Beside:
    """Work that goes on beside the main work: on a GPU in a stream of its own, elsewhere in its turn."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """What the block begins waits for all that was begun so far, and the main work doesn't wait for it."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            yield

    def join(self) -> None:
        """The main work goes on once this is done."""
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


class _Layer(NamedTuple):
    """One layer of an MLP."""

    module: nn.Module
    """What multiplies: `own`, or its copy of lower precision."""
    own: nn.Module
    """The model's, whose weight and bias are trained."""
    has_relu: bool

    def forward(self, rows: Tensor) -> Tensor:
        """(..., B, in) -> (..., B, out)."""
        weight, bias = self.module.parameters()
        if self.has_relu and weight.dim() == 2 and min(weight.shape) >= NARROW:
            return torch._addmm_activation(bias, rows, weight.t())  # bias and ReLU in the product's own kernel
        out = (rows @ weight.mT).add_(bias)
        return out.relu_() if self.has_relu else out

    def weights_gradient(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """(..., B, in) and the gradient of (..., B, out) -> (..., out, in)."""
        if gradient.shape[-1] < NARROW:
            return (rows.mT @ gradient).mT.contiguous()
        return gradient.mT @ rows


class FusedStep:
    """What `train_step` does, up to rounding, with the gradients of the MLPs and of the interaction written out.

    At the paper's batch of 128 a GPU spends a step on starting kernels, and on waiting for one before the next. So
    there are few here, and what doesn't depend on one another goes in streams beside each other: the tables beside the
    bottom MLP, forward and backward, which hides the product by W2, and the gradients of weights and biases beside
    those of activations. The tables' own gradients are autograd's, whatever kind they are.

    With `dtype` bfloat16 the MLPs and the interaction multiply in it; weights, tables and the loss stay float32.
    """

    def __init__(self, model: DLRM, optimizers: Sequence[Optimizer], dtype: torch.dtype | None = None):
        some_weight = next(model.parameters())
        self.model, self.dtype, self.whole = model, dtype or some_weight.dtype, some_weight.dtype
        self.mlp_optimizer, self.table_optimizer = optimizers
        self.tables, self.weights, self.biases = (Beside(some_weight.device) for _ in range(3))
        self.bottom, self.top = (_layers(mlp, dtype) for mlp in (model.bottom_mlp, model.top_mlp))
        vectors, embedding_dim = model.interaction.vectors, model.tables.embedding_dim
        place = torch.zeros(vectors, vectors, dtype=torch.int64)
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        place[row, column] = place[column, row] = embedding_dim + torch.arange(len(row))
        # ((F+1)²,): where the interaction has the product of each two vectors; a vector's with itself is nowhere
        self.place = place.flatten().to(some_weight.device)
        self.is_pair = (place > 0).flatten().to(some_weight.device)

    @torch.no_grad()
    def __call__(self, columns: Columns, rows: Tensor) -> Tensor:
        """(..., B) places of rows in the columns -> (...) the batch's mean loss, not waited for.

        What one stream makes and another one reads has a name here until all have joined: memory without a name goes
        to the next kernel of the stream that made it.
        """
        model, batch_size = self.model, rows.shape[-1]
        with self.tables.begun(), torch.enable_grad():
            embedded = model.embed(_rows(columns.sparse, rows))  # (..., B, F, D)
        with self.biases.begun():
            label = _rows(columns.label, rows).to(self.whole)  # (..., B)
            weight = None if columns.weight is None else _rows(columns.weight, rows).to(self.whole)
            shifted = label / -batch_size
        if self.dtype != self.whole:
            self._copy_weights()
        bottom = _activations(self.bottom, _rows(columns.dense, rows).to(self.dtype))
        self.tables.join()
        vectors = torch.cat((bottom[-1].unsqueeze(-2), embedded.to(self.dtype)), dim=-2)  # (..., B, F+1, D)
        vectors = vectors.flatten(0, -3)
        products = torch.bmm(vectors, vectors.mT).flatten(1).index_select(1, model.interaction.pairs)
        interacted = torch.cat((bottom[-1], products.unflatten(0, rows.shape)), dim=-1)  # (..., B, D + F(F+1)/2)
        top = _activations(self.top, interacted)
        logits = top[-1].squeeze(-1).to(self.whole)  # (..., B)
        self.biases.join()
        with self.biases.begun():
            loss = F.binary_cross_entropy_with_logits(logits, label, weight, reduction="none").mean(-1)
        # of the mean loss: (sigmoid - label) / B, times the row's weight
        gradient = torch.add(shifted, logits.sigmoid(), alpha=1 / batch_size)
        gradient = (gradient if weight is None else gradient.mul_(weight)).unsqueeze(-1)
        of_top = self._backward(self.top, top, gradient.to(self.dtype))
        of_products = of_top[-1].flatten(0, -2).index_select(1, self.place).mul_(self.is_pair)
        # each product's gradient reaches both of its vectors: a symmetric matrix
        of_products = of_products.unflatten(1, (vectors.shape[1], vectors.shape[1]))
        of_vectors = torch.bmm(of_products, vectors).unflatten(0, rows.shape)  # (..., B, F+1, D)
        with self.tables.begun():
            self._step_tables(embedded, of_vectors[..., 1:, :])
        of_dense = of_vectors[..., 0, :] + of_top[-1][..., : vectors.shape[2]]
        of_bottom = self._backward(self.bottom, bottom, _through_relu(of_dense, bottom[-1]))
        for beside in (self.tables, self.weights, self.biases):
            beside.join()
        self.mlp_optimizer.step()
        del of_bottom  # not before the streams have joined
        return loss

    def _backward(self, layers: Sequence[_Layer], activations: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """The gradient of the last layer's product -> those of all before it, the last one being of the MLP's input.

        Leaves the weights' and biases' in their `grad`. The gradient of what needs none isn't computed.
        """
        found = [gradient]
        for i in reversed(range(len(layers))):
            layer, rows, gradient = layers[i], activations[i], found[-1]
            weight, bias = layer.own.parameters()
            with self.weights.begun():
                weight.grad = layer.weights_gradient(rows, gradient).to(weight.dtype)
            with self.biases.begun():
                bias.grad = gradient.sum(-2).to(bias.dtype).view_as(bias)
            if i > 0 or layers is self.top:
                found.append(gradient @ next(layer.module.parameters()))
            if i > 0:
                found.append(_through_relu(found[-1], rows))
        return found

    def _step_tables(self, embedded: Tensor, gradient: Tensor) -> None:
        parameters = [parameter for parameter in self.model.tables.parameters() if parameter.requires_grad]
        if not parameters:
            return
        found = torch.autograd.grad(embedded, parameters, gradient.to(embedded.dtype), allow_unused=True)
        for parameter, its in zip(parameters, found, strict=True):
            parameter.grad = its
        self.table_optimizer.step()

    def _copy_weights(self) -> None:
        layers = self.bottom + self.top
        copies: list[Tensor] = [parameter for layer in layers for parameter in layer.module.parameters()]
        own: list[Tensor] = [parameter for layer in layers for parameter in layer.own.parameters()]
        torch._foreach_copy_(copies, own)


def _layers(mlp: nn.Module, dtype: torch.dtype | None) -> list[_Layer]:
    own = list(mlp.children())
    used = own if dtype is None else list(copy.deepcopy(mlp).to(dtype).children())
    followers = [*own[1:], None]
    return [
        _Layer(module, mine, isinstance(follower, nn.ReLU))
        for module, mine, follower in zip(used, own, followers, strict=True)
        if not isinstance(mine, nn.ReLU)
    ]


def _activations(layers: Sequence[_Layer], rows: Tensor) -> list[Tensor]:
    """The MLP's input, and what each of its layers makes of it."""
    found = [rows]
    for layer in layers:
        found.append(layer.forward(found[-1]))
    return found


def _through_relu(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(gradient, out, 0)


def _rows(array: Tensor, rows: Tensor) -> Tensor:
    """`array[rows]`, by a faster kernel."""
    return array.index_select(0, rows.flatten()).unflatten(0, rows.shape)
