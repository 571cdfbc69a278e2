"""Parameters and their gradients -> a step. A table's gradient is sparse, and changes only the rows it touches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Optimizer:
    """Some parameters, and how to change them."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float):
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.memory: list[Tensor | None] = []
        """What it keeps from step to step; a resumed run puts it back."""

    def step(self) -> None:
        """One step down the gradients, which are gone afterwards."""
        raise NotImplementedError


class SGD(Optimizer):
    """Plain stochastic gradient descent.

    The gradient of a gathered row is sparse, one entry a use. Adding all entries in place gives what coalescing them
    first would give, without the sort. `scatter_add_` over an index that is expanded along the row is several times
    faster on CPU than `index_add_`.
    """

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients, which are gone afterwards."""
        dense: list[Tensor] = []
        gradients: list[Tensor] = []
        for parameter in self.parameters:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            if gradient.is_sparse:
                rows, values = gradient._indices()[0], gradient._values()
                parameter.scatter_add_(0, rows.unsqueeze(1).expand_as(values), values.mul_(-self.learning_rate))
            else:
                dense.append(parameter)
                gradients.append(gradient)
        if dense:
            torch._foreach_add_(dense, gradients, alpha=-self.learning_rate)


class Adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011), row-wise for gathered tables, as recommendation models in production have it.

    A row remembers the sum over steps of its squared gradient's mean over the row, so that a table's state is d times
    smaller than the table; every other parameter remembers a sum an element.
    """

    EPSILON = 1e-8

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float):
        super().__init__(parameters, learning_rate)
        self.memory = [None] * len(self.parameters)  # the sums, each made when its first gradient shows its kind

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients, which are gone afterwards."""
        for i, parameter in enumerate(self.parameters):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            total = self.memory[i]
            if total is None:
                shape = (len(parameter), 1) if gradient.is_sparse else parameter.shape
                total = self.memory[i] = parameter.new_zeros(shape)
            if gradient.is_sparse:
                gradient = gradient.coalesce()
                rows, values = gradient.indices()[0], gradient.values()  # each row once
                total[rows] += values.square().mean(dim=1, keepdim=True)
                parameter[rows] -= self.learning_rate * values / (total[rows].sqrt() + self.EPSILON)
            else:
                total += gradient.square()
                parameter.addcdiv_(gradient, total.sqrt() + self.EPSILON, value=-self.learning_rate)
