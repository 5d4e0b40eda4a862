"""The sections on what the model was made of: data, weights, recipe, versions, files."""

from __future__ import annotations

from finetune.card.figures import count, share, size
from finetune.recipe import Recipe
from finetune.record import Names, RunRecord, SplitFacts
from finetune.report.blocks import Block, Code, Facts, Folded, Section, Table

__all__ = ["data", "head_swap", "recipe_text", "versions"]

LISTED = 400  # names behind one line; run.json has all of them


def data(recipe: Recipe, record: RunRecord) -> Section:
    """The rows of each split: where they come from, what was cut and left out."""
    section = Section("data", "Data")
    if not record.data:
        return section
    header = [
        "split",
        "source",
        "rows",
        "features",
        f"cut at {recipe.data.max_length} tokens",
        "left out",
        "fingerprint",
    ]
    rows = [
        [
            name,
            facts.source + (f" at {facts.revision}" if facts.revision else ""),
            count(facts.rows),
            "–" if facts.windows is None else count(facts.windows),
            _cut(facts),
            ", ".join(f"{reason}: {count(number)}" for reason, number in facts.dropped.items()) or "–",
            facts.fingerprint[:12],
        ]
        for name, facts in record.data.items()
    ]
    section.blocks.append(Table("Rows by split", header, rows, right=(2, 3, 4), mono=(6,)))
    for name, facts in record.data.items():
        for reason, ids in facts.dropped_ids.items():
            section.blocks.append(Folded(f"{name}, {reason}: ids of the first {count(len(ids))} rows", ", ".join(ids)))
    return section


def _cut(facts: SplitFacts) -> str:
    return f"{count(facts.truncated)} ({share(facts.truncated / facts.rows)})" if facts.rows else "–"


def head_swap(record: RunRecord) -> Section:
    """Which weights come from the checkpoint, which are new, which were left out."""
    section, swap, model = Section("head-swap", "Head swap"), record.head_swap, record.model
    if model is not None:
        trained = model.trainable_parameters
        section.blocks.append(
            Facts(
                [
                    ("checkpoint", model.checkpoint + (f" at {model.revision}" if model.revision else "")),
                    ("architecture", model.architecture or None),
                    ("parameters", count(model.parameters)),
                    ("trained", f"{count(trained)} ({share(trained / model.parameters)})" if trained else None),
                    ("tokens in no training row", count(model.unseen_tokens) if model.unseen_tokens else None),
                    ("labels", f"{count(len(model.labels))}: {', '.join(model.labels)}" if model.labels else None),
                ]
            )
        )
    if swap is not None:
        kinds = (
            ("reused from the checkpoint", swap.reused),
            ("new", swap.new),
            ("of the checkpoint, left out", swap.dropped),
        )
        rows = [[kind, count(names.count)] for kind, names in kinds]
        section.blocks.append(Table("Weights, as tensors", ["kind", "tensors"], rows, right=(1,)))
        section.blocks += [_names(kind, names) for kind, names in kinds if names.names]
    return section


def _names(kind: str, names: Names) -> Block:
    more = [f"… and {count(names.count - LISTED)} more, in run.json"] if names.count > LISTED else []
    return Folded(f"{kind}: names", "\n".join([*names.names[:LISTED], *more]))


def recipe_text(recipe: Recipe) -> Section:
    """The resolved recipe."""
    return Section("recipe", "Recipe", [Code(recipe.to_yaml())])


def versions(record: RunRecord) -> Section:
    """What it ran with, and what came out."""
    section = Section("versions", "Versions and files")
    facts: list[tuple[str, str | None]] = [
        ("command", record.command or None),
        ("started", record.started or None),
        ("ended", record.ended),
        ("seed", None if record.seed is None else str(record.seed)),
        ("recipe, SHA-256", record.recipe_sha256 or None),
        ("order of the rows, SHA-256", record.training.sample_log_sha256 if record.training else None),
        ("error", record.error),
    ]
    facts += [
        (f"tracked by {name}", tracker.url or tracker.note or tracker.id) for name, tracker in record.tracking.items()
    ]
    if record.published is not None:
        facts.append(("published", f"{record.published.repo_id} at {record.published.commit}"))
    section.blocks.append(Facts(facts))
    if record.versions:
        rows = [[name, version] for name, version in record.versions.items()]
        section.blocks.append(Table("Versions", ["package", "version"], rows, mono=(1,)))
    if record.export is not None:
        rows = [[name, size(file.size_bytes), file.sha256[:12]] for name, file in record.export.files.items()]
        checked = "answers verified in a fresh process" if record.export.verified else "not verified"
        section.blocks.append(
            Table(f"Exported files; {checked}", ["file", "size", "SHA-256"], rows, right=(1,), mono=(0, 2))
        )
    return section
