"""How the runs of a table were trained, and whether it is what its experiment's name says: a config can be changed."""

from collections.abc import Mapping, Sequence

from dlrm_mlet.config import TrainingConfig
from dlrm_mlet.reporting.results import TRAINED, Row

PAPERS = {key: str(getattr(TrainingConfig, key)) for key in TRAINED if key != "epochs"}
"""Plain SGD at one rate."""
NAMED: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("paper-grid", "controls", "mechanism", "depth", "narrow", "rivals", "rivals-tuned"), PAPERS),
    "cafe-protocol": PAPERS | {"learning_rate": "0.1"},
    "batch-size": {"optimizer": "sgd", "schedule": "constant"},
    "fair-fight-sgd": {"optimizer": "sgd", "batch_size": "128", "schedule": "constant"},
    "fair-fight-sgd-linear": {"optimizer": "sgd", "batch_size": "128", "schedule": "linear"},
    "fair-fight-adagrad": {"optimizer": "adagrad", "batch_size": "128", "schedule": "constant"},
    "fair-fight-adam": {"optimizer": "adam", "batch_size": "128", "schedule": "constant"},
    "fair-fight-adam-512": {"optimizer": "adam", "batch_size": "512", "schedule": "constant"},
    "controls-adam-512": {"optimizer": "adam", "batch_size": "512", "schedule": "constant"},
    "fair-fight-lazy-adam": {"optimizer": "lazy-adam", "batch_size": "128", "schedule": "constant"},
    "fair-fight-lazy-adam-512": {"optimizer": "lazy-adam", "batch_size": "512", "schedule": "constant"},
}
"""Of an experiment: what its name says of the training, on the page of claims too."""


def otherwise(experiment: str, rows: Sequence[Row]) -> str:
    """In what the runs differ from what the experiment's name says; empty where in nothing that the table tells."""
    said = []
    for key, its in NAMED.get(experiment, {}).items():
        others = [row.trained[key] for row in rows if row.trained.get(key, its) != its]
        if others:
            part = "" if len(others) == len(rows) else f" ({len(others)} of {len(rows)} runs)"
            said.append(f"{key.replace('_', ' ')} {' and '.join(sorted({*others}))}{part}")
    return ", ".join(said)


def steps(rows: Sequence[Row]) -> str:
    """How many steps a run has, as 2,046 or 128 to 8,184; empty where the table doesn't say."""
    found = sorted({row.steps for row in rows if row.steps and not row.diverged})
    return " to ".join(f"{each:,}" for each in dict.fromkeys((found[0], found[-1]))) if found else ""
