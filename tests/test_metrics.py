from __future__ import annotations

import string
import warnings
from collections import Counter

import evaluate
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn import metrics as sklearn_metrics

from finetune import metrics
from finetune.errors import DataError, ModelError, RecipeError
from finetune.record import Interval

SEEDS = range(3)
UNDEFINED = Interval(value=None)


def single_rows(n: int, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, labels, n)
    probabilities = rng.random((n, labels)) + 0.6 * (gold[:, None] == np.arange(labels))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return gold, probabilities.argmax(axis=1), probabilities


def tag_rows(n: int, seed: int) -> list[list[str]]:
    """IOB2 with some I- that nothing begins, which strict scoring must not count."""
    rng = np.random.default_rng(seed)
    tags = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-X-Y", "I-X-Y"]
    return [[str(tag) for tag in rng.choice(tags, row % 9)] for row in range(n)]


def values(found: dict[str, Interval]) -> dict[str, float | None]:
    return {name: one.value for name, one in found.items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("labels", [2, 6])
def test_single_label_values_equal_scikit_learn(labels: int, seed: int) -> None:
    gold, predicted, probabilities = single_rows(150, labels, seed)
    macro = {"average": "macro"}
    area = sklearn_metrics.roc_auc_score(
        gold, probabilities if labels > 2 else probabilities[:, 1], multi_class="ovr", average="macro"
    )
    found = metrics.sequence_single(metrics.NAMES["single"], gold, predicted, probabilities)
    assert values(found) == {
        "accuracy": sklearn_metrics.accuracy_score(gold, predicted),
        "f1": sklearn_metrics.f1_score(gold, predicted, **macro),
        "f1_micro": sklearn_metrics.f1_score(gold, predicted, average="micro"),
        "precision": sklearn_metrics.precision_score(gold, predicted, **macro),
        "recall": sklearn_metrics.recall_score(gold, predicted, **macro),
        "matthews": sklearn_metrics.matthews_corrcoef(gold, predicted),
        "roc_auc": pytest.approx(area, abs=1e-15),
    }
    assert all(one.low < one.value < one.high for one in found.values())


def test_single_label_intervals_are_those_of_resampled_rows() -> None:
    gold, predicted, probabilities = single_rows(120, 3, seed=5)
    found = metrics.sequence_single(["f1", "matthews", "roc_auc"], gold, predicted, probabilities)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(150):
        rows = rng.integers(0, 120, 120)
        drawn.append(
            [
                sklearn_metrics.f1_score(gold[rows], predicted[rows], average="macro"),
                sklearn_metrics.matthews_corrcoef(gold[rows], predicted[rows]),
                sklearn_metrics.roc_auc_score(gold[rows], probabilities[rows], multi_class="ovr"),
            ]
        )
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    assert [one.low for one in found.values()] == pytest.approx(low, abs=0.03)
    assert [one.high for one in found.values()] == pytest.approx(high, abs=0.03)


def test_precision_and_recall_have_each_their_own_interval() -> None:
    gold = np.repeat([0, 1], 500)
    predicted = np.where(np.arange(1_000) < 750, 0, 1)
    single = metrics.sequence_single(["precision", "recall"], gold, predicted, num_labels=2)
    multi = metrics.sequence_multi(["precision", "recall"], np.eye(2)[gold], np.eye(2)[predicted])
    assert values(single) == values(multi) == pytest.approx({"precision": 5 / 6, "recall": 3 / 4})
    tags = [["B-X", "O", "B-Y"]] * 500
    spurious = [["B-X", "B-X" if row % 2 else "O", "B-Y"] for row in range(500)]
    entities = metrics.entities(["precision", "recall"], tags, spurious)
    assert values(entities) == pytest.approx({"precision": 4 / 5, "recall": 1.0})
    types = metrics.entity_types(tags, spurious)["X"]
    plain = metrics.tags(
        ["precision", "recall"], [["A", "B"]] * 500, [["A", "A" if row % 2 else "B"] for row in range(500)], ["A", "B"]
    )
    for found in (single, multi, entities, types, plain):
        assert all(one.low <= one.value <= one.high for one in found.values())
        assert found["precision"].high < found["recall"].low or found["recall"].high < found["precision"].low


def test_macro_average_counts_a_label_without_rows_as_zero() -> None:
    gold = predicted = np.array([0, 1, 0, 1])
    found = metrics.sequence_single(["f1", "recall", "accuracy"], gold, predicted, num_labels=4)
    assert values(found) == {"f1": 0.5, "recall": 0.5, "accuracy": 1.0}
    assert (found["f1"].low, found["f1"].high) == (0.5, 0.5)


def test_rare_labels_do_not_push_the_interval_off_the_value() -> None:
    gold = np.repeat(np.arange(40), 2)
    predicted = np.where(np.arange(80) % 8 == 0, (gold + 1) % 40, gold)
    found = metrics.sequence_single(["f1"], gold, predicted, num_labels=40)["f1"]
    assert found.low < found.value < found.high


def test_accuracy_of_one_class_and_of_constant_predictions() -> None:
    gold, predicted = np.zeros(30, int), np.zeros(30, int)
    probabilities = np.tile([0.9, 0.1], (30, 1))
    found = metrics.sequence_single(metrics.NAMES["single"], gold, predicted, probabilities)
    assert found["accuracy"] == Interval(value=1.0, low=1.0, high=1.0)
    assert found["matthews"].value == 0.0
    assert found["roc_auc"] == UNDEFINED


def test_area_of_two_labels_is_that_of_the_second() -> None:
    gold, predicted, scores = single_rows(90, 2, seed=6)
    scores[:, 0] = np.random.default_rng(6).random(90)  # scores that do not add up to 1
    found = metrics.sequence_single(["roc_auc"], gold, predicted, scores)["roc_auc"]
    assert found.value == sklearn_metrics.roc_auc_score(gold, scores[:, 1])


def test_area_averages_the_labels_that_have_one() -> None:
    gold, predicted, probabilities = single_rows(90, 4, seed=6)
    gold[gold == 3] = 0
    areas = [sklearn_metrics.roc_auc_score(gold == label, probabilities[:, label]) for label in range(3)]
    found = metrics.sequence_single(["roc_auc"], gold, predicted, probabilities)["roc_auc"]
    assert found.value == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("seed", SEEDS)
def test_several_label_values_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = (rng.random((200, 5)) < [0.05, 0.1, 0.3, 0.5, 0.9]).astype(int)
    probabilities = rng.random((200, 5)) * 0.6 + 0.4 * gold * rng.random((200, 5))
    predicted = probabilities >= 0.4
    macro = {"average": "macro", "zero_division": 0.0}
    found = metrics.sequence_multi(metrics.NAMES["multi"], gold, predicted, probabilities)
    assert values(found) == {
        "accuracy": sklearn_metrics.accuracy_score(gold, predicted),
        "f1": sklearn_metrics.f1_score(gold, predicted, **macro),
        "f1_micro": sklearn_metrics.f1_score(gold, predicted, average="micro"),
        "precision": sklearn_metrics.precision_score(gold, predicted, **macro),
        "recall": sklearn_metrics.recall_score(gold, predicted, **macro),
        "roc_auc": pytest.approx(sklearn_metrics.roc_auc_score(gold, probabilities), abs=1e-15),
    }
    assert all(one.low < one.value < one.high for one in found.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_values_equal_scipy_and_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = np.round(rng.normal(size=300), 1).astype(np.float32)
    predicted = (gold + rng.normal(size=300)).astype(np.float32)
    found = metrics.regression(metrics.NAMES["regression"], gold, predicted)
    gold, predicted = gold.astype(np.float64), predicted.astype(np.float64)
    pearson = stats.pearsonr(gold, predicted)
    assert values(found) == {
        "pearson": pearson.statistic,
        "spearman": stats.spearmanr(gold, predicted).statistic,
        "mse": sklearn_metrics.mean_squared_error(gold, predicted),
    }
    closed = pearson.confidence_interval(0.95)  # Fisher's transform
    assert [found["pearson"].low, found["pearson"].high] == pytest.approx([closed.low, closed.high], abs=0.02)
    assert found["spearman"].low < found["spearman"].value < found["spearman"].high
    assert found["mse"].low < found["mse"].value < found["mse"].high


def test_regression_with_a_constant_and_with_nan() -> None:
    gold = np.arange(10.0)
    found = metrics.regression(["pearson", "spearman", "mse"], gold, np.full(10, 3.0))
    assert (found["pearson"], found["spearman"]) == (UNDEFINED, UNDEFINED)
    assert found["mse"].value == pytest.approx(((gold - 3) ** 2).mean())
    with pytest.raises(ModelError, match=r"predictions: .* in 1 of 10 rows \(the first is row 4\)"):
        metrics.regression(["mse"], gold, np.where(gold == 4, np.nan, gold))


def test_no_rows_and_one_row() -> None:
    none, ids = np.array([], int), np.array([1])
    assert metrics.sequence_single(["accuracy", "roc_auc"], none, none, np.empty((0, 3))) == {
        "accuracy": UNDEFINED,
        "roc_auc": UNDEFINED,
    }
    assert metrics.sequence_single(["accuracy", "f1"], ids, ids, num_labels=2) == {
        "accuracy": Interval(value=1.0),
        "f1": Interval(value=0.5),
    }
    assert metrics.sequence_multi(["f1"], np.ones((1, 2)), np.ones((1, 2))) == {"f1": Interval(value=1.0)}
    assert metrics.regression(["mse", "pearson", "spearman"], np.ones(1), np.zeros(1)) == {
        "mse": Interval(value=1.0),
        "pearson": UNDEFINED,
        "spearman": UNDEFINED,
    }
    assert metrics.entities(["f1"], [["B-X"]], [["B-X"]]) == {"f1": Interval(value=1.0)}
    assert metrics.tags(["f1"], [], [], ["N"]) == metrics.entities(["f1"], [], []) == {"f1": UNDEFINED}
    assert metrics.answers(["f1"], [["x"]], ["x"]) == {"f1": Interval(value=1.0)}
    texts = metrics.texts(["bleu", "rouge1"], ["a b c d"], ["a b c d"])
    assert values(texts) == pytest.approx({"bleu": 100.0, "rouge1": 100.0})
    assert [(one.low, one.high) for one in texts.values()] == [(None, None)] * 2


@pytest.mark.parametrize("seed", SEEDS)
def test_entity_values_equal_seqeval(seed: int) -> None:
    gold, predicted = tag_rows(120, seed), tag_rows(120, seed + 100)
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    right = [a == b for one, two in zip(gold, predicted, strict=True) for a, b in zip(one, two, strict=True)]
    found = metrics.entities(metrics.NAMES["entities"], gold, predicted)
    assert values(found) == {
        "f1": f1_score(gold, predicted, **strict),
        "precision": precision_score(gold, predicted, **strict),
        "recall": recall_score(gold, predicted, **strict),
        "f1_macro": f1_score(gold, predicted, average="macro", **strict),
        "accuracy": np.mean(right),
    }
    assert all(one.low < one.value < one.high for one in found.values())
    types = metrics.entity_types(gold, predicted)
    assert list(types) == ["LOC", "PER", "X-Y"]
    for measure, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert [one[measure].value for one in types.values()] == pytest.approx(
            function(gold, predicted, average=None, **strict)
        )
        assert all(one[measure].low <= one[measure].value <= one[measure].high for one in types.values())


def test_entity_intervals_are_those_of_resampled_rows() -> None:
    gold = tag_rows(100, 7)
    predicted = [
        tags if row % 2 else other for row, (tags, other) in enumerate(zip(gold, tag_rows(100, 8), strict=True))
    ]
    found = metrics.entities(["f1", "accuracy"], gold, predicted)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(150):
        rows = rng.integers(0, 100, 100)
        a, b = [gold[row] for row in rows], [predicted[row] for row in rows]
        right = [x == y for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)]
        drawn.append([f1_score(a, b, mode="strict", scheme=IOB2, zero_division=0), np.mean(right)])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    assert [one.low for one in found.values()] == pytest.approx(low, abs=0.04)
    assert [one.high for one in found.values()] == pytest.approx(high, abs=0.04)


def test_entities_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["I-LOC", "O"]]  # a boundary, a hit, an I- that begins nothing
    found = metrics.entities(["precision", "recall", "f1", "accuracy"], gold, predicted)
    assert values(found) == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": pytest.approx(4 / 6)}
    nothing = metrics.entities(["f1", "f1_macro", "accuracy"], [["O"]] * 3, [["O"]] * 3)
    assert values(nothing) == {"f1": 0.0, "f1_macro": None, "accuracy": 1.0}


def test_wrong_tags_are_named() -> None:
    with pytest.raises(DataError, match="row 1: 1 gold tags, 2 predicted tags"):
        metrics.entities(["f1"], [["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(DataError, match=r"2 problems\n  row 0: gold tag 'NOUN'.*\n  row 1: predicted tag 'B-'"):
        metrics.entities(["f1"], [["NOUN"], ["O"]], [["O"], ["B-"]])


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_tags_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = ["ADJ", "NOUN", "VERB", "X"]
    gold = [[str(tag) for tag in rng.choice(labels[:3], 1 + row % 7)] for row in range(80)]
    predicted = [[tag if rng.random() < 0.7 else "NOUN" for tag in row] for row in gold]
    flat_gold, flat_predicted = ([tag for row in side for tag in row] for side in (gold, predicted))
    macro = {"labels": labels, "average": "macro", "zero_division": 0.0}
    found = metrics.tags(metrics.NAMES["tags"], gold, predicted, labels)
    assert values(found) == {
        "accuracy": sklearn_metrics.accuracy_score(flat_gold, flat_predicted),
        "f1": sklearn_metrics.f1_score(flat_gold, flat_predicted, **macro),
        "precision": sklearn_metrics.precision_score(flat_gold, flat_predicted, **macro),
        "recall": sklearn_metrics.recall_score(flat_gold, flat_predicted, **macro),
    }
    assert all(one.low < one.value < one.high for one in found.values())


@pytest.mark.parametrize(
    ("gold", "guess", "exact", "f1"),
    [
        (["the Eiffel Tower"], "Eiffel tower!", 1, 1),
        (["A cat", "two dogs"], "an   (CAT)", 1, 1),
        (["Saint Bernadette Soubirous"], "Bernadette", 0, 0.5),
        (["in the late 1990s", "1990s"], "the 1990s.", 1, 1),
        (["New York City"], "york new york", 0, 4 / 6),
        (["theatre"], "the atre", 0, 0),  # an article is a word of its own
        (["don't"], "dont", 1, 1),
        (["São Paulo"], "são paulo", 1, 1),
        (["São Paulo"], "Sao Paulo", 0, 0.5),
        (["«Paris»"], "Paris", 0, 0),  # only ASCII punctuation goes
        (["ΑΘΗΝΑ"], "αθηνα", 1, 1),
        (["北京"], "北京。", 0, 0),
        (["x", "y z"], "z", 0, 2 / 3),
        ([], "", 1, 1),
        ([""], "", 1, 1),
        ([], "Paris", 0, 0),
        (["Paris"], "", 0, 0),
        (["Paris"], "the", 0, 0),
        (["The"], "a", 1, 1),  # nothing is left of either
        (["The", "Paris"], "a", 0, 0),  # a gold answer of which nothing is left does not count beside another
    ],
)
def test_answers_by_hand(gold: list[str], guess: str, exact: float, f1: float) -> None:
    found = metrics.answers(["exact_match", "f1"], [gold], [guess])
    assert found["exact_match"].value == exact
    assert found["f1"].value == pytest.approx(f1)


def test_answers_with_and_without_an_answer_apart() -> None:
    gold = [["Paris"], ["Rome"], [], [""], []] * 20
    predicted = ["paris", "", "", "Bonn", ""] * 20
    found = metrics.answers(["exact_match", "f1"], gold, predicted)
    assert values(found) == {
        "exact_match": 0.6,
        "f1": 0.6,
        "has_answer_exact_match": 0.5,
        "has_answer_f1": 0.5,
        "no_answer_exact_match": pytest.approx(2 / 3),
        "no_answer_f1": pytest.approx(2 / 3),
    }
    assert {name: found[name].n for name in ("f1", "has_answer_f1", "no_answer_f1")} == {
        "f1": None,
        "has_answer_f1": 40,
        "no_answer_f1": 60,
    }
    assert found["has_answer_f1"].high - found["has_answer_f1"].low > found["f1"].high - found["f1"].low
    assert list(metrics.answers(["f1"], [["x"]] * 3, ["x"] * 3)) == ["f1"]


def test_answer_f1_equals_the_published_arithmetic() -> None:
    rng = np.random.default_rng(9)
    words = ["the", "a", "Cat", "cat,", "dog", "U.S.", "an", "42"]
    pairs = [tuple(" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(2)) for _ in range(200)]

    def published(gold: str, guess: str) -> float:  # SQuAD's evaluate-v2.0.py, compute_f1
        gold_tokens, guess_tokens = (
            [
                word
                for word in "".join(c for c in side.lower() if c not in string.punctuation).split()
                if word not in {"a", "an", "the"}
            ]
            for side in (gold, guess)
        )
        if not gold_tokens or not guess_tokens:
            return float(gold_tokens == guess_tokens)
        same = sum((Counter(gold_tokens) & Counter(guess_tokens)).values())
        if not same:
            return 0.0
        precision, recall = same / len(guess_tokens), same / len(gold_tokens)
        return 2 * precision * recall / (precision + recall)

    found = metrics.answers(["f1"], [[gold] for gold, _ in pairs], [guess for _, guess in pairs])
    assert found["f1"].value == pytest.approx(np.mean([published(*pair) for pair in pairs]), abs=1e-15)


def test_generated_texts_equal_rouge_score_and_sacrebleu() -> None:
    rng = np.random.default_rng(10)
    words = ["The", "runs", "running", "ran", "quickly", "river", "rivers", "in", "Paris", "."]
    targets = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(60)]
    texts = [target if rng.random() < 0.2 else " ".join(rng.choice(words, 7)) for target in targets]
    texts[0], texts[1] = "", f" {targets[1]}\n"
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rouge = [scorer.score(target, text) for target, text in zip(targets, texts, strict=True)]
    found = metrics.texts(metrics.NAMES["texts"], targets, texts)
    assert values(found) == {
        **{
            name: pytest.approx(100 * np.mean([one[name].fmeasure for one in rouge]))
            for name in ("rouge1", "rouge2", "rougeL")
        },
        "bleu": sacrebleu.corpus_bleu(texts, [targets], force=True).score,
        "chrf": sacrebleu.corpus_chrf(texts, [targets]).score,
        "exact_match": np.mean([target.strip() == text.strip() for target, text in zip(targets, texts, strict=True)]),
    }
    assert all(one.low < one.value < one.high for one in found.values())


def test_bleu_interval_is_that_of_sacrebleus_own_bootstrap() -> None:
    rng = np.random.default_rng(11)
    words = [f"w{number}" for number in range(30)]
    targets = [" ".join(rng.choice(words, 12)) for _ in range(80)]
    texts = [" ".join(word if rng.random() < 0.7 else "x" for word in target.split()) for target in targets]
    found = metrics.texts(["bleu"], targets, texts)["bleu"]
    metric = sacrebleu.BLEU()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metric.corpus_score(texts, [targets], n_bootstrap=1_000)
    assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.1)


def test_the_loss_is_no_metric_to_compute() -> None:
    gold, predicted = np.array([0, 1, 1]), np.array([0, 1, 0])
    assert list(metrics.sequence_single(["loss", "accuracy"], gold, predicted, num_labels=2)) == ["accuracy"]
    assert metrics.regression(["loss"], gold, predicted) == {}
    assert list(metrics.entities(["f1", "loss"], [["O"]], [["O"]])) == ["f1"]
    assert metrics.answers(["loss"], [[], ["a"]], ["", "a"]) == {}
    assert list(metrics.texts(["loss", "chrf"], ["a"], ["a"])) == ["chrf"]


def test_signatures_tell_versions_and_settings() -> None:
    found = metrics.signatures(["bleu", "exact_match", "rouge2", "chrf"])
    assert list(found) == ["bleu", "rouge2", "chrf"]
    assert found["bleu"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert "nc:6|nw:0" in found["chrf"]
    assert "stemmer" in found["rouge2"]


def test_same_rows_same_figures() -> None:
    gold, predicted, probabilities = single_rows(100, 3, seed=12)
    names = metrics.NAMES["single"]
    first = metrics.sequence_single(names, gold, predicted, probabilities)
    assert metrics.sequence_single(names, gold, predicted, probabilities) == first
    assert list(metrics.sequence_single(names[::-1], gold, predicted, probabilities)) == list(names[::-1])


def test_modules_work_with_evaluate() -> None:
    gold, predicted, probabilities = single_rows(60, 3, seed=13)
    several = [metrics.as_evaluate(name, "single", range(3)) for name in ("accuracy", "f1", "roc_auc")]
    assert all(isinstance(module, evaluate.Metric) for module in several)
    found = evaluate.combine(several).compute(
        predictions=predicted.tolist(), references=gold.tolist(), prediction_scores=probabilities.tolist()
    )
    ours = metrics.sequence_single(["accuracy", "f1", "roc_auc"], gold, predicted, probabilities)
    assert found == values(ours)
    module = metrics.as_evaluate("f1", "single")
    assert module.name == "f1"
    for rows in (slice(0, 20), slice(20, 60)):
        module.add_batch(predictions=predicted[rows], references=gold[rows])
    assert module.compute() == {"f1": sklearn_metrics.f1_score(gold, predicted, average="macro")}


def test_modules_need_no_folder_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", "/proc/no/such/place")
    assert metrics.as_evaluate("exact_match", "answers").compute(predictions=["x"], references=[["y", "x"]]) == {
        "exact_match": 1.0
    }


def test_unknown_and_misplaced_names() -> None:
    with pytest.raises(RecipeError, match=r"'acuracy'.*did you mean accuracy"):
        metrics.as_evaluate("acuracy", "single")
    with pytest.raises(RecipeError, match=r"'bleu' for this kind of prediction.*pearson, spearman, mse"):
        metrics.regression(["bleu"], np.ones(3), np.ones(3))
    with pytest.raises(RecipeError) as caught:
        metrics.check_names(["accuracy", "mse", "someone/metric"], "single")
    assert len(str(caught.value).splitlines()) == 2
    metrics.check_names(metrics.DEFAULTS["single"], "single")
    assert all(set(metrics.DEFAULTS[kind]) <= set(names) for kind, names in metrics.NAMES.items())
