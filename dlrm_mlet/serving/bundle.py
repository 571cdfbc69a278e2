"""The directory that a serving machine needs: model.onnx, schema, values, and a manifest that says what they are."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from dlrm_mlet.data.vocabulary import digest_of
from dlrm_mlet.files import write_json

MODEL, MANIFEST = "model.onnx", "manifest.json"
FORMAT = 2
"""1, of earlier versions, had no hash of the manifest itself."""


class BundleError(ValueError):
    """A directory that is no whole bundle: names the file and what was expected."""


def seal(directory: Path, said: dict[str, Any]) -> None:
    """Write the manifest of what lies in the directory: what is said of it, versions, and each file's SHA-256."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    versions = {name: metadata.version(name) for name in ("dlrm-mlet", "torch", "onnx", "onnxruntime")}
    hashes = {path.relative_to(directory).as_posix(): digest_of(path) for path in files}
    manifest = {"format": FORMAT, **said, "versions": versions, "files": hashes}
    write_json(directory / MANIFEST, manifest | {"sha256": _digest(manifest)})


def read(directory: Path) -> dict[str, Any]:
    """The manifest, once all files are proved to be what was written. Raises BundleError where one isn't."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form, files = manifest["format"], dict(manifest["files"])
        known = isinstance(manifest["dataset"], str) and isinstance(manifest["columns"], str)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; expected a bundle, as dlrm-mlet export --bundle writes it") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: not a bundle's manifest: {error!r}; expected the whole directory") from None
    if form not in (1, FORMAT):
        raise BundleError(f"{path}: of format {form!r}; expected {FORMAT}, as this version writes it")
    if not known or MODEL not in files or "schema.json" not in files:
        raise BundleError(f"{path}: says nothing of a model, a schema or a data set; expected the whole directory")
    if manifest.pop("sha256", None) != (_digest(manifest) if form == FORMAT else None):
        raise BundleError(f"{path}: isn't what was written; expected the bundle as it was exported")
    for name, digest in files.items():
        file = directory / name
        if not file.is_file():
            raise BundleError(f"{file}: no such file; expected the whole directory of the bundle")
        if digest_of(file) != digest:
            raise BundleError(f"{file}: isn't what was written; expected the bundle as it was exported")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def check_ours(directory: Path) -> None:
    """Raises BundleError where the directory is no whole bundle, or has anything else in it."""
    if not (directory / MANIFEST).exists():
        raise BundleError(f"{directory}: holds other files; expected an empty directory, or a bundle to replace")
    files = read(directory)["files"]
    for file in directory.rglob("*"):
        if file.is_file() and file.relative_to(directory).as_posix() not in (MANIFEST, *files):
            raise BundleError(f"{file}: is no part of a bundle; expected another directory to write")
