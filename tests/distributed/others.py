"""Run by a group: TorchRec's own DLRM, converted, sharded, trained and collapsed, on as many processes as there are.

python -m torch.distributed.run --nproc-per-node 2 others.py SHARDING DIRECTORY [pipeline]
"""

import contextlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

from dlrm_mlet import convert
from dlrm_mlet.distributed import load_tables, save_collapsed

ROWS = (300, 47, 12)
BATCH, STEPS, RATE, TABLE_RATE = 8, 20, 0.1, 2.0


def model() -> DLRM:
    """The same weights on every process."""
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=8, num_embeddings=n, feature_names=[f"f{i}"],
                           pooling=PoolingType.MEAN if i else PoolingType.SUM)
        for i, n in enumerate(ROWS)
    ]  # fmt: skip
    return DLRM(EmbeddingBagCollection(tables), 4, [16, 8], [16, 1])


class Batch(Pipelineable):
    """Of one process, as TorchRec's pipelines take it."""

    def __init__(self, dense, features, labels):
        self.dense_features, self.sparse_features, self.labels = dense, features, labels

    def to(self, device, non_blocking=False):
        return Batch(*(each.to(device) for each in (self.dense_features, self.sparse_features, self.labels)))

    def record_stream(self, stream):
        pass

    def pin_memory(self):
        return self


class Trained(DLRMTrain):
    def forward(self, batch):
        return super().forward(batch)


def batches(rank: int, world: int):
    """This process's part of each global batch, bags of none to three ids."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        dense = torch.randn(BATCH, 4, generator=draw)
        lengths = torch.randint(0, 4, (len(ROWS), BATCH), generator=draw)
        ids = [[torch.randint(0, n, (int(count),), generator=draw) for count in row]
               for n, row in zip(ROWS, lengths, strict=True)]  # fmt: skip
        labels = torch.randint(0, 2, (BATCH,), generator=draw).float()
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        features = KeyedJaggedTensor(
            [f"f{i}" for i in range(len(ROWS))],
            torch.cat([each for row in ids for each in row[mine]]),
            lengths=lengths[:, mine].flatten(),
        )
        yield Batch(dense[mine], features, labels[mine])


def main() -> None:
    sharding, directory = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = convert(model(), 16, from_pretrained=True, report=lambda line: None)
    wrapped = Trained(convert(model(), 16, from_pretrained=True, report=lambda line: None))
    tables = wrapped.model.sparse_arch.embedding_bag_collection.collection
    if sharding != "data_parallel":
        apply_optimizer_in_backward(torch.optim.SGD, tables.parameters(), {"lr": TABLE_RATE})
    kernel = ["dense" if sharding == "data_parallel" else "fused"]
    constraint = ParameterConstraints(sharding_types=[sharding], compute_kernels=kernel, min_partition=8)
    sharders = [EmbeddingBagCollectionSharder()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, local_world_size=world, compute_device="cpu"),
        constraints={f"t{i}": constraint for i in range(len(ROWS))},
    )
    plan = planner.collective_plan(wrapped, sharders, dist.GroupMember.WORLD)
    sharded = DistributedModelParallel(wrapped, plan=plan, sharders=sharders, device=torch.device("cpu"))
    load_tables(sharded, whole)
    rest = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    groups = [{"params": [value for name, value in rest.items() if ("embedding_bags" in name) == mine], "lr": rate}
              for mine, rate in ((False, RATE), (True, TABLE_RATE))]  # fmt: skip
    optimizer = KeyedOptimizerWrapper(rest, lambda parameters: torch.optim.SGD(groups))
    if "pipeline" in sys.argv:
        pipeline = TrainPipelineSparseDist(sharded, optimizer, torch.device("cpu"))
        feed = iter(batches(rank, world))
        with contextlib.suppress(StopIteration):
            while True:
                pipeline.progress(feed)
    else:
        for batch in batches(rank, world):
            optimizer.zero_grad()
            loss, _ = sharded(batch)
            loss.backward()
            optimizer.step()
    save_collapsed(sharded.module.model, directory)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
