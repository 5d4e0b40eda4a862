"""Tokenizers, a model and rows for question answering, small enough to make in a moment."""

from __future__ import annotations

import json
import random
import string

NAMES = ("anna", "ben", "carla", "dora", "emil", "frida")
PLACES = ("paris", "rome", "oslo", "lima", "cairo", "quito")
WORDS = ("where", "does", "who", "lives", "in", "live", "and", "the", "city", "of", "works", "a", ".", "?", ",")


def wordpiece(model_max_length=64):
    """As BERT's: lower case, accents gone, words cut at white space and punctuation; unknown words letter by letter."""
    from transformers import BertTokenizer

    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words = dict.fromkeys(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NAMES, *PLACES, *WORDS, *letters))
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=model_max_length)


def byte_level():
    """As RoBERTa's: bytes, a piece carries the space before it, two separators between the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["anna lives in paris and works in rome"] * 5, trainer)
    ends = [(mark, backend.token_to_id(mark)) for mark in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, model_input_names=inputs, **names)


def metaspace():
    """As sentencepiece's: a piece begins with the white space before it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [(letter, -9.0) for letter in string.printable + "▁äöü"]
    pieces = [(f"▁{word}", -2.0) for word in (*NAMES, *PLACES, *WORDS)]
    marks = ("<s>", "</s>", "<unk>", "<pad>")
    backend = Tokenizer(models.Unigram([(mark, 0.0) for mark in marks] + pieces + letters, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s> <s>", pair="$A </s> $B:1 </s>:1 <s>:2", special_tokens=ends
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


def config(**changes):
    """Of a BERT of two small layers for `wordpiece`."""
    from transformers import BertConfig

    settings = {
        "vocab_size": len(wordpiece()),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # so that the scores of different parts differ
    }
    return BertConfig(**settings | changes)


def model(**changes):
    """A question answering model of random weights, in evaluation mode."""
    import torch
    from transformers import BertForQuestionAnswering

    torch.manual_seed(0)
    return BertForQuestionAnswering(config(**changes)).eval()


def save_encoder(folder, **changes):
    """BertModel without a head, and its tokenizer; the folder."""
    import torch
    from transformers import BertModel

    torch.manual_seed(1)
    BertModel(config(initializer_range=0.05, **changes)).save_pretrained(folder)
    wordpiece().save_pretrained(folder)
    return folder


def rows(count, seed, open_share=0.25):
    """Who lives where: about one of two people, or one who is not in the context. Every third context is longer."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        first, second, absent = draw.sample(NAMES, 3)
        places = draw.sample(PLACES, 2)
        context = f"{first} lives in {places[0]}. {second} lives in {places[1]}."
        if number % 3 == 0:
            context = f"the city of {draw.choice(PLACES)} and the city of {draw.choice(PLACES)}, a city. {context}"
        row = {"id": f"q{number}", "context": context, "is_impossible": draw.random() < open_share}
        person, place = draw.choice([(first, places[0]), (second, places[1])])
        answers = {"text": [place], "answer_start": [context.index(f"{person} lives in ") + len(f"{person} lives in ")]}
        if row["is_impossible"]:
            person, answers = absent, {"text": [], "answer_start": []}
        made.append(row | {"question": f"where does {person} live?", "answers": answers})
    return made


def write_recipe(folder, checkpoint, text="", *, sizes=(48, 24, 12), model="", open_share=0.25, **train):
    """jsonl files and recipe.yaml in `folder`; the recipe's path. `train` replaces keys of the train block."""
    for number, (split, size) in enumerate(zip(("train", "validation", "test"), sizes, strict=True)):
        made = rows(size, number, open_share)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    settings = {"max_steps": 12, "batch_size": 8, "learning_rate": 3.0e-3, "precision": "fp32"} | train
    block = "\n".join(f"  {key}: {value}" for key, value in settings.items() if value is not None)
    path = folder / "recipe.yaml"
    path.write_text(
        f"""task: span
model:
  checkpoint: {checkpoint}
{model}data:
  path: {{train: ./train.jsonl, validation: ./validation.jsonl, test: ./test.jsonl}}
  columns: {{question: question, context: context, answers: answers, is_impossible: is_impossible, id: id}}
  max_length: 24
  stride: 4
train:
{block}
output: {folder}/out
{text}""",
        encoding="utf-8",
    )
    return path
