"""An experiment's TOML file -> its points: frozen, typed configs, checked key by key."""

import dataclasses
import difflib
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dlrm_mlet.toml import ConfigError, build, convert, override, read_toml

MOST_THREADS = 1024
Keep = Literal["all", "best", "none"]
"""Which checkpoints of finished runs a sweep leaves: all; of each point that of the seed with the best validation AUC;
or none. Records always stay. Trials of tuning keep theirs with all alone."""


@dataclass(frozen=True)
class ModelConfig:
    """DLRM's shape and how it starts (paper, section 3)."""

    embedding_dim: int
    """d: the width of the tables that are served, and of the bottom MLP's output."""
    bottom_mlp: tuple[int, ...]
    """Hidden widths of the MLP over the dense columns; its last layer, of width d, is implied."""
    top_mlp: tuple[int, ...]
    """Hidden widths of the MLP over the interactions; its last layer, one logit, is implied."""
    inner_dim: int | tuple[int, ...] | None = None
    """k: the width of the tables that are trained. None: single layer. Several: one more layer for each (N > 2)."""
    allow_bottleneck: bool = False
    """Accept k < d, which narrows the search space to matrices of rank k (paper, Theorem 2.2)."""
    projection_std: float = 0.25
    """Standard deviation of W2 at the start; the paper's N(0, 0.0625) names the variance."""
    initial_scale: float = 1.0
    """The gathered table is uniform in ±initial_scale/sqrt(n) at the start."""
    start_as: tuple[int, ...] | None = None
    """Start at the W of a model with these inner dimensions ([]: a single layer), by the QR of Theorem 2.1."""
    tables: Literal["full", "hashed", "quotient-remainder", "mixed-dimension", "robe", "tensor-train", "min-count"] = (
        "full"
    )
    """Full: a row per value, one layer or more. The others are rivals: see dlrm_mlet/tables/rivals.py."""
    collisions: int = 4
    """By what factor hashed and quotient-remainder tables have fewer rows, and the array of robe fewer numbers."""
    block_size: int = 8
    """Z: how many numbers of a row lie beside each other in the array of robe."""
    tensor_rank: int = 8
    """Of tensor-train tables: how wide their three cores are where they meet."""
    min_count: int = 10
    """Of min-count tables: values that occur less often in training share one row of their table."""
    temperature: float = 0.3
    """How fast mixed dimensions fall with the number of rows."""
    served_rank: int | None = None
    """Serve the table's truncated singular value decomposition of this rank, as two factors."""
    served_as: Literal["float32", "int8", "int4"] = "float32"
    """int8: serve whole numbers, with a half-precision scale per row; int4: with an offset per row, too."""
    served_density: float | None = None
    """Serve this share of the tables' numbers, those of the largest magnitude, and where each lies in its row."""

    @property
    def inner_dims(self) -> tuple[int, ...]:
        """The widths of all layers before the last one; () for a single layer."""
        if self.inner_dim is None:
            return ()
        return self.inner_dim if isinstance(self.inner_dim, tuple) else (self.inner_dim,)

    def __post_init__(self) -> None:
        for key in ("embedding_dim", "bottom_mlp", "top_mlp", "inner_dims"):
            value = getattr(self, key)
            if any(width < 1 for width in (value if isinstance(value, tuple) else (value,))):
                raise ConfigError(f"model.{key.rstrip('s')} = {value}: expected widths of at least 1")
        for key in (
            "projection_std", "initial_scale", "temperature", "collisions", "block_size", "tensor_rank", "min_count",
            "served_rank", "served_density",
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"model.{key} = {value}: expected a positive number")
        if self.tables != "full" and (self.inner_dim or self.start_as is not None or self.initial_scale != 1):
            raise ConfigError(f"model.tables = {self.tables!r}: goes without inner_dim, start_as and initial_scale")
        if self.tables != "full" and (self.served_rank or self.served_as != "float32" or self.served_density):
            raise ConfigError(f'model.tables = {self.tables!r}: can\'t be served otherwise; expected tables = "full"')
        if self.served_rank and (self.inner_dim or self.served_as != "float32"):
            raise ConfigError(
                "model.served_rank: is of float32 tables of a single layer; expected no inner_dim or served_as"
            )
        if self.served_density and (self.served_density >= 1 or self.served_rank or self.served_as != "float32"):
            raise ConfigError(
                f"model.served_density = {self.served_density}: expected a share below 1, without served_rank and "
                "served_as"
            )
        if self.inner_dim == ():
            raise ConfigError("model.inner_dim = []: expected at least one width; leave it out for a single layer")
        narrowest = min(self.inner_dims, default=self.embedding_dim)
        if narrowest < self.embedding_dim and not self.allow_bottleneck:
            raise ConfigError(
                f"model.inner_dim = {narrowest} is below embedding_dim = {self.embedding_dim}: the product could not "
                f"have full rank (paper, Theorem 2.2); expected k >= d, or model.allow_bottleneck = true if it is meant"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How one run trains; by default as the paper's, plain SGD without momentum or decay (section 3)."""

    learning_rate: float = 0.2
    """Of the MLPs and, unless they have their own, of the tables."""
    table_learning_rate: float | None = None
    """The tables' own learning rate, projections included; None: the same as the MLPs'."""
    freeze_projections: bool = False
    """Leave W2 as it starts."""
    optimizer: Literal["sgd", "adagrad", "adam", "lazy-adam"] = "sgd"
    """Adagrad keeps one sum of squares per row of the tables, and one per number of all else. Adam keeps two means per
    number, and each step moves all rows of all tables; lazy Adam's moves those that the batch has."""
    schedule: Literal["constant", "linear"] = "constant"
    """Linear: all learning rates fall in even steps, to zero after the last one."""
    warm_up: float | None = None
    """Over this share of the steps, such as 0.05, all learning rates first rise from zero."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """In what the training step multiplies: tf32 (GPUs alone) all matrices; bfloat16 the MLPs and the interaction, with
    gradients that are rounded to it too. The weights, their updates, validation and test stay float32."""
    batch_size: int = 128
    """Rows of a step, over which the loss is a mean."""
    epochs: int = 1
    """How often each training row is read."""
    max_steps: int | None = None
    """End the run after so many steps, if the epochs aren't over by then."""
    evaluate_every: int = 500
    """Steps between two points of the validation curve, where the run can also be resumed."""
    sharding: Literal["planner", "table_wise", "column_wise", "row_wise", "data_parallel"] = "planner"
    """How train --engine torchrec spreads the tables over processes: see docs/torchrec.md."""
    threads: int = 1
    """CPU threads of one run. It is part of the config because it can change the last bit of a sum."""
    also_measure: tuple[Literal["spectra", "frequency", "curve"], ...] = ()
    """spectra: the tables' singular values at each point of the curve; frequency: validation by how rare ids are;
    curve: the validation curve, as a table and a figure beside those of the sweep."""

    read_test: bool = True
    """False: leave the test split unread, as trials do from which a choice is made."""

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if type(value) in (int, float) and value <= 0:
                raise ConfigError(f"training.{key} = {value}: expected a positive number")
        if self.threads > MOST_THREADS:
            raise ConfigError(f"training.threads = {self.threads}: expected at most {MOST_THREADS}")
        if (self.warm_up or 0) >= 1:
            raise ConfigError(f"training.warm_up = {self.warm_up}: expected a share of the steps, below 1")


GRID_KEYS = {f.name: section for section, cls in (("model", ModelConfig), ("training", TrainingConfig))
             for f in dataclasses.fields(cls)}  # fmt: skip
"""What a grid may vary, and the section where it belongs."""


@dataclass(frozen=True)
class Config:
    """One point of an experiment: all that decides a run, but the seed."""

    dataset: str
    model: ModelConfig
    training: TrainingConfig = field(default_factory=TrainingConfig)


def as_trained(config: Config) -> Config:
    """The same without what is of serving alone: runs of one seed that have it in common train to the same bits."""
    plain: dict[str, Any] = {
        key.name: key.default for key in dataclasses.fields(ModelConfig) if key.name.startswith("served_")
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **plain))


@dataclass(frozen=True)
class Point:
    """A config with its place in the grid: its arm, and what the grid varied to make it."""

    arm: str
    varied: dict[str, Any]
    config: Config
    tuned: dict[str, Any] = field(default_factory=dict)
    """What was chosen for this point, beside what the grid varied."""

    @property
    def label(self) -> str:
        """Its name in paths and bars, such as mlet/inner_dim=64,embedding_dim=4."""
        chosen = {**self.varied, **self.tuned}
        shown = {k: "x".join(map(str, v)) if isinstance(v, tuple) else v for k, v in chosen.items()}
        return "/".join(filter(None, [self.arm, ",".join(f"{key}={value}" for key, value in shown.items())]))

    @property
    def short(self) -> str:
        """Its name in a terminal, such as mlet k=64 d=4."""
        letters = {"inner_dim": "k", "embedding_dim": "d"}
        chosen = {letters.get(key, key): value for key, value in {**self.varied, **self.tuned}.items()}
        shown = (f"{k}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in chosen.items())
        model = self.config.model
        alone = f"k={'x'.join(map(str, model.inner_dims))} " if model.inner_dims else "single layer "
        return " ".join(filter(None, [self.arm, *shown])) or f"{alone}d={model.embedding_dim}"


@dataclass(frozen=True)
class Tuning:
    """How a sweep chooses some keys for each of its points, on validation, before the point's seeds are run.

    Trials start with every combination of `start` and go on around the best one so far, one step of `factor` at a time
    in each key, until `trials` are made and the best has no neighbour that wasn't tried.
    """

    start: dict[str, tuple[float, ...]]
    """The keys to tune, of [model] and [training], and the values to start with."""
    seeds: tuple[int, ...]
    """Of the trials; expected to be others than those of the experiment."""
    trials: int
    """At least so many for each point."""
    factor: float = 2.0
    """From a value to its neighbours."""


@dataclass(frozen=True)
class Experiment:
    """A file of configs/: its points, each to be run once per seed."""

    path: Path
    dataset: str
    seeds: tuple[int, ...]
    points: tuple[Point, ...]
    tuning: Tuning | None = None
    keep: Keep = "all"
    base: str = ""
    """A digest of what is no point's own: of the config but for what the grid varies and tuning chooses."""


def built_in() -> dict[str, Path]:
    """The experiments that come with the package, by name, such as flights/paper-grid."""
    package = Path(__file__).parent
    # beside the package in a checkout, within it where it was installed
    folder = next(place for place in (package / "configs", package.parent / "configs") if place.is_dir())
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.toml"))}


def find(name: str | Path) -> Path:
    """A file by its path, or a built-in experiment by its name. Raises ConfigError where there is neither."""
    if Path(name).is_file():
        return Path(name)
    if Path(name).is_dir():
        raise ConfigError(f"{name}: is a directory; expected a TOML file, or the name of a built-in experiment")
    known = built_in()
    asked = str(name).removeprefix("configs/").removesuffix(".toml")
    if asked in known:
        return known[asked]
    by_dataset = itertools.groupby(known, key=lambda each: each.partition("/")[0])
    names = "; ".join(f"{dataset}/{{{','.join(n.partition('/')[2] for n in each)}}}" for dataset, each in by_dataset)
    meant = "".join(f" (did you mean {near}?)" for near in difflib.get_close_matches(asked, known, 1))
    dataset, _, grid = asked.partition("/")
    if f"flights/{grid}" in known and Path("data", dataset, "schema.json").exists():
        meant = f" (in a checkout `make sweep DATASET={dataset} GRID={grid}` copies that of the flights)"
    raise ConfigError(f"{name}: no such file{meant}; expected a TOML file, or a built-in experiment: {names}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment; `overrides` are `section.key=value` strings, value in TOML, that replace the file's own.

    `path` is a file, or the name of a built-in experiment. Raises ConfigError, which names the file and the key, for
    anything that is unknown, missing or of another type.
    """
    path = find(path)
    table = read_toml(path)
    for assignment in overrides:
        override(table, assignment)
    try:
        known = [*(field.name for field in dataclasses.fields(Config)), "seeds", "grid", "tuning", "keep"]
        if unknown := [key for key in table if key not in known]:
            raise ConfigError(f"unknown key {unknown[0]}: expected one of {', '.join(known)}")
        grid = table.pop("grid", None)
        tuning = _tuning(table.pop("tuning", None))
        keep = convert(table.pop("keep", "all"), Keep, "keep")
        seeds = convert(table.pop("seeds", [0]), tuple[int, ...], "seeds")
        if len(set(seeds)) != len(seeds) or not seeds or min(seeds) < 0:
            raise ConfigError(f"seeds = {list(seeds)}: expected distinct numbers from 0 up")
        if tuning and set(seeds) & set(tuning.seeds):
            raise ConfigError(f"tuning.seeds = {list(tuning.seeds)}: expected other seeds than {list(seeds)}")
        points = (Point("", {}, build(Config, table)),) if grid is None else tuple(_points(table, grid))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Experiment(path, points[0].config.dataset, seeds, points, tuning, keep, _base(table, points, tuning))


def _base(table: Mapping[str, Any], points: Sequence[Point], tuning: Tuning | None) -> str:
    """See Experiment.base: what the grid could vary and doesn't counts, so that it may vary more later."""
    config = dataclasses.asdict(points[0].config)
    varied = {key for point in points for key in point.varied} | set(tuning.start if tuning else ())
    defaults = {field.name: field.default for cls in (ModelConfig, TrainingConfig) for field in dataclasses.fields(cls)}
    for key in varied | {"inner_dim"}:
        config[GRID_KEYS[key]][key] = table.get(GRID_KEYS[key], {}).get(key, defaults[key])
    del config["model"]["embedding_dim"]
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def tuned(point: Point, chosen: Mapping[str, Any]) -> Point:
    """A point with the values that were chosen for some of GRID_KEYS."""
    config = point.config
    for key, value in chosen.items():
        section = getattr(config, GRID_KEYS[key])
        config = dataclasses.replace(config, **{GRID_KEYS[key]: dataclasses.replace(section, **{key: value})})
    return Point(point.arm, point.varied, config, dict(chosen))


def _tuning(table: Any) -> Tuning | None:
    if table is None:
        return None
    tuning = build(Tuning, convert(table, dict[str, Any], "tuning"), "tuning.")
    for key, values in tuning.start.items():
        if key not in GRID_KEYS:
            raise ConfigError(f"unknown key tuning.start.{key}: expected one of {', '.join(GRID_KEYS)}")
        if not values or min(values) <= 0:
            raise ConfigError(f"tuning.start.{key} = {list(values)}: expected positive numbers")
    if len(set(tuning.seeds)) != len(tuning.seeds) or min(tuning.seeds, default=0) < 0:
        raise ConfigError(f"tuning.seeds = {list(tuning.seeds)}: expected distinct numbers from 0 up")
    if not tuning.start or not tuning.seeds or tuning.trials < 1 or tuning.factor <= 1:
        raise ConfigError("tuning: expected keys in start, seeds, trials of at least 1, and a factor above 1")
    return tuning


def _points(table: dict[str, Any], grid: Any) -> list[Point]:
    """Every combination of each arm's lists, without those of k < d that are not meant."""
    if not isinstance(grid, dict) or not all(isinstance(arm, dict) and arm for arm in grid.values()) or not grid:
        raise ConfigError("grid: expected named arms, such as mlet = { inner_dim = [16, 64], embedding_dim = [2, 4] }")
    points: list[Point] = []
    for arm, axes in grid.items():
        for key, values in axes.items():
            if key not in GRID_KEYS:
                raise ConfigError(f"unknown key grid.{arm}.{key}: expected one of {', '.join(GRID_KEYS)}")
            if not isinstance(values, list) or not values:
                raise ConfigError(f"grid.{arm}.{key} = {values!r}: expected a list of values")
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ConfigError(f"grid.{arm}.{key} = {values!r}: expected each value once, or its runs count twice")
        made = [
            _point(table, arm, dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())
        ]
        if not any(made):
            raise ConfigError(f"grid.{arm}: no combination has inner_dim >= embedding_dim")
        points += filter(None, made)
    return points


def _point(table: dict[str, Any], arm: str, varied: dict[str, Any]) -> Point | None:
    for section in ("model", "training"):
        if not isinstance(table.get(section, {}), dict):
            raise ConfigError(f"{section} = {table[section]!r}: expected a table")
    sections = {section: dict(table.get(section, {})) for section in ("model", "training")}
    for key, value in varied.items():
        sections[GRID_KEYS[key]][key] = value
    model = sections["model"]
    inner = model.get("inner_dim")
    narrowest = min(inner) if isinstance(inner, list) and inner else inner
    d = model.get("embedding_dim")
    is_bottleneck = isinstance(narrowest, int) and isinstance(d, int) and narrowest < d
    if is_bottleneck and not model.get("allow_bottleneck"):
        return None
    try:
        config = build(Config, table | sections)
    except ConfigError as error:
        raise ConfigError(f"grid.{arm}: {error}") from None
    return Point(arm, {k: tuple(v) if isinstance(v, list) else v for k, v in varied.items()}, config)
