"""Which of the package's errors are there, and which were raised: by the source, and by a hook on its import.

The tests' process rewrites each `raise Error(f"...")` of the package, as it is imported, into one that also notes its
place. When all tests were run, a place that was never noted fails them: see conftest.py.
"""

import ast
import builtins
import importlib.abc
import importlib.machinery
import os
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dlrm_mlet"
NOTES = "DLRM_MLET_RAISED"
"""The environment's variable with the file that places are noted in, one for all processes of pytest."""
ABSTRACT = {"NotImplementedError"}
LETTERS = 8
"""A message with fewer letters of its own hands on another one's."""


@dataclass(frozen=True)
class Place:
    """Where an error is raised: the file within the package, the line, its class and its literal text."""

    file: str
    line: int
    kind: str
    text: str
    """With … for what is filled in."""


def places() -> list[Place]:
    """All of the package, by file and line."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            Place(path.relative_to(PACKAGE).as_posix(), node.lineno, ast.unparse(node.exc.func), text)
            for node in ast.walk(tree)
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and (text := _text(node.exc))
        ]
    return sorted(found, key=lambda place: (place.file, place.line))


def _text(call: ast.Call) -> str | None:
    if not call.args or ast.unparse(call.func) in ABSTRACT:
        return None
    text = _literal(call.args[0])
    return text if sum(map(str.isalpha, text)) >= LETTERS else None


def _literal(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        text = "".join(_literal(part) for part in node.values)
        while "……" in text:
            text = text.replace("……", "…")
        return text
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _literal(node.left) + _literal(node.right)
    return "…"


class _Noted(ast.NodeTransformer):
    def __init__(self, file: str):
        self.file = file

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        if isinstance(node.exc, ast.Call):
            place = ast.Constant(f"{self.file}:{node.lineno}")
            node.exc = ast.Call(ast.Name("__raised__", ast.Load()), [place, node.exc], [])
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        noted = _Noted(Path(path).relative_to(PACKAGE).as_posix()).visit(tree)
        return compile(ast.fix_missing_locations(noted), path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] != PACKAGE.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if (
            spec is not None
            and spec.origin
            and spec.origin.endswith(".py")
            and Path(spec.origin).is_relative_to(PACKAGE)
        ):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


_seen: set[str] = set()


def _raised(place: str, error: BaseException) -> BaseException:
    if place not in _seen:
        _seen.add(place)
        with open(os.environ[NOTES], "a", encoding="utf-8") as file:
            file.write(place + "\n")
    return error


def note(file: Path) -> None:
    """From now on errors are noted in the file, in this process and in those of pytest that it starts."""
    os.environ.setdefault(NOTES, str(file))
    builtins.__raised__ = _raised
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def never_raised() -> list[Place]:
    """Those that weren't noted so far."""
    noted = set(Path(os.environ[NOTES]).read_text(encoding="utf-8").split("\n"))
    return [place for place in places() if f"{place.file}:{place.line}" not in noted]
