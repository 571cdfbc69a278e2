"""The packages that dlrm_mlet[all,dev] installs -> docs/licences.md: version and licence of each, and whose need it is.

python scripts/document_licences.py        (by `make docs`)
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
KNOWN = {"polars": "MIT", "kiwisolver": "BSD", "scipy": "BSD", "cycler": "BSD", "matplotlib": "PSF-based"}
"""Where a package's metadata has the licence's whole text in place of its name."""
SKIPPED = {"pip"}


def closure(package: str, extras: tuple[str, ...]) -> dict[str, set[str]]:
    """The packages that one with these extras needs here, each with those that ask for it."""
    found: dict[str, set[str]] = {}
    waiting = [(package, extra) for extra in ("", *extras)]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in metadata.distribution(name).requires or ():
            asked = Requirement(line)
            if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
                continue
            other = canonicalize_name(asked.name)
            if other == package:
                waiting += [(package, each) for each in asked.extras]
                continue
            found.setdefault(other, set()).add(name)
            waiting += [(other, each) for each in ("", *asked.extras)]
    return found


def locked() -> dict[str, str]:
    """The versions of requirements.lock by name."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def licence(name: str) -> str:
    """As the package's own metadata names it."""
    said = metadata.metadata(name)
    if name in KNOWN:
        return KNOWN[name]
    classified = [each.rpartition(" :: ")[2] for each in said.get_all("Classifier") or () if each.startswith("License")]
    text = said.get("License-Expression") or (classified[0] if classified else said.get("License") or "")
    return re.sub(r"\s+", " ", text).strip()


def page() -> str:
    """The page."""
    rows = {name: sorted(whose) for name, whose in closure("dlrm-mlet", ("all", "dev")).items() if name not in SKIPPED}
    lines = [
        "# Licences of what is installed", "",
        "Everything that `pip install -c requirements.lock 'dlrm-mlet[dev]'` brings on Linux with a CPU build of",
        "torch, which is more than any one use needs: see the extras in setup.cfg. Written by `make docs` from the",
        "packages' own metadata. All are permissive but those of the Mozilla Public License (MPL 2.0), which asks only",
        "that changes to their own files stay under it; nothing here changes them. A CUDA build of torch brings",
        "NVIDIA's libraries, in the versions that torch itself pins and under NVIDIA's terms.", "",
        "| package | version | licence | needed by |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {name} | {locked().get(name, 'not locked')} | {licence(name)} | {', '.join(whose)} |"
        for name, whose in sorted(rows.items())
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
