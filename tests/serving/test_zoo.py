"""Models of other packages; where they are installed, which takes much, each has to come through or say why not.

pip install recbole ...                # see scripts/zoo.py
python -m pytest -m zoo
"""

import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(importlib.util.find_spec("recbole") is None, reason="see scripts/zoo.py for what to install"),
    pytest.mark.filterwarnings("ignore"),  # of the packages
]


@pytest.mark.parametrize(
    "package", ["torch-rechub", "deepctr-torch", "torchfm", "recbole", "transformers", "torch_geometric"]
)
def test_no_cell_is_wrong(package, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    zoo = importlib.import_module("zoo")
    found = zoo.entries(package)
    assert not isinstance(found, str), found
    for entry in found:
        assert zoo.wrong(zoo.run(entry.make, entry.dynamic)) is None, entry.name
