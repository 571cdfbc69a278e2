"""Tables -> their singular values: how many matter (paper, section 2.2.1), and how they grow (equation 6).

n rows of one feature's table; D embedding dimension; N layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrm_mlet.tables.stacked import SingleLayerTables, Tables

SHARE = 0.01
"""The paper counts the singular values above this share of the largest."""


@torch.no_grad()
def singular_values(tables: Tables) -> list[Tensor]:
    """For each feature the (D,) singular values of its product W, largest first, in float64.

    They are square roots of the eigenvalues of WᵀW, which needs no copy of a table of millions of rows; below 1e-7 of
    the largest they are rounding. Raises ValueError for tables that have no product W.
    """
    collapsed = tables.collapse()
    if not isinstance(collapsed, SingleLayerTables):
        raise ValueError(f"{type(tables).__name__}: have no singular values; expected single-layer or MLET tables")
    tables_of_features = collapsed.weight.split(collapsed.table_rows)
    return [torch.linalg.eigvalsh(gram(table)).flip(0).clamp_min(0).sqrt() for table in tables_of_features]


def gram(table: Tensor) -> Tensor:
    """(n, D) -> WᵀW, (D, D) in float64, without a copy of all rows."""
    total = table.new_zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for part in map(Tensor.double, table.split(1 << 14)):
        total += part.T @ part
    return total


def count_above(values: Sequence[float], share: float = SHARE) -> int:
    """How many singular values are larger than `share` of the largest."""
    largest = max(values)
    return sum(value > share * largest for value in values)


def predicted_change(product: Tensor, gradient: Tensor, layers: int, learning_rate: float) -> Tensor:
    """The change of each singular value in one step on all N layers of a product, by the paper's equation 6.

    `product` W and `gradient`, of the loss with respect to W, are (n, D); the result is (D,), for the singular values
    from the largest down: -lr · N · σ^(2 - 2/N) · <gradient, u vᵀ>.
    """
    u, sigma, v = torch.linalg.svd(product, full_matrices=False)
    along = torch.einsum("nr,nd,rd->r", u, gradient, v)
    return -learning_rate * layers * sigma ** (2 - 2 / layers) * along
