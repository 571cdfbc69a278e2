"""The Python of the docs runs, and prints what the page says."""

import csv
import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest

from dlrm_mlet import config
from dlrm_mlet.__main__ import _parser, main
from dlrm_mlet.config import ModelConfig, TrainingConfig, Tuning
from dlrm_mlet.data.datasets import Dataset
from tests import raised

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.mark.filterwarnings("ignore:W2 of .* was never trained")
@pytest.mark.parametrize(
    ("page", "count", "left"),
    [
        ("shrink-your-own-model.md", 9, {"model.onnx", "model-int8.onnx", "small.pt"}),
        ("mlet-or-a-rate.md", 2, {"rates"}),
    ],
)
def test_a_page_of_python_runs_from_top_to_bottom(page, count, left, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n+((?:    [^\n]+\n)*)", (DOCS / page).read_text(), re.S)
    assert len(blocks) == count
    scope = {"__name__": "page"}
    for code, shown in blocks:
        capsys.readouterr()
        exec(compile(code, page, "exec"), scope)
        if shown:
            assert capsys.readouterr().out == re.sub("^    ", "", shown, flags=re.M)
    assert left == {file.name for file in tmp_path.iterdir()}


def test_the_pages_of_keys_are_what_the_code_says(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    document_keys = importlib.import_module("document_keys")
    for name, text in document_keys.pages().items():
        assert (DOCS / name).read_text() == text, f"docs/{name} is of other code; expected `make docs` to have been run"


@pytest.mark.parametrize("cls", [ModelConfig, TrainingConfig, Tuning, Dataset])
def test_every_key_has_a_meaning(cls, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    document_keys = importlib.import_module("document_keys")
    rows = document_keys.table(cls).splitlines()[2:]
    assert len(rows) == len(dataclasses.fields(cls))
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    cells = json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert (
        len([cell for cell in cells if any("image/png" in out.get("data", {}) for out in cell.get("outputs", []))]) == 2
    )
    scope = {"__name__": "notebook"}
    for source in code:
        exec(compile(source.replace("STEPS = None", "STEPS = 40"), "quickstart.ipynb", "exec"), scope)
    plt.close("all")
    assert "single layer, tables 12.8    validation AUC" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").exists()


def test_the_page_of_ones_own_data_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    clicks = pl.DataFrame(
        {"age": rng.random(2000), "price": rng.random(2000), "clicked": rng.integers(0, 2, 2000)}
        | {name: rng.integers(0, n, 2000).astype(str) for name, n in (("user", 300), ("ad", 20), ("site", 5))}
    )
    clicks.write_parquet("clicks.parquet")
    clicks.head(50).write_csv("new-clicks.csv")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", (DOCS / "your-own-data.md").read_text(), re.M)
    data_set, preprocess, rest, grid, others, serve = (textwrap.dedent(block).strip("\n") for block in blocks)
    experiment = rest.partition("\n\ndlrm-mlet")[0]
    (tmp_path / "my-clicks.toml").write_text(data_set)
    (tmp_path / "mine.toml").write_text(experiment)
    single = (line for line in experiment.splitlines() if not line.startswith(("embedding_dim", "inner_dim")))
    (tmp_path / "grid.toml").write_text(
        "\n".join(["seeds = [0]" if "seeds" in line else line for line in single] + [grid])
    )
    checkpoint = "results/my-clicks/mine/seed=0/checkpoint.pt"
    calls = [*preprocess.splitlines(), *rest.partition("\n\ndlrm-mlet")[2].splitlines(), *serve.splitlines()]
    calls = [call.partition("#")[0].removeprefix("dlrm-mlet").replace("CHECKPOINT", checkpoint) for call in calls]
    assert len(calls) == 5
    report = others.splitlines()[-1].removeprefix("dlrm-mlet").partition("#")[0]  # what is before needs a checkout
    for call in [*calls, "sweep grid.toml", report]:
        assert main(shlex.split(call)) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "9 runs; 0 diverged" in shown  # the grid's
    assert (tmp_path / "probabilities.csv").read_text().count("\n") == 51
    reader = re.search(r"```python\n(.*?)```", (DOCS / "serving.md").read_text(), re.S)[1]
    assert reader.count("\n") <= 30
    blocked = "import sys\nsys.modules['torch'] = sys.modules['dlrm_mlet'] = None\n"
    call = [sys.executable, "-c", blocked + reader, "my-model", "new-clicks.csv"]
    printed = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()
    written = pl.read_csv("probabilities.csv")["probability"].to_numpy()
    np.testing.assert_allclose([float(text) for text in printed], written, atol=1e-6)


def commands(path):
    """The dlrm-mlet and make calls of a page's code."""
    text = path.read_text().replace("\\\n", " ")
    code = [line.strip() for line in re.findall(r"^    (.*)$", text, re.M)] + re.findall(
        r"`((?:make|dlrm-mlet \S+) [^`\n]+)`", text
    )
    calls = (re.split(r" {2,}|#", line)[0].strip() for line in code if re.match(r"(dlrm-mlet|make) [a-z]", line))
    return [re.sub(r"[][]|\bCHECKPOINT\|", "", call) for call in calls]  # what may be left out can be given


PAGES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "data/README.md",
]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "errors.md"], ids=lambda path: path.name)
def test_every_command_of_the_docs_is_one(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in commands(page):
        name, *arguments = shlex.split(command)
        if name == "make":
            assert arguments[0] in targets, f"{page.name}: {command}"
            continue
        options = _parser().parse_args(arguments)  # exits at what it doesn't know
        if "/" in getattr(options, "config", "") and "<" not in options.config:
            assert config.find(options.config)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page):
    """To a file, and to a heading of it where one is named."""
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if target.startswith("http"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M)
            named = [re.sub(r"[^\w -]", "", text.strip().lower()).replace(" ", "-") for text in headings]
            assert heading in named, f"{page.name}: {target}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_score_in_the_docs_is_one_of_the_results(page):
    """Means with their deviation or interval, as some page of results/ or a row of claims.csv has them."""
    results = "\n".join(path.read_text() for path in [*(ROOT / "results").rglob("*.md"), DOCS / "reproduction.md"])
    results += re.sub(r" ± [\d.]+ (?=\[)", " ", results)
    with (ROOT / "results/claims.csv").open() as file:
        for row in (row for row in csv.DictReader(file) if row["level"]):
            mean, low, high = (float(row[key]) for key in ("mean", "low", "high"))
            results += f"\n{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    text = re.sub(r"So it was tried once,.*?\n## ", "", page.read_text(), flags=re.S)  # of runs that aren't kept
    for score in re.findall(r"[+-]?0\.\d{4} (?:± 0\.\d{4}|\[[^]]*\])", re.sub(r"\s+", " ", text)):
        assert score in results, f"{page.name}: {score}"


def test_the_first_page_can_be_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_every_package_that_is_installed_is_locked_and_has_its_licence_in_the_docs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    licences = importlib.import_module("document_licences")
    installed = set(licences.closure("dlrm-mlet", ("all", "dev"))) - licences.SKIPPED
    assert len(installed) > 50
    assert not installed - set(licences.locked()), "expected a version of each in requirements.lock"
    listed = dict(re.findall(r"^\| ([\w-]+) \| [^|]+ \| ([^|]+) \|", licences.PAGE.read_text(), re.M)[1:])
    cuda = {name for name in installed if name.startswith(("nvidia-", "triton", "cuda-"))}  # NVIDIA's: the page says so
    assert installed - cuda <= set(listed), "expected `make docs` to have been run"
    permissive = "MIT|BSD|Apache|PSF|Python Software Foundation|CC0|MPL|Mozilla Public"
    assert not {name: text for name, text in listed.items() if not re.search(permissive, text)}
    for name in installed - cuda:
        assert licences.licence(name) == listed[name], name


def test_every_error_is_in_the_docs_with_what_to_do():
    cells = re.findall(r"^\| (`+)(.+?)\1 \| (.+) \|$", (DOCS / "errors.md").read_text(), re.M)
    listed = {text.strip().replace("\\|", "|").replace(" ⏎ ", "\n"): advice for _, text, advice in cells}
    assert len(listed) == len(cells), "expected each text once"
    there = {place.text for place in raised.places()}
    assert not there - set(listed), "expected these in docs/errors.md"
    assert not set(listed) - there, "these are raised nowhere any more"
    assert all(len(advice) > 10 for advice in listed.values())
