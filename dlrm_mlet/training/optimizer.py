"""Parameters and their gradients -> a step. A table's gradient is sparse, and changes only the rows it touches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

PIECE = 1 << 13
"""Numbers that a GPU updates in one block of threads: few enough that all of it has work."""


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
    first would give, without the sort. On CPU `scatter_add_` over an index that is expanded along the row is several
    times faster than `index_add_`; on a GPU the latter is one kernel in place of two.
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
                if parameter.is_cpu:
                    parameter.scatter_add_(0, rows.unsqueeze(1).expand_as(values), values.mul_(-self.learning_rate))
                else:
                    parameter.index_add_(0, rows, values, alpha=-self.learning_rate)
            else:
                dense.append(parameter)
                gradients.append(gradient)
        if dense and not dense[0].is_cpu:  # torch gives a block of threads up to 65,536 numbers of one tensor
            dense, gradients = _in_pieces(dense), _in_pieces(each.contiguous() for each in gradients)
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
                if parameter.is_cpu:
                    gradient = gradient.coalesce()
                    rows, values = gradient.indices()[0], gradient.values()
                else:  # where the CPU would have to wait for the number of rows
                    rows, values = sum_by_row(gradient._indices()[0], gradient._values())
                total.index_add_(0, rows, values.square().mean(dim=1, keepdim=True))
                denominator = total.index_select(0, rows).sqrt() + self.EPSILON
                parameter.index_add_(0, rows, -self.learning_rate * values / denominator)
            else:
                total += gradient.square()
                parameter.addcdiv_(gradient, total.sqrt() + self.EPSILON, value=-self.learning_rate)


def _in_pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [piece for tensor in tensors for piece in tensor.view(-1).split(PIECE)]


def sum_by_row(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(uses,) rows and (uses, width) values -> as many of both: each row once with the sum of its values, then zeros.

    What `coalesce` gives, but their number is known beforehand, as a GPU's graph needs it. What is left over says row
    0, and adds nothing to it.
    """
    rows, order = rows.sort(stable=True)
    place = torch.cat((rows.new_zeros(1), (rows[1:] != rows[:-1]).cumsum(0)))  # of each use, among the distinct rows
    sums = torch.zeros_like(values).index_add_(0, place, values.index_select(0, order))
    return torch.zeros_like(rows).scatter_(0, place, rows), sums
