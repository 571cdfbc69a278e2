"""A library's model shrunk: torch-rechub's DCN on flights, the tables' learning rate searched, then int8 and ONNX.

    make preprocess && python scripts/shrink_dcn.py          # pip install torch-rechub first
    python scripts/shrink_dcn.py --optimizer adam --learning-rate 0.002 --out results/flights/dcn-adam

One pass over the training rows. As docs/mlet-or-a-rate.md advises, plain tables and MLET's each have their
own best rate, found on validation; the better side is trained once more, packed and exported.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import DCN

from dlrm_mlet import collapse, convert, find_table_learning_rate, parameter_groups, quantize
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.serving.checking import check
from dlrm_mlet.serving.export import export
from dlrm_mlet.serving.session import open_session
from dlrm_mlet.training import metrics

BATCH = 512
OPTIMIZERS = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
QUIET = {"report": lambda line: None}


def dcn(data: Columns, embedding_dim: int) -> DCN:
    """The library's model for the columns of flights."""
    schema = data.schema
    sparse = zip(schema.categorical, schema.table_rows, strict=True)
    features = [SparseFeature(name, rows, embed_dim=embedding_dim) for name, rows in sparse]
    return DCN(features + [DenseFeature(name) for name in schema.dense], 2, {"dims": [256, 128]})


def inputs(data: Columns, batch: Batch) -> dict[str, torch.Tensor]:
    """As the library takes them: a column a name."""
    names = (*data.schema.categorical, *data.schema.dense)
    return dict(zip(names, (*batch.sparse.unbind(1), *batch.dense.unbind(1)), strict=True))


def train(model: nn.Module, data: Columns, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One pass, the batches in the seed's order."""
    for batch in data.shuffled("train", BATCH, torch.Generator().manual_seed(seed)):
        loss = nn.functional.binary_cross_entropy(model(inputs(data, batch)), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def validation_auc(model: nn.Module, data: Columns) -> float:
    """Of all its rows."""
    batch = data.rows(slice(*data.range("validation")))
    return metrics.measure(model.eval()(inputs(data, batch)).double().logit(eps=1e-9), batch.label).auc


def say(name: str, model: nn.Module, data: Columns) -> None:
    """Validation AUC, and the bytes of what the tables hold."""
    nbytes = sum(tensor.nbytes for key, tensor in model.state_dict().items() if "embed_dict" in key)
    print(f"{name}: validation AUC {validation_auc(model, data):.4f}, tables of {nbytes:,} bytes")


def main() -> None:
    """Search, train, shrink, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/flights"))
    parser.add_argument("--out", type=Path, default=Path("results/flights/dcn-adagrad"))
    parser.add_argument("--onnx", type=Path, default=Path("dcn.onnx"))
    parser.add_argument("--embedding-dim", type=int, default=4)
    parser.add_argument("--inner-dim", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of all but the tables")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adagrad")
    options = parser.parse_args()
    data, d = columns.load(options.data), options.embedding_dim

    def train_at(model: nn.Module, table_rate: float, seed: int) -> None:
        groups = parameter_groups(model, learning_rate=options.learning_rate, table_learning_rate=table_rate)
        train(model, data, OPTIMIZERS[options.optimizer](groups), seed)

    found = find_table_learning_rate(
        lambda: dcn(data, d),
        train_at,
        lambda model: validation_auc(model, data),
        options.out,
        start=options.learning_rate,
        inner_dim=options.inner_dim,
    )
    plain, mlet = found.scores
    name = mlet if found.gain.low > 0 else plain
    torch.manual_seed(0)
    model = dcn(data, d)
    if name == mlet:
        convert(model, options.inner_dim, min_rows=100, **QUIET)
    train_at(model, found.best(name), 0)
    say(f"{name} at {found.best(name):g}", model, data)
    if name == mlet:
        say("collapsed", collapse(model, **QUIET), data)
    say("in int8", quantize(model, **QUIET), data)
    few = inputs(data, data.rows(slice(0, 100)))
    export(model, (few,), options.onnx)
    worst = check(open_session(options.onnx), model, (inputs(data, data.rows(slice(0, 5000))),))
    print(f"{options.onnx}: {options.onnx.stat().st_size:,} bytes, {worst:.1e} from torch at most")


if __name__ == "__main__":
    main()
