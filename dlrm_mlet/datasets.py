"""What each data set is, as data: its columns, their transforms, how its rows are split, which counts to expect."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dlrm_mlet.config import ConfigError, build, read_toml

Transform = Literal["log1p", "identity"]


@dataclass(frozen=True)
class Dataset:
    """A table of clicks: one label, numbers, and values to embed. A user's own is a TOML file with these keys."""

    name: str
    label: str
    """Column of 0 and 1."""
    dense: tuple[str, ...]
    """Columns of numbers; a missing one is 0."""
    categorical: tuple[str, ...]
    """Columns of values of any kind, compared as text; a missing one is a value of its own."""
    split: Literal["random", "ordered"] = "random"
    """80/10/10 for training, validation and test: drawn at random, or the rows' own order."""
    split_seed: int = 0
    transform: dict[str, Transform] = field(default_factory=dict)
    """Of a dense column, where it isn't log1p: log(1 + max(x, 0))."""
    rows: int | None = None
    """Expected rows of the whole data set."""
    table_rows: tuple[int, ...] | None = None
    """Expected distinct values of each categorical column of the whole data set (n, a row of its table each)."""

    def __post_init__(self) -> None:
        columns = (self.label, *self.dense, *self.categorical)
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ConfigError(f"columns {', '.join(twice)} are named twice: each has one role")
        if not self.categorical:
            raise ConfigError("categorical = []: expected at least one column to embed")
        strangers = sorted(set(self.transform) - set(self.dense))
        if strangers:
            raise ConfigError(f"transform.{strangers[0]}: not a dense column; expected one of {', '.join(self.dense)}")


FLIGHTS = Dataset(
    name="flights",
    label="late",  # arrived at least 15 minutes after schedule
    dense=(
        "distance", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
    ),
    categorical=(
        "carrier", "flight", "tailnum", "origin", "dest", "month", "day", "day_of_year", "hour", "sched_dep_time",
        "sched_arr_time",
    ),
    rows=327_346,
    table_rows=(16, 3835, 4037, 3, 104, 12, 31, 365, 19, 1020, 1162),
)  # fmt: skip

BUILT_IN = {dataset.name: dataset for dataset in (FLIGHTS,)}


def load(name_or_path: str) -> Dataset:
    """A built-in data set by its name, or a user's own by the path of its TOML file."""
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    if not name_or_path.endswith(".toml"):
        raise ConfigError(f"data set {name_or_path!r}: expected one of {', '.join(BUILT_IN)}, or a .toml file")
    try:
        return build(Dataset, read_toml(Path(name_or_path)))
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(name_or_path) else f"{name_or_path}: {message}") from None
