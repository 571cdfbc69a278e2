"""TorchRec's collections of tables -> the same with MLET tables: W1 in a collection that is sharded as any, W2 beside.

TorchRec shards the inner collection by its own sharders, wherever in a model it lies, and what is left, the
projections, is data-parallel. So W2 is applied however many devices there are. B rows of a batch; n rows of a table; K
inner dimension; D embedding dimension.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dlrm_mlet.extras import needs
from dlrm_mlet.tables.stacked import PROJECTION_STD, multiply, right_inverse

with needs("torchrec"):
    from torchrec import EmbeddingBagCollection, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor, KeyedTensor
    from torchrec.distributed.types import LazyAwaitable
    from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface, EmbeddingCollectionInterface
    from torchrec.modules.embedding_modules import get_embedding_names_by_table as names_by_table

COLLECTIONS = (EmbeddingBagCollection, EmbeddingCollection)
"""What is converted: these very classes, none derived from them."""


class Projection(nn.Module):
    """W2 of one table, or the several matrices whose product it is."""

    def __init__(self, widths: Sequence[int], device: torch.device):
        super().__init__()
        for i, shape in enumerate(pairwise(widths)):
            self.register_parameter(str(i), nn.Parameter(torch.empty(shape, device=device)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as the paper has it, N(0, 0.25²) (section 3). TorchRec calls this after the meta device."""
        for matrix in self.parameters():
            matrix.normal_(0, PROJECTION_STD)

    def forward(self) -> Tensor:
        """() -> (K, D)."""
        return multiply(self.parameters())


class MLETCollection(nn.Module):
    """What the collections of pooled and of single vectors have in common."""

    OWN = ("_configs", "_arguments", "_names")

    def __init__(self, plain: Any, inner_dims: Mapping[str, Sequence[int]]):
        super().__init__()
        self._configs: list[Any] = list(_configs(plain))
        self._arguments = _arguments(plain)
        self._names = names_by_table(self._configs)
        wide = [_widened(config, inner_dims[config.name][0]) if config.name in inner_dims else config
                for config in self._configs]  # fmt: skip
        tables = tables_of(plain)
        device = next(iter(tables.values())).weight.device
        self.collection = type(plain)(wide, device=device, **self._arguments)
        for name, table in tables_of(self.collection).items():
            if name not in inner_dims:
                table.weight = tables[name].weight
        self.projections = nn.ModuleDict({
            config.name: Projection((*inner_dims[config.name], config.embedding_dim), device)
            for config in self._configs if config.name in inner_dims
        })  # fmt: skip
        self.train(plain.training)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return next(self.parameters()).device

    def products(self) -> dict[str, Tensor | None]:
        """(K, D) of each table; None where it has no projection."""
        return {config.name: self.projections[config.name]() if config.name in self.projections else None
                for config in self._configs}  # fmt: skip

    @torch.no_grad()
    def start_at(self, plain: Any) -> None:
        """Change W1 so that the product is the plain collection's tables; W2 stays as it is (Theorem 2.1)."""
        wanted = tables_of(plain)
        for name, projection in self.projections.items():
            inverse = right_inverse(projection().double())
            tables_of(self.collection)[name].weight.copy_(wanted[name].weight @ inverse.to(wanted[name].weight))

    def why_not_collapsed(self) -> str | None:
        """What stands against `collapse`: W1 is sharded."""
        kind = type(self.collection)
        if kind in COLLECTIONS:
            return None
        return f"its tables are sharded, in {kind.__name__}; expected dlrm_mlet.distributed.save_collapsed"

    @torch.no_grad()
    def collapse(self) -> Any:
        """The plain collection of tables W = W1 · W2, n x D."""
        wide = tables_of(self.collection)
        made = type(self.collection)(self._configs, device=self.device, **self._arguments)
        for name, table in tables_of(made).items():
            weight = wide[name].weight
            if name in self.projections:
                table.weight.copy_(weight.float() @ self.projections[name]())
                table.weight.requires_grad_(weight.requires_grad)
            else:
                table.weight = weight
        return made.train(self.training)


class MLETEmbeddingBagCollection(EmbeddingBagCollectionInterface, MLETCollection):
    """A drop-in for TorchRec's EmbeddingBagCollection: bags are pooled rows of W1, times W2 once (equation 5)."""

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Ids -> (B, sum of D), by the names that the plain collection has."""
        return _project_pooled(self.collection(features), self._names, list(self.products().values()))

    def embedding_bag_configs(self) -> list[Any]:
        """Those of the plain collection, of width D."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether each id has a weight."""
        return bool(self._arguments["is_weighted"])


class MLETEmbeddingCollection(EmbeddingCollectionInterface, MLETCollection):
    """A drop-in for TorchRec's EmbeddingCollection: each id's row of W1 times W2 (equation 5)."""

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Ids -> of each feature (ids of the batch, D)."""
        return _project_each(self.collection(features), self._names, list(self.products().values()))

    def embedding_configs(self) -> list[Any]:
        """Those of the plain collection, of width D."""
        return self._configs

    def need_indices(self) -> bool:
        """Whether the ids come along as weights."""
        return bool(self._arguments["need_indices"])

    def embedding_dim(self) -> int:
        """D."""
        return int(self._configs[0].embedding_dim)

    def embedding_names_by_table(self) -> list[list[str]]:
        """The names of what comes out, of each table."""
        return self._names


MLET = (MLETEmbeddingBagCollection, MLETEmbeddingCollection)
"""What is collapsed."""


def tables_of(collection: Any) -> dict[str, Any]:
    """The modules that hold a plain collection's weights, by the tables' names."""
    return dict((collection.embedding_bags if hasattr(collection, "embedding_bags") else collection.embeddings).items())


def mlet_collection(
    plain: Any, inner_dims: Mapping[str, Sequence[int]]
) -> MLETEmbeddingBagCollection | MLETEmbeddingCollection:
    """A new collection in place of a plain one, with the inner dimensions of the tables that are converted."""
    kind = MLETEmbeddingBagCollection if isinstance(plain, EmbeddingBagCollection) else MLETEmbeddingCollection
    return kind(plain, inner_dims)


def _configs(plain: Any) -> list[Any]:
    return plain.embedding_bag_configs() if isinstance(plain, EmbeddingBagCollection) else plain.embedding_configs()


def _arguments(plain: Any) -> dict[str, Any]:
    if isinstance(plain, EmbeddingBagCollection):
        return {"is_weighted": plain.is_weighted()}
    return {"need_indices": plain.need_indices(), "use_gather_select": plain._use_gather_select,
            "use_gather_select_per_sharding": plain._use_gather_select_per_sharding}  # fmt: skip


def _widened(config: Any, width: int) -> Any:
    """The table's config as W1's; it starts uniform in ±1/sqrt(n), as both TorchRec and the paper have it."""
    plain = {"init_fn": None, "weight_init_max": None, "weight_init_min": None}
    return dataclasses.replace(config, embedding_dim=width, **plain)


def _project_pooled(found: KeyedTensor, names: list[list[str]], products: list[Tensor | None]) -> KeyedTensor:
    """(B, sum of K) -> (B, sum of D). Tables of one shape are multiplied at once; a sharded collection's keys may come
    in another order, and are looked up by name."""
    vectors = _waited(found).to_dict()
    groups: dict[Any, list[tuple[str, Tensor]]] = {}
    for mine, product in zip(names, products, strict=True):
        if product is not None:
            groups.setdefault(product.shape, []).extend((name, product) for name in mine)
    for group in groups.values():
        wide = torch.stack([vectors[name] for name, _ in group])  # (features, B, K)
        narrow = torch.bmm(wide, torch.stack([product for _, product in group]))  # (features, B, D)
        vectors |= zip((name for name, _ in group), narrow.unbind(), strict=True)
    keys = [name for mine in names for name in mine]
    values = [vectors[key] for key in keys]
    return KeyedTensor(keys, [value.shape[1] for value in values], torch.cat(values, 1))


def _project_each(
    found: dict[str, JaggedTensor], names: list[list[str]], products: list[Tensor | None]
) -> dict[str, JaggedTensor]:
    """Of each feature (ids, K) -> (ids, D)."""
    vectors = _waited(found)
    return {
        name: JaggedTensor(vectors[name].values() @ product, vectors[name].weights_or_none(), vectors[name].lengths())
        if product is not None else vectors[name]
        for mine, product in zip(names, products, strict=True) for name in mine
    }  # fmt: skip


def _waited(found: Any) -> Any:
    return found.wait() if isinstance(found, LazyAwaitable) else found


# TorchRec's pipelines trace a model down to these
torch.fx.wrap("_project_pooled")
torch.fx.wrap("_project_each")
