"""After the loop: export, results from the exported weights, card, verification in a fresh process, push."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from accelerate.utils import gather_object

from finetune import behaviour, carbon, card, evaluation, hardware, loop, model, publish
from finetune.carbon import Carbon
from finetune.checkpoint import storage_errors
from finetune.errors import RecipeError
from finetune.events import Events
from finetune.folder import RunFolder
from finetune.job import Job
from finetune.preparation import Prepared
from finetune.pretrained import Checkpoint
from finetune.recipe import Recipe
from finetune.record import Best, Export, RunRecord, Training, write_atomic
from finetune.session import agree_on
from finetune.tasks.base import Predictions
from finetune.tracking import Tracking
from finetune.tryout import probes

__all__ = ["conclude", "push", "write_report"]

VERIFIED_ROWS = 20


def conclude(job: Job, ready: Prepared, fit: loop.Fit, meter: Carbon, tracking: Tracking | None) -> None:
    """From the last step to a finished, or published, run.

    Raises Preempted, after which all of it is done again, and PublishError when the run is whole but not out.
    """
    record, folder = job.record, job.folder
    job.heart.phase("the evaluation of the export")
    record.training = _training(fit)
    record.best = _best(fit, job.recipe, ready)
    if job.main:
        job.events.message("exporting, and evaluating what was exported")
        _export(job, ready, fit)
    loop.release(fit)
    fit.accelerator.wait_for_everyone()
    with meter.phase("evaluate"):
        net = model.load_for_evaluation(Checkpoint("export", folder.export), type(ready.task)).model
        net.to(fit.accelerator.device)
        if job.recipe.evaluate.calibrate:
            _calibrate(job, ready, fit, net)
        found = _predictions(job, ready, fit, net)
        tried = _trials(job, ready, fit, net)
    record.emissions = carbon.combine(gather_object([meter.close() if meter.enabled else None]))
    if job.main:
        with job.stop.at_once():  # the other processes have nothing left to do
            _results(job, ready, found, tried)
            model.write_config(net.config, ready.task, folder.export)
            _write_cases(job, ready, fit, net)
            carbon.write_csv(folder.emissions, record.emissions, meter.facts)
            _finish(job, tracking)


def _finish(job: Job, tracking: Tracking | None) -> None:
    """Pictures, card, the finished record; then verification and push."""
    record, folder = job.record, job.folder
    _draw_pictures(job)
    write_card(job.recipe, folder, record)
    record.export = Export(files=model.describe_files(folder.export))
    if tracking is not None:
        record.tracking = tracking.finish(record)
    record.status = "finished"
    folder.write_record(record)
    verify(folder, record, job.events)
    if job.recipe.hub is not None:
        push(job.recipe, folder, record, job.events)


def _training(fit: loop.Fit) -> Training:
    progress = fit.progress
    seconds = progress.seconds
    return Training(
        steps=progress.step,
        epochs=round(fit.plan.epochs_done(progress.step), 4),
        examples=progress.examples,
        tokens=progress.tokens,
        padding_share=1 - progress.tokens / progress.slots if progress.slots else None,
        seconds=round(seconds, 3),
        tokens_per_second=round(progress.tokens / seconds, 1) if seconds else None,
        seconds_to_first_step=_rounded(fit.first_step_time),
        peak_memory_bytes=hardware.peak_memory_bytes(),
        resumed_from=progress.resumed_from,
        inexact=progress.inexact,
        sample_log_sha256=progress.sample_log_sha256,
    )


def _rounded(moment: float | None) -> float | None:
    return None if moment is None else round(hardware.seconds_since_start(moment), 2)


def _best(fit: loop.Fit, recipe: Recipe, ready: Prepared) -> Best | None:
    if fit.progress.best_step is None or fit.progress.best_value is None:
        return None
    metric = recipe.evaluate.select_on or ready.task.default_metric()
    return Best(step=fit.progress.best_step, metric=metric, value=fit.progress.best_value)


def _export(job: Job, ready: Prepared, fit: loop.Fit) -> None:
    """Put the best weights (without validation: the last) into the model and write `export/`, complete or absent."""
    net = fit.accelerator.unwrap_model(fit.model)
    if fit.best is not None:
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for name, value in fit.best.items():
                parameters[name].copy_(value)
    fit.restore_model()
    temporary = job.folder.path / ".tmp-export"
    base = job.recipe.card.base_model or (None if "://" in ready.checkpoint.name else ready.checkpoint.name)
    with storage_errors("writing export/"):
        shutil.rmtree(temporary, ignore_errors=True)
        model.export(
            net.cpu(),
            ready.tokenizer,
            ready.task,
            temporary,
            base=base if ready.checkpoint.revision else job.recipe.card.base_model,
        )
        shutil.rmtree(job.folder.export, ignore_errors=True)
        temporary.rename(job.folder.export)


def _calibrate(job: Job, ready: Prepared, fit: loop.Fit, net: Any) -> None:
    """Fit the temperature on validation, and write the export with a head that divides its logits by it."""
    predictions = _predict(job, ready, fit, net, "validation")
    if predictions is not None:
        ready.task.tune(predictions)
    temperature = agree_on(ready.task.temperature, job.state)
    if temperature is None or temperature.value is None:
        job.events.message("evaluate.calibrate: no temperature fits the validation rows better than another")
        return
    model.divide_logits(net, ready.task, temperature.value)
    ready.task.applied_temperature = temperature
    if job.main:
        with storage_errors("writing export/"):
            model.write_weights(net, job.folder.export)


def _predictions(job: Job, ready: Prepared, fit: loop.Fit, net: Any) -> dict[str, Predictions | None]:
    """Predictions of the exported fp32 weights for every split but train."""
    return {name: _predict(job, ready, fit, net, name) for name in ready.splits if name != "train"}


def _predict(job: Job, ready: Prepared, fit: loop.Fit, net: Any, name: str) -> Predictions | None:
    return evaluation.predict_split(
        fit.accelerator,
        net,
        ready.task,
        ready.tokenizer,
        ready.features[name],
        ready.splits[name],
        job.events,
        as_published=True,
        stop=job.stop,
        heart=job.heart,
    )


def _trials(job: Job, ready: Prepared, fit: loop.Fit, net: Any) -> dict[str, list[behaviour.Trial]]:
    """The behaviour checks that the recipe asks for, on the test split, or on validation where there is none."""
    split = next((name for name in ("test", "validation") if name in ready.splits), None)
    if split is None:
        return {}
    rows = ready.splits[split]
    tried = behaviour.trials(
        job.recipe, rows, fit.accelerator, net, ready.task, ready.tokenizer, job.events, job.stop, job.heart
    )
    return {split: tried}


def _results(
    job: Job, ready: Prepared, found: dict[str, Predictions | None], tried: dict[str, list[behaviour.Trial]]
) -> None:
    """Tune on validation, score every split, write the predictions."""
    tuned = found.get("validation")
    if tuned is not None:
        ready.task.tune(tuned)
    hard: list[dict[str, Any]] = []
    for name, predictions in found.items():
        assert predictions is not None
        job.record.results[name] = evaluation.score_split(ready.task, predictions, job.recipe.evaluate.metrics)
        analysis = evaluation.analyse_split(ready.task, predictions, ready.features[name], ready.splits[name])
        analysis.behaviour = behaviour.checks(ready.task, predictions, tried.get(name, []))
        job.record.analysis[name] = analysis
        records = ready.task.records(predictions)
        job.folder.write_lines(job.folder.predictions / f"{name}.jsonl", records)
        hard += evaluation.hard_rows(analysis, records, ready.splits[name])
    job.folder.write_lines(job.folder.hard_rows, hard)
    job.record.baselines = ready.task.baselines(ready.splits)
    assert job.record.model is not None
    job.record.model.notes = ready.task.notes()


def _write_cases(job: Job, ready: Prepared, fit: loop.Fit, net: Any) -> None:
    """Store what the published pipeline must answer: to 20 rows, and to texts that often break a pipeline."""
    name = next(name for name in ("test", "validation", "train") if name in ready.splits)
    rows, features = probes(ready, name, VERIFIED_ROWS)
    # Alone on this process: the others have left.
    outputs = loop.predict_here(net, ready.task, features, ready.tokenizer, fit.accelerator.device)
    cases = ready.task.cases(rows, ready.task.decode(outputs, features, rows))
    job.folder.write_lines(job.folder.verification, map(asdict, cases))


def write_card(recipe: Recipe, folder: RunFolder, record: RunRecord, repo_id: str | None = None) -> None:
    """Write export/README.md for the given or the recipe's repository."""
    repo_id = repo_id or (recipe.hub.repo_id if recipe.hub is not None else None)
    with storage_errors("writing the card"):
        pictures = [path.relative_to(folder.export).as_posix() for path in sorted(folder.export.glob("figures/*.png"))]
        write_atomic(folder.export / "README.md", card.render(recipe, record, repo_id, pictures))


def _draw_pictures(job: Job) -> None:
    """Put the pictures of the card into `export/`; a card can do without."""
    with _drawing_errors("the pictures of the card", job.events):
        from finetune.report import pictures

        pictures.write(job.folder.export, job.record, job.folder.metrics)


def write_report(recipe: Recipe, folder: RunFolder, record: RunRecord, events: Events) -> None:
    """Write report.html; where that fails, the run is as good without it, and one line says why."""
    with _drawing_errors("report.html", events):
        from finetune import report

        report.write(folder.path, recipe, record)


@contextmanager
def _drawing_errors(what: str, events: Events) -> Iterator[None]:
    """Say in one line what could not be drawn, and go on. matplotlib, slow to load, is imported inside the block."""
    try:
        yield
    except Exception as error:
        events.message(f"{what}: left out, {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def verify(folder: RunFolder, record: RunRecord, events: Events) -> None:
    """Load `export/` in a fresh process and compare its answers with those stored. Raises PublishError."""
    assert record.model is not None
    assert record.export is not None
    events.message("verifying the export in a fresh process")
    result = publish.verify(
        folder.export, publish.read_cases(folder.verification), record.model.pipeline, modules=inference_modules(folder)
    )
    record.export.verified, record.export.max_score_difference = True, result.max_score_difference
    folder.write_record(record)


def push(
    recipe: Recipe,
    folder: RunFolder,
    record: RunRecord,
    events: Events,
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
) -> None:
    """Verify and push `export/`; the record says where it went. Arguments win over the recipe's. Raises PublishError.

    The pushed commit is loaded once more, as a reader would.
    """
    assert record.model is not None
    repo_id = repo_id or (recipe.hub.repo_id if recipe.hub is not None else None)
    if repo_id is None:
        raise RecipeError("hub.repo_id: missing; name the repository in the recipe, or with --repo-id NAMESPACE/NAME")
    publish.check_repo_id(repo_id)
    if private is None:
        private = recipe.hub.private if recipe.hub is not None else True
    write_card(recipe, folder, record, repo_id)
    record.export = Export(files=model.describe_files(folder.export))
    verify(folder, record, events)
    modules = inference_modules(folder)
    events.message(f"pushing to {repo_id}")
    repeat = f"finetune push {folder.path} --repo-id {repo_id} --{'private' if private else 'public'}"
    published = publish.push(folder.export, repo_id, private, create_pr=create_pr, modules=modules, repeat=repeat)
    record.published = published
    folder.write_record(record)
    events.message(f"loading {repo_id} at commit {published.commit[:12]} in a fresh process")
    cases = publish.read_cases(folder.verification)
    record.published = publish.verify_pushed(published, cases, record.model.pipeline, modules=modules)
    record.status = "published"
    folder.write_record(record)


def inference_modules(folder: RunFolder) -> list[str]:
    """Names of the modules of ours that the export carries."""
    return sorted(path.name for path in folder.export.glob("*.py"))
