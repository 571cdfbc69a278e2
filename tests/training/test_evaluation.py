"""Metrics by how rare ids are, against a plain loop over the rows."""

import dataclasses

import torch

from dlrm_mlet.training import evaluation, metrics
from dlrm_mlet.training.model import build


def test_thirds_are_those_of_a_plain_loop(clicks, small_mlet):
    model = build(small_mlet.model, 2, clicks.schema.table_rows, torch.Generator().manual_seed(0))
    found = evaluation.by_frequency(model, clicks)
    start, stop = clicks.range("validation")
    train = clicks.sparse[: clicks.schema.rows["train"]]
    rarest = [
        min(int((train[:, f] == i).sum()) for f, i in enumerate(row)) for row in clicks.sparse[start:stop].tolist()
    ]
    assert [third["ids"] for third in found] == ["rare", "middle", "frequent"]
    assert sum(third["rows"] for third in found) == stop - start
    below = -1
    for third in found:
        mine = torch.tensor([below < count <= third["at_most"] for count in rarest])
        below = third["at_most"]
        assert third["rows"] == mine.sum()
        logits, labels = evaluation.scores(model, clicks.in_order("validation", 100))
        assert abs(metrics.measure(logits[mine], labels[mine]).auc - third["auc"]) < 1e-3


def test_a_third_with_one_label_is_left_out_and_ends_no_run(clicks, small_mlet):
    model = build(small_mlet.model, 2, clicks.schema.table_rows, torch.Generator().manual_seed(0))
    rarest, label = evaluation.rarest_count(clicks), clicks.label.clone()
    start, stop = clicks.range("validation")
    label[start:stop] = torch.where(rarest <= rarest.sort().values[len(rarest) // 3 - 1], 0, label[start:stop])
    found = evaluation.by_frequency(model, dataclasses.replace(clicks, label=label))
    assert [third["ids"] for third in found] == ["middle", "frequent"]
