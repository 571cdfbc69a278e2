"""What the paper leaves open: how much of the gain is MLET's own, by which optimizer and model, and what else is."""

import functools
import math
import statistics
from pathlib import Path

from dlrm_mlet.config import TrainingConfig
from dlrm_mlet.reporting import failures, fights, order, rate_figures, results, step_law
from dlrm_mlet.reporting.curves import Curve, by_bytes, compared_on, make_curves, pareto, spread
from dlrm_mlet.reporting.judging import (
    AUC,
    GRID,
    PAPER,
    TEST_AUC,
    TEST_LOSS,
    TUNED,
    Claim,
    Gains,
    Group,
    Tables,
    paired,
)
from dlrm_mlet.reporting.results import ResultsError
from dlrm_mlet.training.evaluation import THIRDS

LAW = "batch-size"
"""The experiment of the law of the step."""
PAPERS_RATE_PER_ROW = TrainingConfig.learning_rate / TrainingConfig.batch_size
RULE = 0.1
"""The table rate over the batch size with which docs/mlet-or-a-rate.md says to begin; for MLET times 16/k."""
RIVALS = {PAPER: "rivals", TUNED: "rivals-tuned"}
"""The tables that have ways to small tables other than MLET."""
CONTROLS = {
    "single layer, rate x4": "single-rate-x4",
    "single layer, MLET's start": "single-starts-as-mlet",
    "single layer, both": "single-rate-x4-starts-as-mlet",
}
BY_ROW = (
    " Adam moves all n x k numbers at each step. On receipts, but for DeepFM at d = 4, rows of the largest table make "
    "the same steps when a batch reads them, which takes less time."
)
"""What is said of models other than DLRM."""


def _over_single(tables: Tables, arm: str) -> Gains:
    its = tables.mlet("controls", arm) if arm.startswith("mlet") else tables.curve("controls", arm)
    return paired(its, tables.curve("controls", "single"))


def _own_part(tables: Tables) -> Gains:
    return paired(tables.mlet("controls"), tables.curve("controls", CONTROLS["single layer, both"]))


def _training_w2(tables: Tables, experiment: str, frozen: str, measures: tuple[str, ...]) -> Gains:
    mlet = tables.mlet(experiment)
    other = tables.curve(experiment, frozen, mlet.inner_dim)
    return {key: gains for measure in measures for key, gains in paired(mlet, other, measure).items()}


def _over_plain(tables: Tables) -> Gains:
    names = {arm: name for name, arm in fights.IN_DEEPFM.items()}
    curves = make_curves(tables.rows("deepfm-controls"))
    single = tables.curve("deepfm-controls", "single")
    found: dict[tuple[str, str], list[float]] = {}
    for curve in curves:
        if curve.arm in names:
            found |= paired(curve, single, TEST_AUC, f"{names[curve.arm]}, ")
    return found


def _deepfm_table(tables: Tables) -> list[list[str]]:
    names = {"single": "plain"} | {arm: name for name, arm in fights.IN_DEEPFM.items()}
    measures = (TEST_AUC, TEST_LOSS, *results.BESIDE)
    thirds = results.read_thirds(tables.directory / "deepfm-controls-frequency.csv")
    rows = [["model", "d", "n", "test AUC", "test LogLoss", "LogLoss on train", "effective rank",
             *(f"AUC, {ids} ids" for ids in THIRDS)]]  # fmt: skip
    found: dict[tuple[int, str], list[str]] = {}
    for curve in make_curves(tables.rows("deepfm-controls")):
        for d in curve.points:
            mine = [third for third in thirds if (third.arm, third.embedding_dim) == (curve.arm, d)]
            means = [f"{curve.mean(d, measure):.{2 if measure == 'effective_rank' else 4}f}" for measure in measures]
            means += [f"{statistics.fmean(third.auc for third in mine if third.ids == ids):.4f}" for ids in THIRDS]
            found[d, curve.arm] = [names[curve.arm], str(d), str(len(curve.points[d])), *means]
    return rows + [found[key] for d in sorted({d for d, _ in found}) for key in ((d, arm) for arm in names)
                   if key in found]  # fmt: skip


def _law_table(tables: Tables) -> list[list[str]]:
    beside = tables.directory / f"{LAW}-frequency.csv"
    return step_law.table(_of_the_law(tables), results.read_thirds(beside) if beside.exists() else ())


def _of_the_law(tables: Tables) -> list[results.Row]:
    if not step_law.is_one(rows := tables.rows(LAW)):
        raise FileNotFoundError(f"{LAW}: not each run has a batch size and a table rate of its own")
    return rows


def _by_rule(tables: Tables, arm: str, inner_dim: str) -> Curve:
    """The arm whose tables have RULE times the batch size as their rate, and all else the paper's; untuned.

    Raises FileNotFoundError where it wasn't run, ResultsError where there are several.
    """
    batch = TrainingConfig.batch_size
    wanted = {"batch_size": batch, "learning_rate": TrainingConfig.learning_rate,
              "table_learning_rate": RULE * batch / step_law.larger_step(inner_dim)}  # fmt: skip
    rows = [
        row for row in _of_the_law(tables)
        if row.inner_dim == inner_dim and row.arm.removesuffix(f"-{batch}") == arm
        and all(math.isclose(float(row.settings.get(key) or its), its) for key, its in wanted.items())
    ]  # fmt: skip
    if not rows:
        raise FileNotFoundError(
            f"{LAW}: no {arm} with a table rate of {wanted['table_learning_rate']:g} at a batch of {batch}"
        )
    curves = make_curves(rows)
    if len(curves) > 1:
        raise ResultsError(f"{tables.directory / LAW}.csv: {arm} at {RULE} x {batch} is there {len(curves)} times; "
                           "expected once")  # fmt: skip
    return curves[0]


def _rule_over_mlet(tables: Tables) -> Gains:
    return paired(_by_rule(tables, "single", ""), tables.mlet(GRID))


def _mlet_over_rule(tables: Tables) -> Gains:
    mlet = _by_rule(tables, "mlet", tables.mlet(GRID).inner_dim)
    return paired(mlet, _by_rule(tables, "single", ""))


def _law_figure(tables: Tables, path: Path) -> None:
    rate_figures.over_row_rate(tables.rows(LAW), TrainingConfig.learning_rate, tables.directory.name, path)


def _front_table(tables: Tables) -> list[list[str]]:
    found = {name: its for name, its in RIVALS.items() if (tables.directory / f"{its}.csv").exists()}
    if not found:
        raise FileNotFoundError("no table of rivals")
    rows = [["learning rates", "best way up to these bytes", "d", "KiB served", "measure", "mean ± std"]]
    for name, experiment in found.items():
        its = tables.rows(experiment)
        measure = compared_on(its)
        for point in pareto(by_bytes(its, measure)):
            what = [point.label, str(point.embedding_dim), f"{point.nbytes / 1024:,.0f}"]
            rows.append([name, *what, f"{measure.partition('_')[0]} AUC", spread(point.values)])
    return rows


def _front(tables: Tables) -> str:
    rows = _front_table(tables)[1:]
    rates = rows[-1][0]  # tuned, where it is there
    ways = dict.fromkeys(row[1].partition(",")[0] for row in rows if row[0] == rates)
    return f"{rates}, from the smallest: {', '.join(ways)}"


QUESTIONS = (
    Claim(
        "own-part",
        "How much of the gain does a single layer get from a larger table learning rate and MLET's start?",
        "has no such control.",
        "Gains over the single layer at the paper's rate, of MLET and of single layers that are given its step, its "
        "start, or both. The last group is what is left of MLET over a single layer with both.",
        {"MLET": Group(("controls",), functools.partial(_over_single, arm="mlet")),
         **{name: Group(("controls",), functools.partial(_over_single, arm=arm)) for name, arm in CONTROLS.items()},
         "MLET over the single layer with both": Group(("controls",), _own_part)},
    ),
    Claim(
        "w2",
        "Does W2 need to be trained?",
        "trains it.",
        "MLET over MLET with W2 frozen at its random start.",
        {PAPER: Group(("controls",), functools.partial(
            _training_w2, experiment="controls", frozen="mlet-frozen", measures=(AUC,)))},
    ),
    Claim(
        "small-step",
        "Is MLET's gain there when its step is a single layer's, or its start?",
        "has std 0.25 at every k.",
        "Gains over the single layer at the paper's rate. With W2 of std 1/sqrt(k) the first step is a single layer's.",
        {"W2 std 1/sqrt(k)": Group(("controls",), functools.partial(
            _over_single, arm="mlet-std-1-over-sqrt-k")),
         "the single layer's start": Group(("controls",), functools.partial(
             _over_single, arm="mlet-starts-as-single"))},
    ),
    Claim(
        "all-fights",
        "The fair fights of DLRM, all together",
        "compares both at one learning rate.",
        "MLET over the single layer on test, each with its own best rates. Of each seed the mean is taken over the "
        "points of the fights below that both sides finished; the interval is over the seeds. The pictures of a data "
        "set have each fight, those of other models too.",
        {TUNED: Group(fights.DLRM, fights.together)}, table=fights.pairs, experiments=fights.DLRM, figure=fights.draw,
    ),
    Claim(
        "half-as-wide",
        "Once tuned, is MLET better than a single layer twice as wide?",
        "says that d can be 4 to 8 times smaller.",
        "MLET at d over the single layer at 2d on test, in all fights below. Where it is the opposite, no half of the "
        "width is saved; where neither is decided, half may be.",
        {TUNED: Group(tuple(fights.NAMES), fights.half_as_wide)},
    ),
    *(
        Claim(
            name,
            f"The fair fight: {text}",
            "compares both at one learning rate.",
            "MLET over the single layer on test, each with its own best rates of the tables and of the rest, chosen on "
            "validation: the same number of trials at least, and on until no neighbour of the best is untried; fresh "
            "seeds."
            + ("" if name in fights.DLRM else BY_ROW),
            {TUNED: Group((name,), functools.partial(fights.gains, experiment=name))},
            table=functools.partial(fights.table, experiment=name), experiments=(name,), pictures=(name,),
        )
        for name, text in fights.NAMES.items()
    ),
    Claim(
        "dlrm-controls",
        "What decides MLET's gain in DLRM by Adam?",
        "compares both at one learning rate.",
        "Kinds of MLET, each with rates of its own, searched as in the fight by Adam at a batch of 512: W2 that stays "
        "as it was drawn (frozen), and a small k. First their gains over the single layer, then MLET's over them.",
        {TUNED: Group((fights.CONTROLS, fights.CONTROLLED), fights.controls_over_single),
         f"{TUNED}, MLET over them": Group((fights.CONTROLS, fights.CONTROLLED), fights.mlet_over_controls)},
    ),
    *(
        Claim(
            f"{name}-w2",
            f"Does W2 need to be trained in {text.partition(',')[0]}?",
            "trains it.",
            "MLET over MLET with W2 frozen, both with rates of their own.",
            {TUNED: Group((name,), functools.partial(
                _training_w2, experiment=name, frozen="frozen", measures=(TEST_AUC, TEST_LOSS)))},
        )
        for name, text in fights.NAMES.items() if name not in fights.DLRM
    ),
    Claim(
        "deepfm-controls",
        "What decides MLET's gain in DeepFM?",
        "does not ask; its authors say later (arXiv:2309.15881) that rare ids borrow from the W2 that all rows share.",
        "Gains over the plain table of the same d, each with rates of its own. LogLoss on train is over all training "
        "rows at the end; the effective rank (1 to d) of W is the mean of the tables that MLET has. AUC by how rare a "
        "row's rarest id is, in thirds of validation.",
        {TUNED: Group(("deepfm-controls",), _over_plain)},
        table=_deepfm_table, experiments=("deepfm-controls",), pictures=("deepfm-controls",),
    ),
    Claim(
        "step-law",
        "Is the best table rate one number times the batch size?",
        f"has one rate, 0.2 at batch 128, for everything: {PAPERS_RATE_PER_ROW:.4f} per row.",
        "By SGD. Per row: the table's rate over the batch size B, times k/16 for MLET. The loss is the mean over B, so "
        "that a row that occurs once in a batch moves so far of its own gradient, whatever B is; rates at which some "
        "seed diverged, or ended with twice a coin's LogLoss, are left out.",
        {}, table=_law_table, verdict=lambda tables: step_law.verdict(_of_the_law(tables)), experiments=(LAW,),
        figure=_law_figure,
    ),
    Claim(
        "rule",
        "Untuned, is a plain table by that rule better than MLET at the paper's rate?",
        "has one rate for everything.",
        f"A plain table whose rate is {RULE} times the batch size, and all else as the paper has it, over MLET at the "
        "paper's rate; and MLET by the same rule, its rate 16/k times as large, over that plain table. The rule was "
        "read off those of flights and Complete Journey at this batch size, among others; other d weren't run.",
        {"plain by the rule over MLET at the paper's rate": Group((LAW, GRID), _rule_over_mlet),
         "MLET by the rule over plain by the rule": Group((LAW, GRID), _mlet_over_rule)},
    ),
    Claim(
        "failures",
        "Does MLET fail less often?",
        "sees run-to-run variation.",
        f"Runs that end more than {failures.LATE} below the median validation AUC of their point, or diverge; tuned, "
        "those of DLRM's fair fights. Products of more layers, and those of `narrow`, aren't among them.",
        {}, table=failures.table, verdict=failures.verdict, experiments=(*failures.PLAIN, *fights.DLRM),
    ),
    Claim(
        "rivals",
        "Which way to small tables is best at equal served bytes?",
        "compares with a single layer alone.",
        "The Pareto front: no other way of which all runs finished is both smaller and better in the mean. Counted is "
        "all that is served: projections, scales, offsets, and where pruned tables' numbers lie. At the paper's rate "
        "fewer ways were run.",
        {}, table=_front_table, verdict=_front, experiments=tuple(RIVALS.values()), pictures=tuple(RIVALS.values()),
    ),
    Claim(
        "order",
        "Does the order of the methods change once each has its own rate?",
        "compares with a single layer alone. CAFE (Zhang et al., SIGMOD 2024) gives all one rate, and each one seed.",
        "CAFE's protocol (SGD, 0.1 for all parameters, batch 128, d = 16) with five seeds in place of one, beside the "
        "same points at their own table rates, with the MLPs at 0.2. Kendall's tau is 1 where two orders agree, 0 "
        "where they have nothing in common. Ranks are among methods of about the same served bytes; one training that "
        "is served in several ways is several of them.",
        {}, table=order.table, verdict=order.verdict, figure=order.draw,
        experiments=(order.ONE_RATE, order.OWN_RATES),
    ),
)  # fmt: skip
