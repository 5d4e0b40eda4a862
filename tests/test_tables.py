"""Tables on the terminal: names of checkpoints that stay apart, several checkpoints side by side."""

import card_facts
import pytest

from finetune.tables import short_names, show_evaluations

LONG = "a-very-long-name-of-a-run-in-which-everything-is-said-{}-that-can-be-said/export"


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/data/of/somebody/runs/one/export"], ["one/export"]),
        (["runs/one/export", "runs/two/export/"], ["one/export", "two/export"]),
        (["runs/a/one/export", "runs/b/one/export"], ["a/one/export", "b/one/export"]),
        (["user/model", "./export"], ["user/model", "./export"]),
        (["model"], ["model"]),
        (["same/one", "same/one"], ["same/one", "same/one"]),
        ([], []),
    ],
)
def test_names_are_as_short_as_tells_them_apart(names, short):
    assert short_names(names) == short


def test_long_names_lose_their_middle_where_their_ends_differ():
    names = [f"runs/{n}-{LONG.format('here')}" for n in (1, 2)]
    assert short_names(names) == ["1-a-very-long-name…can-be-said/export", "2-a-very-long-name…can-be-said/export"]
    middle = [f"runs/{LONG.format(n)}" for n in (1, 2)]
    assert short_names(middle) == [LONG.format(1), LONG.format(2)]


def test_each_checkpoint_has_a_column_and_each_metric_a_line(capsys):
    records = [
        card_facts.record(model=card_facts.model(checkpoint=f"/home/somebody/runs/run-{n}/export").model_dump())
        for n in range(7)
    ]
    for record in records:
        record.results = {"test": record.results["test"]}
    show_evaluations(records)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    headings = [line.split("┃")[2:-1] for line in lines if "run-" in line]
    assert [[name.strip() for name in names] for names in headings] == [
        [f"run-{n}/export" for n in range(5)],
        ["run-5/export", "run-6/export"],
    ]
    [first, second] = [line for line in lines if line.startswith("│ accuracy")]
    assert (first.count("±"), second.count("±")) == (5, 2)
