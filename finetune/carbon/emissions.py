"""Arithmetic on `record.Emissions`: from a measurement, over processes and nodes, to `emissions.csv`; grid factors.

No figure is invented: what is not known is None, with a reason, and a sum with a part missing is a lower bound.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError
from finetune.record import Emissions, write_atomic

__all__ = ["add", "combine", "from_measurement", "known_country", "suggest_countries", "write_csv"]

AMOUNTS = ("kg", "kwh", "seconds", "cpu_kwh", "gpu_kwh", "ram_kwh")
JOULES_PER_KWH = 3.6e6
COLUMNS = (
    *("task_name", "timestamp", "project_name", "duration", "emissions", "emissions_rate"),
    *("cpu_power", "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed"),
    *("country_name", "country_iso_code", "os", "python_version", "codecarbon_version"),
    *("cpu_count", "cpu_model", "gpu_count", "gpu_model", "ram_total_size", "tracking_mode", "pue"),
)


def from_measurement(
    phases: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any], country: str | None, reason: str | None
) -> Emissions:
    """What one process measured.

    phases: name -> kg, kwh, seconds, cpu_kwh, gpu_kwh, ram_kwh; one without energy was too short to measure and is left
    out. facts: as `meter.py` gives them. reason: why measuring ended early, if it did.
    """
    kept: dict[str, dict[str, float | None]] = {
        name: {amount: None if amount == "kg" and country is None else booked[amount] for amount in AMOUNTS}
        for name, booked in phases.items()
        if booked["kwh"] > 0
    }
    if not kept:
        return Emissions(country=country, reason=reason or "no phase was long enough to measure")
    return Emissions(
        kg=_over(sum, (amounts["kg"] for amounts in kept.values())),
        kwh=_over(sum, (amounts["kwh"] for amounts in kept.values())),
        seconds=_over(sum, (amounts["seconds"] for amounts in kept.values())),
        country=country,
        method=_method(facts, country),
        reason=reason,
        lower_bound=reason is not None,
        phases=kept,
    )


def add(first: Emissions, second: Emissions, seconds: Callable[[Iterable[float]], float] = sum) -> Emissions:
    """Two parts of one run: one after the other, or side by side with `seconds=max`."""
    one_unmeasured = (first.kwh is None) != (second.kwh is None)
    one_without_grid = None not in (first.kwh, second.kwh) and (first.kg is None) != (second.kg is None)
    return Emissions(
        kg=_over(sum, (first.kg, second.kg)),
        kwh=_over(sum, (first.kwh, second.kwh)),
        seconds=_over(seconds, (first.seconds, second.seconds)),
        country=second.country or first.country,
        method=second.method or first.method,
        reason="; ".join(dict.fromkeys(part.reason for part in (first, second) if part.reason)) or None,
        lower_bound=first.lower_bound or second.lower_bound or one_unmeasured or one_without_grid,
        phases={
            name: {
                amount: _over(
                    seconds if amount == "seconds" else sum,
                    (part.phases[name].get(amount) for part in (first, second) if name in part.phases),
                )
                for amount in AMOUNTS
            }
            for name in first.phases | second.phases
        },
    )


def combine(per_node: Sequence[Emissions | None]) -> Emissions:
    """Sum over nodes (None: a process that does not measure); `seconds` is the longest, as nodes work side by side."""
    nodes = [node for node in per_node if node is not None]
    if not nodes:
        return Emissions(reason="no process measured")
    total = nodes[0]
    for node in nodes[1:]:
        total = add(total, node, seconds=max)
    if len(nodes) > 1 and total.method:
        total = total.model_copy(update={"method": f"{len(nodes)} nodes; {total.method}"})
    return total


def write_csv(path: Path, emissions: Emissions, facts: Mapping[str, Any]) -> None:
    """Write `emissions.csv`: one line per phase in CodeCarbon's columns, without coordinates. Raises OSError.

    Amounts in kg, kg/s, kWh, W and s; a cell is empty where nothing is known. Source: codecarbon's EmissionsData.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name, amounts in emissions.phases.items():
        row = {"task_name": name, "timestamp": stamp, "project_name": "finetune"} | _columns(amounts)
        writer.writerow(dict(facts) | row)
    write_atomic(path, text.getvalue())


def known_country(code: str) -> bool:
    """True when CodeCarbon has an emission factor above zero for this ISO 3166-1 alpha-3 code, in capitals."""
    return _grid_factor(code) is not None


def suggest_countries(code: str) -> list[str]:
    """The known codes that may have been meant: by case, by the country's name, or by the first two letters."""
    wanted = code.strip().casefold()
    known = {name: entry["country_name"].casefold() for name, entry in _energy_mix().items() if known_country(name)}
    exact = [name for name, country in known.items() if wanted in (name.casefold(), country)]
    return exact or [name for name in known if len(wanted) == 2 and name.casefold().startswith(wanted)]


def _grid_factor(code: str | None) -> float | None:
    """In g/kWh. None where CodeCarbon would silently take the world average, or zero."""
    factor = _energy_mix().get(code or "", {}).get("carbon_intensity")
    return float(factor) if factor else None


@cache
def _energy_mix() -> dict[str, dict[str, Any]]:
    found = importlib.util.find_spec("codecarbon")  # not imported: that may run tools that hang
    if found is None or found.origin is None:
        raise RecipeError("carbon: codecarbon is not installed; run `pip install codecarbon`")
    path = Path(found.origin).parent / "data" / "private_infra" / "global_energy_mix.json"
    mix: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return mix


def _method(facts: Mapping[str, Any], country: str | None) -> str:
    factor = _grid_factor(country)
    grid = f"grid {factor:.1f} g/kWh ({country})" if factor else "no country, so no grid factor"
    return (
        f"CodeCarbon {facts['codecarbon_version']}, tracking mode {facts['tracking_mode']}; {facts['sensors']}; "
        f"{grid}; PUE {facts['pue']:g}"
    )


def _columns(amounts: Mapping[str, float | None]) -> dict[str, float | None]:
    seconds, kg = amounts.get("seconds"), amounts.get("kg")
    columns = {"duration": seconds, "emissions": kg, "energy_consumed": amounts.get("kwh")}
    columns["emissions_rate"] = kg / seconds if kg is not None and seconds else None
    for part in ("cpu", "gpu", "ram"):
        kwh = amounts.get(f"{part}_kwh")
        columns[f"{part}_energy"] = kwh
        columns[f"{part}_power"] = kwh * JOULES_PER_KWH / seconds if kwh is not None and seconds else None
    return columns


def _over(function: Callable[[Iterable[float]], float], values: Iterable[float | None]) -> float | None:
    """Of the known values; None when there is none."""
    known = [value for value in values if value is not None]
    return function(known) if known else None
