"""The tests note which errors they raise, from before the package is imported: see raised.py."""

import tempfile
from pathlib import Path

from tests import raised

raised.note(Path(tempfile.mkdtemp()) / "raised")
