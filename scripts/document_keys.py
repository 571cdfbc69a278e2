"""The dataclasses of experiments and data sets -> docs/config.md and docs/datasets.md: every key, by its docstring.

python scripts/document_keys.py [--out docs]
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import typing
from pathlib import Path

from dlrm_mlet import config
from dlrm_mlet.config import ModelConfig, TrainingConfig, Tuning
from dlrm_mlet.data import datasets
from dlrm_mlet.data.datasets import BUILT_IN, Dataset, MultiValued, Time

WRITTEN = "Written by `make docs` from the code's own docstrings."

EXPERIMENT = """# Every key of an experiment

An experiment is a TOML file. An unknown key, a missing one and a value of another type are errors that name it.
`dlrm-mlet train FILE` makes one run of it, `dlrm-mlet sweep FILE` all runs of a grid; `--set section.key=value`
replaces a value of the file in `train`. {written}

    dataset = "flights"
    seeds = [0, 1, 2, 3, 4]

    [model]
    embedding_dim = 4
    inner_dim = 64                        # absent: single layer; a list: more layers
    bottom_mlp = [256, 128]
    top_mlp = [512, 256]

    [training]
    learning_rate = 0.2
    batch_size = 128
    epochs = 1

| key | type | default | meaning |
|---|---|---|---|
| `dataset` | text | required | The data set, whose columns lie in data/<dataset> unless `--data` says otherwise. |
| `seeds` | list of whole numbers | `[0]` | One run each; a seed decides the weights and, apart, the rows' order. |
| `keep` | `all`, `best`, `none` | `all` | {keep} |

A `[grid]` has named arms, each with lists of values for some keys of `[model]` and `[training]`. Every combination is
run, but for those with inner_dim below embedding_dim:

    [grid]
    single = {{ embedding_dim = [2, 4, 8] }}
    mlet = {{ inner_dim = [16, 64], embedding_dim = [2, 4, 8] }}

Built-in experiments, which go by name: {names}.
"""
DATA_SET = """# Every key of a data set

A data set of your own is a TOML file: `dlrm-mlet preprocess my-clicks.toml --raw clicks.parquet` writes data/my-clicks,
and `dataset = "my-clicks"` in an experiment trains on it. {written}

    name = "my-clicks"                    # CSV, TSV (by its ending; also .gz, .zip) or Parquet
    label = "clicked"                     # 0 or 1
    dense = ["age", "price"]              # numbers; missing = 0; log(1 + max(x, 0))
    categorical = ["user", "ad", "site"]  # any values; a missing one is a value of its own
    split = "random"                      # 80/10/10; or "ordered": the rows' own order
    split_seed = 0

    [transform]
    age = "identity"                      # where log1p isn't meant; numbers far above 1 make training diverge

Transforms: {transforms}

Built in: {names}. [data/README.md](../data/README.md) says where their rows come from.
"""
TYPES = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}


def main() -> None:
    """Write both pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    for name, text in pages().items():
        (options.out / name).write_text(text, encoding="utf-8")
        print(options.out / name)


def pages() -> dict[str, str]:
    """The pages by their names."""
    sections = ((ModelConfig, "[model]"), (TrainingConfig, "[training]"), (Tuning, "[tuning]"))
    keep = _docstrings(Path(inspect.getsourcefile(config) or ""))["Keep"].replace("\n", " ")
    experiment = EXPERIMENT.format(
        written=WRITTEN, keep=keep, names=", ".join(f"`{name}`" for name in config.built_in())
    )
    for cls, title in sections:
        experiment += f"\n## {title}\n\n{inspect.getdoc(cls)}\n\n{table(cls)}\n"
    transforms = " ".join(_docstrings(Path(inspect.getsourcefile(datasets) or ""))["Transform"].split())
    names = ", ".join(f"`{name}`" for name in BUILT_IN)
    data_set = DATA_SET.format(written=WRITTEN, names=names, transforms=transforms)
    data_set += f"\n{table(Dataset)}\n"
    for key, cls in (("multi_valued", MultiValued), ("times", Time)):
        of_one = " ".join((inspect.getdoc(cls) or "").split())
        data_set += f"\n## Of a column in `{key}`\n\n{of_one}\n\n{table(cls)}\n"
    return {"config.md": experiment, "datasets.md": data_set}


def table(cls: type) -> str:
    """A row for each field of a dataclass, with the docstring below it."""
    hints = typing.get_type_hints(cls)
    meanings = _docstrings(Path(inspect.getsourcefile(cls) or ""), cls.__name__)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        meaning = " ".join(meanings.get(field.name, "").split()).replace("|", "\\|")
        lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _docstrings(path: Path, cls: str | None = None) -> dict[str, str]:
    """The string below each assignment of a module, or of one of its classes."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if cls is not None:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == cls).body
    found = {}
    for node, after in itertools.pairwise(body):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if is_text:
            found.update({target.id: after.value.value for target in targets if isinstance(target, ast.Name)})
    return found


def _type(hint: typing.Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if arguments:
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    return TYPES.get(hint.__name__, hint.__name__)


def _default(field: dataclasses.Field[typing.Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "empty"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "absent"
    shown = list(field.default) if isinstance(field.default, tuple) else field.default
    text = str(shown).lower() if isinstance(shown, bool) else str(shown)
    return f"`{text}`".replace("|", "\\|")


if __name__ == "__main__":
    main()
