"""The model card: one Markdown page from recipe and record, pure. Every value on it is escaped or stands in code.

Nothing private: no rows, no folders of this machine, no coordinates. What a reader should know and we do not is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from finetune.card.figures import amount, bounds, count, interval, score
from finetune.card.markdown import HUB, bullets, code, fence, link, prose, table, text
from finetune.card.metadata import dump, front_matter, splits
from finetune.card.pictures import CONFUSION, INTERVALS, RELIABILITY, pictures
from finetune.card.public_names import (
    dataset_id,
    dataset_name,
    metric_name,
    model_name,
    place_name,
    public_recipe,
)
from finetune.card.rules import check_front_matter
from finetune.card.training import checkpoint_link, hardware, head_swap, procedure, training_data
from finetune.card.weaknesses import weaknesses
from finetune.card.wording import limitations, purpose, uses
from finetune.recipe import Recipe
from finetune.record import ModelFacts, RunRecord

__all__ = ["check_front_matter", "render"]

PLACEHOLDER = "path/to/export"


def render(recipe: Recipe, record: RunRecord, model_id: str | None = None, present: Collection[str] = ()) -> str:
    """The whole README.md. `model_id` is the repository on the Hub; without it the call names a folder.

    present: the pictures that lie in the export.
    record.model must be set; parts of the record that are None are left out or said to be unknown.
    """
    assert record.model is not None
    sections = [
        f"# {text(model_name(recipe, model_id))}",
        _summary(recipe, record, record.model),
        _results(record, record.model, present),
        weaknesses(record),
        _how_to_use(recipe, record.model, model_id),
        _labels(record.model),
        f"## Intended use\n\n{uses(recipe, record.model)}",
        f"## Limitations and bias\n\n{bullets(limitations(recipe, record))}",
        training_data(recipe, record),
        procedure(recipe, record, present),
        head_swap(recipe, record),
        f"### Recipe\n\n{fence(public_recipe(recipe), 'yaml')}",
        _emissions(record),
        _versions(record),
        _reproduce(recipe),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"{dump(front_matter(recipe, record, model_id))}\n{body}\n"


def _summary(recipe: Recipe, record: RunRecord, model: ModelFacts) -> str:
    data = dataset_id(recipe)
    shown = code(dataset_name(recipe))
    where = link(shown, f"{HUB}/datasets/{data}") if data else shown
    start = f"{checkpoint_link(recipe)}{_decoder(recipe)}"
    how = "Trained from random weights" if recipe.model.init == "scratch" else f"{start}, fine-tuned"
    return f"{how} on {where}: {purpose(model)}.{_headline(record, model)}"


def _decoder(recipe: Recipe) -> str:
    """What was put behind an encoder."""
    other = recipe.model.decoder
    if other is None:
        return ""
    return f", given a decoder {'of the same weights' if other == 'same' else f'made of {code(place_name(other))}'}"


def _headline(record: RunRecord, model: ModelFacts) -> str:
    split = next((name for name in splits(record) if record.results[name].metrics), None)
    if split is None:
        return ""
    results = record.results[split]
    chosen = (
        record.best.metric if record.best and record.best.metric in results.metrics else next(iter(results.metrics))
    )
    name = metric_name(chosen, model.problem)
    return (
        f" {_capital(text(name))} {interval(chosen, results.metrics[chosen])} on {count(results.rows(chosen))}"
        f" {text(split)} rows."
    )


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


# ---------------------------------------------------------------------------------------------------------- results


def _results(record: RunRecord, model: ModelFacts, present: Collection[str]) -> str:
    if not record.results:
        return "## Results\n\nNot evaluated."
    names = [name for name, splits in record.baselines.items() if splits]
    header = ["Split", "Rows", "Metric", "Value", "95 % interval", *(text(name.replace("_", " ")) for name in names)]
    rows = list(_result_rows(record, model, names))
    shown = pictures(present, INTERVALS, CONFUSION, RELIABILITY)
    figures = table(header, rows, right=[1, *range(3, len(header))])
    return "\n\n".join(["## Results", figures, *_reading(record, model), *shown])


def _result_rows(record: RunRecord, model: ModelFacts, baselines: list[str]) -> Iterator[list[str]]:
    for split in splits(record):
        results = record.results[split]
        for metric, found in results.metrics.items():
            others = [_baseline(record, name, split, metric) for name in baselines]
            name = text(metric_name(metric, model.problem))
            yield [
                text(split),
                count(results.rows(metric)),
                name,
                interval(metric, found),
                bounds(metric, found),
                *others,
            ]


def _baseline(record: RunRecord, name: str, split: str, metric: str) -> str:
    results = record.baselines[name].get(split)
    found = results.metrics.get(metric) if results else None
    return score(metric, found.value) if found and found.value is not None else "–"


def _reading(record: RunRecord, model: ModelFacts) -> list[str]:
    said = [
        "Measured on the weights of this repository, in 32-bit arithmetic. The interval is a bootstrap over rows (± is"
        " half its width): it says how far another sample of such rows could move the value, not what another seed of"
        " training would give."
    ]
    if record.best:
        metric = text(metric_name(record.best.metric, model.problem))
        said.append(
            f"The checkpoint of step {count(record.best.step)} was chosen by its {metric} on validation; figures on"
            " that split are a little optimistic for this reason."
        )
    methods = [name for name, found in record.baselines.items() if found]
    if methods:
        one = len(methods) == 1
        which = "column on the right is a simple method" if one else "columns on the right are simple methods"
        said.append(f"The {which} on the same rows; what such a method learns, it learns from the training split.")
    return said


# ------------------------------------------------------------------------------------------------------------- use


def _how_to_use(recipe: Recipe, model: ModelFacts, model_id: str | None) -> str:
    place = (model_id or PLACEHOLDER).replace("\\", "\\\\").replace('"', '\\"')
    parts = ["## How to use", fence(model.snippet.replace("{model}", place), "python")]
    if "truncation=True" in model.snippet:
        parts.append(
            f"`truncation=True` cuts longer texts at {recipe.data.max_length} tokens, as in training; without it the"
            " pipeline fails on them."
        )
    if model.notes:
        parts.append(bullets(prose(note) for note in model.notes))
    return "\n\n".join(parts)


def _labels(model: ModelFacts) -> str:
    if not model.labels or model.problem == "regression":
        return ""
    return f"## Labels\n\n{count(len(model.labels))}: {', '.join(code(label) for label in model.labels)}."


# -------------------------------------------------------------------------------------------------- what it cost, how


def _emissions(record: RunRecord) -> str:
    found = record.emissions
    if found is None:
        return "## Environmental impact\n\nNot measured."
    country = f" with the grid of {text(found.country)}" if found.country else ""
    parts = []
    if found.kwh is not None:
        parts.append(f"{amount(found.kwh)} kWh of electricity{_phases(found.phases)}.")
    if found.kg is not None:
        parts.append(f"{amount(found.kg * 1000)} g CO2 equivalent{country}.")
    else:
        parts.append(f"No figure for emissions: {prose(found.reason or 'no country was given')}.")
    if found.lower_bound:
        parts.append("A lower bound: a stopped process kept only what its last checkpoint had counted.")
    if found.method:
        parts.append(f"Method: {prose(found.method)}; trackers of this kind can be off by tens of per cent.")
    machine = hardware(record.hardware)
    return f"## Environmental impact\n\n{' '.join(parts)}" + (f" Hardware: {machine}." if machine else "")


def _phases(phases: dict[str, dict[str, float | None]]) -> str:
    said = [f"{text(name)} {amount(kwh)}" for name, found in phases.items() if (kwh := found.get("kwh")) is not None]
    return f" ({', '.join(said)})" if said else ""


def _versions(record: RunRecord) -> str:
    if not record.versions:
        return ""
    listed = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"## Versions\n\n{prose(listed)}."


def _reproduce(recipe: Recipe) -> str:
    local = (
        ""
        if dataset_id(recipe)
        else " The data is not part of this repository; the fingerprints tell whether yours is the same."
    )
    return (
        "## Reproduce\n\nSave the recipe above as `recipe.yaml` and run, with the versions above:\n\n"
        f"{fence('finetune train recipe.yaml', 'bash')}\n\n"
        f"The same seed on the same hardware repeats the run.{local}"
    )
