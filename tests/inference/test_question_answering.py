"""The module that is shipped: windows, characters, choice of the answer, the pipeline's calls."""

import ast
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import span_material
import torch

from finetune.inference import question_answering as qa

SETTINGS = qa.Settings(max_length=20, stride=5, max_question_tokens=8, max_answer_tokens=4, n_best=6)
TOKENIZERS = {
    "wordpiece": span_material.wordpiece,
    "byte_level": span_material.byte_level,
    "metaspace": span_material.metaspace,
}
LONG = "anna lives in paris , ben works in rome . carla and dora live in the city of lima ." * 3


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def windows(tokenizer, question, context, settings=SETTINGS):
    return qa.cut(tokenizer, qa.read(tokenizer, [question], [context], settings), settings)


def test_the_module_stands_alone():
    tree = ast.parse(Path(qa.__file__).read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert all(not node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    outside = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert outside == {"numpy", "torch", "transformers"}


# ---------------------------------------- windows


@pytest.mark.parametrize("context", [LONG, "anna", "ben works in rome . " * 2])
def test_windows_are_those_of_the_tokenizer(tokenizer, context):
    columns = windows(tokenizer, "who?", context)
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    expected = tokenizer(
        "who?", context, truncation="only_second", max_length=20, stride=5,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert len(columns["row"]) == len(expected["input_ids"])
    for name in names:
        assert [ids.tolist() for ids in columns[name]] == expected[name]
    for number, offsets in enumerate(expected["offset_mapping"]):
        inside = [part == 1 for part in expected.sequence_ids(number)]
        assert columns["size"][number] == sum(inside)
        found = zip(columns["offset_start"][number], columns["offset_end"][number], strict=True)
        for (start, end), (low, high), of_context in zip(found, offsets, inside, strict=True):
            text = context[low:high].strip()
            assert context[start:end] == (text if of_context else "")


def test_the_place_for_no_answer_is_the_classification_token(tokenizer):
    columns = windows(tokenizer, "who?", LONG)
    for ids, null in zip(columns["input_ids"], columns["null"], strict=True):
        assert ids[null] == tokenizer.cls_token_id


def test_every_token_of_the_context_is_in_a_window_and_neighbours_share_the_stride(tokenizer):
    columns = windows(tokenizer, "who?", LONG)
    total = len(tokenizer(LONG, add_special_tokens=False)["input_ids"])
    covered = [set(range(first, first + size)) for first, size in zip(columns["first"], columns["size"], strict=True)]
    assert set().union(*covered) == set(range(total))
    assert {len(one & other) for one, other in itertools.pairwise(covered)} == {5}


def test_a_long_question_is_cut_and_leaves_half_of_the_window(tokenizer):
    question = "  where does anna live and where does ben live and where does carla live?"
    whole = tokenizer(question.strip(), add_special_tokens=False)["input_ids"]
    special = len(tokenizer("a", "a")["input_ids"]) - 2 * len(tokenizer("a", add_special_tokens=False)["input_ids"])
    for limit, expected in ((7, 7), (64, (20 - special) // 2)):
        [pieces] = qa.read(tokenizer, [question], [LONG], replace(SETTINGS, max_question_tokens=limit))
        assert pieces.question.tolist() == whole[:expected]
        assert pieces.question_cut
    assert not qa.read(tokenizer, ["who?"], [LONG], SETTINGS)[0].question_cut


def test_a_stride_wider_than_the_room_still_advances(tokenizer):
    columns = windows(tokenizer, "who?", LONG, replace(SETTINGS, stride=19))
    assert (np.diff(columns["first"]) > 0).all()
    assert max(map(len, columns["input_ids"])) == 20


def test_an_equal_context_is_read_once():
    pieces = qa.read(span_material.wordpiece(), ["who?", "where?"], [LONG, LONG], SETTINGS)
    assert pieces[0].context is pieces[1].context


def test_an_empty_context_is_one_window_in_which_no_answer_can_stand(tokenizer):
    columns = windows(tokenizer, "who?", "")
    assert columns["size"].tolist() == [0]
    assert (columns["offset_start"][0] == columns["offset_end"][0]).all()


# ---------------------------------------- characters


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("anna \U0001f600 lives in paris", "paris"),
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467 anna", "\U0001f469\u200d\U0001f469\u200d\U0001f467"),
        ("anna likes \U0001f44d\U0001f3fd here", "\U0001f44d\U0001f3fd"),
        ("the cafe\u0301 in rome", "cafe\u0301"),
        ("anna\u3000lives\n in \t paris .", "paris"),
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd anna", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd"),
        ("\u0645\u0631\u062d\u0628\u0627 ben", "\u0645\u0631\u062d\u0628\u0627"),
        ("\u4eca\u65e5\u306f paris", "\u4eca\u65e5\u306f"),
        ("  anna  ", "anna"),
    ],
)
def test_answers_are_whole_characters_without_white_space(tokenizer, context, answer):
    start = context.index(answer)
    [pieces] = qa.read(tokenizer, ["who?"], [context], SETTINGS)
    first = int(np.searchsorted(pieces.ends, start, "right"))
    last = int(np.searchsorted(pieces.starts, start + len(answer), "left")) - 1
    low, high = qa.whole(context, int(pieces.starts[first]), int(pieces.ends[last]))
    assert context[low:high] == answer


@pytest.mark.parametrize(
    ("text", "part", "grown"),
    [
        ("\U0001f469\u200d\U0001f469x", (0, 1), (0, 3)),
        ("\U0001f469\u200d\U0001f469x", (2, 4), (0, 4)),
        ("\U0001f44d\U0001f3fd!", (0, 1), (0, 2)),
        ("e\u0301\u0323 a", (0, 1), (0, 3)),
        ("cafe", (0, 2), (0, 2)),
        ("\u0301a", (0, 1), (0, 1)),
        ("ab", (2, 2), (2, 2)),
    ],
)
def test_a_part_grows_to_whole_characters(text, part, grown):
    assert qa.whole(text, *part) == grown


def test_a_token_of_white_space_alone_can_neither_begin_nor_end_an_answer():
    tokenizer = span_material.byte_level()
    [pieces] = qa.read(tokenizer, ["who?"], ["anna \n\n ben"], SETTINGS)
    for start, end in zip(pieces.starts, pieces.ends, strict=True):
        assert "anna \n\n ben"[start:end] == "anna \n\n ben"[start:end].strip()
    assert (pieces.starts == pieces.ends).any()


# ---------------------------------------- the choice


def brute_force(start, end, usable, width, count):
    length = len(start)
    pairs = [
        (start[i] + end[j], i, j)
        for i in range(length)
        for j in range(i, min(i + width, length))
        if usable[i] and usable[j]
    ]
    return sorted(pairs, reverse=True)[:count]


@pytest.mark.parametrize("length", [3, 9, 40])
def test_spans_are_the_best_of_all_allowed_pairs(length):
    generator = torch.Generator().manual_seed(length)
    start, end = torch.randn(2, 5, length, generator=generator)
    usable = torch.rand(5, length, generator=generator) < 0.7
    usable[4] = False
    null = torch.tensor([0, 0, 1, 2, 0])
    found = qa.spans(start, end, usable, null, SETTINGS)
    assert found["null"].tolist() == pytest.approx([(start[b] + end[b])[null[b]].item() for b in range(5)])
    assert found["score"].shape == (5, 6)
    for b in range(5):
        expected = brute_force(start[b].tolist(), end[b].tolist(), usable[b].tolist(), 4, 6)
        real = found["score"][b] > -np.inf
        assert int(real.sum()) == len(expected)
        got = zip(*(found[name][b][real].tolist() for name in ("score", "start", "end")), strict=True)
        for one, other in zip(got, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-6)


def ranked(*parts, null=(0.0,), rows=1, row=None):
    """One window a part list: [(score, start, end), …] each."""
    width = max(map(len, parts))
    filled = [[*part, *[(-np.inf, 0, 0)] * (width - len(part))] for part in parts]
    score, start, end = np.moveaxis(np.array(filled, dtype=np.float64), 2, 0)
    row = np.zeros(len(parts), np.int64) if row is None else np.array(row)
    return qa.rank(score, start.astype(int), end.astype(int), np.array(null, np.float64), row, rows)


def test_windows_of_a_row_compete_and_a_part_counts_once():
    found = ranked([(3.0, 5, 9), (1.0, 0, 2)], [(4.0, 5, 9), (2.0, 7, 9)], null=[-1.0, -6.0])
    assert found.score.tolist() == [[4.0, 2.0]]
    assert found.start.tolist() == [[5, 7]]
    assert found.null.tolist() == [-6.0]


def test_rows_do_not_mix():
    found = ranked([(3.0, 5, 9)], [(4.0, 1, 2)], [(5.0, 5, 9)], null=[0, 1, 2], rows=2, row=[1, 0, 1])
    assert found.score.tolist() == [[4.0], [5.0]]
    assert found.null.tolist() == [1.0, 0.0]


def test_equal_parts_go_in_the_order_of_the_context_whatever_rounding_says():
    for noise in (1e-6, -1e-6):
        found = ranked([(2.0, 30, 34), (1.0, 0, 1)], [(2.0 + noise, 10, 14), (1.0, 2, 3)], null=[0, 0])
        assert found.start[0].tolist() == [10, 30]


def test_scores_are_a_softmax_over_parts_and_no_answer():
    found = ranked([(2.0, 0, 4), (1.0, 5, 9)], null=[1.5])
    weights = np.exp([2.0, 1.0])
    np.testing.assert_allclose(qa.probabilities(found, None), [[*weights / weights.sum(), 0.0]])
    weights = np.exp([2.0, 1.0, 1.5 - 0.25])
    np.testing.assert_allclose(qa.probabilities(found, 0.25), [weights / weights.sum()])


def test_without_any_part_the_answer_is_none_for_certain():
    found = ranked([(-np.inf, 0, 0)], null=[-40.0])
    for threshold in (None, 0.0, 7.0):
        shares = qa.probabilities(found, threshold)
        assert shares[0, -1] == 1
        answers = qa.pick("", shares[0], found.start[0], found.end[0], 3)
        assert answers == [{"score": 1.0, "start": 0, "end": 0, "answer": ""}]


def test_no_answer_stands_where_its_score_puts_it():
    found = ranked([(2.0, 0, 4), (1.0, 5, 9)], null=[1.5])
    for threshold, expected in ((-1.0, ["", "anna", "rome"]), (0.0, ["anna", "", "rome"]), (None, ["anna", "rome"])):
        shares = qa.probabilities(found, threshold)[0]
        assert [one["answer"] for one in qa.pick("anna rome", shares, found.start[0], found.end[0], 5)] == expected


# ---------------------------------------- the pipeline


@pytest.fixture(scope="module")
def pipe():
    return qa.QuestionAnsweringPipeline(
        model=span_material.model(), tokenizer=span_material.wordpiece(), task="question-answering", device="cpu"
    )


EXAMPLE = {"question": "where does anna live?", "context": "anna lives in paris. ben works in rome."}
OTHER = {"question": "who works in rome?", "context": LONG}


def test_one_answer_is_a_dictionary_of_the_old_shape(pipe):
    answer = pipe(EXAMPLE)
    assert list(answer) == ["score", "start", "end", "answer"]
    assert EXAMPLE["context"][answer["start"] : answer["end"]] == answer["answer"] != ""
    assert 0 < answer["score"] <= 1
    assert pipe(**EXAMPLE) == pipe(EXAMPLE["question"], EXAMPLE["context"]) == answer


def test_lists_give_lists_and_generators_generators(pipe):
    both = [pipe(EXAMPLE), pipe(OTHER)]
    close = [pytest.approx(one["score"], abs=1e-5) for one in both]
    for found in (
        pipe([EXAMPLE, OTHER]),
        pipe([EXAMPLE, OTHER], batch_size=1),
        pipe((EXAMPLE, OTHER)),
        list(pipe(one for one in (EXAMPLE, OTHER))),
        pipe(question=[EXAMPLE["question"], OTHER["question"]], context=[EXAMPLE["context"], OTHER["context"]]),
    ):
        assert [one["answer"] for one in found] == [one["answer"] for one in both]
        assert [one["score"] for one in found] == close
    assert len(pipe([EXAMPLE])) == 1
    assert len(pipe(question=["who?", "where?"], context=LONG)) == 2
    assert pipe([]) == []


def test_more_blocks_than_one_keep_their_order(pipe):
    names = [f"{name} lives in {place}" for name in span_material.NAMES for place in span_material.PLACES]
    inputs = [{"question": "where?", "context": context} for context in names * 2]
    found = pipe(inputs, max_answer_len=1)
    assert len(found) == 72 > qa.BLOCK
    assert all(one["answer"] in given["context"].split() for one, given in zip(found, inputs, strict=True))


def test_top_k_gives_different_parts_best_first(pipe):
    found = pipe(EXAMPLE, top_k=4)
    assert len({(one["start"], one["end"]) for one in found}) == 4
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert found[0] == pipe(EXAMPLE)


def test_no_answer_is_given_as_trained_or_as_asked(pipe):
    assert "" not in [one["answer"] for one in pipe(EXAMPLE, top_k=20)]
    everything = pipe(EXAMPLE, top_k=30, handle_impossible_answer=True)
    assert [one["answer"] for one in everything].count("") == 1
    assert sum(one["score"] for one in everything) == pytest.approx(1)
    pipe.model.config.question_answering = {"no_answer_threshold": -50.0}
    try:
        assert pipe(EXAMPLE)["answer"] == ""
        assert pipe(EXAMPLE, handle_impossible_answer=False)["answer"] != ""
    finally:
        del pipe.model.config.question_answering


def test_lengths_of_the_call_win_over_those_of_the_model(pipe):
    assert all(" " not in one["answer"] for one in pipe(OTHER, max_answer_len=1, top_k=9))
    one, other = (pipe.preprocess([OTHER], changes={"max_length": size, "stride": 2}) for size in (24, 48))
    assert len(one["windows"]["row"]) > len(other["windows"]["row"])
    answer = pipe(OTHER, max_seq_len=24, doc_stride=2)
    assert LONG[answer["start"] : answer["end"]] == answer["answer"]


@pytest.mark.parametrize("context", ["", " \n "])
def test_a_context_without_text_has_the_empty_answer(pipe, context):
    nothing = {"score": 1.0, "start": 0, "end": 0, "answer": ""}
    assert pipe(question="who?", context=context) == nothing
    assert pipe([{"question": "who?", "context": context}, EXAMPLE])[0] == nothing


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        (({"question": " ", "context": "a"},), {}, "`question` cannot be empty"),
        (({"question": "who?"},), {}, "`context`: expected text, found NoneType"),
        ((["who?"],), {}, "expected a dictionary with question and context, found str"),
        ((), {"question": "who?"}, "takes question= and context="),
        ((), {"question": ["who?", "a"], "context": ["b"]}, "as many contexts as questions, found 1 and 2"),
        ((EXAMPLE,), {"top_k": 0}, "top_k and lengths must be at least 1"),
        ((EXAMPLE,), {"max_seq_len": 65}, "max_seq_len: at most 64, found 65"),
        ((EXAMPLE,), {"max_seq_len": 2}, "max_seq_len: at least 5 (3 special tokens, one of the question and one of"),
    ],
)
def test_what_cannot_be_answered_is_a_value_error(pipe, inputs, kwargs, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        pipe(*inputs, **kwargs)


def test_an_argument_it_does_not_know_is_refused(pipe):
    with pytest.raises(TypeError, match="takes no argument trunaction"):
        pipe(EXAMPLE, trunaction=True)


def test_a_tokenizer_that_pads_and_cuts_is_read_as_one_that_does_not(pipe):
    tokenizer = span_material.wordpiece()
    tokenizer.backend_tokenizer.enable_padding(length=60)
    tokenizer.backend_tokenizer.enable_truncation(5)
    other = qa.QuestionAnsweringPipeline(
        model=span_material.model(), tokenizer=tokenizer, task="question-answering", device="cpu"
    )
    assert other(EXAMPLE, max_seq_len=20) == pipe(EXAMPLE, max_seq_len=20)


def test_a_very_long_context_needs_no_more_than_its_windows(pipe):
    context = "anna lives in paris . " * 5000 + "dora works in quito ."
    held = []
    forward = pipe.forward

    def watched(inputs, **kwargs):
        held.append(inputs["batch"]["input_ids"].numel())
        return forward(inputs, **kwargs)

    pipe.forward = watched
    try:
        answer = pipe(question="who works in quito?", context=context, batch_size=8)
    finally:
        del pipe.forward
    assert context[answer["start"] : answer["end"]] == answer["answer"] != ""
    assert max(held) <= 8 * 64
