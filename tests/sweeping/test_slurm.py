"""Runs handed to Slurm: what sbatch is given, what is asked of the queue, and what a task does on a node.

Slurm's commands are stand-ins here that a test sets up; tests/slurm has a real one.
"""

import functools
import json
import shutil
import signal
import stat
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from dlrm_mlet import config
from dlrm_mlet.__main__ import main
from dlrm_mlet.data import columns
from dlrm_mlet.data.schema import ColumnsError
from dlrm_mlet.files import BusyError, alone
from dlrm_mlet.sweeping import queue, worker
from dlrm_mlet.sweeping.queue import QueueError
from dlrm_mlet.sweeping.slurm import SlurmError, flags, submit
from dlrm_mlet.sweeping.sweep import FailedRuns, plan, sweep
from dlrm_mlet.sweeping.tuning import tune
from dlrm_mlet.training.run import train
from dlrm_mlet.training.stepping import losses
from tests.sweeping.test_sweep import CPU, GRID, times
from tests.sweeping.test_tuning import TUNED
from tests.training.test_run import assert_same_bits

COMMANDS = {
    "sbatch": """
        [ -e "$0.refuses" ] && { cat "$0.refuses" >&2; exit 1; }
        echo "$1" >> "$0.calls"
        echo "Submitted batch job $((100 + $(wc -l < "$0.calls")))" """,
    "squeue": """
        echo asked >> "$0.calls"
        [ -e "$0.refuses" ] && { cat "$0.refuses" >&2; exit 1; }
        cat "$0.lists" 2> /dev/null || true""",
    "scontrol": """
        [ "$1" = requeue ] || { cat "$0.says"; exit; }
        [ -e "$0.refuses" ] && { cat "$0.refuses" >&2; exit 1; }
        echo "$2" >> "$0.calls" """,
    "srun": "",
}


class Slurm:
    """The stand-ins' directory."""

    def __init__(self, home: Path, out: Path):
        self.home, self.out = home, out
        for name, text in COMMANDS.items():
            (home / name).write_text("#!/bin/bash\n" + text)
            (home / name).chmod(stat.S_IRWXU)
        self.tell("scontrol.says", "MaxArraySize            = 1001\n")

    def tell(self, name: str, text: str) -> None:
        (self.home / name).write_text(text)

    def calls(self, name: str) -> list[str]:
        file = self.home / f"{name}.calls"
        return file.read_text().splitlines() if file.exists() else []

    def lists(self, *lines: str, out: Path | None = None) -> None:
        """What squeue has of the latest array: index, state, reason and restarts of each task."""
        names = {json.loads(note.read_text())["since"]: note.parent.name for note in self.notes(out)}
        name = names[max(names)] if names else ""
        rows = (line.split() for line in lines)
        self.tell("squeue.lists", "".join(f"{name} |101 |{i} |{s} |{why} |{n} |node7 |\n" for i, s, why, n in rows))

    def notes(self, out: Path | None = None) -> list[Path]:
        return list((out or self.out).glob("slurm/*/submission.json"))

    def tasks(self, out: Path | None = None) -> list[DelayedSubmission]:
        """What was handed over and isn't done."""
        return [DelayedSubmission.load(path) for path in self.pickles(out)]

    def pickles(self, out: Path | None = None) -> list[Path]:
        return sorted((out or self.out).glob("slurm/*/*_submitted.pkl"))

    def do(self, out: Path | None = None) -> None:
        """As the nodes would."""
        for pickle in self.pickles(out):
            DelayedSubmission.load(pickle).result()
            pickle.unlink()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Slurm's stand-ins on PATH, of a sweep in `out`; and the signal's handler is the tests' own again."""
    home = tmp_path / "bin"
    home.mkdir()
    for name in ("cat", "wc", "sleep"):
        (home / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(home))  # a real Slurm here is none
    monkeypatch.setenv("SLURM_JOB_ID", "102")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = signal.getsignal(signal.SIGUSR2)
    yield Slurm(home, tmp_path / "out")
    signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def experiment(tmp_path):
    """Six runs."""
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return config.load(path)


def directly(experiment, data, out):
    """The slow, obvious twin: a run after another, each alone."""
    loaded = columns.load(data)
    return [(run, train(run.point.config, loaded, run.seed, run.directory)) for run in plan(experiment, out)]


def scripts(cluster) -> list[str]:
    return [Path(path).read_text() for path in cluster.calls("sbatch")]


def test_what_the_command_line_does_not_know_is_sbatchs():
    words = ["--partition", "gpu", "--mem=8G", "--exclusive", "--nice", "-5", "--gres=gpu:1"]
    expected = {"partition": "gpu", "mem": "8G", "exclusive": True, "nice": "-5", "gres": "gpu:1"}
    assert flags(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "gpu"], "-p: expected a flag of sbatch in its long form"),
        (["gpu"], "gpu: expected a flag of sbatch in its long form"),
        (["--array=0-3"], "--array: is decided by dlrm-mlet"),
        (["--outp", "x"], "--outp: is decided by dlrm-mlet"),
        (["--wrap", "true"], "--wrap: is decided by dlrm-mlet"),
    ],
)
def test_a_flag_that_can_not_be_meant_is_refused(words, message, experiment, clicks_directory, capsys):
    with pytest.raises(SlurmError, match=message):
        flags(words)
    assert main(["sweep", str(experiment.path), "--launcher", "slurm", *words]) == 1
    assert message in capsys.readouterr().err


def test_of_the_local_launcher_an_unknown_flag_is_an_error(experiment, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(experiment.path), "--partition", "gpu"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --partition gpu" in capsys.readouterr().err


def test_the_same_call_submits_goes_on_and_draws(experiment, cluster, clicks_directory, tmp_path, capsys):
    call = ["sweep", str(experiment.path), "--data", str(clicks_directory), "--out", str(cluster.out)]
    queued = [*call, "--launcher", "slurm", "--partition", "gpu", "--time=60"]
    assert main(queued) == 0
    said = capsys.readouterr().out
    assert "6 runs handed to Slurm in 6 tasks of job 101" in said
    (script,) = scripts(cluster)
    for line in ("array=0-5%6", "partition=gpu", "time=60", "requeue", "cpus-per-task=1", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in script

    cluster.lists(*(f"{index} PENDING Priority 0" for index in range(6)))
    assert main(queued) == 0
    said = capsys.readouterr().out
    assert "6 in the queue: Priority" in said
    assert "handed" not in said
    assert len(cluster.calls("sbatch")) == 1
    assert main(call) == 1  # the local launcher
    assert "Slurm has 6 of its runs; expected --launcher slurm, or none there: scancel 101" in capsys.readouterr().err

    tasks = cluster.tasks()
    for task in tasks[:4]:
        task.result()
    failed, gone = ([run.directory.resolve() for run in task.function.runs] for task in tasks[4:])
    failed[0].mkdir(parents=True)
    (failed[0] / "failed.json").write_text(json.dumps({"reason": "no memory"}))
    (cluster.notes()[0].parent / "101_5_0_log.err").write_text(
        "slurmstepd: error: *** STEP 102.0 ON vm CANCELLED AT 2026-01-01T00:00:00 ***\nTerminated\nsrun: error: vm\n"
    )
    cluster.lists()
    assert main(["status", str(experiment.path), "--out", str(cluster.out)]) == 0
    said = capsys.readouterr().out
    assert "failed, no memory" in said
    assert "failed, job 101_5 left the queue: slurmstepd: error: *** STEP 102.0 ON vm CANCELLED" in said
    assert "6 runs: 4 finished, 2 failed; no sweep is at work" in said

    before = times(cluster.out)
    assert main(queued) == 0
    said = capsys.readouterr().out
    assert f"tried again: {failed[0]}: no memory" in said
    assert f"tried again: {gone[0]}: job 101_5 left the queue" in said
    assert "2 runs handed to Slurm in 2 tasks of job 102" in said
    cluster.do()  # those that have records make nothing
    assert main(queued) == 0
    assert "6 runs; 0 diverged" in capsys.readouterr().out
    assert before.items() <= times(cluster.out).items()
    directly(experiment, clicks_directory, tmp_path / "local")
    for mine, theirs in zip(plan(experiment, cluster.out), plan(experiment, tmp_path / "local"), strict=True):
        assert_same_bits(mine.directory, theirs.directory)


def test_arrays_are_as_long_as_slurm_takes_them(experiment, cluster, clicks_directory):
    cluster.tell("scontrol.says", "MaxArraySize = 4\n")
    assert submit(experiment, clicks_directory, cluster.out, {}, jobs=4) is None
    arrays = [next(line for line in script.splitlines() if "--array" in line) for script in scripts(cluster)]
    assert arrays == ["#SBATCH --array=0-3%2", "#SBATCH --array=0-1%2"]  # four at once, of both together
    runs = [name for note in cluster.notes() for task in json.loads(note.read_text())["tasks"] for name in task]
    assert sorted(runs) == sorted(str(run.directory.relative_to(cluster.out)) for run in plan(experiment, cluster.out))
    with pytest.raises(SlurmError, match="--jobs 0: expected 1 or more"):
        submit(experiment, clicks_directory, cluster.out, {}, jobs=0)


def test_on_gpus_a_task_has_all_seeds_of_a_point_one_after_another_where_they_do_not_fit(
    experiment, cluster, clicks_directory, device, monkeypatch
):
    assert submit(experiment, clicks_directory, cluster.out, {"gres": "gpu:1", "cpus-per-task": "3"}) is None
    assert "#SBATCH --array=0-2%" in scripts(cluster)[0]
    assert "--cpus-per-task=3" in scripts(cluster)[0].splitlines()[-1]
    tasks = cluster.tasks()
    assert [len(one.function.runs) for one in tasks] == [2, 2, 2]
    monkeypatch.setattr("dlrm_mlet.training.device.find", lambda _: device)
    made = []
    monkeypatch.setattr(worker, "make", lambda job, *_: made.append(list(job.seeds)))
    cluster.do()
    assert made == 3 * ([[0], [1]] if device.type == "cpu" else [[0, 1]])
    made.clear()
    monkeypatch.setattr("dlrm_mlet.sweeping.sweep.free_memory", lambda _: 1)
    for one in tasks:
        one.result()
    assert made == 3 * [[0], [1]]


def test_what_sbatch_refuses_is_told_in_a_line_and_leaves_nothing(experiment, cluster, clicks_directory, capsys):
    cluster.tell("sbatch.refuses", "sbatch: error: invalid partition specified: nope\nsbatch: error: it failed\n")
    call = ["sweep", str(experiment.path), "--data", str(clicks_directory), "--out", str(cluster.out)]
    assert main([*call, "--launcher", "slurm", "--partition=nope"]) == 1
    said = capsys.readouterr().err
    expected = "sbatch refused it: sbatch: error: invalid partition specified: nope sbatch: error: it failed"
    assert said == f"dlrm-mlet: error: {expected}\n"
    assert not cluster.notes()
    for command in ("srun", "sbatch"):
        (cluster.home / command).unlink()
        with pytest.raises(SlurmError, match=f"{command} isn't here; expected a machine of a Slurm cluster"):
            submit(experiment, clicks_directory, cluster.out, {})


def test_two_calls_hand_nothing_over_twice_and_none_meets_a_sweep(experiment, cluster, clicks_directory):
    with alone(cluster.out, "sweep"), pytest.raises(BusyError, match="is working on this sweep"):
        submit(experiment, clicks_directory, cluster.out, {})
    with alone(plan(experiment, cluster.out)[0].directory, "run"):
        submit(experiment, clicks_directory, cluster.out, {})
    assert "#SBATCH --array=0-4%" in scripts(cluster)[0]
    # a process that died when sbatch had taken its array, before it could write the number down
    note = cluster.notes()[0]
    note.write_text(json.dumps(json.loads(note.read_text()) | {"job": None}))
    cluster.lists(*(f"{index} RUNNING None 0" for index in range(5)))
    submit(experiment, clicks_directory, cluster.out, {})
    assert [len(json.loads(note.read_text())["tasks"]) for note in sorted(cluster.notes())].count(1) == 1
    cluster.lists()  # and one that died before sbatch: as if it had never been
    note.write_text(json.dumps(json.loads(note.read_text()) | {"since": 0}))
    assert sum(place.state == "gone" for place in queue.places(cluster.out).values()) == 1


def test_where_the_queue_can_not_be_asked_nothing_is_handed_over_and_the_files_tell(
    experiment, cluster, clicks_directory, monkeypatch, capsys
):
    submit(experiment, clicks_directory, cluster.out, {})
    cluster.tell("squeue.refuses", "slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(QueueError, match="expected to know, so that no run is handed over twice"):
        submit(experiment, clicks_directory, cluster.out, {})
    status = ["status", str(experiment.path), "--out", str(cluster.out)]
    assert main(status) == 0
    said = capsys.readouterr().out
    assert "6 waiting: handed to Slurm, but squeue --noheader failed: slurm_load_jobs error: Unable" in said
    (cluster.home / "squeue").unlink()
    assert main(status) == 0
    assert "but squeue isn't here; expected a machine of a Slurm cluster" in capsys.readouterr().out
    with pytest.raises(ColumnsError):  # the local launcher goes on from there: each run is guarded by itself
        sweep(experiment, clicks_directory / "nowhere", cluster.out, CPU)
    monkeypatch.setattr(queue, "SECONDS", 0.1)
    with pytest.raises(QueueError, match=r"sleep didn't answer in 0.1 s"):
        queue.ask("sleep", "5")


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_note_that_is_none_is_named(text, experiment, cluster, clicks_directory):
    submit(experiment, clicks_directory, cluster.out, {})
    cluster.notes()[0].write_text(text)
    with pytest.raises(QueueError, match=r"submission.json: doesn't say what was handed to Slurm"):
        queue.places(cluster.out)


def test_status_says_where_in_the_queue_each_run_is_by_one_call(experiment, cluster, clicks_directory, capsys):
    submit(experiment, clicks_directory, cluster.out, {})
    cluster.lists(
        "0 RUNNING None 0", "1 RUNNING None 2", "2 PENDING Resources 0", "3 PENDING BeginTime 1", "4 PENDING None 0"
    )
    asked = len(cluster.calls("squeue"))
    assert main(["status", str(experiment.path), "--out", str(cluster.out)]) == 0
    assert len(cluster.calls("squeue")) == asked + 1
    said = capsys.readouterr().out
    for line in (
        "at work, job 101_0 on node7\n",
        "at work, job 101_1 on node7, requeued 2 times\n",
        "1 in the queue: Resources\n",
        "1 in the queue: BeginTime, requeued\n",
        "1 in the queue: Slurm hasn't looked at it yet\n",
        "left the queue: it has no log, as where it was cancelled before it began, or its node has another disk\n",
        "6 runs: 2 at work, 3 in the queue, 1 failed\n",
    ):
        assert line in said
    log = cluster.notes()[0].parent / "101_5_0_log.err"
    log.write_text("srun: error\n")
    assert queue.places(cluster.out)[plan(experiment, cluster.out)[1].directory].said.endswith("its log has no reason")
    log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=102.0.\nsrun: error: Out Of Memory\n")
    assert "expected a larger --mem" in queue.places(cluster.out)[plan(experiment, cluster.out)[1].directory].said


def test_a_task_leaves_why_it_failed(experiment, cluster, clicks_directory, tmp_path):
    data = tmp_path / "elsewhere"
    data.symlink_to(clicks_directory)
    submit(experiment, data, cluster.out, {})
    task = cluster.tasks()[0]
    task.function.data = tmp_path / "nowhere"  # as where a node doesn't see the disk
    with pytest.raises(FailedRuns, match=r"schema.json: no such file"):
        task.result()
    directory = task.function.runs[0].directory
    assert "schema.json: no such file" in json.loads((directory / "failed.json").read_text())["reason"]
    (directory / "checkpoint.pt").mkdir()
    with pytest.raises(FailedRuns, match="1 runs failed"):
        cluster.tasks()[0].result()


def test_a_task_waits_for_a_lock_that_another_node_has_left(experiment, cluster, clicks_directory, monkeypatch):
    submit(experiment, clicks_directory, cluster.out, {})
    one = cluster.tasks()[0]
    left = iter([1, 2, 3])
    slept = []
    monkeypatch.setattr("dlrm_mlet.sweeping.task.at_work", lambda _: next(left, None))
    monkeypatch.setattr("dlrm_mlet.sweeping.task.time.sleep", slept.append)
    one.result()
    assert slept == [1, 1, 1]
    assert (one.function.runs[0].directory / "record.json").exists()


def signalled(steps, count):
    """The steps of a run, amid which Slurm tells it to end."""
    for number, loss in enumerate(steps):
        if number == count:
            signal.raise_signal(signal.SIGUSR2)
        yield loss


@pytest.mark.parametrize(
    ("job", "steps", "refuses", "said"),
    [
        ("RunTime=00:09:00 TimeLimit=00:10:00", 27, "", "back into the queue"),
        ("RunTime=00:09:00 TimeLimit=00:10:00", 5, "", "its time limit of 00:10:00 ends before its next checkpoint"),
        ("RunTime=1-01:00:00 TimeLimit=2-00:00:00", 5, "", "back into the queue"),  # preempted
        ("RunTime=00:09:00 TimeLimit=UNLIMITED", 5, "", "back into the queue"),
        ("", 5, "", "back into the queue"),
        ("", 27, "slurm: not allowed", "couldn't go back into the queue: scontrol requeue failed: slurm: not allowed"),
    ],
)
def test_at_slurms_signal_a_task_goes_back_into_the_queue_if_that_leads_anywhere(
    job, steps, refuses, said, experiment, cluster, clicks_directory, monkeypatch
):
    submit(experiment, clicks_directory, cluster.out, {})
    cluster.tell("scontrol.says", f"JobId=102 {job} StartTime=now\n")
    if refuses:
        cluster.tell("scontrol.refuses", refuses)
    task = cluster.tasks()[0]
    directory = task.function.runs[0].directory
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("dlrm_mlet.training.run.losses", lambda *arguments: signalled(losses(*arguments), steps))
        task.result()
    assert said in str(end.value.code)
    again = said == "back into the queue"
    assert cluster.calls("scontrol") == ["102"] * again
    assert (directory / "failed.json").exists() is not again
    with alone(directory, "run"):  # its lock is gone
        assert (directory / "checkpoint.pt").exists() is (steps > 10)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    cluster.tasks()[0].result()
    assert (directory / "record.json").exists()
    assert not (directory / "failed.json").exists()


def test_the_trials_of_a_round_are_handed_over_when_the_round_before_is_done(
    cluster, clicks_directory, tmp_path, capsys
):
    path, trials = tmp_path / "tuned.toml", cluster.out / "trials"
    one_key = (
        TUNED.replace("learning_rate = [0.2], table_", "").replace("[100, 101]", "[100]").replace("mlet =", "# mlet =")
    )
    path.write_text(one_key.replace("= 64", "= 64\nmax_steps = 3").replace("trials = 8", "trials = 3"))
    call = ["sweep", str(path), "--data", str(clicks_directory), "--out", str(cluster.out), "--launcher", "slurm"]
    assert main(call) == 0
    assert "2 runs handed to Slurm" in capsys.readouterr().out
    cluster.lists(*(f"{index} PENDING Priority 0" for index in range(2)), out=trials)
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "handed" not in said
    assert "2 in the queue: Priority" in said
    assert "3 runs: 2 in the queue, 1 waiting" in said  # the run at the rate that will be chosen
    cluster.lists()
    experiment, launch = config.load(path), functools.partial(submit, flags={})
    rounds = 1
    while (tuned := tune(experiment, clicks_directory, trials, launch)) is None:
        cluster.do(trials)
        rounds += 1
    assert rounds == len(cluster.calls("sbatch")) > 1
    locally, runs = tune(experiment, clicks_directory, tmp_path / "local", directly)
    assert (tuned[0], len(tuned[1])) == (locally, len(runs))
