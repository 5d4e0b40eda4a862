"""Settings that do not fit together, or have no effect: refused, with the remedy."""

import pytest
from test_recipe import CONTRACT, SEQ2SEQ, SPAN, refused, write

from finetune.recipe import load

__all__ = ["write"]  # the fixture

TOKEN = "task: token\nmodel: {checkpoint: a/b}\ndata: {path: x/y}\noutput: runs/x\n"
LOCAL = (
    "task: sequence\nmodel: {checkpoint: ./m}\ndata:\n  path: {train: a.csv, dev: b.csv}\n"
    "  splits: {train: train, validation: dev}\ntrain: {}\noutput: runs/x\n"
)
REGRESSION = ("problem: null", "problem: regression")
SELECT = ("select_on: accuracy", "select_on: pearson")
METRICS = ("metrics: [accuracy, f1]", "metrics: [pearson]")


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


@pytest.mark.parametrize(
    ("text", "pairs", "message"),
    [
        # keys that belong to other tasks
        (
            CONTRACT,
            [("decoder: null", "decoder: same")],
            "model.decoder: has no effect on task sequence, only on seq2seq",
        ),
        (CONTRACT, [("problem: null", "prefix: 'x: '")], "data.prefix: has no effect on task sequence"),
        (CONTRACT, [("problem: null", "languages: {source: en}")], "data.languages: has no effect on task sequence"),
        (CONTRACT, [("problem: null", "max_target_length: 9")], "data.max_target_length: has no effect on task"),
        (CONTRACT, [("problem: null", "stride: 32")], "data.stride: has no effect on task sequence, only on token and"),
        (CONTRACT, [("patience: 3", "generation: {}")], "evaluate.generation: has no effect on task sequence"),
        (TOKEN, [("path: x/y", "path: x/y, problem: single")], "data.problem: has no effect on task token, only on"),
        (TOKEN, [("data:", "train: {class_weights: balanced}\ndata:")], "train.class_weights: has no effect on task"),
        (
            SPAN,
            [("data:", "train: {label_smoothing: 0.1}\ndata:")],
            "train.label_smoothing: has no effect on task span",
        ),
        (SPAN, [("data:", "evaluate: {patience: 1}\ndata:")], "evaluate.patience: has no effect without a train block"),
        # kinds of labels
        (
            CONTRACT,
            [REGRESSION, SELECT, METRICS, ("smoothing: 0.0", "smoothing: 0.1")],
            "no effect on regression labels",
        ),
        (CONTRACT, [REGRESSION, SELECT, METRICS, ("weights: none", "weights: balanced")], "there are no classes"),
        (CONTRACT, [("label: label", "labels: l"), ("smoothing: 0.0", "smoothing: 0.1")], "no effect on multi labels"),
        (CONTRACT, [("problem: null", "problem: multi")], "data.problem: multi needs the role labels in data.columns"),
        (
            CONTRACT,
            [("label: label", "labels: l"), ("problem: null", "problem: single")],
            "single needs the role label",
        ),
        (
            CONTRACT,
            [REGRESSION, METRICS],
            "evaluate.select_on: expected a metric of regression labels (pearson, spearman",
        ),
        (CONTRACT, [REGRESSION, SELECT], "evaluate.metrics.0: accuracy is not defined for regression labels"),
        (CONTRACT, [("select_on: accuracy", "select_on: rougeL")], "expected a metric of task sequence (accuracy, f1,"),
        (CONTRACT, [("[accuracy, f1]", "[f1, f1]")], "evaluate.metrics.1: f1 is given twice"),
        # columns
        (
            CONTRACT,
            [("{text: text, label", "{txt: text, label")],
            "data.columns.txt: no role of task sequence; did you",
        ),
        (
            CONTRACT,
            [("{text: text, label: label}", "{text: a}")],
            "task sequence needs text and label, or text and labels",
        ),
        (
            CONTRACT,
            [("label: label}", "label: l, labels: m}")],
            "data.columns.labels: has no effect beside text and label",
        ),
        (
            CONTRACT,
            [("label: label}", "label: l, source: m}")],
            "data.columns.source: no role of task sequence; its roles",
        ),
        (
            TOKEN,
            [("x/y", "x/y, columns: {tokens: a, spans: b}")],
            "task token needs tokens and tags, or text and spans",
        ),
        (SPAN, [("x.json", "x.json, columns: {question: q, context: c}")], "needs question and context and answers"),
        (SEQ2SEQ, [("target: translation.fr", "label: x")], "data.columns.label: no role of task seq2seq"),
        # lengths and sizes
        (SPAN, [("stride: 128", "stride: 384")], "data.stride: must be below data.max_length (384), found 384"),
        (
            SEQ2SEQ,
            [("batch_tokens: 1000", "batch_tokens: 100")],
            "train.batch_tokens: must be at least data.max_length",
        ),
        (
            CONTRACT,
            [("batch_size: auto", "batch_size: 64")],
            "train.micro_batch_size: larger than train.batch_size (32)",
        ),
        (
            CONTRACT,
            [("epochs: 3", "epochs: 3\n  max_steps: 9")],
            "train.max_steps: given beside train.epochs; keep one",
        ),
        (CONTRACT, [("epochs: 3", "batch_tokens: 999")], "train.batch_tokens: given beside train.batch_size; keep one"),
        (CONTRACT, [("warmup: 0.06", "warmup: 1.5")], "expected a share below 1 or a whole number of steps, found 1.5"),
        (CONTRACT, [("epochs: 3", "max_steps: 9"), ("warmup: 0.06", "warmup: 9")], "9 steps of warm-up in 9 steps"),
        # checkpoints
        (CONTRACT, [("sentence-transformers/all", "a/b/c/all")], "is no Hub id (namespace/name) and no local path"),
        (CONTRACT, [("sentence-transformers/all", "~/all")], "model.checkpoint: ~ stands for no folder here"),
        (
            CONTRACT,
            [("sentence-transformers/all", "a--b/all")],
            "model.checkpoint: 'a--b/all-MiniLM-L6-v2' is no Hub id",
        ),
        (
            CONTRACT,
            [("sentence-transformers/all", "./all")],
            "model.revision: has no effect on a checkpoint that is not",
        ),
        (
            SPAN,
            [("a/b", "package://a")],
            "model.checkpoint: expected package://<top-level Python package>/<folder in it>",
        ),
        (SPAN, [("a/b", "package://a.b/c")], "model.checkpoint: expected package://"),
        (SPAN, [("a/b", "package://a/../c")], "model.checkpoint: expected package://"),
        (SPAN, [("a/b", "package:///c")], "model.checkpoint: expected package://"),
        (SPAN, [("x.json", "package://a/b")], "data.path: a package holds no data set"),
        (SEQ2SEQ, [("decoder: same", "decoder: a b")], "model.decoder: 'a b' is no Hub id"),
        (CONTRACT, [("init: pretrained", "init: scratch")], "model.lora: would train adapters on random weights"),
        (SPAN, [("a/b", "a/b, init: scratch, keep_head: true")], "model.keep_head: there is no head to keep"),
        # data and splits
        (CONTRACT, [("cornell-movie-review-data/rotten_tomatoes", "a b")], "data.path: 'a b' is no Hub id"),
        (SPAN, [("x.json", "~/x.json")], "data.path: ~ stands for no folder here, found '~/x.json'; write the path in"),
        (
            CONTRACT,
            [("cornell-movie-review-data/rotten_tomatoes", "{train: ~/x.csv}")],
            "data.path.train: ~ stands for",
        ),
        (LOCAL, [("  splits", "  name: x\n  splits")], "data.name: has no effect on local files"),
        (SPAN, [("x.json", "x.json, revision: v1")], "data.revision: has no effect on local files"),
        (LOCAL, [("dev}", "valid}")], "data.splits.validation: data.path has no split 'valid', only train, dev"),
        (
            LOCAL,
            [("  splits: {train: train, validation: dev}\n", "")],
            "data.path.dev: is not used; say for what, such as",
        ),
        (
            LOCAL,
            [("{train: train, ", "{")],
            "data.splits: the train block needs rows to train on; add train: train, or train=null",
        ),
        (
            LOCAL,
            [("{train: train, validation: dev}", "{validation: 0.1}")],
            "a share is cut off train, and there is no",
        ),
        (LOCAL, [("{train: train", "{train: 0.9")], "data.splits.train: expected the name of a split"),
        (LOCAL, [("validation: dev", "validation: 0.5, test: 0.5")], "data.splits: the shares leave nothing of train"),
        (
            LOCAL,
            [("train: {}", "train: {}\nevaluate: {patience: 2}"), (", validation: dev", "")],
            "needs validation rows",
        ),
        (LOCAL, [("train: {}", "train: {}\nevaluate: {select_on: f1}"), (", validation: dev", "")], "needs validation"),
        (
            LOCAL,
            [("  splits", "  limit: {test: 5}\n  splits")],
            "data.limit.test: has no effect: data.splits has no test",
        ),
        # output
        *[
            (TOKEN, [("runs/x", path)], "output: folder names have 1 to 96 letters, digits, '.', '_' or '-'")
            for path in (
                "../x",
                "runs/../../x",
                "runs/a b",
                "'runs/x\\y'",
                f"runs/{'x' * 97}",
                "runs/é",
                '"a\\nb"',
                "/a/b c",
            )
        ],
        *[(TOKEN, [("runs/x", path)], "output: names no folder") for path in ("''", ".", "/")],
    ],
)
def test_refused(write, text, pairs, message):
    lines = refused(write(changed(text, *pairs)))
    assert any(message in line for line in lines[1:]), lines
    assert all("line" in line for line in lines[1:]), lines


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (CONTRACT, []),
        (CONTRACT, [("label: label", "labels: l"), ("problem: null", "problem: multi")]),
        (CONTRACT, [("label: label", "text_pair: p, label: l, id: i"), REGRESSION, SELECT, METRICS]),
        (CONTRACT, [("{text: text, label: label}", "{}"), REGRESSION, SELECT, METRICS]),
        (CONTRACT, [("metrics: [accuracy, f1]", "metrics: [accuracy, brier_score]")]),
        (CONTRACT, [("smoothing: 0.0", "smoothing: 0.1"), ("weights: none", "weights: balanced")]),
        (TOKEN, [("x/y", "x/y, columns: {tokens: t, tags: n}")]),
        (TOKEN, [("x/y", "x/y, columns: {text: t, spans: s, id: i}")]),
        (SPAN, [("x.json", "x.json, columns: {question: q, context: c, answers: a, is_impossible: i}")]),
        (SPAN, [("a/b", "package://a_b/model/x")]),
        (SPAN, [("a/b", "bert-base-uncased, revision: v1")]),
        (SPAN, [("runs/x", "/tmp/some where/x")]),
        (LOCAL, []),
        (LOCAL, [("b.csv", "b.txt")]),
        (LOCAL, [("validation: dev", "validation: 0.1, test: dev")]),
        (SEQ2SEQ, []),
    ],
)
def test_accepted(write, text, pairs):
    assert load(write(changed(text, *pairs)))
