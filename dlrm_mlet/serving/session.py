"""An ONNX file -> ready to run in ONNX Runtime. Needs no torch, for machines that only serve."""

from pathlib import Path

from dlrm_mlet.extras import needs

with needs("serving"):
    import onnxruntime
    from onnxruntime import InferenceSession as Session

IDS = "dlrm_mlet.ids"
"""The key in a file's metadata that says what becomes of an id outside of its table."""


class ExportError(ValueError):
    """A model that can't be exported, or whose ONNX file doesn't give its outputs."""


def open_session(path: str | Path, threads: int | None = None) -> Session:
    """The file, ready to run on the CPU. Raises ExportError where it can't be."""
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an ONNX model")
    try:
        return start_session(path, threads)
    except Exception as error:  # its exceptions have no common base but this
        raise ExportError(f"{path}: damaged, or no ONNX model ({str(error).strip()})") from None


def start_session(path: Path, threads: int | None = None) -> Session:
    """The same, with what ONNX Runtime itself raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what it can't run it also raises
    return Session(path, options, providers=["CPUExecutionProvider"])
