"""Equation 6 of the paper on a plain linear problem: each singular value's change in a step, measured and predicted.

    python scripts/equation_6.py [--out results/linear/equation-6.csv]

A product of N layers, N = 1 to 4, learns a matrix of rank 4 by gradient descent on the mean squared error, from two
starts. Balanced: all layers carry the same share of each singular value, as the theorem behind the equation assumes. As
MLET starts: the first layer uniform in ±1/sqrt(n), the others N(0, 0.25²), which is not balanced. Float64, so that what
differs is the equation, the step being small.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor

from dlrm_mlet.files import replacing
from dlrm_mlet.tables.spectrum import predicted_change
from dlrm_mlet.tables.stacked import make_tables

ROWS, INNER_DIM, EMBEDDING_DIM, RANK = 200, 16, 4, 4
LEARNING_RATE = 1e-4
STEPS, EVERY = 50_000, 500
"""Steps of a run at most, and between two that are looked at."""
DONE = 0.01
"""A run ends at this share of its first error: later changes are too small to be told from rounding."""


def balanced(layers: int, generator: torch.Generator) -> list[Tensor]:
    """Layers whose product has singular values from 0.8 down to 0.1, each layer with the N-th root of them."""
    u, _ = torch.linalg.qr(torch.randn(ROWS, EMBEDDING_DIM, dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(EMBEDDING_DIM, EMBEDDING_DIM, dtype=torch.float64, generator=generator))
    sigma = torch.tensor([0.8, 0.4, 0.2, 0.1], dtype=torch.float64)
    root = torch.diag(sigma ** (1 / layers))
    if layers == 1:
        return [u @ root @ v.T]
    return [u @ root, *(root.clone() for _ in range(layers - 2)), root @ v.T]


def as_mlet_starts(layers: int, generator: torch.Generator) -> list[Tensor]:
    """One feature's layers as training starts them."""
    tables = make_tables((ROWS,), (INNER_DIM,) * (layers - 1), EMBEDDING_DIM, 0.25, generator).double()
    projections = [projection[0] for projection in getattr(tables, "projections", ())]
    return [layer.detach().clone() for layer in (tables.weight, *projections)]


def product(layers: list[Tensor]) -> Tensor:
    """W1 W2 ... WN."""
    whole = layers[0]
    for layer in layers[1:]:
        whole = whole @ layer
    return whole


def changes(layers: list[Tensor], goal: Tensor, steps: int) -> list[tuple[int, int, float, float, float]]:
    """Step, rank, singular value, its measured change and the predicted one, every so many steps of a run."""
    found = []
    layers = [layer.requires_grad_() for layer in layers]
    optimizer = torch.optim.SGD(layers, LEARNING_RATE)
    at_start = float((product(layers) - goal).detach().square().sum())
    for step in range(steps + 1):
        before = product(layers).detach().clone()
        error = (product(layers) - goal).square().sum()
        if error < DONE * at_start:
            break
        optimizer.zero_grad()
        (error / 2).backward()
        optimizer.step()
        with torch.no_grad():
            if step % EVERY == 0:
                predicted = predicted_change(before, before - goal, len(layers), LEARNING_RATE)
                sigma = torch.linalg.svdvals(before)
                measured = torch.linalg.svdvals(product(layers)) - sigma
                found += [
                    (step, rank + 1, *(float(part[rank]) for part in (sigma, measured, predicted)))
                    for rank in range(EMBEDDING_DIM)
                ]
    return found


def main() -> None:
    """Run all starts and numbers of layers, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/linear/equation-6.csv"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with replacing(options.out) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["start", "layers", "step", "rank", "singular_value", "measured", "predicted"])
        for name, start in (("balanced layers", balanced), ("as MLET starts", as_mlet_starts)):
            for count in (1, 2, 3, 4):
                generator = torch.Generator().manual_seed(count)
                left = torch.randn(ROWS, RANK, dtype=torch.float64, generator=generator)
                right = torch.randn(RANK, EMBEDDING_DIM, dtype=torch.float64, generator=generator)
                goal = left @ right / ROWS**0.5
                for step, rank, *numbers in changes(start(count, generator), goal, options.steps):
                    writer.writerow([name, count, step, rank, *(f"{number:.6g}" for number in numbers)])
    print(options.out)


if __name__ == "__main__":
    main()
