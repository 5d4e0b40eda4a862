"""A sequence classifier of a few thousand random weights, saved as an export, and what it answers."""

from __future__ import annotations

WORDS = ("good", "bad", "film", "a", "the", "was", "is", "not", "very", "plot")
LABELS = ("negative", "neutral", "positive")
TEXTS = ("the film was good", "a very bad plot", "not good", "", "фильм 你好", "film " * 2000)
KWARGS = {"truncation": True, "top_k": None}
CARD = "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-classification\n---\n\n# Tiny\n"


def build(folder):
    """Save model, tokenizer and card in `folder`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.5,  # so that the scores of different texts differ
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        problem_type="single_label_classification",
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def tokenizer():
    """Words by number, in memory."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    words = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    marks = [(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **names)


def answers(folder):
    """What the model in `folder` gives for each of TEXTS, without a pipeline: labels with scores, best first."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            scores = model(**words(text, truncation=True, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        row = [{"label": label, "score": score} for label, score in zip(LABELS, scores, strict=True)]
        rows.append(sorted(row, key=_rank))
    return rows


def _rank(row):
    return -row["score"]
