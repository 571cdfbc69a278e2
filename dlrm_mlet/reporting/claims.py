"""The claims of the paper: which tables each is read from, which differences decide it, and how to read them."""

import csv
import functools
import json
import statistics
from itertools import pairwise

from dlrm_mlet.reporting import fights, figures, results, widths
from dlrm_mlet.reporting.curves import labels, make_curves
from dlrm_mlet.reporting.judging import (
    AUC,
    GRID,
    LOSS,
    PAPER,
    TEST_AUC,
    TEST_LOSS,
    TUNED,
    Claim,
    Gains,
    Group,
    Tables,
    levels,
    paired,
    paired_gains,
)
from dlrm_mlet.tables.spectrum import count_above

ABOVE = "singular values"
"""What is counted, in the place of a measure."""
FIGHT = "fair-fight-sgd"
STEPS = ("step-cpu", "step-cuda")
"""What `dlrm-mlet benchmark` wrote, of Criteo-Kaggle's table sizes."""


def _steps_of_d(tables: Tables) -> Gains:
    found = tables.curve(GRID, "single").points
    return {(f"d={a} to {b}", AUC): paired_gains(found[b], found[a], AUC) for a, b in pairwise(found)}


def _steps_in_fights(tables: Tables) -> Gains:
    found: dict[tuple[str, str], list[float]] = {}
    for single, text in fights.singles(tables):
        for a, b in pairwise(single.points):
            if its := paired_gains(single.points[b], single.points[a], TEST_AUC):
                found[f"{text}, d={a} to {b}", TEST_AUC] = its
    return found


def _beats(tables: Tables, experiment: str, measures: tuple[str, str]) -> Gains:
    mlet, single = tables.mlet(experiment), tables.curve(experiment, "single")
    return {key: gains for measure in measures for key, gains in paired(mlet, single, measure).items()}


def _of_k(tables: Tables, last: bool) -> Gains:
    found: dict[tuple[str, str], list[float]] = {}
    steps = list(pairwise(tables.inner_dims(GRID)))
    if not steps:
        raise FileNotFoundError(f"{GRID}: has one k")
    for small, large in steps[-1:] if last else steps:
        curves = tables.curve(GRID, "mlet", large), tables.curve(GRID, "mlet", small)
        found |= paired(*curves, prefix=f"k={small} to {large}, ")
    return found


def _from_k_equal_d(tables: Tables) -> Gains:
    single, found = tables.curve("narrow", "single"), {}
    for k in tables.inner_dims("narrow"):
        equal = tables.curve("narrow", "mlet", k)
        if (d := int(k)) in single.points and d in equal.points:
            found[f"k=d={d}", AUC] = paired_gains(equal.points[d], single.points[d], AUC)
    return found


def _below_d(tables: Tables) -> Gains:
    found = {}
    curves = {int(k): tables.curve("narrow", "mlet", k) for k in tables.inner_dims("narrow")}
    for d, equal in curves.items():
        for k, below in curves.items():
            if k < d and d in below.points and d in equal.points:
                found[f"k={k}, d={d}", AUC] = paired_gains(equal.points[d], below.points[d], AUC)
    return found


def _zero_cost(tables: Tables) -> Gains:
    single = tables.curve(GRID, "single")
    found = {}
    for k in tables.inner_dims(GRID):
        mlet = tables.curve(GRID, "mlet", k)
        for wide, base in single.points.items():
            for d, rows in mlet.points.items():
                if d < wide and int(k) <= wide:
                    found[f"({k}, {d}) over {wide}", AUC] = paired_gains(rows, base, AUC)
    return found


def _deeper(tables: Tables, arm: str) -> Gains:
    found: dict[tuple[str, str], list[float]] = {}
    two = tables.mlet("depth", arm)
    there = {row.inner_dim for row in tables.rows("depth") if row.arm == arm}
    for layers in (3, 4):
        if (inner_dim := "x".join([two.inner_dim] * (layers - 1))) in there:
            found |= paired(tables.curve("depth", arm, inner_dim), two, prefix=f"N={layers}, ")
    return found


def _depth_table(tables: Tables) -> list[list[str]]:
    head = ["model", "d", "n", "diverged", "validation AUC, mean", "std"]
    return [head, *levels(make_curves(tables.rows("depth")), AUC)]


def _counts_of_values(tables: Tables) -> dict[tuple[str, tuple[str, ...]], dict[int, int]]:
    """(feature, series) -> seed -> singular values above 1 % of the largest, of the two largest tables at the end."""
    found = results.read_spectra(tables.directory / "mechanism-spectra.csv")
    d = max(s.embedding_dim for s in found)
    counts: dict[tuple[str, tuple[str, ...]], dict[int, int]] = {}
    for feature, _ in figures.largest_tables(found)[:2]:
        for s in figures.at_the_end(found):
            if (s.feature, s.embedding_dim) == (feature, d):
                counts.setdefault((feature, s.series), {})[s.seed] = count_above(s.values)
    return counts


def _fewer_values(tables: Tables) -> Gains:
    counts = _counts_of_values(tables)
    plain, product = tables.curve("mechanism", "single").series, tables.mlet("mechanism").series
    found = {}
    for feature in dict.fromkeys(feature for feature, _ in counts):
        single, mlet = counts.get((feature, plain), {}), counts.get((feature, product), {})
        found[feature, ABOVE] = [float(single[seed] - mlet[seed]) for seed in single if seed in mlet]
    return found


def _values_table(tables: Tables) -> list[list[str]]:
    names = labels(tables.rows("mechanism"))
    rows = [[feature, names[series], f"{statistics.fmean(counts.values()):.1f}", str(len(counts))]
            for (feature, series), counts in _counts_of_values(tables).items()]  # fmt: skip
    return [["table", "model", "values above 1 % of the largest, mean", "n"], *rows]


def _rare_over_frequent(tables: Tables, experiment: str) -> Gains:
    thirds = results.read_thirds(tables.directory / f"{experiment}-frequency.csv")
    losses: dict[str, dict[tuple[int, int, str], float]] = {}
    for curve in (single := tables.curve(experiment, "single"), mlet := tables.mlet(experiment)):
        losses[curve.label] = {(t.embedding_dim, t.seed, t.ids): t.log_loss for t in thirds
                               if t.series == curve.series}  # fmt: skip
    base = losses[single.label]
    gains = {key: base[key] - loss for key, loss in losses[mlet.label].items() if key in base}
    found: dict[tuple[str, str], list[float]] = {}
    for d, seed in sorted({(d, seed) for d, seed, _ in gains}):
        rare, frequent = gains.get((d, seed, "rare")), gains.get((d, seed, "frequent"))
        if rare is not None and frequent is not None:
            found.setdefault((f"d={d}", LOSS), []).append(rare - frequent)
    return found


def _loss_table(tables: Tables) -> list[list[str]]:
    single, rows = tables.curve(GRID, "single"), []
    for k in tables.inner_dims(GRID):
        for (d, _), gains in paired(tables.curve(GRID, "mlet", k), single, LOSS).items():
            rows.append((statistics.fmean(gains), k, d, len(gains)))
    if not rows:
        raise FileNotFoundError(f"{GRID}: no runs of MLET that can be paired")
    rows.sort(reverse=True)
    return [["k", "point", "gain of validation LogLoss, mean", "n"],
            *([k, d, f"{mean:+.4f}", str(n)] for mean, k, d, n in rows[:3])]  # fmt: skip


def _loss(tables: Tables) -> str:
    of_the_paper = tables.directory.name in ("criteo-kaggle", "avazu")
    return f"{_loss_table(tables)[1][2]} here{'' if of_the_paper else ', on other data'}"


def _equation_table(tables: Tables) -> list[list[str]]:
    with (tables.directory.parent / "linear" / "equation-6.csv").open(newline="", encoding="utf-8") as file:
        changes = list(csv.DictReader(file))
    rows = [["start", "layers", "measured over predicted change, median", "middle 80 %"]]
    for start, layers in dict.fromkeys((c["start"], c["layers"]) for c in changes):
        mine = [c for c in changes if (c["start"], c["layers"]) == (start, layers)]
        ratios = [float(c["measured"]) / float(c["predicted"]) for c in mine]
        tenths = statistics.quantiles(ratios, n=10)
        rows.append([start, layers, f"{statistics.median(ratios):.2f}", f"{tenths[0]:.2f} to {tenths[-1]:.2f}"])
    return rows


def _equation(tables: Tables) -> str:
    _, *rows = _equation_table(tables)
    ends = [[float(end) for end in row[3].split(" to ")] for row in rows]
    close = sum(low > 0.9 and high < 1.1 for low, high in ends)
    return f"within 10 % for {close} of {len(rows)} starts and depths"


def _time_table(tables: Tables) -> list[list[str]]:
    rows = [["machine", "mean over Table 2's points", "least", "most"]]
    for name in STEPS:
        path = tables.directory.parent / "benchmarks" / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            ratios = [p["ours_over_single_layer"] for p in result["points"] if p["inner_dim"] is not None]
            mean, low, high = (f"{100 * (f(ratios) - 1):+.0f} %" for f in (statistics.fmean, min, max))
            rows.append([result["device"], mean, low, high])
    if len(rows) == 1:
        raise FileNotFoundError("no benchmark of the step")
    return rows


def _time(tables: Tables) -> str:
    return ", ".join(f"{row[1]} in the mean on {row[0]}" for row in _time_table(tables)[1:])


CLAIMS = (
    Claim(
        "d",
        "A single layer gets better with d (Figure 1)",
        "AUC rises with d from 4 to 128 on Criteo-Kaggle.",
        "Each point is the gain from one d to the next. On flights a table's rows hardly move in one epoch at the "
        "paper's rate, so that more numbers per id are of little use. Tuned are DLRM's fair fights.",
        {PAPER: Group((GRID,), _steps_of_d), TUNED: Group(fights.DLRM, _steps_in_fights)},
        pictures=("paper-grid-figure-1",),
    ),
    Claim(
        "same-d",
        "MLET beats the single layer at the same d (Figures 2 and 3)",
        "every MLET curve lies above the single layer's.",
        "k = 64, or the largest there is. Both sides serve the same bytes. Other ways, tuned: the fair fights.",
        {PAPER: Group((GRID,), functools.partial(_beats, experiment=GRID, measures=(AUC, LOSS))),
         f"{TUNED}, plain SGD": Group((FIGHT,), functools.partial(
             _beats, experiment=FIGHT, measures=(TEST_AUC, TEST_LOSS)
         ))},
        pictures=("paper-grid-figure-2", "paper-grid-figure-3", FIGHT, "table-learning-rate"),
    ),
    Claim(
        "k",
        "The gain grows with k",
        "monotone in k for a given d.",
        "From one k to the next. A larger k also makes the step of W1 W2 larger, k/16 times that of a single layer.",
        {PAPER: Group((GRID,), functools.partial(_of_k, last=False))},
    ),
    Claim(
        "saturation",
        "The gain saturates: the largest k is no better than the one before",
        "the curves of k=64 and k=128 are very similar on Criteo-Kaggle.",
        "A claim of no difference: shown where the whole interval lies within 0.002 AUC.",
        {PAPER: Group((GRID,), functools.partial(_of_k, last=True))},
        is_equality=True,
    ),
    Claim(
        "k-equal-d",
        "Gains begin at k = d",
        "the benefits begin to be observed even for k = d.",
        "MLET with k = d over the single layer. At small k, W2 makes the step smaller: k/16 times.",
        {PAPER: Group(("narrow",), _from_k_equal_d)},
    ),
    Claim(
        "k-below-d",
        "k below d, which bounds the rank, is worse than k = d (Theorem 2.2)",
        "proves the bound, and does not propose to operate there.",
        "k = d over k < d. The smaller k has the smaller step too.",
        {PAPER: Group(("narrow",), _below_d)},
    ),
    Claim(
        "smaller",
        "At equal AUC, d is 4 to 8 times smaller",
        "4-8x on both data sets.",
        "The smallest measured d whose mean AUC reaches that of a single layer of d 8 and more: on validation at the "
        "paper's rate, on test where both have rates of their own. Means alone are compared: whether half the width is "
        "saved is asked below with intervals. Counted are pairs of a model and a wide d; where a narrower single layer "
        "reaches it too, d is worth little.",
        {}, table=widths.table, verdict=widths.verdict, experiments=(GRID, *fights.NAMES),
    ),
    Claim(
        "loss",
        "The largest LogLoss gain is 0.0025 (Criteo-Kaggle) or 0.006 (Avazu)",
        "0.0025 and 0.006.",
        "The three largest gains over a single layer of the same d, at the paper's rate. The largest of many is too "
        "large by chance.",
        {}, table=_loss_table, verdict=_loss, experiments=(GRID,),
    ),
    Claim(
        "no-cost",
        "Some (k, d) beat a wider single layer d' >= k at no cost",
        "on Avazu (64,64), (64,32) and (64,16) beat 128, and (32,16) and (32,8) beat 32; none on Criteo-Kaggle.",
        "All pairs with d < d' and k <= d', whose W1 is no larger than the single layer's table. The single layer is "
        "at the paper's rate too.",
        {PAPER: Group((GRID,), _zero_cost)}, some=True,
    ),
    Claim(
        "depth",
        "More than two layers do not help",
        "N = 2 is sufficient and higher N is not helpful.",
        "A claim of no difference: N layers over two, shown where the interval lies within 0.002 AUC. With the paper's "
        "std each layer more also makes the step 4 times as large; with 1/sqrt(k) it does not.",
        {f"{PAPER}, std 0.25": Group(("depth",), functools.partial(_deeper, arm="mlet")),
         f"{PAPER}, std 1/sqrt(k)": Group(("depth",), functools.partial(_deeper, arm="mlet-std-1-over-sqrt-k"))},
        is_equality=True, table=_depth_table, experiments=("depth",), pictures=("depth",),
    ),
    Claim(
        "rank",
        "MLET's tables have fewer singular values above 1 % of the largest (section 2.2.1)",
        "Avazu, d=8: single layer 8 and 5 of 8 in its two largest tables, MLET k=64 2 and 2.",
        "How many fewer, of the two largest tables at the end of training. Where all d are above it in both models, "
        "there is none fewer.",
        {PAPER: Group(("mechanism",), _fewer_values)}, table=_values_table, experiments=("mechanism",),
        pictures=("mechanism-spectra", "mechanism-growth"),
    ),
    Claim(
        "equation-6",
        "A singular value's step is given by equation 6",
        "Theorem 3 of Arora et al. (2019), whose layers start balanced.",
        "On a linear problem. The equation needs balanced layers, and MLET does not start so.",
        {}, table=_equation_table, verdict=_equation, experiments=("equation-6",), pictures=("equation-6",),
    ),
    Claim(
        "time",
        "A training step costs 25 % more with MLET (Table 2)",
        "6.54 ms single layer, 8.15 ms MLET, means over (k, d) on an RTX 2080.",
        "What W2 adds to our step. It is a cost of the published construction, not of the method.",
        {}, table=_time_table, verdict=_time, experiments=STEPS, pictures=STEPS,
    ),
    Claim(
        "rare",
        "Rare ids gain most",
        "doesn't say so; its authors do later (arXiv:2309.15881).",
        "MLET's gain of validation LogLoss on the third of rows with the rarest ids, over that on the third with the "
        "most frequent ones. DLRM at the paper's rate; tuned, DeepFM, in which MLET gains, whose rates were chosen on "
        "validation too.",
        {PAPER: Group(("mechanism",), functools.partial(_rare_over_frequent, experiment="mechanism")),
         TUNED: Group(("deepfm-controls",), functools.partial(_rare_over_frequent, experiment="deepfm-controls"))},
    ),
)  # fmt: skip
