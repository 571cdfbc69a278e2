"""What each data set is, as data: its columns, their transforms, how its rows are split, which counts to expect."""

import codecs
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from dlrm_mlet.toml import ConfigError, build, read_toml

Transform = Literal["log1p", "identity", "hour_of_day", "unix_hour"]
"""log1p: log(1 + max(x, 0)); identity: x; hour_of_day: log(1 + h) of a time YYMMDDHH; unix_hour: the same of a time in
seconds since 1970, which YYMMDDHH is not: the published Avazu notebook read it so, and got log(6) for every row."""


@dataclass(frozen=True)
class Format:
    """How raw files are written; see the keys of the same names."""

    separator: str | None = None
    encoding: str = "utf-8"
    quoted: bool = True
    null_values: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    """Of text that has no header line, the names of its fields."""


@dataclass(frozen=True)
class MultiValued:
    """How a categorical column with several values a row is read, and how their vectors become one."""

    column: str | None = None
    """Of the raw file, where it has another name."""
    separator: str = "|"
    """Between the values, where they are text; a list column of Parquet has its own."""
    pooling: Literal["mean", "sum"] = "mean"
    """Of the values' vectors. A row without values has a vector of zeros."""
    max_values: int = 16
    """Of a row: so many places has each row in sparse.npy."""
    longer: Literal["refuse", "first", "last"] = "refuse"
    """What of a row with more values is kept: the first or the last ones; or it is an error."""


@dataclass(frozen=True)
class Time:
    """A categorical or dense column that is a part of a time: ISO 8601, or seconds, milliseconds or microseconds since
    1970."""

    column: str
    """Of the raw file, with the time; one with an offset is turned into UTC, any other is taken as it is."""
    part: Literal["hour", "weekday", "day"]
    """0 to 23; 1 (Monday) to 7; 1 to 31."""


@dataclass(frozen=True)
class Dataset:
    """A table of clicks: one label, numbers, and values to embed. A user's own is a TOML file with these keys."""

    name: str
    """Of the directory in data/, and in experiments."""
    label: str
    """Column of 0 and 1, also as 0.0 and 1.0, true and false, or -1 and 1."""
    dense: tuple[str, ...]
    """Columns of numbers; a missing one is 0."""
    categorical: tuple[str, ...]
    """Columns of values of any kind, compared as text; a missing one is a value of its own."""
    split: Literal["random", "ordered", "days", "time", "column", "files"] = "random"
    """Into training, validation and test: drawn at random; "ordered": in the rows' own order; "time": by the times of
    the column `split_by`; "column": by what the column `split_by` says, train, validation or test; "files": by three
    raw files, in this order; "days": in the rows' own order six sevenths, which are days of near-equal length, for
    training, and the last day halved."""
    split_seed: int = 0
    """Of a random split."""
    split_by: str | None = None
    """The column that decides a split by time or by a column."""
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Of training, validation and test, where the split is random, ordered or by time. Rows of one time stay
    together."""
    split_at: tuple[str, ...] = ()
    """The times at which validation and test begin, in place of fractions: ["2014-10-29", "2014-10-30"]."""
    vocabulary: Literal["all", "train"] | None = None
    """Which rows' values have ids: all, as in the paper, or those of training, so that a value first seen in validation
    is what it will be when served. None: training's where the split is by time, column or files, else all."""
    min_count: int | dict[str, int] = 1
    """A column's values that fewer rows have (of training) share one row of its table; a number, or one a column."""
    hash_buckets: dict[str, int] = field(default_factory=dict)
    """Of a categorical column without end: so many rows, and a value's is its CRC-32 modulo their number."""
    multi_valued: dict[str, MultiValued] = field(default_factory=dict)
    """Categorical columns that have several values a row."""
    times: dict[str, Time] = field(default_factory=dict)
    """Columns, categorical or dense, that are parts of a time."""
    weight: str | None = None
    """A column of numbers, 0 and more, by which a row counts in the loss and in the metrics; divided by their mean over
    training."""
    transform: dict[str, Transform] = field(default_factory=dict)
    """Of a dense column, where it isn't log1p: log(1 + max(x, 0))."""
    columns: tuple[str, ...] = ()
    """All columns in order, of delimited text that has no header."""
    separator: str | None = None
    """Of delimited text, where it isn't the ending's: a comma of .csv, a tab of .tsv and .txt."""
    encoding: str = "utf-8"
    """Of delimited text: latin-1, utf-16 and whatever else Python knows."""
    quoted: bool = True
    """Whether fields of delimited text may be in double quotes; false where quotes are characters like others."""
    null_values: tuple[str, ...] = ("NaN", "nan")
    """Texts that mean a missing value, besides an empty field, a null, and a number that is NaN."""
    positive: str | None = None
    """The label's value that means 1, where it has two of other names; the other means 0."""
    integer: tuple[str, ...] = ()
    """Categorical columns of whole numbers, which are one value however they are written: 5, 5.0, 05."""
    hexadecimal: tuple[str, ...] = ()
    """Categorical columns in which all values have 8 hexadecimal digits, and anything else is an error."""
    lost_rows: bool = False
    """Leave out the rows that the published Avazu loader lost: the first, then every 100,001st, and what follows the
    last whole 100,001."""
    rows: int | None = None
    """Expected rows of the whole data set."""
    table_rows: tuple[int, ...] | None = None
    """Expected distinct values of each categorical column of the whole data set (n, a row of its table each)."""

    def __post_init__(self) -> None:
        columns = (self.label, *self.dense, *self.categorical, *([self.weight] if self.weight else []))
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ConfigError(f"columns {', '.join(twice)} are named twice: each has one role")
        if not self.categorical:
            raise ConfigError("categorical = []: expected at least one column to embed")
        unknown = sorted(({*self.raw_columns()} if self.columns else set()) - set(self.columns))
        if unknown:
            raise ConfigError(
                f"columns: {', '.join(unknown)} not among them; expected all columns of the file in order"
            )
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\n\r'):
            raise ConfigError(f"separator = {self.separator!r}: expected one character, no quote and no line end")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ConfigError(f"encoding = {self.encoding!r}: expected one that Python knows, as latin-1") from None
        for key, names in (
            ("hexadecimal", self.hexadecimal), ("integer", self.integer), ("hash_buckets", self.hash_buckets),
            ("multi_valued", self.multi_valued),
            ("min_count", self.min_count if isinstance(self.min_count, dict) else ()),
        ):  # fmt: skip
            if strangers := sorted(set(names) - set(self.categorical)):
                raise ConfigError(f"{key}: {strangers[0]} is not a categorical column")
        if not self.name or self.name[0] == "." or set(self.name) & set("/\\:\0"):
            raise ConfigError(f"name = {self.name!r}: expected a name that a directory can have, without / and \\")
        self._check_split()
        self._check_kinds()
        strangers = sorted(set(self.transform) - set(self.dense))
        if strangers:
            raise ConfigError(f"transform.{strangers[0]}: not a dense column; expected one of {', '.join(self.dense)}")

    def _check_split(self) -> None:
        if (self.split in ("time", "column")) != (self.split_by is not None):
            raise ConfigError(f"split_by = {self.split_by!r}: expected a column where split is time or column, only")
        shares = [Fraction(str(share)) for share in self.fractions]
        if len(shares) != 3 or min(shares) <= 0 or sum(shares) != 1:
            raise ConfigError(f"fractions = {list(self.fractions)}: expected three above 0, of 1 in all")
        if self.split not in ("random", "ordered", "time") and self.fractions != Dataset.fractions:
            raise ConfigError(f"fractions: split = {self.split!r} has its own; expected random, ordered or time")
        if self.split_at and (self.split != "time" or len(self.split_at) != 2):
            raise ConfigError('split_at: expected two times, where validation and test begin, and split = "time"')

    def _check_kinds(self) -> None:
        for name, time in self.times.items():
            if name not in (*self.dense, *self.categorical):
                raise ConfigError(f"times.{name}: is neither a dense nor a categorical column")
            if name in (*self.integer, *self.hexadecimal, *self.multi_valued):
                raise ConfigError(f"times.{name}: is a part of a time, and can be nothing else")
            if name == time.column:
                raise ConfigError(f"times.{name}: has the name of its raw column; expected one of its own")
        for name, many in self.multi_valued.items():
            if name in self.hexadecimal:
                raise ConfigError(f"multi_valued.{name}: is hexadecimal too; expected one of both")
            if not 1 <= many.max_values <= 4096:
                raise ConfigError(f"multi_valued.{name}.max_values = {many.max_values}: expected 1 to 4096")
            if len(many.separator) != 1:
                raise ConfigError(f"multi_valued.{name}.separator = {many.separator!r}: expected one character")
        for name, buckets in self.hash_buckets.items():
            if not 1 <= buckets < 1 << 31:
                raise ConfigError(f"hash_buckets.{name} = {buckets}: expected 1 to 2^31 - 1")
            if name in self.hexadecimal or (isinstance(self.min_count, dict) and name in self.min_count):
                raise ConfigError(f"hash_buckets.{name}: is numbered by hexadecimal or min_count too; expected one way")
        if both := sorted({*self.integer} & {*self.hexadecimal}):
            raise ConfigError(f"hexadecimal: {both[0]} is in integer too; expected one of both")
        if self.lost_rows and self.split in ("time", "column", "files"):
            raise ConfigError(f"lost_rows: can't be with split = {self.split!r}")
        for name in self.categorical:
            if self.least_count(name) < 1:
                raise ConfigError(f"min_count = {self.min_count}: expected 1 or more")

    def transform_of(self, name: str) -> Transform:
        """A dense column's transform."""
        return self.transform.get(name, "identity" if name in self.times else "log1p")

    def least_count(self, name: str) -> int:
        """In how many rows of training a value of the categorical column has to be for an id of its own."""
        if isinstance(self.min_count, dict):
            return self.min_count.get(name, 1)
        return 1 if name in self.hash_buckets else self.min_count

    @property
    def numbers_training_alone(self) -> bool:
        """Whether only values of training rows have ids."""
        return (self.vocabulary or ("train" if self.split in ("time", "column", "files") else "all")) == "train"

    def raw_columns(self, labelled: bool = True) -> tuple[str, ...]:
        """What has to be read of a raw file; without labels not those either that only training needs."""
        features = [
            self.times[name].column if name in self.times
            else (self.multi_valued[name].column or name) if name in self.multi_valued
            else name
            for name in (*self.dense, *self.categorical)
        ]  # fmt: skip
        others = [self.label, self.weight, self.split_by] if labelled else []
        return tuple(dict.fromkeys(filter(None, [*others[:1], *features, *others[1:]])))

    def described(self) -> dict[str, Any]:
        """Its keys that aren't the defaults, but for the counts that are expected of it."""
        defaults = {f.name: f.default if f.default is not MISSING else f.default_factory for f in fields(self)}
        made = {name: default() if callable(default) else default for name, default in defaults.items()}
        skip = ("rows", "table_rows")
        return {k: v for k, v in asdict(self).items() if k not in skip and getattr(self, k) != made[k]}

    @property
    def format(self) -> Format:
        """How its files are written."""
        return Format(self.separator, self.encoding.lower(), self.quoted, self.null_values, self.columns)


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

COMPLETE_JOURNEY = Dataset(
    name="complete-journey",
    label="discounted",  # sold at the discount of the shop's loyalty card
    dense=("hour_of_day",),
    categorical=(
        "household_id", "product_id", "store_id", "week", "weekday", "hour", "manufacturer_id", "department", "brand",
        "product_category", "product_type", "package_size",
    ),
    rows=1_469_307,
    table_rows=(2469, 68_509, 457, 53, 7, 24, 5310, 31, 3, 303, 2243, 3063),
)  # fmt: skip

COMPLETE_JOURNEY_BY_TIME = replace(COMPLETE_JOURNEY, name="complete-journey-by-time", split="ordered")

_CRITEO_DENSE = tuple(f"I{i}" for i in range(1, 14))
_CRITEO_SPARSE = tuple(f"C{i}" for i in range(1, 27))

CRITEO_KAGGLE = Dataset(
    name="criteo-kaggle",
    label="label",
    dense=_CRITEO_DENSE,
    categorical=_CRITEO_SPARSE,
    split="days",
    columns=("label", *_CRITEO_DENSE, *_CRITEO_SPARSE),
    null_values=(),
    hexadecimal=_CRITEO_SPARSE,
    rows=45_840_617,
    table_rows=(
        1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194, 27, 14_992, 5_461_306,
        10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
    ),
)  # fmt: skip

AVAZU = Dataset(
    name="avazu",
    label="click",
    dense=("hour",),
    categorical=(
        "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
        "device_id", "device_ip", "device_model", "device_type", "device_conn_type", "C14", "C15", "C16", "C17", "C18",
        "C19", "C20", "C21",
    ),
    transform={"hour": "hour_of_day"},
    null_values=(),
    hexadecimal=(
        "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id", "device_ip",
        "device_model",
    ),
    rows=40_428_967,
)  # fmt: skip

AVAZU_AS_PUBLISHED = replace(
    AVAZU, name="avazu-as-published", transform={"hour": "unix_hour"}, lost_rows=True, rows=40_400_000
)

BUILT_IN = {
    dataset.name: dataset
    for dataset in (
        FLIGHTS, COMPLETE_JOURNEY, COMPLETE_JOURNEY_BY_TIME, CRITEO_KAGGLE, AVAZU, AVAZU_AS_PUBLISHED,
    )
}  # fmt: skip


def load(name_or_path: str) -> Dataset:
    """A built-in data set by its name, or a user's own by the path of its TOML file."""
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    if not name_or_path.endswith(".toml"):
        raise ConfigError(f"data set {name_or_path!r}: expected one of {', '.join(BUILT_IN)}, or a .toml file")
    try:
        dataset = build(Dataset, read_toml(Path(name_or_path)))
        if dataset.name in BUILT_IN:
            raise ConfigError(f"name = {dataset.name!r}: is a built-in data set's; expected another")
        return dataset
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(name_or_path) else f"{name_or_path}: {message}") from None
