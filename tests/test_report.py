"""report.html: what it says, that it is whole in itself, and that no value on it becomes markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import card_facts
import numpy as np
import pytest
import tiny_run
from test_card import HOSTILE

import finetune
from finetune import report, run
from finetune.events import Events
from finetune.publish import allowed
from finetune.record import Analysis, Audit, AuditFinding, Best, Efficiency, Quantiles, Shift, SplitAudit
from finetune.record.analysis import Bin, Calibration, Check, Confusion, Example, Slice, Suspect, WorstRow
from finetune.report.curves import Series, read_curves, thinned, throughput
from finetune.report.page import render_page
from finetune.report.results import draw_results

BIDI = "\u202e\u2066\u200f"
HOSTILE = [
    *HOSTILE,
    "</svg><script>alert(1)</script>",
    '"><b onclick="x()">',
    "' onload='x()",
    "$\\frac{$",
    f"a{BIDI}b",
]


def metrics(folder, steps=20, logged=2, evaluated=5):
    """A metrics.jsonl as a run writes it; its path."""
    lines = []
    for step in range(1, steps + 1):
        common = {
            "step": step,
            "epoch": step / steps,
            "examples": 8 * step,
            "tokens": 100 * step,
            "seconds": 0.5 * step,
        }
        if step % logged == 0:
            values = {"loss": 2 / step, "learning_rate": 1e-3 * (1 - step / steps)}
            lines.append(common | {"split": "train", "values": values})
        if step % evaluated == 0:
            value = 1 - 1 / step
            bounds = {"accuracy": [value - 0.05, value + 0.05]}
            values = {"accuracy": value, "owner/metric": value, "loss": 1 / step}
            lines.append(common | {"split": "validation", "values": values, "intervals": bounds})
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def page(tmp_path, recipe=None, shown=None, **fields):
    return report.render(
        recipe or card_facts.recipe(), card_facts.record(**fields), read_curves(metrics(tmp_path)), shown or {}
    )


def analysis(labels, words="a text"):
    """What an analysis says of a split whose labels are `labels`."""
    sure = card_facts.results(9, share=(0.5, 0.4, 0.6)).metrics["share"]
    width = len(labels)
    counts = [[3 * (row == column) + (row + 1 == column) for column in range(width)] for row in range(width)]
    bins = [Bin(low=n / 10, high=(n + 1) / 10, n=n, confidence=n / 10 + 0.05, accuracy=n / 12) for n in range(10)]
    return Analysis(
        calibration=Calibration(scores=words, n=45, ece=sure, brier=sure, bins=bins, temperature=sure, ece_after=sure),
        confusion=Confusion(labels=labels, counts=counts, merged=2),
        slices=[
            Slice(by=by, value=value, n=9, metric=metric, result=sure)
            for by in ("label", "length", words)
            for value in labels
            for metric in ("f1", "recall")
        ],
        errors={words: 3},
        measures={"length_ratio": sure},
        worst=[WorstRow(id=name, loss=2.5) for name in labels],
        suspects=[Suspect(id=labels[0], gold=labels[0], likely=labels[-1], gold_score=0.1, likely_score=0.8)],
        behaviour=[
            Check(
                name=words,
                n=9,
                changed=sure,
                examples=[Example(id=label, words=[words, label], before=label, after=labels[-1]) for label in labels],
            )
        ],
    )


def audit(labels, words="a text"):
    """What an audit says of a split whose labels are `labels`."""
    lengths = Quantiles(p5=1, p25=2, p50=3, p75=4, p95=5, max=6)
    finding = {"kind": words, "split": "test", "other": words, "level": "warning", "count": 1, "rows": 9, "text": words}
    return Audit(
        findings=[AuditFinding(**finding, remedy=words, ids=labels, places=labels)],
        splits={
            "test": SplitAudit(
                rows=9, scripts={"Latin": 8, "": 1}, labels=dict.fromkeys(labels, 3), characters=lengths, tokens=lengths
            )
        },
        shifts=[Shift(split=words, of="labels", distance=0.1, by_chance=0.05, p=0.01)],
        notes=[words],
        method=words,
    )


def hard_rows(ids, words="a text"):
    """The lines of hard_rows.jsonl, by split and id."""
    line = {"split": "test", "gold": words, "prediction": [words], "score": 0.5, "loss": 2.5}
    return {"test": {name: {**line, "id": name, "inputs": {"text": words, "tokens": [words]}} for name in ids}}


def full_page(tmp_path):
    """A page with every section."""
    labels = ["neg", "pos", "neither"]
    found = {"test": analysis(labels)}
    return page(tmp_path, shown=hard_rows(labels), analysis=found, audit=audit(labels))


class Elements(HTMLParser):
    """Tags with their attributes, ids, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += f" {data}"


def test_it_says_what_the_record_says(tmp_path):
    text = " ".join(Elements(page(tmp_path)).text.split())
    for said in (
        "rotten_tomatoes-minilm",
        "0.817 ± 0.023",  # test accuracy, half its interval
        "0.794 to 0.840",
        "bag of words 0.770",
        "5,498 tokens/s",
        "0.619 Wh",
        "0.0347 g CO₂e (FRA)",
        "0.557",  # Wh of the phase train
        "101",
        "classifier.weight",
        "checkpoint: sentence-transformers/all-MiniLM-L6-v2",
        "2.13.0",
        "51 (0.6 %)",
        "empty text: 2",
        "row-of-alice-17",
    ):
        assert said in text, said


def test_it_says_where_the_model_fails_and_what_is_odd_about_the_data(tmp_path):
    text = " ".join(Elements(full_page(tmp_path)).text.split())
    for said in (
        "Reliability of the scores of a text",
        "calibration error (ECE) 0.500 ± 0.100",
        "the 2 labels with the fewest mistakes are counted together",
        "neg pos 1 of 4",
        "Highest loss on test",
        "id loss gold predicted text",
        "neither 2.500 a text a text a text · a text",
        "Labels on test that are perhaps wrong",
        "By length in tokens",
        "Data audit",
        "scripts of test Latin 8, no letters 1",
        "warning a text test, a text 1 (11.1 %)",
    ):
        assert said in text, said


def test_it_is_whole_in_itself(tmp_path):
    text = full_page(tmp_path)
    elements = Elements(text)
    assert "script" not in {tag for tag, _ in elements.tags}
    assert [tag for tag, _ in elements.tags].count("style") == 1, "that of a drawing would hold for the page"
    for tag, attributes in elements.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href"):
                assert value.startswith(("#", "data:,")), (tag, value)
            if name == "clip-path":
                assert value.removeprefix("url(#").removesuffix(")") in elements.ids
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    assert len(elements.ids) == len(set(elements.ids)), "ids are unique"
    assert {attributes["href"][1:] for tag, attributes in elements.tags if tag == "use"} <= set(elements.ids)


def test_the_same_run_gives_the_same_page(tmp_path):
    assert page(tmp_path) == page(tmp_path)


def shape(text):
    """The tags of a page without drawings, which have as many ticks as numbers need."""
    return [tag for tag, _ in Elements(re.sub(r"(?s)<svg.*?</svg>", "", text)).tags]


def hostile_page(tmp_path, names):
    """The page of a run in which `names`, their number being the same, stand wherever a name can stand."""
    first, plain = names[0], card_facts.record()
    recipe = card_facts.recipe(
        model={"checkpoint": first},
        data={"path": f"./{first}.csv", "columns": {"text": first, "label": first}},
        output=f"runs/{first}",
    )
    facts = {"source": first, "dropped": dict.fromkeys(names, 1), "dropped_ids": {"empty": list(names)}}
    results = card_facts.results(9, accuracy=(0.5, 0.4, 0.6), **{f"f1/{name}": (0.5, 0.4, 0.6) for name in names})
    return page(
        tmp_path,
        recipe,
        hard_rows(names, first),
        model=card_facts.model(labels=list(names), checkpoint=first, architecture=first, notes=list(names)),
        data={name: plain.data["test"].model_copy(update=facts) for name in names},
        results={"test": results},
        baselines={name: {"test": results} for name in names[:3]},
        versions=dict.fromkeys(names, first),
        tracking={"wandb": {"id": first, "url": first}},
        command=first,
        error=first,
        analysis={"test": analysis(list(names), first)},
        audit=audit(list(names), first),
    )


def test_texts_of_hard_rows_may_hold_other_line_ends(tmp_path):
    row = {"split": "test", "id": "7", "inputs": {"text": "a\u2028b\x85"}}
    path = tmp_path / "hard_rows.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert report._read_hard_rows(path) == {"test": {"7": row}}


def test_no_name_becomes_markup(tmp_path):
    plain = shape(hostile_page(tmp_path, [f"name{number}" for number in range(len(HOSTILE))]))
    for turn in range(2):
        text = hostile_page(tmp_path, HOSTILE[-turn:] + HOSTILE[:-turn])
        assert shape(text) == plain
        assert not set(BIDI) & set(text)
        assert "\x1b" not in text
        assert "<script" not in text


def test_lone_surrogates_do_not_stop_it(tmp_path):
    page(tmp_path, error="a\ud800b").encode("utf-8")


def test_what_is_unknown_is_left_out():
    bare = report.render(card_facts.recipe(), report.RunRecord(), {}, {})
    assert "Not evaluated." in bare
    assert "Training curves" not in bare
    assert "Speed" not in bare


def test_an_interval_of_none_and_an_undefined_metric(tmp_path):
    results = card_facts.results(3, accuracy=(None, None, None), f1=(0.5, None, None))
    text = page(tmp_path, results={"test": results}, baselines={}, best=Best(step=5, metric="accuracy", value=0.1))
    assert "undefined" in text


def test_an_evaluation_tells_its_cost_and_what_to_be_warned_of(tmp_path):
    cost = Efficiency(
        parameters=22_700_000,
        size_bytes=90_900_000,
        rows_per_second=26.7,
        latency_rows=50,
        latency_p50_seconds=0.0661,
        latency_p95_seconds=0.0903,
        first_token_p50_seconds=0.021,
        per_token_p50_seconds=0.0063,
        peak_memory_bytes=758_000_000,
        threads=2,
    )
    fields = {"training": None, "best": None, "efficiency": cost, "warnings": ["accuracy is 0.281, below <b>"]}
    text = " ".join(Elements(page(tmp_path, **fields)).text.split())
    for said in ("66.1 ms", "90.3 ms", "21.0 ms", "6.3 ms", "26.7 rows/s", "accuracy is 0.281, below <b>"):
        assert said in text, said
    assert "exported weights" not in text
    assert "exported weights" in page(tmp_path)


def test_behaviour_checks_bring_their_examples(tmp_path):
    text = " ".join(Elements(page(tmp_path, analysis={"test": analysis(["neg", "pos"], "actress")})).text.split())
    assert "check id put in before after actress neg actress, neg neg pos" in text


def test_the_chart_of_results_has_metrics_of_both_scales(tmp_path):
    scores = card_facts.results(3, exact_match=(0.16, 0.15, 0.17), bleu=(59.2, 58.3, 60.1), chrf=(75.1, 74.2, 76.0))
    copied = card_facts.results(3, exact_match=(0.0, 0.0, 0.0), bleu=(57.7, 56.8, 58.6))
    fields = {"results": {"test": scores}, "baselines": {"copy": {"test": copied}}, "best": None}
    [drawing] = re.findall(r"(?s)<svg[^>]*results-chart.*?</svg>", page(tmp_path, **fields))
    assert [drawing.count(f">{text}</") for text in ("exact match", "BLEU", "chrF", "copy")] == [1, 1, 1, 1]
    with draw_results(card_facts.record(**fields), "test") as figure:
        spans = [axes.get_xlim() for axes in figure.axes]
    assert [high < 1.0 for _, high in spans] == [True, False]
    nothing = {"results": {"test": card_facts.results(3, exact_match=(0.0, 0.0, 0.0))}, "baselines": {}}
    with draw_results(card_facts.record(**nothing), "test") as figure:
        assert figure.axes[0].get_xlim() == (-0.05, 1)


# ------------------------------------------------------------------------------------------------------------- curves


def test_curves_hold_values_and_intervals(tmp_path):
    found = read_curves(metrics(tmp_path))
    accuracy = found["validation", "accuracy"]
    assert accuracy.steps.tolist() == [5, 10, 15, 20]
    assert accuracy.high[1] - accuracy.low[1] == pytest.approx(0.1)
    assert np.isnan(found["train", "loss"].low).all()
    rate = throughput(found)
    assert rate is not None
    assert rate.values == pytest.approx([200.0] * 9)


def test_no_metrics_no_curves(tmp_path):
    assert read_curves(tmp_path / "metrics.jsonl") == {}
    assert throughput({}) is None


def test_a_long_series_keeps_its_peaks():
    values = np.sin(np.arange(100_000) / 3000)
    values[54_321] = 9.0
    unknown = np.full(100_000, np.nan)
    short = thinned(Series(np.arange(100_000.0), values, unknown, unknown), columns=300)
    assert len(short) <= 600
    assert short.values.max() == 9.0
    assert short.steps[np.argmax(short.values)] == 54_321
    assert (np.diff(short.steps) > 0).all()


def test_a_long_run_has_a_small_page(tmp_path):
    recipe, record = card_facts.recipe(), card_facts.record()
    found = read_curves(metrics(tmp_path, steps=20_000, logged=1, evaluated=100))
    text = report.render(recipe, record, found, {})
    assert len(text.encode()) < 300_000


def test_the_template_escapes_by_itself():
    text = render_page("<b>", "<i>", "<u>", [], [])
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


# -------------------------------------------------------------------------------------------------------- in real runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint):
    """The folder of a small run."""
    path = tiny_run.write_recipe(tmp_path_factory.mktemp("run"), tiny_checkpoint)
    run.train(finetune.load_recipe(path))
    return path.parent / "out"


def test_a_run_leaves_its_report(trained):
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert "Training curves" in text
    assert "answers verified in a fresh process" in text
    evaluated = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in evaluated if line["split"] == "validation"]
    low, high = evaluated[-1]["intervals"]["accuracy"]
    assert low <= evaluated[-1]["values"]["accuracy"] <= high


def test_the_card_shows_two_small_pictures_of_the_export(trained):
    export = trained / "export"
    pictures = sorted(path.relative_to(export).as_posix() for path in (export / "figures").iterdir())
    assert len(pictures) == 2
    record = json.loads((trained / "run.json").read_text())
    for name in pictures:
        content = (export / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 60_000
        assert b"Software" not in content
        assert f"]({name})" in (export / "README.md").read_text(encoding="utf-8")
        assert name in record["export"]["files"]
    assert len(allowed(export)) == len(record["export"]["files"])


def test_an_evaluation_leaves_its_report(trained):
    recipe = finetune.load_recipe(trained.parent / "recipe.yaml")
    finetune.evaluate(recipe, str(trained / "export"))
    [text] = [path.read_text(encoding="utf-8") for path in trained.glob("evaluations/*/report.html")]
    assert "Results" in text
    assert "Training curves" not in text


def test_a_run_outlives_what_cannot_be_drawn(tmp_path, tiny_checkpoint, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no ink\nat all")

    monkeypatch.setattr("finetune.report.drawing.Figure", broken)
    said = []
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint, epochs=1)
    record = run.train(finetune.load_recipe(path), events=Events(message=said.append))
    assert record.status == "finished"
    assert not (tmp_path / "out" / "report.html").exists()
    assert [line for line in said if "no ink" in line] == [
        "the pictures of the card: left out, RuntimeError: no ink",
        "report.html: left out, RuntimeError: no ink",
    ]
    assert "](figures/" not in (tmp_path / "out" / "export" / "README.md").read_text(encoding="utf-8")
