"""The YAML at the top of a model card, written so that every reader reads the same."""

from __future__ import annotations

import io
import math
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from finetune.card.figures import score
from finetune.card.public_names import (
    base_model,
    data_revision,
    dataset_id,
    dataset_name,
    metric_name,
    metric_on_hub,
    model_name,
)
from finetune.recipe import Recipe
from finetune.record import Interval, RunRecord, SplitResults

__all__ = ["dump", "front_matter", "splits"]

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
RESERVED = {
    "y",
    "n",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "false",
    "null",
}  # words of YAML 1.1, which the Hub's tools read
ORDER = ["test", "validation", "train"]  # the split that counts comes first
PLACES = 6  # decimals of a metric


def front_matter(recipe: Recipe, record: RunRecord, model_id: str | None) -> dict[str, Any]:
    """The metadata of the card, in the order in which it is written; nothing that is not known."""
    found = base_model(recipe)
    data = dataset_id(recipe)
    metrics = {metric_on_hub(name) for results in record.results.values() for name in results.metrics}
    fields = {
        "license": recipe.card.license,
        "language": recipe.card.language,
        "library_name": "transformers",
        "pipeline_tag": record.model.pipeline if record.model else None,
        "base_model": found,
        "base_model_relation": "finetune" if found else None,
        "datasets": [data] if data else None,
        "metrics": sorted(metrics) or None,
        "tags": ["headswap", "lora"] if recipe.model.lora else ["headswap"],
        "co2_eq_emissions": _emissions(record),
        "model-index": _model_index(recipe, record, model_id),
    }
    return {name: value for name, value in fields.items() if value is not None}


def splits(record: RunRecord) -> list[str]:
    """The splits with results, the most telling first."""
    known = [name for name in ORDER if name in record.results]
    return known + [name for name in record.results if name not in ORDER]


def _emissions(record: RunRecord) -> dict[str, Any] | None:
    """Source: hub-docs model-cards-co2: grams, where CodeCarbon counts kilograms."""
    emissions = record.emissions
    if emissions is None or emissions.kg is None:
        return None
    gpus = record.hardware.get("gpus") or []
    fields = {
        "emissions": round(emissions.kg * 1000, PLACES),
        "source": " ".join(["CodeCarbon", record.versions.get("codecarbon", "")]).strip(),
        "training_type": "fine-tuning",
        "geographical_location": emissions.country,
        "hardware_used": ", ".join(map(str, gpus)) or record.hardware.get("cpu"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _model_index(recipe: Recipe, record: RunRecord, model_id: str | None) -> list[dict[str, Any]] | None:
    model = record.model
    if model is None:
        return None
    results = [
        {
            "task": {"type": model.pipeline, "name": model.pipeline.replace("-", " ")},
            "dataset": _dataset(recipe, record, split),
            "metrics": [
                _metric(name, interval, record.results[split], model.problem)
                for name, interval in record.results[split].metrics.items()
                if interval.value is not None and math.isfinite(interval.value)
            ],
        }
        for split in splits(record)
    ]
    complete = [result for result in results if result["metrics"]]
    return [{"name": model_name(recipe, model_id), "results": complete}] if complete else None


def _dataset(recipe: Recipe, record: RunRecord, split: str) -> dict[str, str]:
    name = dataset_name(recipe)
    found = dataset_id(recipe)
    theirs = next((value for name, value in (recipe.data.splits or {}).items() if found and name == split), None)
    fields = {
        "type": found or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "local",
        "name": name,
        "config": recipe.data.name if found else None,
        "split": theirs if isinstance(theirs, str) else split,
        "revision": data_revision(recipe, record) if found else None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _metric(name: str, interval: Interval, results: SplitResults, problem: str | None) -> dict[str, Any]:
    assert interval.value is not None
    shown, rows = metric_name(name, problem), results.rows(name)
    metric = {"type": metric_on_hub(name), "value": round(interval.value, PLACES), "name": f"{shown} (n={rows})"}
    if interval.low is not None and interval.high is not None:
        metric["name"] = f"{shown} (95 % CI {score(name, interval.low)}-{score(name, interval.high)}, n={rows})"
        metric["args"] = {"low": round(interval.low, PLACES), "high": round(interval.high, PLACES), "confidence": 0.95}
    return metric


class _Representer(SafeRepresenter):
    """Scalars that YAML 1.1 and 1.2 read alike: text is quoted unless a plain word, numbers have a point."""


def _represent_text(representer: _Representer, value: str) -> ScalarNode:
    plain = PLAIN.fullmatch(value) and value.lower() not in RESERVED
    clean = value.encode("utf-8", "replace").decode("utf-8")
    return representer.represent_scalar("tag:yaml.org,2002:str", clean, style=None if plain else '"')


def _represent_number(representer: _Representer, value: float) -> ScalarNode:
    shown = f"{value:.12f}".rstrip("0")
    return representer.represent_scalar("tag:yaml.org,2002:float", shown + "0" if shown.endswith(".") else shown)


_Representer.add_representer(str, _represent_text)
_Representer.add_representer(float, _represent_number)


def dump(fields: dict[str, Any]) -> str:
    """The fields between two lines of dashes, one line per value, in the order given."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.width = 2**31
    stream = io.StringIO()
    yaml.dump(fields, stream)
    return f"---\n{stream.getvalue()}---\n"
