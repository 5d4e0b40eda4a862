"""Tokenizers and a token model, small enough to make in a moment."""

from __future__ import annotations

PIECES = ("u", ".", "s", "steel", "'", "paris", "in", "the", "works", "anna", "is", "-", "new", "york", "ab", "x", "e")
ENDINGS = ("##s", "##c", "##d", "##x", "##ab")


def wordpiece():
    """As BERT's: lower case, accents gone, words cut at white space and punctuation."""
    from transformers import BertTokenizer

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, *ENDINGS)
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=32)


def byte_level(add_prefix_space=False):
    """As RoBERTa's: a piece carries the space before it."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE(unk_token=None))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = Decoder()
    marks = ["<s>", "</s>", "<pad>", "<unk>"]
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=marks, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["anna is in paris", "the works is new , the steel is in york"] * 5, trainer)
    ends = [(mark, backend.token_to_id(mark)) for mark in ("<s>", "</s>")]
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def config(labels, size, **changes):
    """Of a BERT of two small layers."""
    from transformers import BertConfig

    settings = {
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    return BertConfig(**settings | changes)


def save(folder, labels, tokenizer=None, **changes):
    """A token model of random weights, large enough that words get different labels, with its tokenizer; the folder."""
    import torch
    from transformers import BertForTokenClassification

    tokenizer = tokenizer or wordpiece()
    torch.manual_seed(3)
    BertForTokenClassification(config(labels, len(tokenizer), initializer_range=0.5, **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ROWS = (
    ("Anna works in Paris .", "B-PER O O B-LOC O"),
    ("the U.S. steel works", "O B-LOC O O"),
    ("Anna Anna is in New York", "B-PER B-PER O O B-LOC I-LOC"),
    ("Steel's works in New-York", "B-ORG O O B-LOC"),
)


def write_conll(path, rows=ROWS):
    """Words and tags; the path."""
    sentences = ["\n".join(map("\t".join, zip(words.split(), tags.split(), strict=True))) for words, tags in rows]
    path.write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    return path


def write_recipe(folder, checkpoint, *, rows=None, model="", data="", train="", end="", rate="5.0e-3"):
    """recipe.yaml over conll files in `folder`; its path. rows: split -> (words, tags) pairs."""
    for split in ("train", "validation", "test"):
        write_conll(folder / f"{split}.conll", (rows or {}).get(split, ROWS * (6 if split == "train" else 1)))
    path = folder / "recipe.yaml"
    path.write_text(
        f"""task: token
model:
  checkpoint: {checkpoint}
{model}
data:
  path: {{train: ./train.conll, validation: ./validation.conll, test: ./test.conll}}
  columns: {{tokens: tokens, tags: tags}}
  max_length: 16
{data}
train:
  max_steps: 40
  batch_size: 8
  learning_rate: {rate}
  precision: fp32
{train}
card: {{license: apache-2.0, language: en}}
output: {folder}/out
{end}
""",
        encoding="utf-8",
    )
    return path
