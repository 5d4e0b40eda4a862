"""The sentences of a model card that depend on the facts of the run: purpose, intended use, limitations."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.card.figures import count, interval, share
from finetune.card.markdown import code, text
from finetune.card.public_names import base_model, metric_name
from finetune.recipe import Recipe
from finetune.record import ModelFacts, RunRecord

__all__ = ["limitations", "purpose", "uses"]

QUESTIONS = "question-answering"  # there texts are read in windows, and only questions are cut
PURPOSES = {  # the pipeline's word -> what the model does
    QUESTIONS: "it finds the part of a text that answers a question",
    "summarization": "it writes a summary of a text",
    "text2text-generation": "it writes a text from a text",
    "token-classification": "it marks words of a text with the labels below",
    "translation": "it translates a text",
}
WRITERS = ("summarization", "text2text-generation", "translation")  # they write texts and give no scores
SMALL = 1000  # rows: below this, the interval is worth a warning


def purpose(model: ModelFacts) -> str:
    """What the model does, as half a sentence."""
    if model.pipeline != "text-classification":
        return PURPOSES.get(model.pipeline, f"a model for {text(model.pipeline)}")
    given = "a pair of texts" if "text_pair" in model.snippet else "a text"
    if model.problem == "regression":
        return f"it gives {given} a number"
    if model.problem == "multi":
        return f"it says which of {count(len(model.labels))} labels apply to {given}"
    return f"it assigns one of {count(len(model.labels))} labels to {given}"


def uses(recipe: Recipe, model: ModelFacts) -> str:
    """Paragraphs: for what, and for what not."""
    language = f"language {_languages(recipe)}, " if recipe.card.language else ""
    reach = "read {} tokens at a time" if model.pipeline == QUESTIONS else "up to {} tokens"
    return (
        f"For texts like those in the training data ({language}{reach.format(recipe.data.max_length)}):"
        f" {purpose(model)}. Try it on a sample of your own texts first, with answers you know.\n\n"
        "Not meant for decisions about people without a person who checks them, for other kinds of text or other"
        " languages than those trained on, or as the only safeguard where an error does harm."
    )


def limitations(recipe: Recipe, record: RunRecord) -> Iterator[str]:
    """Sentences, as Markdown."""
    yield _inherited(recipe)
    if recipe.card.language:
        yield f"Trained and evaluated on texts declared as {_languages(recipe)}; nothing else was tried."
    else:
        yield "The language of the data was not stated; expect nothing in languages that the data does not hold."
    yield from _cut(recipe, record)
    yield from _overlaps(record)
    yield from _uncertain(record)
    yield _not_evaluated(record)


def _not_evaluated(record: RunRecord) -> str:
    calibrated = any(found.calibration for found in record.analysis.values())
    missing = ["other sources of text than the data above", "differences between groups of people"]
    missing += ["deliberate attempts to mislead the model"]
    model = record.model
    scored = model is None or (model.pipeline not in WRITERS and model.problem != "regression")
    missing += ["whether its scores are calibrated probabilities"] if scored and not calibrated else []
    return f"Not evaluated: {', '.join(missing[:-1])}{',' * (len(missing) > 3)} and {missing[-1]}."


def _inherited(recipe: Recipe) -> str:
    if recipe.model.init == "scratch":
        return "The weights started at random: whatever bias the model has comes from the training data alone."
    base = base_model(recipe)
    name = code(base) if base else "The checkpoint it starts from"
    return (
        f"{name} was trained on large collections of text and carries their errors and prejudices, for example about"
        " gender, origin and religion. Fine-tuning does not remove them, and the labels add those of their annotators."
    )


def _languages(recipe: Recipe) -> str:
    given = recipe.card.language
    return ", ".join(code(name) for name in ([given] if isinstance(given, str) else given or []))


def _cut(recipe: Recipe, record: RunRecord) -> Iterator[str]:
    cut = [
        f"{_part(facts.truncated, facts.rows)} of the {text(name)} rows"
        for name, facts in record.data.items()
        if facts.rows and facts.truncated
    ]
    if cut and record.model and record.model.pipeline == QUESTIONS:
        yield f"{_listed(cut)} had a question that was cut, as said above: what comes later in it has no influence."
    elif cut:
        yield (
            f"{_listed(cut)} were longer than {recipe.data.max_length} tokens and were cut there: what comes later in a"
            " text has no influence."
        )
    if any(facts.windows is not None and facts.windows > facts.rows for facts in record.data.values()):
        yield (
            f"Texts longer than {recipe.data.max_length} tokens were read in windows: what connects words further apart"
            " than that has no influence."
        )
    elif record.data and not cut:
        yield f"No text in the data was longer than {recipe.data.max_length} tokens; longer ones are untested."


def _part(number: int, rows: int) -> str:
    """A share in per cent, or the number itself where that would read 0.0 %."""
    shown = share(number / rows)
    return count(number) if shown == share(0) else shown


def _overlaps(record: RunRecord) -> Iterator[str]:
    """Rows of the scored split that train has, too."""
    split = "test" if "test" in record.results else next(iter(record.results), None)
    found = record.audit.findings if record.audit else []
    same, near = (
        next((one.count for one in found if one.kind == kind and one.split == split), 0)
        for kind in ("leakage", "near_leakage")
    )
    if split is not None and same + near:
        rows = record.results[split].n
        nearly = f"{count(near)} more nearly so" if near else "none more nearly so"
        yield (
            f"Of the {count(rows)} {text(split)} rows, {count(same)} have the text of a training row, word for word,"
            f" and {nearly}: on these, the scores also count what was learnt by heart."
        )


def _uncertain(record: RunRecord) -> Iterator[str]:
    split = "test" if "test" in record.results else next(iter(record.results), None)
    if split is None:
        yield "Not evaluated at all; nothing is known about how often it is right."
        return
    results = record.results[split]
    problem = record.model.problem if record.model else None
    for metric, found in list(results.metrics.items())[:1]:
        if results.n < SMALL and found.low is not None:
            name = text(metric_name(metric, problem))
            much = (
                f": {name} is {interval(metric, found)}, and differences smaller than that say nothing"
                if found.low != found.high
                else ", which all score the same: that says little of others"  # however few, there is no width
            )
            yield f"The {text(split)} split has {count(results.n)} rows only{much}."
    if split != "test":
        yield "There was no test split; the rows that chose the checkpoint are those it was scored on."
    yield "One training run with one seed; another seed gives a somewhat different model."


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
