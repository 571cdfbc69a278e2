"""Tables of results -> docs/reproduction.md: what the paper claims, what it leaves open, and what came out here."""

from collections.abc import Sequence
from pathlib import Path

from dlrm_mlet.reporting.claims import CLAIMS
from dlrm_mlet.reporting.judging import Claim, Judgement, Tables
from dlrm_mlet.reporting.questions import QUESTIONS

INTRODUCTION = """\
# What the paper claims, and what came out

Drawn by `make figures` from the tables in [results/](../results), and from nothing else. Data: NYC flights, 327,346
rows, 11 categorical columns with 10,604 values in all. Criteo-Kaggle has 140 times as many rows: what the paper says of
sizes there needs its data, and says so. The configs are in [configs/flights](../configs/flights); the same experiments
for people who have the files of the other data sets are in [configs](../configs).

A difference is a mean over n seeds, paired by seed, ± its standard deviation, with the 95 % confidence interval of the
mean in brackets (Student's t; each by itself, not corrected for their number). Positive is better. *Holds*: the
interval is above 0 at every point named; *holds in part*: at some; *does not hold*: at none.
"""
ELSEWHERE = {
    "equation-6": ("python scripts/equation_6.py", "linear/equation-6.csv"),
    "step-cpu": ("make benchmark", "benchmarks/step-cpu.md"),
}
"""Command and records of what isn't a sweep's."""


def page(directory: Path) -> str:
    """The whole page, from `directory`/<dataset>/*.csv and `directory`/benchmarks."""
    tables = Tables(directory / "flights")
    parts = {"The paper's claims": CLAIMS, "What the paper leaves open": QUESTIONS}
    judged = {title: [(claim, _judge(claim, tables)) for claim in claims] for title, claims in parts.items()}
    lines = [INTRODUCTION, *_summary([pair for pairs in judged.values() for pair in pairs])]
    for title, pairs in judged.items():
        lines += ["", f"## {title}"]
        for claim, judgement in pairs:
            lines += ["", *_section(claim, judgement)]
    return "\n".join(lines) + "\n"


def _judge(claim: Claim, tables: Tables) -> Judgement | None:
    try:
        return claim.judge(tables)
    except FileNotFoundError:
        return None


def _summary(judged: Sequence[tuple[Claim, Judgement | None]]) -> list[str]:
    lines = ["| claim or question | verdict |", "|---|---|"]
    return lines + [f"| {claim.text} | {found.verdict if found else 'Not run'} |" for claim, found in judged]


def _section(claim: Claim, found: Judgement | None) -> list[str]:
    if found is None:
        return [f"### {claim.text}", "", "Not run yet: `make experiments`."]
    name = claim.experiment
    command, record = ELSEWHERE.get(name, (f"make sweep GRID={name}", f"flights/{name}.md"))
    return [
        f"### {claim.text}",
        "",
        f"**{found.verdict}.** {found.ours}",
        "",
        f"Paper: {claim.paper} Command: `{command}`. Records: [{record}](../results/{record}).",
    ]
