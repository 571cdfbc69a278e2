"""A model of one's own, its training and its score -> the best learning rate of its tables, plain and of MLET's."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlrm_mlet.files import replacing, write_json
from dlrm_mlet.reporting import drawing, rate_figures
from dlrm_mlet.reporting.curves import Difference, difference, spread
from dlrm_mlet.tables.convert import InnerDim, convert

PLAIN = "plain tables"
FURTHEST = 2**10
"""How many times the start, or which part of it, a rate is at most: beyond that nothing is to be found."""

Scores = dict[float, dict[int, float]]
"""Rate -> seed -> score; -inf where training diverged."""


@dataclass(frozen=True)
class TableLearningRates:
    """What came of the search; printed, it is a table and a sentence."""

    measure: str
    scores: dict[str, Scores]
    """Of `plain tables` and of MLET's, by their name."""

    def best(self, tables: str) -> float:
        """The rate of the highest mean score."""
        return _best(self.scores[tables])

    @property
    def gain(self) -> Difference:
        """Of MLET's over plain tables, each at its best rate, by seed, with the 95% confidence interval of its mean."""
        (_, plain), (_, mlet) = ((name, rates[_best(rates)]) for name, rates in self.scores.items())
        return difference([mlet[seed] - plain[seed] for seed in plain])

    @property
    def sentence(self) -> str:
        """What to do, and why."""
        sides = "; ".join(
            f"{name} at {_best(rates):g}: {_spread(rates[_best(rates)])}" for name, rates in self.scores.items()
        )
        plain, mlet = (rates[_best(rates)] for rates in self.scores.values())
        if not all(map(math.isfinite, (*plain.values(), *mlet.values()))):
            return f"{sides}; some seeds diverged at their best rate: try a smaller rate for the rest of the model"
        advice = "MLET is ahead" if self.gain.low > 0 else "keep plain tables"
        ends = [name for name, rates in self.scores.items() if _best(rates) in (min(rates), max(rates))]
        if ends:
            return f"{sides}; the best rate of {' and of '.join(ends)} is the last that was tried"
        return f"{sides}; MLET's gain {self.gain} ({len(plain)} seeds): {advice}"

    def __str__(self) -> str:
        rates = sorted({rate for scores in self.scores.values() for rate in scores})
        lines = [f"| tables' learning rate | {' | '.join(self.scores)} |", f"|--:|{'---|' * len(self.scores)}"]
        for rate in rates:
            cells = [_spread(scores[rate]) if rate in scores else "" for scores in self.scores.values()]
            marks = [f"**{c}**" if rate == _best(s) else c for c, s in zip(cells, self.scores.values(), strict=True)]
            lines.append(f"| {rate:g} | {' | '.join(marks)} |")
        seeds = {len(found) for scores in self.scores.values() for found in scores.values()}
        said = f"{self.measure}, mean ± standard deviation, {min(seeds)} seeds; in bold the best of each."
        return "\n".join([*lines, "", said, "", self.sentence])


def find_table_learning_rate(
    make_model: Callable[[], nn.Module],
    train: Callable[[nn.Module, float, int], object],
    evaluate: Callable[[nn.Module], float],
    out: str | Path,
    *,
    start: float,
    inner_dim: InnerDim = 64,
    min_rows: int = 100,
    only: str | Sequence[str] = "*",
    seeds: Sequence[int] = (0, 1, 2),
    measure: str = "validation AUC",
    report: Callable[[str], object] = print,
) -> TableLearningRates:
    """Search the best learning rate of a model's tables, for plain ones and for MLET's, each on all `seeds`.

    `make_model` gives a new model with plain tables; `train(model, rate, seed)` makes its optimizer, any one, with
    `dlrm_mlet.parameter_groups(model, learning_rate=..., table_learning_rate=rate)`, and trains; `evaluate` gives a
    number of validation that is the better the larger it is, named by `measure`. The search begins at `start`, by SGD
    0.1 times the batch size, else the rate that the model has, and doubles and halves until the best rate of each side
    has neighbours on both sides. What isn't finite, or raises FloatingPointError, has diverged. MLET's tables are those
    of `convert(model, inner_dim, min_rows=..., only=...)`.

    In the directory `out` lie trials.json, from which a stopped search goes on, rates.md, and rates.png and .svg.
    Raises ValueError where trials.json is of another search.
    """
    out, start, seeds = Path(out), float(start), [int(seed) for seed in seeds]
    inner_dim = [int(k) for k in inner_dim] if isinstance(inner_dim, Sequence) else int(inner_dim)
    only = only if isinstance(only, str) else list(only)
    if not seeds or not 0 < start < math.inf:
        raise ValueError(f"start = {start:g}, {len(seeds)} seeds: expected a start above 0, and at least one seed")
    convert(make_model(), inner_dim, min_rows=min_rows, only=only, report=lambda line: None)  # or it says why not
    settings = {"start": start, "inner_dim": inner_dim, "min_rows": min_rows, "only": only, "measure": measure}
    mlet = f"MLET k={inner_dim}"
    scores = _read(out / "trials.json", settings) or {PLAIN: {}, mlet: {}}
    for name, rates in scores.items():
        while (rate := _next(rates, start, seeds)) is not None:
            for seed in seeds:
                if seed in rates.setdefault(rate, {}):
                    continue
                torch.manual_seed(seed)
                model = make_model()
                if name == mlet:
                    convert(model, inner_dim, min_rows=min_rows, only=only, report=lambda line: None)
                rates[rate][seed] = _trial(model, train, evaluate, rate, seed)
                out.mkdir(parents=True, exist_ok=True)
                write_json(out / "trials.json", {"settings": settings, "trials": _listed(scores)})
                report(f"{name} at {rate:g}, seed {seed}: {_spread({seed: rates[rate][seed]})}")
    found = TableLearningRates(measure, {name: _of(seeds, rates) for name, rates in scores.items()})
    with replacing(out / "rates.md") as partial:
        partial.write_text(f"{found}\n", encoding="utf-8")
    curves = {name: {r: list(s.values()) for r, s in rates.items()} for name, rates in found.scores.items()}
    rate_figures.over_rate(curves, measure, out / "rates")
    for line in (found.sentence, str(out / "rates.md"), *map(str, drawing.files(out / "rates"))):
        report(line)
    return found


def _trial(model: nn.Module, train: Any, evaluate: Any, rate: float, seed: int) -> float:
    try:
        train(model, rate, seed)
        score = float(evaluate(model))
    except FloatingPointError:
        return -math.inf
    return score if math.isfinite(score) else -math.inf


def _next(rates: Scores, start: float, seeds: Sequence[int]) -> float | None:
    """The rate to try next; None where the best one has neighbours, or lies beyond all reason."""
    for rate in (start, 2 * start, start / 2):
        if not _whole(rates, rate, seeds):
            return rate
    best = _best(_of(seeds, rates))
    if not start / FURTHEST < best < start * FURTHEST:
        return None
    return next((rate for rate in (2 * best, best / 2) if not _whole(rates, rate, seeds)), None)


def _whole(rates: Scores, rate: float, seeds: Sequence[int]) -> bool:
    return set(seeds) <= set(rates.get(rate, {}))


def _best(rates: Scores) -> float:
    """The rate of the highest mean; the smallest one where several are equal, as where all diverged."""
    return max(sorted(rates), key=lambda rate: statistics.fmean(rates[rate].values()))


def _of(seeds: Sequence[int], rates: Scores) -> Scores:
    return {rate: {seed: rates[rate][seed] for seed in seeds} for rate in sorted(rates) if _whole(rates, rate, seeds)}


def _spread(scores: dict[int, float]) -> str:
    values = list(scores.values())
    diverged = sum(not math.isfinite(value) for value in values)
    if diverged:
        return "diverged" if len(values) == 1 else f"{diverged} of {len(values)} diverged"
    return f"{values[0]:.4f}" if len(values) == 1 else spread(values)


def _listed(scores: dict[str, Scores]) -> list[dict[str, Any]]:
    return [
        {"tables": name, "rate": rate, "seed": seed, "score": score if math.isfinite(score) else None}
        for name, rates in scores.items()
        for rate, found in rates.items()
        for seed, score in found.items()
    ]


def _score(written: Any) -> float:
    return -math.inf if written is None else float(written)


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Scores]:
    """The trials of a stopped search; none where there is no file."""
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        trials = [(t["tables"], float(t["rate"]), int(t["seed"]), _score(t["score"])) for t in held["trials"]]
        before = dict(held["settings"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the trials of a search ({error}); expected another directory") from None
    now = json.loads(json.dumps(settings))
    if other := next((key for key in now if before.get(key) != now[key]), None):
        raise ValueError(
            f"{path}: of a search with {other} = {before.get(other)!r}, and this one has {now[other]!r}; "
            "expected another directory"
        )
    scores: dict[str, Scores] = {PLAIN: {}, f"MLET k={settings['inner_dim']}": {}}
    for name, rate, seed, score in trials:
        if name not in scores:
            raise ValueError(f"{path}: has trials of {name!r}; expected another directory")
        scores[name].setdefault(rate, {})[seed] = score
    return scores
