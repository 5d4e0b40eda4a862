"""What the Hub refuses in the metadata of a model card, known without asking it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune.card.public_names import is_hub_id

__all__ = ["LANGUAGE", "LICENSES", "check_front_matter"]

# Source: the Hub's list of licence ids (docs/hub/repositories-licenses); other SPDX ids are refused at upload.
LICENSE_IDS = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community
    h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl
    postgresql unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(LICENSE_IDS.split())
FENCE = re.compile(r"---\n(.*?)\n---(?:\n|\Z)", re.DOTALL)
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def check_front_matter(text: str) -> list[str]:
    """What the Hub would refuse in the front matter of `text`, a whole card; empty when nothing.

    Source: the rules of the Hub's validate-yaml, as far as they are known without asking it.
    """
    match = FENCE.match(text)
    if not match:
        return ["front matter: missing; expected YAML between two lines of three dashes at the top"]
    try:
        fields = YAML(typ="safe", pure=True).load(match[1])
    except YAMLError as error:
        return [f"front matter: not YAML: {' '.join(str(error).split())}"]
    if not isinstance(fields, dict):
        return [f"front matter: expected a mapping, found {type(fields).__name__}"]
    return _check_values(fields) + _check_shapes(fields) + _check_model_index(fields.get("model-index", []))


def _each(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name, [])
    return value if isinstance(value, list) else [value]


def _check_values(fields: dict[str, Any]) -> list[str]:
    rules: list[tuple[str, Callable[[Any], object], str]] = [
        (
            "license",
            lambda value: isinstance(value, str) and value in LICENSES,
            "a licence id of the Hub such as apache-2.0, mit or other",
        ),
        ("language", lambda value: isinstance(value, str) and LANGUAGE.fullmatch(value), "a code of 2 or 3 letters"),
        ("base_model", is_hub_id, "the id of a model on the Hub"),
        ("datasets", is_hub_id, "the id of a data set on the Hub"),
        ("tags", lambda value: isinstance(value, str), "text"),
        ("metrics", lambda value: isinstance(value, str), "text"),
    ]
    return [
        f"{name}: expected {expected}, found {value!r}"
        for name, holds, expected in rules
        for value in _each(fields, name)
        if not holds(value)
    ]


def _check_shapes(fields: dict[str, Any]) -> list[str]:
    problems = [
        f"{name}: expected a list" for name in ("tags", "metrics") if not isinstance(fields.get(name, []), list)
    ]
    problems += [
        f"{name}: expected text, found {fields[name]!r}"
        for name in ("library_name", "pipeline_tag")
        if not isinstance(fields.get(name, ""), str)
    ]
    emissions = fields.get("co2_eq_emissions")
    grams: Any = emissions.get("emissions") if isinstance(emissions, dict) else emissions
    if emissions is not None and not (_is_number(grams) and grams >= 0):
        problems.append(f"co2_eq_emissions.emissions: expected grams, found {grams!r}")
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _missing(at: str, item: object, *names: str) -> list[str]:
    if not isinstance(item, dict):
        return [f"{at}: expected a mapping, found {item!r}"]
    return [f"{at}.{name}: missing" for name in names if item.get(name) in (None, "", [])]


def _check_model_index(index: object) -> list[str]:
    if not isinstance(index, list):
        return ["model-index: expected a list"]
    problems = []
    for i, model in enumerate(index):
        at = f"model-index[{i}]"
        problems += _missing(at, model, "name", "results")
        results = model.get("results") if isinstance(model, dict) else None
        for j, result in enumerate(results or []):
            problems += _check_result(f"{at}.results[{j}]", result)
    return problems


def _check_result(at: str, result: object) -> list[str]:
    problems = _missing(at, result, "task", "dataset", "metrics")
    if problems or not isinstance(result, dict):
        return problems
    problems += _missing(f"{at}.task", result["task"], "type")
    problems += _missing(f"{at}.dataset", result["dataset"], "type", "name")
    for k, metric in enumerate(result["metrics"]):
        problems += _missing(f"{at}.metrics[{k}]", metric, "type", "value")
        if isinstance(metric, dict) and not _is_number(metric.get("value", 0)):
            problems.append(f"{at}.metrics[{k}].value: expected a number, found {metric['value']!r}")
    return problems
