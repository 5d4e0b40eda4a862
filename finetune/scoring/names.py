"""The metrics by name, per kind of prediction, and what each name means.

Averaging. For labels, `f1`, `precision` and `recall` are macro averages over all labels of the task, scikit-learn's
`average="macro", labels=<all>, zero_division=0`: a label that is neither in the data nor predicted counts as 0.
`f1_micro` pools the counts of all labels; with one label per row it equals accuracy. `accuracy` of multi-label rows is
the share of rows with every label right. `roc_auc` is the mean of the one-against-rest areas of those labels that have
rows on both sides; of two exclusive labels it is the area of the second. `matthews` is 0 where one side is constant.

Entities are counted strictly in IOB2, type and both ends, after a predicted I- that cannot go on with an entity became
a B-, as transformers' pipeline groups words: `f1` is seqeval's default on the raw tags. `f1`, `precision` and `recall`
are micro averages over entities, `f1_macro` the mean over types, `accuracy` that of tokens. For plain tags everything
is over tokens, macro over tags.

Answers follow the official scoring of SQuAD 2.0, as fractions of 1. Of generated texts, ROUGE is the mean F-measure of
rouge_score with Porter stemming, BLEU and chrF are sacreBLEU's corpus scores with its defaults, all from 0 to 100;
`exact_match` is the share of texts equal to the target but for white space around them.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["DEFAULTS", "LOWER_IS_BETTER", "NAMES", "Kind"]

Kind = Literal["single", "multi", "regression", "entities", "tags", "answers", "texts"]

NAMES: dict[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "f1", "f1_micro", "precision", "recall", "matthews", "roc_auc"),
    "multi": ("accuracy", "f1", "f1_micro", "precision", "recall", "roc_auc"),
    "regression": ("pearson", "spearman", "mse"),
    "entities": ("f1", "precision", "recall", "f1_macro", "accuracy"),
    "tags": ("accuracy", "f1", "precision", "recall"),
    "answers": ("exact_match", "f1"),
    "texts": ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact_match"),
}
"""Every metric of ours."""

DEFAULTS: dict[Kind, tuple[str, ...]] = {
    **NAMES,
    "single": ("accuracy", "f1", "precision", "recall", "matthews"),
    "multi": ("f1", "f1_micro", "accuracy", "precision", "recall"),
    "entities": ("f1", "precision", "recall", "accuracy"),
}
"""The metrics of a recipe that names none."""

LOWER_IS_BETTER = frozenset({"loss", "mse"})
"""All others are better when higher."""
