"""Tables of results -> the page of claims, a figure for each, and claims.csv: what is claimed and what came out."""

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from dlrm_mlet.files import replacing
from dlrm_mlet.reporting import drawing, fights, forest, judging, results, trained
from dlrm_mlet.reporting.claims import CLAIMS
from dlrm_mlet.reporting.curves import as_markdown
from dlrm_mlet.reporting.judging import MARGIN, PAPER, TUNED, Claim, Counts, Tables
from dlrm_mlet.reporting.ledger import ELSEWHERE, Outcome, Outcomes, as_csv, is_elsewhere
from dlrm_mlet.reporting.questions import QUESTIONS
from dlrm_mlet.reporting.results import CLAIMS as CLAIMS_TABLE
from dlrm_mlet.reporting.results import COMPANIONS, ResultsError

DATASETS = {
    "flights": "NYC flights: 327,346 rows, 11 categorical columns with 10,604 values in all",
    "complete-journey": "Complete Journey: 1,469,307 rows, 12 categorical columns with 85,000 values in all",
    "complete-journey-by-time": "Complete Journey split by time: the same rows; 82,472 values in those of training",
    "criteo-kaggle": "Criteo-Kaggle: 45,840,617 rows, 26 categorical columns with 33,762,577 values in all",
    "avazu": "Avazu: 40,428,967 rows, 21 categorical columns with 9,364,331 values in all",
}
"""Those of the page, in its order."""
INTRODUCTION = f"""\
# What the paper claims, and what came out

Drawn by `dlrm-mlet report` from the tables in results/ alone. Every number of its tables is a row of claims.csv, with
the level of its interval. docs/terms.md explains the words.

- A point is a mean of differences that are paired by seed, positive being better. Seeds whose run diverged on either
  side have no pair.
- The verdicts of a claim hold jointly on each data set: that one of them is wrong has a chance of 5 % (Student's t,
  Holm's procedure). An interval is at the level at which its point was tested, 95 % or more, so that it agrees with the
  verdict; that all intervals of a claim hold at once is a little less sure. It is over seeds: other rows to score, or
  another search of the rates, are not in it.
- *Shown*: the whole interval lies above 0; *opposite shown*: below; *not decided (±x)*: neither, where x is half the
  widest such interval of a measure, so that a mean beyond it would have been decided; *no difference at all*: each
  seed's is 0, which counts as open.
- A claim that nothing is gained is shown where the interval (all of them hold at once) lies within ±{MARGIN} AUC or
  below that, the opposite where it lies above; there a mean beyond x + {MARGIN} would have been decided.
- The counts are points for, against and open, in AUC and LogLoss. An arrow in a picture: an interval that goes on.
- Choices are made on validation and test was read once: what is tuned is compared on test, what isn't on validation.
  Scores by how rare ids are were taken on validation alone.
"""
UNREADABLE = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError)
"""What a table that isn't as a sweep writes it can end in; ResultsError is among them."""
IN_A_CELL = 48
"""Letters that name the points of a verdict, in the summary; where it takes more, the section names them."""
FIGURES = "claims"
"""The directory of the figures, beside the data sets."""


def publish(directory: Path, page: Path, out: Path, datasets: Sequence[str] | None = None) -> Iterator[Path]:
    """Write the page, the figures into `out`/claims, and `out`/claims.csv, from `directory`/<dataset>/*.csv.

    `datasets`: those of the page; by default all of DATASETS. Yields what was written. Raises ResultsError where a
    claim couldn't be judged, when all else is written.
    """
    names = list(DATASETS) if datasets is None else list(datasets)
    for name in names:
        _check_data(directory / name)
    judged = [(claim, judge(claim, directory, names)) for claim in (*CLAIMS, *QUESTIONS)]
    failed = [its.said for _, found in judged for its in found.values() if its.refused]
    for claim, found in judged:
        drawn = {name: its.points for name, its in found.items() if its.points}
        if drawn:
            path = out / FIGURES / claim.name
            (path.parent).mkdir(parents=True, exist_ok=True)
            forest.differences(drawn, list(claim.groups), MARGIN if claim.is_equality else None, claim.text, path)
            yield from drawing.files(path)
        if claim.figure is not None:
            for name in (name for name, its in found.items() if _is_drawn(claim, its)):
                path = out / FIGURES / f"{claim.name}-{name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                tables = Tables(directory / name)
                try:
                    claim.figure(tables, path)
                except UNREADABLE as error:
                    failed.append(f"can't be drawn: {_why(error, claim, tables)}")
                else:
                    yield from drawing.files(path)
    with replacing(out / "claims.csv") as partial:
        partial.write_text(as_csv(judged), encoding="utf-8")
    yield out / "claims.csv"
    with replacing(page) as partial:
        partial.write_text(text(judged, names, _link(page, out), _link(page, directory)), encoding="utf-8")
    yield page
    if failed:
        said = f"{page}: some claims couldn't be judged or drawn, all else is there:"
        raise ResultsError("\n  ".join([said, *dict.fromkeys(failed)]))


def _check_data(directory: Path) -> None:
    """Raises ResultsError where a data set's tables were made from unlike columns, as after another preprocessing."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.glob("*.csv")):
        if path.stem != CLAIMS_TABLE and not path.stem.endswith(COMPANIONS):
            with contextlib.suppress(ResultsError):  # said where it is drawn
                for data in {row.data for row in results.read(path) if row.data}:
                    found.setdefault(data, []).append(path.name)
    if len(found) > 1:
        said = "; ".join(f"{', '.join(names)} from {data}" for data, names in found.items())
        raise ResultsError(f"{directory}: its tables were made from unlike columns ({said}); expected the same ones: "
                           "move those of others away with their runs, and sweep again")  # fmt: skip


def judge(claim: Claim, directory: Path, datasets: Sequence[str]) -> Outcomes:
    """What came out on each data set that has records for the claim."""
    found = {}
    for name in datasets:
        tables = Tables(directory / name)
        there = frozenset(path.stem for path in tables.directory.glob("*.csv"))
        try:
            try:
                table = claim.table(tables) if claim.table and tables.directory.is_dir() else []
                said = claim.verdict(tables) if claim.verdict and table else ""
            except FileNotFoundError:
                table, said = [], ""
            points = judging.points(claim, tables)
            options = {name: fights.options(tables, name) for name in _reads(claim) if name in there & fights.OTHERS}
            how = {name: trained.otherwise(name, tables.rows(name)) for name in _reads(claim) if name in there}
        except UNREADABLE as error:
            found[name] = Outcome([], [], f"can't be judged: {_why(error, claim, tables)}", there, refused=True)
            continue
        if not points and not said and judging.was_run(claim, tables):
            said = "no two runs to compare that both finished"
        if points or said:
            otherwise = {name: said for name, said in how.items() if said}
            found[name] = Outcome(points, table, said, there, _pictures(claim, tables.directory), options, otherwise)
    return _once(claim, found)


def _pictures(claim: Claim, directory: Path) -> tuple[str, ...]:
    """The claim's pictures that are there, from the directory of all results on."""
    found = [
        Path(ELSEWHERE[name][1]).with_suffix("").as_posix() if name in ELSEWHERE else f"{directory.name}/{name}"
        for name in claim.pictures
    ]
    return tuple(f"{name}.svg" for name in found if (directory.parent / f"{name}.svg").exists())


def _reads(claim: Claim) -> list[str]:
    """The experiments that a claim is read from, each once."""
    of_groups = (name for group in claim.groups.values() for name in group.experiments)
    return list(dict.fromkeys([*claim.experiments, *of_groups]))


def _why(error: Exception, claim: Claim, tables: Tables) -> str:
    if isinstance(error, judging.UnlikeRunsError):
        return f"{tables.directory}: {', '.join(_reads(claim))}: {error}"
    if isinstance(error, ResultsError):
        return str(error)
    return f"{tables.directory}: {', '.join(_reads(claim))}: {error!r}; expected tables as a sweep writes them"


def _once(claim: Claim, found: Outcomes) -> Outcomes:
    """What isn't of a data set at all is there once."""
    if is_elsewhere(claim):
        return dict(list(found.items())[:1])
    return found


def text(judged: Sequence[tuple[Claim, Outcomes]], datasets: Sequence[str], out: str, directory: str) -> str:
    """The page; `out` and `directory` lead from it to the figures and to the tables."""
    lines = [INTRODUCTION, *_datasets(judged, datasets), "", *_summary(judged)]
    for title, claims in (("The paper's claims", CLAIMS), ("What the paper leaves open", QUESTIONS)):
        lines += ["", f"## {title}"]
        for claim, found in judged:
            if claim in claims:
                lines += ["", *_section(claim, found, out, directory, datasets[0] if len(datasets) == 1 else "NAME")]
    return "\n".join(lines) + "\n"


def _datasets(judged: Sequence[tuple[Claim, Outcomes]], datasets: Sequence[str]) -> list[str]:
    there = {name for claim, found in judged for name in found if not is_elsewhere(claim)}
    lines = ["| data set | records |", "|---|---|"]
    for name in datasets:
        waiting = "waiting for records" + (": see [records.md](records.md)" if name in DATASETS else "")
        here = "here" if name in there else waiting
        lines.append(f"| {DATASETS.get(name, name)} | {here} |")
    return lines


def _summary(judged: Sequence[tuple[Claim, Outcomes]]) -> list[str]:
    lines = ["| claim or question | data set | at the paper's rate, or as it says | tuned | for / against / open |",
             "|---|---|---|---|---|"]  # fmt: skip
    waiting = [claim.text for claim, found in judged if not found]
    for claim, found in judged:
        where = f"[{claim.text}](#{_anchor(claim.text)})"
        for name, outcome in found.items():
            of = f"{name} (trained otherwise: see there)" if outcome.otherwise else name
            lines.append(f"| {where} | {'–' if is_elsewhere(claim) else of} | {_verdicts(claim, outcome)} |")
            where = ""
    return [*lines, "", f"Not run yet: {'; '.join(waiting)}."] if waiting else lines


def _verdicts(claim: Claim, outcome: Outcome) -> str:
    """The last three cells of the summary."""
    if not outcome.points:
        parts = outcome.said.split("; ")
        untuned, tuned = ("; ".join(part for part in parts if part.startswith(TUNED) is its) for its in (False, True))
        return f"{untuned} | {tuned} | –"
    paper: list[str] = []
    best: list[str] = []
    for group in claim.groups:
        if mine := outcome.of(group):
            said = judging.verdict(claim, mine, IN_A_CELL)
            which = group.removeprefix(TUNED).removeprefix(", ")
            (paper if which == group else best).append(said if which in ("", PAPER) else f"{which}: {said}")
    return f"{'; '.join(paper)} | {'; '.join(best)} | {judging.count(claim, outcome.points)}"


def _anchor(title: str) -> str:
    """As Markdown's renderers make one of a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def _section(claim: Claim, found: Outcomes, out: str, directory: str, dataset: str) -> list[str]:
    lines = [f"### {claim.text}", ""]
    if not found:
        missing = [ELSEWHERE.get(source, (_command(dataset, source, {}),))[0] for source in _reads(claim)]
        return [*lines, f"Paper: {claim.paper} Not run yet: {', '.join(f'`{command}`' for command in missing)}."]
    lines += [f"Paper: {claim.paper} {claim.words}", ""]
    if any(outcome.points for outcome in found.values()):
        lines += [
            f"![{claim.text}: differences with their intervals]({quote(f'{out}/{FIGURES}/{claim.name}.svg')})",
            "",
        ]
    for name, outcome in found.items():
        if _is_drawn(claim, outcome):
            lines += [f"![{claim.text}: {name}]({quote(f'{out}/{FIGURES}/{claim.name}-{name}.svg')})", ""]
        lines += _of_dataset(claim, name, outcome, directory)
    return lines[:-1]


def _is_drawn(claim: Claim, outcome: Outcome) -> bool:
    """Whether a data set has a picture of its own."""
    return claim.figure is not None and not outcome.refused and (bool(outcome.points) or not claim.groups)


def _of_dataset(claim: Claim, name: str, outcome: Outcome, directory: str) -> list[str]:
    lines = []
    for source, how in outcome.otherwise.items():
        lines += [f"**{name}/{source} isn't what its name says: {how}.**", ""]
    for group in claim.groups:
        if mine := outcome.of(group):
            counts: Counts = judging.count(claim, mine)
            verdict = judging.verdict(claim, mine)
            lines += [f"**{name}, {group}: {verdict}** ({counts}).", ""]
    if outcome.said:
        lines += [f"**{outcome.said[:1].upper()}{outcome.said[1:]}**." if is_elsewhere(claim) else
                  f"**{name}: {outcome.said}**.", ""]  # fmt: skip
    if outcome.table:
        lines += [*as_markdown(outcome.table), ""]
    for picture in outcome.pictures:
        lines += [f"![{Path(picture).stem}: {Path(picture).parent}]({quote(f'{directory}/{picture}')})", ""]
    if outcome.points:
        head = ["rate", "point", "measure", "difference", "std", "interval at its level", "n"]
        rows = [
            [p.group, p.name, p.measure.replace("_", " "), f"{p.gain.mean:+.4f}", p.gain.spread,
             p.gain.interval, str(p.gain.n)]
            for p in outcome.points
        ]  # fmt: skip
        lines += [f"<details><summary>In numbers ({len(rows)})</summary>", "",
                  *as_markdown([head, *rows]), "", "</details>", ""]  # fmt: skip
    shown = dict.fromkeys([*claim.experiments, *(s for p in outcome.points for s in p.sources)] or _reads(claim))
    sources = [source for source in shown if source in ELSEWHERE or source in outcome.tables]
    commands, records = [], []
    for source in sources:
        command, record = ELSEWHERE.get(source, (_command(name, source, outcome.options), f"{name}/{source}.md"))
        commands.append(f"`{command}`")
        records.append(f"[{record}]({quote(f'{directory}/{record}')})")
    lines += [f"Commands: {', '.join(commands)}. Records: {', '.join(records)}.", ""]
    return lines


def _command(dataset: str, experiment: str, options: Mapping[str, str]) -> str:
    if experiment in fights.OTHERS:
        model, _, what = experiment.partition("-")
        controls = " --controls" if what == "controls" else ""
        return f"python scripts/other_models.py {shlex.quote(dataset)} {model}{controls}{options.get(experiment, '')}"
    return f"make sweep DATASET={shlex.quote(dataset)} GRID={shlex.quote(experiment)}"


def _link(page: Path, to: Path) -> str:
    return Path(os.path.relpath(to, page.parent)).as_posix()
