"""Parameters and their gradients -> a step. A table's gradient is sparse, and may change only the rows it touches."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

PIECE = 1 << 13
"""Numbers that a GPU updates in one block of threads: few enough that all of it has work."""


class Optimizer:
    """Some parameters, and how to change them."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        factors: Tensor | None = None,
        taken: int = 0,
    ):
        """`factors` (steps of the run,): the rate's, at each step; None: it is constant. `taken`: steps before."""
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        device = self.parameters[0].device if self.parameters else None
        self.factors = None if factors is None else factors.to(device)
        self.taken = torch.tensor(taken).to(device)
        """Steps made before, where they matter; on the device, so that a graph that is replayed counts on by itself."""
        self.memory = self.empty()
        """What it keeps from step to step: of each parameter, once or twice, as many numbers or one a row."""
        self.whole: dict[nn.Parameter, Tensor] = {}
        """Of a table all of whose rows move, the memory of its gradient: zeros between steps."""

    def empty(self) -> list[Tensor | None]:
        """What it keeps before the first step."""
        return []

    def step(self) -> None:
        """One step down the gradients, which are gone afterwards."""
        raise NotImplementedError

    def rate(self) -> float | Tensor:
        """The learning rate of this step: a number, or () by the schedule."""
        if self.factors is None:
            return self.learning_rate
        return self.learning_rate * self.factors.index_select(0, self.taken).squeeze(0)

    def kept(self, part: int, of: int) -> list[Tensor | None]:
        """What it keeps of one of so many models that train together."""
        return [None if each is None else each.chunk(of)[part] for each in self.memory]

    def restore(self, models: Sequence[Sequence[Tensor | None]]) -> None:
        """Put back what was kept of each of the models that train together."""
        for i, parts in enumerate(zip(*models, strict=True)):
            there = [part.flatten() for part in parts if part is not None]
            if there:
                parameter = self.parameters[i % len(self.parameters)]
                whole = torch.cat(there).to(parameter.device)
                same = whole.numel() == parameter.numel()
                self.memory[i] = whole.view_as(parameter) if same else whole.view(-1, 1)


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
        rate = self.rate()
        for parameter in self.parameters:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            if gradient.is_sparse:
                rows, values = gradient._indices()[0], gradient._values()
                if parameter.is_cpu:
                    parameter.scatter_add_(0, rows.unsqueeze(1).expand_as(values), values.mul_(-rate))
                elif isinstance(rate, Tensor):
                    parameter.index_add_(0, rows, values.mul_(-rate))
                else:
                    parameter.index_add_(0, rows, values, alpha=-rate)
            else:
                dense.append(parameter)
                gradients.append(gradient)
        if dense and not dense[0].is_cpu:  # torch gives a block of threads up to 65,536 numbers of one tensor
            dense, gradients = _in_pieces(dense), _in_pieces(each.contiguous() for each in gradients)
        if isinstance(rate, Tensor):
            self.taken += 1
            if dense:
                torch._foreach_mul_(gradients, -rate)
                torch._foreach_add_(dense, gradients)
        elif dense:
            torch._foreach_add_(dense, gradients, alpha=-rate)


class Adagrad(Optimizer):
    """Adagrad (Duchi et al., 2011), row-wise for gathered tables, as recommendation models in production have it.

    A row remembers the sum over steps of its squared gradient's mean over the row, so that a table's state is d times
    smaller than the table; every other parameter remembers a sum an element.
    """

    EPSILON = 1e-8

    def empty(self) -> list[Tensor | None]:
        """The sums, each of which is made when its first gradient shows its kind."""
        return [None] * len(self.parameters)

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients, which are gone afterwards."""
        rate = self.rate()
        for i, parameter in enumerate(self.parameters):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            total = self.memory[i]
            if total is None:
                shape = (len(parameter), 1) if gradient.is_sparse else parameter.shape
                total = self.memory[i] = parameter.new_zeros(shape)
            if gradient.is_sparse:
                rows, values, _ = _by_row(gradient)
                total.index_add_(0, rows, values.square().mean(dim=1, keepdim=True))
                denominator = total.index_select(0, rows).sqrt() + self.EPSILON
                parameter.index_add_(0, rows, -rate * values / denominator)
            else:
                total += gradient.square()
                if isinstance(rate, Tensor):
                    parameter.sub_(rate * gradient / (total.sqrt() + self.EPSILON))
                else:
                    parameter.addcdiv_(gradient, total.sqrt() + self.EPSILON, value=-rate)
        if self.factors is not None:
            self.taken += 1


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), without decay, as torch.optim.Adam: each step moves all rows, touched or not.

    It remembers two numbers for each one of a parameter, the moving means of the gradient and of its square.
    """

    BETAS = 0.9, 0.999
    EPSILON = 1e-8

    def empty(self) -> list[Tensor | None]:
        """The means at the start."""
        return [torch.zeros_like(each, requires_grad=False) for _ in self.BETAS for each in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients, which are gone afterwards."""
        rate = self.rate()
        self.taken += 1
        number = self.taken.float()
        dense: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        touched: list[tuple[Tensor, Tensor]] = []
        count = len(self.parameters)
        for parameter, mean, square in zip(self.parameters, self.memory[:count], self.memory[count:], strict=True):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            assert mean is not None
            assert square is not None
            if not gradient.is_sparse:
                dense.append((parameter, gradient.contiguous(), mean, square))
            elif (whole := self.of_rows(parameter, gradient, mean, square, rate, number)) is not None:
                dense.append((parameter, whole, mean, square))
                touched.append((whole, gradient._indices()[0]))
        if dense:
            lists = [list(each) for each in zip(*dense, strict=True)]
            torch._fused_adam_(  # type: ignore[call-overload]
                *lists, [], [number] * len(dense), lr=rate,
                beta1=self.BETAS[0], beta2=self.BETAS[1], weight_decay=0.0, eps=self.EPSILON, amsgrad=False,
                maximize=False,
            )  # fmt: skip
        for whole, rows in touched:
            whole.index_fill_(0, rows, 0)

    def of_rows(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
        rate: float | Tensor,
        number: Tensor,
    ) -> Tensor | None:
        """A table's sparse gradient -> that of the whole table; None where its rows have made their step."""
        rows, values = gradient._indices()[0], gradient._values()
        if parameter not in self.whole:
            self.whole[parameter] = torch.zeros_like(parameter, requires_grad=False)
        whole = self.whole[parameter]
        if whole.is_cpu:
            return whole.scatter_add_(0, rows.unsqueeze(1).expand_as(values), values)
        return whole.index_add_(0, rows, values)


class LazyAdam(Adam):
    """Adam that moves the rows of a table that a batch touches, and no others, as torch.optim.SparseAdam."""

    def of_rows(
        self,
        parameter: nn.Parameter,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
        rate: float | Tensor,
        number: Tensor,
    ) -> Tensor | None:
        """The step of the rows with a gradient."""
        rows, values, distinct = _by_row(gradient)
        means, squares = mean.index_select(0, rows), square.index_select(0, rows)
        to_mean = (values - means) * (1 - self.BETAS[0])
        to_square = (values.square() - squares) * (1 - self.BETAS[1])
        if distinct is not None:  # what is left over isn't a row's own
            own = (torch.arange(len(rows), device=rows.device) < distinct).unsqueeze(1).to(values.dtype)
            to_mean, to_square, means = to_mean * own, to_square * own, means * own
        mean.index_add_(0, rows, to_mean)
        square.index_add_(0, rows, to_square)
        root = ((squares + to_square) / (1 - self.BETAS[1] ** number)).sqrt() + self.EPSILON
        parameter.index_add_(0, rows, (means + to_mean) / root * (-rate / (1 - self.BETAS[0] ** number)))
        return None


def _in_pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [piece for tensor in tensors for piece in tensor.view(-1).split(PIECE)]


def _by_row(gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """A sparse gradient -> (rows,) distinct ones, (rows, width) the sum of each, and None; on a GPU as `sum_by_row`."""
    if gradient.is_cpu:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values(), None
    return sum_by_row(gradient._indices()[0], gradient._values())


def sum_by_row(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(uses,) rows and (uses, width) values -> as many of both: each row once with the sum of its values, then zeros.

    What `coalesce` gives, but their number is known beforehand, as a GPU's graph needs it. What is left over says row
    0, and adds nothing to it; how many are distinct is the third result, (1,).
    """
    rows, order = rows.sort(stable=True)
    place = torch.cat((rows.new_zeros(1), (rows[1:] != rows[:-1]).cumsum(0)))  # of each use, among the distinct rows
    sums = torch.zeros_like(values).index_add_(0, place, values.index_select(0, order))
    return torch.zeros_like(rows).scatter_(0, place, rows), sums, place[-1:] + 1


def factors(schedule: str, warm_up: float | None, steps: int) -> Tensor | None:
    """(steps,): by what the learning rate is multiplied at each step of a run; None where it is constant.

    Over the share `warm_up` of the steps it rises to 1; by a linear schedule it then falls, and is zero after the last.
    """
    if schedule == "constant" and not warm_up:
        return None
    rising = round((warm_up or 0) * steps)
    step = torch.arange(steps, dtype=torch.float64)
    up = (step + 1) / max(rising, 1)
    down = (steps - step) / max(steps - rising, 1) if schedule == "linear" else torch.ones_like(step)
    return torch.where(step < rising, up, down).float()
