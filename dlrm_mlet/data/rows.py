"""A data set and its raw files -> blocks of rows with the columns that it names; times are taken apart here."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dlrm_mlet.data.blocks import Block, RawError, Reader
from dlrm_mlet.data.datasets import Dataset, Format
from dlrm_mlet.data.raw import Parts, open_raw
from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl

Where = Callable[[int], str]
Refuse = Callable[[pl.Series, str], None]
"""Called with the rows of a block that may be wrong, and what was expected; raises RawError at the first that is."""
EPOCH = r"^(\d{9}|1\d{9})(\.\d+)?$|^\d{13}$|^\d{16}$"
"""Seconds, of 9 digits or of 10 below 2,000,000,000, since YYYYMMDDHH is above; milliseconds, or microseconds."""
ISO = (
    r"^(?P<date>\d{4}-\d\d-\d\d)([T ](?P<hour>\d\d)(:(?P<minute>\d\d)(:(?P<second>\d\d)(\.\d+)?)?)?)?"
    r"\s*(Z|UTC|(?P<offset>[+-]\d\d):?(?P<minutes>\d\d))?$"
)
UNITS = ((1e11, 1e3), (1e14, 1e6))
"""Above which number it is of which unit, as a share of a second, from the lowest up."""


def refuser(values: pl.Series, first_row: int, where: Where) -> Refuse:
    """For a column's values in the block that begins at `first_row` of the file."""

    def refuse(wrong: pl.Series, expected: str) -> None:
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            value = values[row].to_list() if isinstance(values[row], pl.Series) else values[row]
            raise RawError(f"{where(first_row + row)}: column {values.name!r} is {value!r}; expected {expected}")

    return refuse


def open_rows(
    dataset: Dataset,
    paths: Sequence[Path],
    hexadecimal: Sequence[str],
    format: Format,
    labelled: bool = True,
    also: Sequence[str] = (),
) -> Reader:
    """A reader of the data set's raw columns in these files, one after another; `also` are further ones to read.

    Those that are `hexadecimal` come as numbers where they parse. Without labels, what only training needs isn't read.
    """
    several = {many.column or name for name, many in dataset.multi_valued.items()}
    # what has a second role, in which it is text, is read as text
    times = {time.column for time in dataset.times.values()}
    texts = {*also, *several, *times, dataset.label, dataset.split_by}
    numbers = [name for name in dataset.dense if name not in (*dataset.times, *texts)]
    single = {*times, *dataset.dense, dataset.label, dataset.split_by, dataset.weight}
    single |= {name for name in dataset.categorical if name not in dataset.multi_valued}
    lists = tuple(several - single)
    columns = tuple(dict.fromkeys((*dataset.raw_columns(labelled), *also)))
    parsed = tuple(name for name in hexadecimal if name not in texts)
    opened = [open_raw(path, columns, tuple(numbers), parsed, format, lists) for path in paths]
    return opened[0] if len(opened) == 1 else Parts(paths[0], opened)


def with_columns(dataset: Dataset, block: Block, where: Where) -> pl.DataFrame:
    """A block's raw columns, and beside them those of the data set that are made of others."""
    table, made = block.table, []
    for name, time in dataset.times.items():
        values = table[time.column]
        at = moments(values, refuser(values, block.first_row, where))
        part = {"hour": at.dt.hour, "weekday": at.dt.weekday, "day": at.dt.day}[time.part]()
        made.append(part.cast(pl.String).alias(name))
    for name, many in dataset.multi_valued.items():
        if many.column not in (None, name):
            made.append(table[many.column].alias(name))
    return table.with_columns(made)


def moments(values: pl.Series, refuse: Refuse) -> pl.Series:
    """(rows,) times -> (rows,) moments, to the second, in UTC, a missing one null.

    Times are ISO 8601, or seconds, milliseconds or microseconds since 1970.
    """
    text = values.str.strip_chars().replace("", None).alias("text")
    number = pl.when(pl.col("text").str.contains(EPOCH)).then(pl.col("text")).cast(pl.Float64, strict=False)
    scaled = number
    for above, unit in UNITS:
        scaled = pl.when(number > above).then(number / unit).otherwise(scaled)
    seconds = scaled.floor().cast(pl.Int64)
    iso = pl.col("text").str.extract_groups(ISO).struct
    clock = pl.concat_str(*(iso.field(name).fill_null("00") for name in ("hour", "minute", "second")), separator=":")
    local = (iso.field("date") + " " + clock).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    minutes = iso.field("offset").cast(pl.Int64) * 60 + (iso.field("offset").str.head(1) + iso.field("minutes")).cast(
        pl.Int64
    )
    utc = local - pl.duration(minutes=minutes.fill_null(0))
    found = text.to_frame().select(pl.coalesce(pl.from_epoch(seconds), utc)).to_series()
    expected = "a time, as 2014-10-21 07:30, or seconds (9 or 10 digits), milliseconds (13) or microseconds since 1970"
    refuse(text.is_not_null() & found.is_null(), expected)
    return found
