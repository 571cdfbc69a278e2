"""The house: imports run one way through the rooms, and each file's opening line says what it is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlrm_mlet

PACKAGE = Path(dlrm_mlet.__file__).parent
FLOORS = [
    "extras",
    "files",
    "stopping",
    "toml",
    "config",
    "tables",
    "data",
    "training",
    "distributed",
    "sweeping",
    "serving",
    "reporting",
    "verify",
    "__main__",
]
"""From the ground up; what lies on one may import what lies below it."""
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the dotted name of everything of ours that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it goes"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        ours = (name for name in names if name.split(".")[0] == "dlrm_mlet" and name != "dlrm_mlet.__version__")
        yield from ((node.lineno, name) for name in ours)


@pytest.mark.parametrize("path", [path for path in FILES if path != PACKAGE / "__init__.py"], ids=str)
def test_no_import_runs_up(path):
    for line, name in imported(path):
        below = name.split(".")[1]
        assert below in FLOORS, f"{path}:{line}: {name} is no room; import from the room itself"
        assert FLOORS.index(below) <= FLOORS.index(room(path)), f"{path}:{line}: {name} is above {room(path)}"


def test_no_import_runs_round_within_a_room():
    modules = {".".join(("dlrm_mlet", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    below = {
        name: {
            target for _, found in imported(path) for target in (found, found.rpartition(".")[0]) if target in modules
        }
        for name, path in modules.items()
    }
    while free := {name for name, its in below.items() if not its}:
        below = {name: its - free for name, its in below.items() if name not in free}
    assert not below, f"these import one another: {sorted(below)}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_file_opens_with_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text())), (
        f"{path}: expected an opening line, what goes in -> what comes out"
    )


def test_the_tests_mirror_the_rooms():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == {path.name for path in Path(__file__).parent.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(FLOORS)
