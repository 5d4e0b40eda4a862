"""Which roles, metrics and keys belong to which task."""

from __future__ import annotations

__all__ = ["EXTRA_ROLES", "METRICS", "NEUTRAL", "ONLY_FOR", "PROBLEM_METRICS", "ROLES", "ROLE_SETS"]

_CLASS_METRICS = ("accuracy", "f1", "f1_micro", "precision", "recall", "roc_auc")
PROBLEM_METRICS = {
    "single": (*_CLASS_METRICS, "matthews"),
    "multi": _CLASS_METRICS,
    "regression": ("pearson", "spearman", "mse"),
}
"""Kind of sequence labels -> metrics that are defined for it."""
METRICS = {
    "sequence": (*PROBLEM_METRICS["single"], *PROBLEM_METRICS["regression"]),
    "token": ("f1", "precision", "recall", "f1_macro", "accuracy"),
    "span": ("exact_match", "f1"),
    "seq2seq": ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact_match"),
}
"""Task -> metrics of ours."""

ROLE_SETS = {
    "sequence": (("text", "label"), ("text", "labels")),
    "token": (("tokens", "tags"), ("text", "spans")),
    "span": (("question", "context", "answers"),),
    "seq2seq": (("source", "target"),),
}
"""Task -> the sets of roles of which one must be there."""
EXTRA_ROLES = {"sequence": ("text_pair", "id"), "token": ("id",), "span": ("is_impossible", "id"), "seq2seq": ("id",)}


def _roles(task: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    sets = ROLE_SETS[task]
    required = tuple(role for role in sets[0] if all(role in other for other in sets))
    rest = dict.fromkeys(role for one in sets for role in one if role not in required)
    return required, (*rest, *EXTRA_ROLES[task])


ROLES = {task: _roles(task) for task in ROLE_SETS}
"""Task -> (roles that are always needed, roles that may be there)."""

ONLY_FOR: dict[str, tuple[str, ...]] = {
    "model.decoder": ("seq2seq",),
    "model.keep_head": ("sequence", "token", "span"),
    "data.prefix": ("seq2seq",),
    "data.languages": ("seq2seq",),
    "data.max_target_length": ("seq2seq",),
    "evaluate.generation": ("seq2seq",),
    "evaluate.calibrate": ("sequence",),
    "evaluate.directional": ("sequence",),
    "data.stride": ("token", "span"),
    "data.tag_pieces": ("token",),
    "data.problem": ("sequence",),
    "train.class_weights": ("sequence",),
    "train.label_smoothing": ("sequence", "token", "seq2seq"),
}
"""Key -> the tasks it has an effect on."""
NEUTRAL: tuple[object, ...] = (None, 0.0, "none", "first")
"""Values of those keys that ask for nothing."""
