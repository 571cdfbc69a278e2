"""A library's model shrunk: torch-rechub's DCN on flights, plain tables of d=16 beside MLET's of d=4, and in int8.

    make preprocess && python scripts/shrink_dcn.py          # pip install torch-rechub first

One pass over the training rows with Adagrad, the same for both; validation AUC, and the bytes of the tables.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import DCN
from tqdm import tqdm

from dlrm_mlet import collapse, convert
from dlrm_mlet.data import columns
from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.serving.export import check, export, open_session
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.training import metrics

BATCH = 512


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


def train(model: nn.Module, data: Columns, learning_rate: float) -> None:
    """One pass."""
    optimizer = torch.optim.Adagrad(model.parameters(), learning_rate)
    batches = data.shuffled("train", BATCH, torch.Generator().manual_seed(0))
    for batch in tqdm(batches, total=-(-data.schema.rows["train"] // BATCH), unit=" steps", disable=None):
        loss = nn.functional.binary_cross_entropy(model(inputs(data, batch)), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def say(name: str, model: nn.Module, data: Columns) -> None:
    """Validation AUC, and the bytes of what the tables hold."""
    batch = data.rows(slice(*data.range("validation")))
    auc = metrics.measure(model(inputs(data, batch)).double().logit(eps=1e-9), batch.label).auc
    nbytes = sum(tensor.nbytes for key, tensor in model.state_dict().items() if "embed_dict" in key)
    print(f"{name}: validation AUC {auc:.4f}, tables of {nbytes:,} bytes")


def main() -> None:
    """Train both, shrink, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/flights"))
    parser.add_argument("--out", type=Path, default=Path("dcn.onnx"))
    parser.add_argument("--learning-rate", type=float, default=0.01)
    options = parser.parse_args()
    data = columns.load(options.data)
    for d in (4, 16):
        torch.manual_seed(0)
        plain = dcn(data, d)
        train(plain, data, options.learning_rate)
        say(f"plain tables, d={d}", plain, data)
    torch.manual_seed(0)
    model = convert(dcn(data, 4), inner_dim=64, min_rows=100)
    train(model, data, options.learning_rate)
    say("MLET's of k=64, d=4", model, data)
    say("collapsed", collapse(model, report=lambda line: None), data)
    say("int8 rows", quantize(model, report=lambda line: None), data)
    few = inputs(data, data.rows(slice(0, 100)))
    export(model, (few,), options.out)
    worst = check(open_session(options.out), model, (inputs(data, data.rows(slice(0, 5000))),))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, {worst:.1e} from torch at most")


if __name__ == "__main__":
    main()
