"""Small data sets that several modules' tests share; and whether all tests together raise every error there is."""

import contextlib
import csv
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dlrm_mlet.config import Config, ModelConfig, TrainingConfig
from dlrm_mlet.data.columns import Columns, load
from dlrm_mlet.data.datasets import Dataset
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.sweeping import sweep, worker
from dlrm_mlet.training.run import train
from tests import pretend_gpu, raised

CLICKS = Dataset(
    name="clicks",
    label="clicked",
    dense=("age", "price"),
    categorical=("user", "ad", "site"),
    transform={"age": "identity"},
)


@pytest.fixture(scope="session")
def clicks_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows in which the ad and the price decide the click, with missing values in every column but the label."""
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("raw") / "clicks.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "clicked", "age", "ad", "price", "site", "unused"])
        for _ in range(3000):
            ad, price = rng.randrange(20), rng.expovariate(1)
            clicked = int(rng.random() < (0.8 if ad % 3 == 0 else 0.2) / (1 + price / 4))
            row = [f"u{rng.randrange(200)}", clicked, rng.randrange(90), f"{ad:08x}", f"{price:.3f}", "x,y", ""]
            for i in (0, 2, 3, 4, 5):
                if rng.random() < 0.05:
                    row[i] = ""
            writer.writerow(row)
    return path


@pytest.fixture(scope="session")
def clicks_directory(clicks_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as columns on disk."""
    out = tmp_path_factory.mktemp("data") / "clicks"
    preprocess(CLICKS, out, clicks_csv)
    return out


@pytest.fixture(scope="session")
def clicks(clicks_directory: Path) -> Columns:
    """The same columns, loaded."""
    return load(clicks_directory)


@pytest.fixture
def run(clicks: Columns, small_mlet: Config, tmp_path: Path) -> Path:
    """The directory of a finished run of `small_mlet`."""
    train(small_mlet, clicks, 0, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps train in this process, and not in workers, each of which imports torch for itself."""

    def train_all(
        waiting: deque[sweep.Job], data: Path, devices: list[torch.device]
    ) -> Iterator[tuple[sweep.Job, str | None]]:
        columns = load(data)
        while waiting:
            job = waiting.popleft()
            yield job, worker.make(job, columns, devices[0])

    monkeypatch.setattr(sweep, "_train_all", train_all)


@pytest.fixture
def small_mlet() -> Config:
    """A run of 38 steps."""
    model = ModelConfig(embedding_dim=4, inner_dim=16, bottom_mlp=(16,), top_mlp=(32, 16))
    return Config("clicks", model, TrainingConfig(batch_size=64, evaluate_every=10))


GPUS = [
    pytest.param(
        "cuda", marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))
    ),
    pytest.param(pretend_gpu.NAME, marks=(pytest.mark.thorough, pretend_gpu.INSTEAD)),
]


@pytest.fixture(params=["cpu", *GPUS])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, and a GPU or what stands in for one; a test may leave the CPU out."""
    with pretend_gpu.PretendGPU() if request.param == pretend_gpu.NAME else contextlib.nullcontext():
        yield torch.device(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked zoo runs when it is asked for, and what is marked thorough unless all tests are meant.

    The longest test comes first, so that no worker is left with it when the others have done.
    """
    items.sort(key=lambda item: item.path.name != "test_torture.py")
    for item in items:
        if item.get_closest_marker("zoo") and "zoo" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="asked for by -m zoo"))
        elif item.get_closest_marker("thorough") and _all_are_meant(config):
            item.add_marker(pytest.mark.skip(reason="asked for by -m thorough, or by its name"))


def _all_are_meant(config: pytest.Config) -> bool:
    named = config.args_source != config.ArgsSource.TESTPATHS
    return not (named or config.option.keyword or config.option.markexpr)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """When all tests have passed, each error of the package was raised by one of them."""
    config = session.config
    if _all_are_meant(config) and session.exitstatus == pytest.ExitCode.OK and not hasattr(config, "workerinput"):
        for place in (missing := raised.never_raised()):
            print(f"\nno test raises dlrm_mlet/{place.file}:{place.line}: {place.kind}: {place.text}", end="")
        if missing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
