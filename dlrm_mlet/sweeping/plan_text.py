"""A plan -> what to print of it, or a refusal where it can't be kept."""

import statistics

from dlrm_mlet.config import Point
from dlrm_mlet.sweeping.planning import KEEPS, Need, Plan, PlanError
from dlrm_mlet.training.run import steps_of


def check(plan: Plan) -> None:
    """Raises PlanError where a missing run can't fit a device, or the disk can't hold the checkpoints."""
    if not plan.missing:
        return
    worst = max(plan.missing, key=lambda need: max(need.memory))
    needed, there = max(worst.memory), plan.devices.memory
    if there is not None and needed > there:
        raise PlanError(
            f"{worst.point.short} needs {_gib(needed)} on its device, which has {_gib(there)} to plan with; expected "
            "a narrower inner_dim or embedding_dim, or one run on more devices with --engine torchrec"
        )
    keep = plan.experiment.keep
    more = plan.most(keep) - plan.held
    if more > plan.free:
        others = " or ".join(f'"{each}" ({_gb(plan.most(each))})' for each in KEEPS if each != keep)
        raise PlanError(
            f"{plan.out}: checkpoints need {_gb(more)} more, and its disk has {_gb(plan.free)} free; expected another "
            f"--out, or keep = {others} in {plan.experiment.path}"
        )


def text(plan: Plan) -> str:
    """What to print: a line for each point, or for those of one size, and below them the totals."""
    rows: list[tuple[str, ...]] = [
        ("point", "runs", "finished", "missing", "training", "at the end", "at work", "left", "time")
    ]
    groups: dict[tuple[object, ...], list[Need]] = {}
    for need in plan.needs:
        model = need.point.config.model
        key = (need.point.arm, model.inner_dims, model.embedding_dim, need.memory, need.standing, need.checkpoint)
        groups.setdefault(key, []).append(need)
    for same in groups.values():
        counts = ((need.runs, need.finished, need.missing) for need in same)
        times = [need.seconds for need in same if need.seconds is not None]
        rows.append((
            _name([need.point for need in same]),
            *(f"{sum(count):,}" for count in zip(*counts, strict=True)),
            *map(_gib, same[0].memory), _gb(same[0].standing + same[0].writing), _gb(same[0].checkpoint),
            _duration(statistics.fmean(times) if times else None),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, *_totals(plan)])


def _totals(plan: Plan) -> list[str]:
    experiment, devices = plan.experiment, plan.devices
    runs, missing = sum(need.runs for need in plan.needs), sum(need.missing for need in plan.needs)
    least = ", at least, as it tunes" if experiment.tuning else ""
    here = f"{devices.count} x {devices.kind}"
    needed = max(max(need.memory) for need in plan.needs)
    there = "of unknown memory" if devices.memory is None else f"of {_gib(devices.memory)} to plan with"
    if devices.kind == "cpu":
        there += "" if devices.memory is None else " in all"
        beside = "with the columns' pages, which all processes share and the system takes back"
    else:
        beside = "with the columns, which lie there too where they fit"
    said = [
        f"{experiment.path}: {runs:,} runs, {missing:,} of them missing{least}; table sizes: {plan.sizes}",
        f"steps: {_range([steps_of(point.config.training, plan.rows) for point in experiment.points])} a run",
        f"memory: {_gib(needed)} at most, {_gib(needed + plan.columns)} {beside}; {here} {there}",
    ]
    for keep in KEEPS:
        mark = ", as it is" if keep == experiment.keep else ""
        said.append(f'disk, keep = "{keep}"{mark}: {_gb(plan.most(keep))} at most, {_gb(plan.left(keep))} at the end')
    said.append(f"disk: {_gb(plan.held)} of it there already, {_gb(plan.free)} free")
    if plan.figures is None:
        said.append("time: unknown, as nothing was measured on such devices: see dlrm-mlet benchmark")
    else:
        said.append(
            f"time: about {_duration(plan.seconds)} of steps on {here}, by {plan.figures}; validation, test and "
            "checkpoints come on top"
        )
    return said


def _name(points: list[Point]) -> str:
    first = points[0]
    if len(points) == 1:
        return first.short
    layers = first.config.model.inner_dims
    inner = f"k={'x'.join(map(str, layers))}" if layers else "single layer"
    return " ".join(filter(None, [first.arm, inner, f"d={first.config.model.embedding_dim}, {len(points)} points"]))


def _range(counts: list[int]) -> str:
    return " to ".join(f"{count:,}" for count in dict.fromkeys((min(counts), max(counts))))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _gb(count: int) -> str:
    if count < 1e8:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e9:,.{0 if count >= 1e11 else 2}f} GB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
