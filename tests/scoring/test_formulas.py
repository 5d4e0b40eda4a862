"""The bootstrap's array formulas against the libraries, on whole sets and on resamples of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sacrebleu
from scipy import stats
from sklearn import metrics

from finetune.scoring import formulas
from finetune.scoring.labels import count_confusion, count_labels
from finetune.scoring.texts import text_scores

SEEDS = range(5)
LABEL_FORMULAS = ["accuracy", "macro_f1", "micro_f1", "macro_precision", "macro_recall", "matthews"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "in", "Paris", "1999", "über", "river-bank", "."]


def resamples(n: int, rng: np.random.Generator, count: int = 5) -> np.ndarray:
    return rng.multinomial(n, np.full(n, 1 / n), size=count)


def expected_of_labels(gold: np.ndarray, predicted: np.ndarray, **options: object) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            metrics.accuracy_score(gold, predicted),
            metrics.f1_score(gold, predicted, average="macro", zero_division=0.0, **options),
            metrics.f1_score(gold, predicted, average="micro", zero_division=0.0, **options),
            metrics.precision_score(gold, predicted, average="macro", zero_division=0.0, **options),
            metrics.recall_score(gold, predicted, average="macro", zero_division=0.0, **options),
        ]


@pytest.mark.parametrize("seed", SEEDS)
def test_single_labels_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = int(rng.integers(2, 9))
    gold = rng.integers(0, labels, 80)
    predicted = np.where(rng.random(80) < 0.5, gold, rng.integers(0, labels - 1, 80))  # one is hardly ever predicted
    counts, features = count_confusion(gold, predicted, labels + 1)  # one label without any row
    full = counts @ features
    found = formulas.label_statistic(LABEL_FORMULAS, full)(full[None])[0]
    matthews = metrics.matthews_corrcoef(gold, predicted)
    options = {"labels": list(range(labels + 1))}
    assert found == pytest.approx([*expected_of_labels(gold, predicted, **options), matthews])


@pytest.mark.parametrize("seed", SEEDS)
def test_several_labels_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold, predicted = (rng.random((60, 7)) < np.linspace(0, 0.4, 7) for _ in range(2))
    full = count_labels(gold, predicted).sum(axis=0)
    found = formulas.label_statistic(LABEL_FORMULAS[:-1], full)(full[None])[0]
    assert found == pytest.approx(expected_of_labels(gold.astype(int), predicted.astype(int)))


def test_resampled_labels_equal_scikit_learn_on_the_drawn_rows() -> None:
    rng = np.random.default_rng(1)
    gold, predicted = rng.integers(0, 3, 90), rng.integers(0, 3, 90)
    stats_of_rows = count_labels(gold[:, None] == np.arange(3), predicted[:, None] == np.arange(3))
    weights = resamples(90, rng)
    found = formulas.label_statistic(LABEL_FORMULAS, stats_of_rows.sum(axis=0))(weights @ stats_of_rows)
    for row, drawn in zip(found, weights, strict=True):
        again = np.repeat(np.arange(90), drawn)
        expected = expected_of_labels(gold[again], predicted[again], labels=[0, 1, 2])
        assert row == pytest.approx([*expected, metrics.matthews_corrcoef(gold[again], predicted[again])])


def test_a_label_missing_from_a_resample_is_left_out_of_its_average() -> None:
    gold = np.array([0, 0, 1, 1, 2])
    rows = count_labels(gold[:, None] == np.arange(4), gold[:, None] == np.arange(4))  # all right; label 3 never occurs
    statistic = formulas.label_statistic(["macro_f1", "macro_recall"], rows.sum(axis=0))
    everything, without_two = np.ones((1, 5)), np.array([[2, 1, 1, 1, 0]])
    assert statistic(everything @ rows)[0] == pytest.approx([0.75, 0.75])
    assert statistic(without_two @ rows)[0] == pytest.approx([0.75, 0.75])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("few", [0, 1_000])
def test_area_equals_scikit_learn_with_ties(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "_FEW_POSITIVES", few)  # both ways of computing it
    rng = np.random.default_rng(seed)
    gold = rng.random((120, 3)) < 0.3
    scores = np.round(rng.random((120, 3)) + 0.3 * gold, 1)
    weights = resamples(120, rng)
    found = formulas.roc_auc_statistic(gold, scores)(weights.astype(float))
    for value, drawn in zip(found, weights, strict=True):
        again = np.repeat(np.arange(120), drawn)
        assert value == pytest.approx(metrics.roc_auc_score(gold[again], scores[again], average="macro"))


def test_area_without_two_sides_is_undefined() -> None:
    gold, scores = np.array([[True], [False], [False]]), np.array([[0.2], [0.4], [0.1]])
    weights = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0]], dtype=float)
    assert formulas.roc_auc_statistic(gold, scores)(weights) == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_equal_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = np.round(rng.normal(size=150), 1)  # ties
    predicted = np.round(gold + rng.normal(size=150), 1) * 1e-6 + 1e4  # an offset that would cancel in raw sums
    weights = resamples(150, rng)
    pearson = formulas.pearson(weights @ formulas.standard_moments(gold, predicted))
    spearman = formulas.spearman_statistic(gold, predicted)(weights.astype(float))
    for row, drawn in enumerate(weights):
        again = np.repeat(np.arange(150), drawn)
        assert pearson[row] == pytest.approx(stats.pearsonr(gold[again], predicted[again]).statistic, abs=1e-6)
        assert spearman[row] == pytest.approx(stats.spearmanr(gold[again], predicted[again]).statistic)


def test_correlation_with_a_constant_is_undefined() -> None:
    gold, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.3, 0.3, 0.3, 0.9])
    weights = np.array([[2, 1, 1, 0], [0, 0, 0, 4], [1, 1, 1, 1]], dtype=float)
    moments = formulas.standard_moments(gold, predicted)
    assert np.isnan(formulas.pearson(weights @ moments)).tolist() == [True, True, False]
    assert np.isnan(formulas.spearman_statistic(gold, predicted)(weights)).tolist() == [True, True, False]


@pytest.mark.parametrize("seed", SEEDS)
def test_corpus_scores_equal_sacrebleu(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(0, most)))

    targets = [text(15) for _ in range(40)]
    texts = [target if rng.random() < 0.3 else text(8) for target in targets]
    rows = text_scores(["bleu", "chrf"], targets, texts)
    weights = resamples(40, rng)
    bleu, chrf = formulas.bleu(weights @ rows["bleu"]), formulas.chrf(weights @ rows["chrf"])
    for number, drawn in enumerate(weights):
        again = np.repeat(np.arange(40), drawn)
        drawn_texts, drawn_targets = [texts[row] for row in again], [[targets[row] for row in again]]
        assert bleu[number] == pytest.approx(sacrebleu.corpus_bleu(drawn_texts, drawn_targets, force=True).score)
        assert chrf[number] == pytest.approx(sacrebleu.corpus_chrf(drawn_texts, drawn_targets).score)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("", ""),
        ("", "a b"),
        ("a b", ""),
        ("x y z w", "a b c d"),
        ("a", "a"),
        ("a b c", "a b d"),
        ("a b c d e", "a b c d"),
        ("a x c y e", "a b c d e"),
    ],
)
def test_corpus_scores_at_the_edges_equal_sacrebleu(text: str, target: str) -> None:
    rows = text_scores(["bleu", "chrf"], [target], [text])
    assert formulas.bleu(rows["bleu"])[0] == pytest.approx(sacrebleu.corpus_bleu([text], [[target]]).score)
    assert formulas.chrf(rows["chrf"])[0] == pytest.approx(sacrebleu.corpus_chrf([text], [[target]]).score)
