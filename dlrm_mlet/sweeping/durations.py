"""Finished runs, or what `dlrm-mlet benchmark` has measured -> the seconds that a run's steps take, about."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dlrm_mlet.config import Config
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.training.record import Record
from dlrm_mlet.training.run import steps_of

BENCHMARKS = Path("results", "benchmarks")


class DurationError(ValueError):
    """A file of figures that is none: names it and what was expected."""


class Figure(NamedTuple):
    """A step that was measured."""

    batch: int
    layers: int
    """Of the tables, before the last one."""
    trained: int
    """Width of what is gathered."""
    served: int
    """Width of what is served."""
    seconds: float


def of(config: Config, seconds: float) -> Figure:
    """A step of a run of this config."""
    layers, d = config.model.inner_dims, config.model.embedding_dim
    return Figure(config.training.batch_size, len(layers), (*layers, d)[0], d, seconds)


def from_records(configs: Sequence[Config], records: Sequence[Sequence[Record]], device: str | None) -> list[Figure]:
    """The mean step of each config by those of its records that were made on this device."""
    figures = []
    for config, finished in zip(configs, records, strict=True):
        steps = [
            each.seconds / each.steps for each in finished if each.provenance.get("device") == device and each.steps
        ]
        if steps:
            figures.append(of(config, statistics.fmean(steps)))
    return figures


def from_benchmark(kind: str) -> tuple[list[Figure], str | None]:
    """The steps that were measured here on a cpu or cuda, else those that come with a checkout; and of what they are.

    Raises DurationError where the file isn't a benchmark's.
    """
    name = BENCHMARKS / f"step-{kind}.json"
    path = next((each for each in (name, Path(__file__).parents[2] / name) if each.is_file()), None)
    if path is None:
        return [], None
    figures = []
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        for point in said["points"]:
            k, d = point["inner_dim"], point["embedding_dim"]
            figures.append(Figure(said["batch_size"], int(k is not None), k or d, d, point["ours_ms"] / 1000))
        return figures, f"{name}, of {said['device']}"
    except (ValueError, LookupError, TypeError) as error:
        raise DurationError(
            f"{path}: not a benchmark's figures ({error!r}); expected what dlrm-mlet benchmark writes"
        ) from None


def seconds_of(config: Config, schema: Schema, figures: Iterable[Figure]) -> float:
    """Of all steps of a run, by the figure that is nearest in batch, then in layers, then in bytes a row.

    Where the batch is another, each of its rows is taken to last as long.
    """
    mine = of(config, 0.0)

    def distance(its: Figure) -> tuple[float, ...]:
        batch, trained, served = (
            abs(math.log(one / other))
            for one, other in ((its.batch, mine.batch), (its.trained, mine.trained), (its.served, mine.served))
        )
        return batch, abs(its.layers - mine.layers), trained, served

    nearest = min(figures, key=distance)
    return steps_of(config.training, schema.rows["train"]) * nearest.seconds * mine.batch / nearest.batch
