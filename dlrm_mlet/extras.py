"""The packages that a room needs beside torch and numpy -> imported, or one line that says how to install them."""

import contextlib
import importlib.util
from collections.abc import Iterator

MORE = {"torchrec": " && pip install --no-deps torchrec==1.8.0"}
"""What an extra can't ask for: TorchRec asks for a build of FBGEMM that fails on a machine without CUDA."""


class MissingExtraError(ImportError):
    """A room's packages that aren't installed: names the one that is missing, and the pip command."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of the packages of one extra of setup.cfg. Raises MissingExtraError where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        more = MORE.get(extra, "")
        raise MissingExtraError(
            f"{error.name} isn't installed; expected pip install 'dlrm-mlet[{extra}]'{more}"
        ) from None


def there(package: str) -> None:
    """Raises ModuleNotFoundError where a package isn't installed that is slow to import, and so imported at its use."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(name=package)
