"""A run's checkpoint.pt -> the model that is served, and what it was trained on."""

import dataclasses
import hashlib
import os
import pickle
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._subclasses import FakeTensorMode

from dlrm_mlet.config import Config
from dlrm_mlet.data.columns import Columns
from dlrm_mlet.data.schema import Schema, check_trained_on
from dlrm_mlet.toml import build
from dlrm_mlet.training.model import DLRM, bags_of, served
from dlrm_mlet.training.model import build as build_model

FILE = "checkpoint.pt"
NO_COMMENT = b"\0\0"
"""How torch's file ends, a zip archive: with the length of a comment that it hasn't."""
SEAL = b"dlrm_mlet sha256 "
LOCAL_HEADER, LOCAL_NAME = 30, 26
CENTRAL_HEADER, CENTRAL_NAME, CENTRAL_CHECKSUM = 46, 28, 16
DESCRIPTOR = b"PK\x07\x08"
"""Of a zip archive: how long its headers are, where in them the lengths of names and the checksum are; and what stands
before the checksum that follows the bytes of an entry."""
LARGE = 1 << 16
"""Bytes from which on a thread pays."""


class CheckpointError(ValueError):
    """A checkpoint that can't be used: names the file and what was expected."""


@dataclass(frozen=True)
class Served:
    """A finished run's model."""

    path: Path
    model: DLRM
    config: Config
    columns: Schema

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of the file's SHA-256."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]

    def check(self, columns: Columns) -> None:
        """Raises ColumnsError where the columns are of another data set than the one it was trained on."""
        check_trained_on(self.path, self.columns.dataset, self.columns.fingerprint, columns.schema)


class _Hashing:
    """A file to write to, whose bytes are hashed beside the writing."""

    def __init__(self, file: BinaryIO, beside: ThreadPoolExecutor):
        self.file, self.beside, self.digest = file, beside, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """As a file's."""
        if len(data) < LARGE:
            self.digest.update(data)
            return self.file.write(data)
        hashed = self.beside.submit(self.digest.update, data)
        written = self.file.write(data)
        hashed.result()  # what is hashed is the caller's memory
        return written

    def flush(self) -> None:
        """As a file's."""
        self.file.flush()


def write(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint of ours: torch's file, and its SHA-256 as the comment that a zip archive may end with."""
    with path.open("wb") as file, ThreadPoolExecutor(1) as beside:
        hashing = _Hashing(file, beside)
        torch.save(state | {"sealed": True}, hashing)  # type: ignore[arg-type]
        _end(file, hashing.digest.hexdigest())


def hollow(path: Path, state: dict[str, Any]) -> dict[str, int]:
    """The file that `write` writes, but for the numbers of its model: of each tensor the byte where they are to begin.

    For what several processes fill; then `seal` it. Its tensors may be memory that was never touched.
    """
    with torch.serialization.skip_data():
        torch.save(state | {"sealed": True}, path)
    with FakeTensorMode():
        empty = torch.load(path, weights_only=True)["model"]
    return {key: tensor.untyped_storage()._checkpoint_offset for key, tensor in empty.items()}


def seal(path: Path) -> None:
    """End a file that was `hollow`: with the archive's checksums of what is in it now, and the hash of all."""
    with zipfile.ZipFile(path) as archive, path.open("r+b") as file:
        entry = archive.start_dir
        for info in archive.infolist():
            file.seek(info.header_offset + LOCAL_NAME)
            begin = info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", file.read(4)))
            file.seek(begin)
            found, left = 0, info.file_size
            while left:
                part = file.read(min(left, 1 << 24))
                found, left = zlib.crc32(part, found), left - len(part)
            checksum = struct.pack("<I", found)
            file.seek(begin + info.file_size + len(DESCRIPTOR))  # what follows the numbers, and the central directory
            file.write(checksum)
            file.seek(entry + CENTRAL_CHECKSUM)
            file.write(checksum)
            file.seek(entry + CENTRAL_NAME)
            entry += CENTRAL_HEADER + sum(struct.unpack("<HHH", file.read(6)))
    with path.open("r+b") as file:
        digest, left = hashlib.sha256(), file.seek(0, os.SEEK_END) - len(NO_COMMENT)
        file.seek(0)
        while left:
            part = file.read(min(left, 1 << 20))
            digest.update(part)
            left -= len(part)
        digest.update(NO_COMMENT)
        file.seek(0, os.SEEK_END)
        _end(file, digest.hexdigest())


def _end(file: BinaryIO, digest: str) -> None:
    comment = SEAL + digest.encode()
    file.seek(-len(NO_COMMENT), os.SEEK_END)
    file.write(len(comment).to_bytes(2, "little") + comment)


def _is_sealed(path: Path) -> bool:
    """Whether the file is what `write` wrote; False where it says nothing of it."""
    size = len(SEAL) + 64
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - size - len(NO_COMMENT)
        if end <= 0:
            return False
        file.seek(end)
        length, comment = file.read(2), file.read()
        if length != size.to_bytes(2, "little") or not comment.startswith(SEAL):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), end
        while left:
            part = file.read(min(left, 1 << 20))
            digest.update(part)
            left -= len(part)
        digest.update(NO_COMMENT)
    if digest.hexdigest().encode() != comment[len(SEAL) :]:
        raise CheckpointError(f"{path}: damaged: isn't what was written; expected the {FILE} of a run")
    return True


def read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing in it is run. Raises CheckpointError where it isn't a whole checkpoint of ours."""
    try:
        sealed = _is_sealed(path)
        if not sealed:  # of an older version: torch.load compares no checksums
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise CheckpointError(
                        f"{path}: damaged: {damaged} isn't what was written; expected the {FILE} of a run"
                    )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected the {FILE} of a run") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a directory; expected the {FILE} of a run") from None
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint ({error}); expected the {FILE} of a run") from None
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: holds more than numbers and text; expected the {FILE} of a run") from None
    except (RuntimeError, OSError, LookupError, TypeError, ValueError, AttributeError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint ({error}); expected the {FILE} of a run") from None
    missing = {"model", "served", "config", "seed", "columns"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(sorted(missing))}; expected the {FILE} of a run")
    if not sealed and state.get("sealed"):
        raise CheckpointError(f"{path}: damaged: its hash is gone; expected the {FILE} of a run, as it was written")
    return state


def load(path: Path) -> Served:
    """The served model of a run. Raises CheckpointError where the run isn't finished or the file isn't a run's."""
    state = read(path)
    if not state["served"]:
        raise CheckpointError(
            f"{path}: of a run that stopped after step {state.get('step')}: its tables aren't collapsed yet; "
            "expected a finished run, see dlrm-mlet train, which goes on"
        )
    try:
        config, schema = build(Config, state["config"]), build(Schema, state["columns"])
        # as it is served: the trained layers need no memory any more
        plain = dataclasses.replace(config.model, inner_dim=None, start_as=None, initial_scale=1.0)
        places = state["model"].get("tables.places")  # of min-count tables, which only training's rows could tell
        bags = bags_of(schema)
        model = served(build_model(plain, len(schema.dense), schema.table_rows, None, bags, places), plain)
        model.load_state_dict(state["model"])
        model.tables.names = schema.categorical
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a model of this version: {error}") from None
    return Served(path, model.eval().requires_grad_(False), config, schema)
