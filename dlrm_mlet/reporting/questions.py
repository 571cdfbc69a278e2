"""Tables of results -> answers to what the paper leaves open: how much of the gain is MLET's, what else there is."""

import functools
import statistics

from dlrm_mlet.reporting import figures
from dlrm_mlet.reporting.curves import make_curves
from dlrm_mlet.reporting.judging import AUC, TEST_AUC, TEST_LOSS, Claim, Judgement, Tables, listed, paired, verdict

LATE = 0.02
"""A run counts as failed when its validation AUC is so far below the median of its point."""


def _rate_and_start(tables: Tables) -> Judgement:
    mlet, single = tables.curve("controls", "mlet", "64"), tables.curve("controls", "single")
    said = []
    for arm, name in (
        ("single-rate-x4", "table learning rate x4 (k/16)"),
        ("single-starts-as-mlet", "MLET's start W1 W2"),
        ("single-rate-x4-starts-as-mlet", "both"),
    ):
        said.append(f"{name}: {listed(paired(tables.curve('controls', arm), single))}")
    left = paired(mlet, tables.curve("controls", "single-rate-x4-starts-as-mlet"))
    return Judgement(
        f"Validation AUC over the single layer: MLET k=64: {listed(paired(mlet, single))} Single layer with "
        f"{' '.join(said)} What is left of MLET over the single layer with both: {listed(left)}",
        f"MLET's own part: {verdict(left.values()).lower()}",
    )


def _frozen(tables: Tables) -> Judgement:
    found = paired(tables.curve("controls", "mlet", "64"), tables.curve("controls", "mlet-frozen", "64"))
    return Judgement(
        f"Validation AUC of MLET k=64 over MLET with W2 frozen at its random start: {listed(found)}",
        f"That training W2 helps: {verdict(found.values()).lower()}",
    )


def _small_projections(tables: Tables) -> Judgement:
    arms = (("mlet-std-1-over-sqrt-k", "W2 std 1/sqrt(k)"), ("mlet-starts-as-single", "the single layer's start"))
    single = tables.curve("controls", "single")
    found = {name: paired(tables.curve("controls", arm, "64"), single) for arm, name in arms}
    return Judgement(
        " ".join(
            f"MLET k=64 with {name}, validation AUC over the single layer: {listed(gain)}"
            for name, gain in found.items()
        ),
        "Gain with W2 std 1/sqrt(k), where the first step is a single layer's: "
        f"{verdict(found[arms[0][1]].values()).lower()}",
    )


def _tuned(tables: Tables, experiment: str) -> Judgement:
    mlet, single = tables.curve(experiment, "mlet", "64"), tables.curve(experiment, "single")
    found = {measure: paired(mlet, single, measure) for measure in (TEST_AUC, TEST_LOSS, AUC)}
    test = {f"{m.removeprefix('test_')}, {d}": g for m in (TEST_AUC, TEST_LOSS) for d, g in found[m].items()}
    worse = [name for name, gain in test.items() if gain.high < 0]
    means = "; ".join(
        f"d={d}: {single.mean(d, TEST_AUC):.4f} and {mlet.mean(d, TEST_AUC):.4f}"
        for d in single.points
        if d in mlet.points
    )
    lost = [sum(curve.diverged.values()) for curve in (single, mlet)]
    told = f"{lost[0]} runs of the single layer and {lost[1]} of MLET diverged at the chosen rates, and have no score."
    return Judgement(
        f"MLET k=64 over the single layer on test, fresh seeds. AUC: {listed(found[TEST_AUC])} LogLoss: "
        f"{listed(found[TEST_LOSS])} Validation AUC: {listed(found[AUC])} Mean test AUC of the single layer and "
        f"of MLET: {means}. {told if any(lost) else 'No run diverged.'}",
        f"That tuned MLET beats a tuned single layer: {verdict(test.values()).lower()}"
        + (f"; the single layer is better at {' and '.join(worse)}" if worse else ""),
    )


def _failures(tables: Tables) -> Judgement:
    points: dict[tuple[str, int], dict[int, float]] = {}
    for experiment in ("paper-grid", "controls", "mechanism", "depth", "narrow", "rivals"):
        for curve in make_curves(tables.rows(experiment)):
            is_plain = curve.single or (curve.arm == "mlet" and curve.inner_dim in ("16", "64", "128"))
            for d, rows in curve.points.items() if is_plain else ():
                points.setdefault((curve.inner_dim, d), {}).update({row.seed: row.measures[AUC] for row in rows})
    said = []
    for name, is_mlet in (("single layer", False), ("MLET with k = 16, 64 and 128", True)):
        mine = [list(seeds.values()) for (inner_dim, _), seeds in points.items() if bool(inner_dim) == is_mlet]
        failed = sum(value < statistics.median(values) - LATE for values in mine for value in values)
        said.append(f"{name}: {failed} of {sum(map(len, mine))}")
    return Judgement(
        f"Runs at the paper's learning rate that end more than {LATE} below the median validation AUC of their point: "
        f"{'; '.join(said)}.",
        "See the counts",
    )


def _rivals(tables: Tables) -> Judgement:
    said = []
    for experiment, name in (("rivals", "At the paper's learning rate"), ("rivals-tuned", "Each with its own")):
        front = figures.pareto(figures.by_bytes(tables.rows(experiment)))
        points = "; ".join(f"{arm} {size / 1024:,.0f} KiB: {mean:.4f} ± {std:.4f}" for arm, size, mean, std in front)
        said.append(f"{name}, the Pareto front of served bytes and validation AUC, from the smallest: {points}.")
    best = max(front, key=lambda point: point[2])
    return Judgement(" ".join(said), f"Of the tuned ones, {best[0]} has the highest AUC; see the figure in the records")


QUESTIONS = (
    Claim(
        "How much of the gain does a single layer get from a larger table learning rate and MLET's start?",
        "has no such control.",
        "controls",
        _rate_and_start,
    ),
    Claim(
        "Does W2 need to be trained?",
        "trains it.",
        "controls",
        _frozen,
    ),
    Claim(
        "Is MLET's gain there when its step is a single layer's, or its start?",
        "has std 0.25 at every k.",
        "controls",
        _small_projections,
    ),
    Claim(
        "The fair fight, plain SGD: each side with its own best learning rates and start",
        "compares both at one learning rate.",
        "fair-fight-sgd",
        functools.partial(_tuned, experiment="fair-fight-sgd"),
    ),
    Claim(
        "The fair fight, Adagrad, row-wise for the tables: each side with its own best learning rates and start",
        "compares both at one learning rate.",
        "fair-fight-adagrad",
        functools.partial(_tuned, experiment="fair-fight-adagrad"),
    ),
    Claim(
        "Does MLET fail less often?",
        "sees run-to-run variation.",
        "paper-grid",
        _failures,
    ),
    Claim(
        "Which way to small tables is best at equal served bytes?",
        "compares with a single layer alone.",
        "rivals-tuned",
        _rivals,
    ),
)
