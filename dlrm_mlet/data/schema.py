"""What a data set's directory holds: schema.json -> a `Schema`. Needs no torch, for machines that only serve."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dlrm_mlet.data.datasets import BUILT_IN, Dataset
from dlrm_mlet.toml import ConfigError, build

SPLITS = ("train", "validation", "test")
MOST_ROWS = 2**31 - 1
"""Of a table: what an id in sparse.npy can number."""
LEFT_OUT = -1
"""An id that stands for no value: of a multi-valued column's places that a row doesn't fill."""
OWN = ("name", "label", "dense", "categorical", "split", "split_seed", "transform", "null_values", "integer")
"""Keys of a data set that a schema has by themselves."""


class ColumnsError(ValueError):
    """A data set's directory that is missing, damaged or incomplete: names the file and what was expected."""


@dataclass(frozen=True)
class Schema:
    """What a data set's directory holds: schema.json."""

    dataset: str
    label: str
    dense: tuple[str, ...]
    categorical: tuple[str, ...]
    table_rows: tuple[int, ...]
    """n of each categorical column: the rows of its table."""
    rows: dict[str, int]
    """Rows of each split; they lie in this order."""
    split: str
    split_seed: int
    transform: dict[str, str]
    source: dict[str, str | int]
    """The raw file: its name, and its text's bytes and sha256."""
    vocabulary: str
    """SHA-256 of the values, in the order of their ids."""
    mismatches: tuple[str, ...]
    """What differs from the counts that are known of the whole data set."""
    null_values: tuple[str, ...] = ()
    integer: tuple[str, ...] = ()
    """These two as in the data set: what predict has to read in the same way."""
    described: dict[str, Any] = field(default_factory=dict)
    """The data set's keys, where they aren't the defaults: how raw files of it are read."""
    fallback: tuple[int, ...] = ()
    """Of each categorical column, the id that a value counts as which has none: that of rare values (min_count) where
    there is one, else that of a missing value where training has one, else the most frequent one of training; -1 in a
    multi-valued column, whose unknown values are left out."""
    extends: tuple[str, ...] = ()
    """Fingerprints of the data sets whose ids are these ids too, the nearest first."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each array's file, by its name."""

    def as_dict(self) -> dict[str, Any]:
        """As in schema.json."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that differ where the columns could; the name of the raw file is nothing to them."""
        said = self.as_dict()
        if "sha256" in self.source:
            said["source"] = {key: value for key, value in self.source.items() if key != "name"}
        described, extends = said.pop("described"), said.pop("extends")
        for key in ("fallback", "files"):  # follow from the rest
            said.pop(key)
        if self.dataset not in BUILT_IN:  # of which the name says all
            said |= {key: value for key, value in described.items() if key not in OWN}
        said |= {"extends": extends} if extends else {}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    def as_dataset(self) -> Dataset:
        """The data set as it was described: how raw files of it are read."""
        return build(Dataset, self.described)

    @property
    def slots(self) -> tuple[int, ...]:
        """Columns of sparse.npy of each categorical column: one, or as many as a multi-valued one may have values."""
        multi_valued = self.described.get("multi_valued", {})
        return tuple(int(multi_valued[n]["max_values"]) if n in multi_valued else 1 for n in self.categorical)

    @property
    def pooling(self) -> tuple[str, ...]:
        """Of each categorical column, how the vectors of its values become one: "mean", "sum", or "" for one value."""
        multi_valued = self.described.get("multi_valued", {})
        return tuple(multi_valued[n]["pooling"] if n in multi_valued else "" for n in self.categorical)

    @property
    def weight(self) -> str | None:
        """The column of the rows' weights, which lie in weight.npy."""
        return self.described.get("weight")


def load(path: Path) -> Schema:
    """The schema.json at `path`. Raises ColumnsError where it is none."""
    try:
        schema = build(Schema, json.loads(path.read_text(encoding="utf-8")))
        if schema.described:
            schema.as_dataset()
        if tuple(schema.rows) != SPLITS or min(schema.rows.values()) < 1:
            raise ValueError(f"rows = {schema.rows}: expected some of {', '.join(SPLITS)}, in this order")
        least, most = min(schema.table_rows, default=0), max(schema.table_rows, default=0)
        if len(schema.table_rows) != len(schema.categorical) or least < 1 or most > MOST_ROWS:
            raise ValueError(
                f"table_rows = {list(schema.table_rows)}: expected one for each categorical column, of 1 to {MOST_ROWS}"
            )
        if tuple(schema.transform) != schema.dense:
            raise ValueError(f"transform = {schema.transform}: expected one for each dense column")
    except FileNotFoundError:
        raise ColumnsError(f"{path}: no such file; expected a data set that dlrm-mlet preprocess wrote") from None
    except (ConfigError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ColumnsError(
            f"{path}: not a data set's schema: {error}; delete the directory, and preprocess again"
        ) from None
    return schema


def check_trained_on(path: Path, dataset: str, fingerprint: str, found: Schema) -> None:
    """Raises ColumnsError where a model trained on one data set is given the columns of another."""
    if found.fingerprint != fingerprint:
        raise ColumnsError(
            f"{path}: trained on {dataset} ({fingerprint}), and these columns are {found.dataset} "
            f"({found.fingerprint}): ids would mean other values; expected the data set that it was trained on"
        )


def check_served(schema: Schema, path: Path) -> None:
    """Raises ColumnsError where the directory of `path` is of a version that didn't write what serving needs."""
    if len(schema.fallback) != len(schema.categorical):
        raise ColumnsError(f"{path}: is of an older version, without `fallback`; preprocess the data set again")
