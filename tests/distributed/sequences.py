"""Run by a group: a model around an EmbeddingCollection, converted, sharded, trained and saved collapsed.

python -m torch.distributed.run --nproc-per-node 2 sequences.py DIRECTORY
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.optim.optimizers import in_backward_optimizer_filter

from dlrm_mlet import convert
from dlrm_mlet.distributed import load_tables, save_collapsed

ROWS, RATE, STEPS, BATCH = (100, 37), 0.05, 10, 8


class Scorer(nn.Module):
    """The sum of scores of all ids; the same weights on every process."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        configs = [EmbeddingConfig(name=f"t{i}", embedding_dim=8, num_embeddings=n, feature_names=[f"f{i}"])
                   for i, n in enumerate(ROWS)]  # fmt: skip
        self.tables, self.score = EmbeddingCollection(configs), nn.Linear(8, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        found = self.tables(features)
        return sum(self.score(found[f"f{i}"].values()).sigmoid().sum() for i in range(len(ROWS)))


def batches(rank: int, world: int) -> Iterator[KeyedJaggedTensor]:
    """This process's part of each global batch."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        lengths = torch.randint(0, 4, (len(ROWS), BATCH), generator=draw)
        ids = [[torch.randint(0, n, (int(count),), generator=draw) for count in row]
               for n, row in zip(ROWS, lengths, strict=True)]  # fmt: skip
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        values = torch.cat([each for row in ids for each in row[mine]])
        yield KeyedJaggedTensor(["f0", "f1"], values, lengths=lengths[:, mine].flatten())


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    whole, model = (convert(Scorer(), 16, from_pretrained=True, report=lambda line: None) for _ in range(2))
    sharders = [EmbeddingCollectionSharder(fused_params={"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": RATE})]
    constraint = ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, local_world_size=world, compute_device="cpu"),
        constraints={f"t{i}": constraint for i in range(len(ROWS))},
    )
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    sharded = DistributedModelParallel(model, plan=plan, sharders=sharders, device=torch.device("cpu"))
    load_tables(sharded, whole)
    rest = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    optimizer = torch.optim.SGD(rest.values(), lr=RATE)
    for features in batches(rank, world):
        optimizer.zero_grad()
        (sharded(features) * world).backward()  # gradients are averaged over processes
        optimizer.step()
    save_collapsed(sharded, Path(sys.argv[1]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
