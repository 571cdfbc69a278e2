"""The processes that torchrun has started, and a model whose tables are sharded over them by TorchRec's planner."""

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from dlrm_mlet.config import Config
from dlrm_mlet.distributed.model import CollectionTables, ShardedDLRM, padded
from dlrm_mlet.distributed.shards import tables
from dlrm_mlet.extras import needs
from dlrm_mlet.training.optimizer import Adagrad

with needs("torchrec"):
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

FUSED = {"sgd": EmbOptimType.EXACT_SGD, "adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
"""The optimizers that TorchRec has in the backward pass as we have them."""


class EngineError(ValueError):
    """A config that TorchRec can't do as it is: says what was expected."""


@contextlib.contextmanager
def processes(name: str | None) -> Iterator[torch.device]:
    """The group of processes that torchrun has started, or this one alone; yields this one's device.

    That is the GPU of its number on its machine where there is one, else the CPU; or the CPU by `name`. Raises
    EngineError for another name.
    """
    if name not in (None, "cpu"):
        raise EngineError(
            f"--device {name}: each process has a GPU of its own; expected cpu, or none, with --engine torchrec"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if name != "cpu" and torch.cuda.is_available() else torch.device("cpu")
    _quieten()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _quieten() -> None:
    """What TorchRec, FBGEMM and torch say to their own developers."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|dlrm_mlet.distributed")
    warnings.filterwarnings("ignore", "fbgemm::.*: an autograd kernel was not registered", UserWarning)


def sharded(model: ShardedDLRM, config: Config, device: torch.device) -> Any:
    """The model after DistributedModelParallel, by the planner's plan, or by the one kind of sharding of the config."""
    training = config.training
    if training.freeze_projections:
        for name, parameter in model.tables.named_parameters():
            parameter.requires_grad_("projections" not in name)
    sharders = [EmbeddingBagCollectionSharder(fused_params=fused_params(config))]
    types = [training.sharding]
    if training.sharding == "planner":
        types = ["data_parallel", "table_wise"]
        types += ["row_wise"] if device.type == "cuda" else []
        types += ["column_wise"] if training.optimizer == "sgd" else []
    world = dist.get_world_size()
    width = padded((*config.model.inner_dims, config.model.embedding_dim)[0])
    constraint = ParameterConstraints(sharding_types=types, min_partition=padded(-(-width // world)))
    assert isinstance(model.tables, CollectionTables)
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device=device.type,
                          local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world))),
        constraints={table.name: constraint for table in tables(model.tables.collection)},
    )  # fmt: skip
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    return DistributedModelParallel(model, plan=plan, sharders=sharders, device=device)


def fused_params(config: Config) -> dict[str, Any]:
    """The tables' optimizer as FBGEMM takes it.

    Row-wise Adagrad divides a row's sum of squares by its width, with the zeros up to the padded one; rate and epsilon
    make up for it.
    """
    training = config.training
    width = (*config.model.inner_dims, config.model.embedding_dim)[0]
    times = math.sqrt(width / padded(width)) if training.optimizer == "adagrad" else 1.0
    rate = training.table_learning_rate or training.learning_rate
    return {"optimizer": FUSED[training.optimizer], "learning_rate": rate * times, "eps": Adagrad.EPSILON * times}
