"""scripts/other_models.py: each arm is what it is called, in each model, and a stopped search goes on."""

import copy
import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from dlrm_mlet import MLETEmbedding
from dlrm_mlet.reporting import results

pytest.importorskip("torch_rechub")

RATES = (0.002, 0.004)


@pytest.fixture(scope="module")
def script():
    """The script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "scripts")
        yield importlib.import_module("other_models")


@pytest.fixture
def work(script, clicks, tmp_path):
    """Of DeepFM, with MLET's rates chosen."""
    made = script.Work(clicks, "deepfm", tmp_path)
    made.chosen[4] = RATES
    return made


@pytest.mark.parametrize("model", ["deepfm", "dcnv2", "autoint"])
def test_mlets_tables_are_served_as_plain_ones(script, clicks, tmp_path, model):
    work = script.Work(clicks, model, tmp_path)
    single, mlet = (work.run(script.Point(arm, 4), RATES, 0, True) for arm in ("single", "mlet"))
    assert (mlet.served, mlet.served_tables) == (single.served, single.served_tables)
    assert mlet.trained_tables > mlet.served_tables == single.trained_tables
    assert mlet.test is not None
    assert mlet.test != single.test
    points = [script.Point(arm, 4) for arm in ("single", "mlet")]
    again = script.Work(clicks, model, tmp_path)
    again._train = None  # nothing is left to train
    runs = [[(point, each.run(point, RATES, 0, True)) for point in points] for each in (work, again)]
    assert script.rows(model, runs[0], True) == script.rows(model, runs[1], True)
    assert script.thirds(runs[0]) == script.thirds(runs[1])
    work.run(points[0], RATES, script.TRIAL_SEEDS[0], False)
    [trial] = script.rows(model, script.trials(work, points), False)
    assert (trial["arm"], trial["seed"], trial["test_auc"]) == ("single", script.TRIAL_SEEDS[0], "")
    assert trial["experiment"] == f"{model}-{clicks.schema.fingerprint}"


def test_the_controls_differ_in_what_they_are_called(script, work):
    def trained(arm, seed):
        model = work._build(point := script.Point(arm, 4), seed)
        assert work._fit(model, point, RATES, seed)
        return script._large(model)

    found = {arm: trained(arm, 0) for arm in script.MLETS}
    drawn = script._large(work._build(script.Point("frozen", 4), 0))
    other = trained("mlet", 0 + script.ELSEWHERE)
    for i, first in enumerate(found["mlet"]):
        w2 = {arm: tables[i].projections[0] for arm, tables in found.items()}
        assert torch.equal(w2["frozen"], drawn[i].projections[0])
        assert not torch.equal(w2["mlet"], drawn[i].projections[0])
        learned = other[i].projections[0]
        assert torch.equal(w2["learned"], learned)
        assert torch.allclose(w2["learned-square"] @ w2["learned-square"], learned.T @ learned, atol=1e-5)
        assert w2["square"].shape == w2["learned-square"].shape == (4, 4)
        assert first.inner_weight.shape[1] == script.INNER
    assert len({id(table.projections[0]) for table in found["shared"]}) == 1


def test_regularization_is_at_work_in_training_alone(script, work):
    runs = {arm: work.run(script.Point(arm, 4), RATES, 0, True) for arm in ("single", "dropout-0.3", "l2-0.1", "l2-0")}
    assert runs["l2-0"].test == runs["single"].test
    for arm in ("dropout-0.3", "l2-0.1"):
        assert runs[arm].test != runs["single"].test
        assert runs[arm].served == runs["single"].served
    model = work._build(script.Point("l2-0.1", 4), 0)
    penalty, batch = script._regularize(script._large(model), "l2-0.1"), next(work.data.in_order("train", 64))
    model(work._inputs(batch))
    squares = sum(
        table.weight[batch.sparse[:, i]].square().sum(-1).mean()
        for i, table in enumerate(script._tables(model))
        if table.num_embeddings >= script.MIN_ROWS
    )
    assert penalty().item() == pytest.approx(0.05 * squares.item(), rel=1e-5)
    model.eval()(work._inputs(batch))
    assert penalty() == 0


@pytest.mark.parametrize(("table", "rank"), [(torch.eye(6, 4), 4), (torch.ones(6, 4), 1)])
def test_the_effective_rank_of_the_extremes(script, table, rank):
    assert script.effective_rank(table) == pytest.approx(rank)


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e-12], ids=["epsilon-below", "epsilon-among", "epsilon-above"])
@pytest.mark.parametrize("layer", [nn.Embedding, MLETEmbedding])
def test_rows_trained_when_read_are_where_dense_adam_moves_them(script, layer, scale):
    torch.manual_seed(0)
    table = layer(300, 4, **({"inner_dim": 8} if layer is MLETEmbedding else {})).double()
    twin = copy.deepcopy(table)
    rows = script.RowAdam(table, 0.01, 500)
    dense = twin.inner_weight if layer is MLETEmbedding else twin.weight
    start = dense.detach().clone()
    adam = torch.optim.Adam([dense], 0.01)
    for step in range(400):
        ids = torch.randint(10 if step < 200 else 290, (6,))  # 10 to 289 for the first time late, 290 and on never
        gradient = torch.randn(6, 4, dtype=torch.float64) * scale
        for each in (table, twin):
            (each(ids) * gradient).sum().backward()
        rows.step()
        adam.step()
        adam.zero_grad()
    rows.finish()
    moved = (dense - start).detach().norm()
    assert (rows.weight - dense).norm() < 3e-4 * moved
    assert torch.allclose(rows.mean, adam.state[dense]["exp_avg"], rtol=1e-9, atol=1e-12 * scale)
    assert torch.allclose(rows.square, adam.state[dense]["exp_avg_sq"], rtol=1e-9, atol=1e-12 * scale**2)
    assert torch.equal(rows.weight[290:], start[290:])


def test_large_tables_are_trained_row_by_row(script, work, monkeypatch):
    def trained():
        model = work._build(point := script.Point("mlet", 4), 0)
        assert work._fit(model, point, RATES, 0)
        return model

    dense = trained()
    monkeypatch.setattr(script, "BY_ROW", script.MIN_ROWS - 1)
    by_row = trained()
    with mock.patch.object(script.RowAdam, "catch_up", lambda self, rows: None):
        lazy = trained()

    def far(model):
        pairs = zip(script._large(model), script._large(dense), strict=True)
        return max(((one.table() - other.table()).norm() / other.table().norm()).item() for one, other in pairs)

    assert far(by_row) < 1e-4
    assert far(lazy) > 0.01


@pytest.fixture
def shop(clicks_directory, tmp_path, monkeypatch):
    """A data set of one's own, beside which the script is called."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(clicks_directory, tmp_path / "data" / "shop"))


ONE = ["shop", "deepfm", "--trials", "1", "--seeds", "2", "--embedding-dim", "4", "--arms", "single"]


def test_a_data_set_of_ones_own_goes_by_its_name(script, shop, capsys):
    def table():
        rows = Path("results/shop/deepfm-adam.csv").read_text().splitlines()
        return [row.rsplit(",", 5)[0] for row in rows]  # without the seconds and where they were measured

    script.main(ONE)
    first = table()
    assert [run.seed for run in results.read(Path("results/shop/deepfm-adam.csv"))] == [0, 1]

    trial = results.read(Path("results/shop/deepfm-adam-trials.csv"))[0]
    assert set(trial.tuned) == {"learning_rate", "table_learning_rate", "read_test"}
    assert "validation_auc" in trial.measures

    runs = Path("results/shop/deepfm-adam/runs.jsonl")
    made = runs.read_text().splitlines(keepends=True)
    runs.write_text("".join(made)[:-99])  # killed as it wrote
    script.main(ONE)
    assert [json.loads(line)["seed"] for line in runs.read_text().splitlines()][-3:] == [101, 0, 1]
    assert len(runs.read_text().splitlines()) == len(made)
    assert table() == first

    script.main([name.replace("4", "2") for name in ONE])
    assert [(run.embedding_dim, run.seed) for run in results.read(Path("results/shop/deepfm-adam.csv"))] == [
        (2, 0), (2, 1), (4, 0), (4, 1),
    ]  # fmt: skip
    published = Path("results/shop/deepfm-adam.csv")
    was = published.read_text().replace(",0.", ",0.1")
    published.write_text(was)
    with mock.patch.object(script.publishing, "is_tracked", return_value=True):
        script.main(ONE)
    assert "0 of 2 runs equal the published ones" in capsys.readouterr().out
    assert published.read_text() == was
    assert len(results.read(Path("results/shop/deepfm-adam/deepfm-adam.csv"))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch", "deepfm"], "data/nosuch/schema.json: no such file"),
        (["shop", "deepfm", "--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["shop", "dcnv2", "--controls"], "--controls: are of deepfm"),
        (["shop", "deepfm", "--seeds", "101"], "--seeds 101: expected 100 at most"),
        (["shop", "deepfm", "--embedding-dim", "4", "4"], "--embedding-dim 4 4: expected 1 or more, each once"),
        (["shop", "deepfm", "--embedding-dim", "0"], "--embedding-dim 0: expected 1 or more"),
        (["shop", "deepfm", "--arms", "frozen", "--embedding-dim", "8"], "--arms frozen: is at d = 4 alone"),
    ],
)
def test_what_it_is_asked_has_to_be_there(script, shop, arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code
    assert said in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("weight", torch.ones(3000), "has weights or multi-valued columns"),
        ("table_rows", (99, 5, 9), "no categorical column has 100 values"),
        ("rows", {"train": 3000, "validation": 0, "test": 0}, "no rows of validation, test"),
        ("described", {"multi_valued": {"ad": {"max_values": 1, "pooling": "mean"}}}, "has weights or multi-valued"),
    ],
)
def test_columns_that_the_models_cant_take_are_refused(script, clicks, monkeypatch, name, changed, said):
    if name == "weight":
        data = dataclasses.replace(clicks, weight=changed)
    else:
        data = dataclasses.replace(clicks, schema=dataclasses.replace(clicks.schema, **{name: changed}))
    monkeypatch.setattr(script.columns, "load", lambda directory: data)
    with pytest.raises(ValueError, match=said):
        script.load(Path("shop"))


def test_runs_of_other_columns_are_refused_and_so_is_a_damaged_line(script, work, clicks, tmp_path):
    point = script.Point("single", 4)
    work.run(point, RATES, 0, True)
    whole = work.file.read_text()
    work.file.write_text(whole.replace(work.made["columns"], "others"))
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1: of the columns others"):
        script.Work(clicks, "deepfm", tmp_path)
    work.file.write_text(whole + "{}\n")
    with pytest.raises(ValueError, match="line 2: not a run"):
        script.Work(clicks, "deepfm", tmp_path)


def test_runs_on_other_columns_do_not_join_a_table(script, shop, capsys, monkeypatch):
    """Once they were paired by seed with what was there, without a word."""
    monkeypatch.setattr(script.Work, "best", lambda *_: RATES)
    script.main(ONE)
    schema = json.loads((shop / "schema.json").read_text())
    schema["source"] |= {"sha256": "0" * 64}
    (shop / "schema.json").write_text(json.dumps(schema))
    Path("results/shop/deepfm-adam/runs.jsonl").unlink()
    was = Path("results/shop/deepfm-adam.csv").read_text()
    with pytest.raises(SystemExit) as stopped:
        script.main([*ONE[:-1], "mlet"])
    assert stopped.value.code == 1
    assert "deepfm-adam.csv: has runs of another config or data set (seed 0)" in capsys.readouterr().err
    assert Path("results/shop/deepfm-adam.csv").read_text() == was


def test_a_learned_w2_is_of_the_rates_that_mlet_has(script, work):
    """Once a run whose W2 came from other rates was taken for it."""
    point = script.Point("learned", 4)
    first = work.run(point, RATES, 0, True)
    work.chosen[4] = (RATES[0] / 4, RATES[1])
    second = work.run(point, RATES, 0, True)
    assert second.test != first.test
    assert [len(script.trials(work, [point])), second.w2_from] == [0, list(work.chosen[4])]
    work.run(point, RATES, script.TRIAL_SEEDS[0], False)
    work.chosen[4] = RATES
    assert work.run(point, RATES, 0, True) is first
    assert script.trials(work, [point]) == []


def test_a_run_keeps_where_it_was_made(script, work, clicks, tmp_path):
    """Once a table said of all runs where the last ones were."""
    point = script.Point("single", 4)
    work.run(point, RATES, 0, True)
    later = script.Work(clicks, "deepfm", tmp_path)
    later.made |= {"device": "another", "torch": "0"}
    later.run(point, RATES, 1, True)
    runs = [(point, later.run(point, RATES, seed, True)) for seed in (0, 1)]
    assert [row["device"] == "another" for row in script.rows("deepfm", runs, False)] == [False, True]


@pytest.mark.parametrize("arm", ["single", "mlet", "learned", "learned-square"])
def test_a_run_that_diverges_is_told_as_such(script, work, arm):
    """Once it ended the script, and came again at each call."""
    work.chosen[4] = (1e3, 1e20) if arm.startswith("learned") else RATES
    run = work.run(script.Point(arm, 4), RATES if arm.startswith("learned") else (1e3, 1e20), 0, True)
    assert (run.validation, run.test) == (None, None)
    [row] = script.rows("deepfm", [(script.Point(arm, 4), run)], False)
    assert (row["status"], row["test_auc"]) == ("diverged", "")
