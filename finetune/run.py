"""One run, start to end: recipe → rows → features → model → loop → results → export → card → Hub."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState

from finetune import attention, checkpoint, finish, hardware, heartbeat, loop, lora, model, optim, services
from finetune.batching import Plan
from finetune.callbacks import Callbacks
from finetune.carbon import Carbon
from finetune.checkpoint import Progress, Snapshot
from finetune.embedding_gradient import install_row_gradients
from finetune.errors import (
    Attempts,
    FinetuneError,
    MachineError,
    OutputError,
    Preempted,
    PublishError,
    RecipeError,
    StorageError,
)
from finetune.events import Events
from finetune.first_position import install_first_position
from finetune.folder import WHOLE, RunFolder, space_needed
from finetune.heartbeat import Heartbeat
from finetune.job import Job
from finetune.masking import install_masks
from finetune.preparation import Prepared, commits, facts, inputs, prepare
from finetune.recipe import Recipe, load
from finetune.record import Emissions, ModelFacts, RunRecord, Tracker
from finetune.scoring.names import LOWER_IS_BETTER
from finetune.seen_vocabulary import install_seen_vocabulary, unseen_tokens
from finetune.session import agree_on, build_accelerator, choose, make_plan
from finetune.signals import StopFlag, stop_requests
from finetune.tracking import Tracking
from finetune.tryout import try_out
from finetune.unpadded import install_unpadded

__all__ = ["push", "train"]

PROCESS_TIMEOUT = datetime.timedelta(seconds=heartbeat.START_SECONDS)  # of a collective; the heartbeat finds a hang

# -------------------------------------------------------------------------------------------- the whole run


def train(recipe: Recipe, resume: Literal["auto", "never"] = "auto", events: Events | None = None) -> RunRecord:
    """Fine-tune, evaluate, export and verify; push when the recipe has `hub.repo_id`. Returns the record of run.json.

    auto: continues what the output folder holds; never: refuses a folder that holds a run. Raises FinetuneError; the
    record on disk holds status and exit code in any case.
    """
    if recipe.train is None:
        raise RecipeError("train: missing; a recipe without this block can only be evaluated")
    folder = RunFolder(Path(recipe.output))
    with stop_requests() as stop:
        try:
            return _start(recipe, folder, resume, events or Events(), stop)
        finally:
            folder.close()


def _start(recipe: Recipe, folder: RunFolder, resume: str, events: Events, stop: StopFlag) -> RunRecord:
    """`train` within its handlers of signals; until there is a run to save, a stop ends it at once."""
    record = RunRecord()
    with stop.at_once():
        state = _join_processes()
        if state.is_main_process:
            earlier = _open(recipe, folder, resume, state, events)
            if earlier is not None:
                return _finished_before(recipe, folder, earlier, events)
        elif not agree_on(False, state):  # the main process has nothing to train, or says why it cannot
            return record
    if not state.is_main_process:
        with _beating(state, folder, record) as heart:
            return _train(Job(recipe, folder, record, Events(), stop, state, heart))
    record = _new_record(recipe, state)
    with _recorded(folder, record, recipe, events), _beating(state, folder, record) as heart:
        return _train(Job(recipe, folder, record, events, stop, state, heart))


def _open(recipe: Recipe, folder: RunFolder, resume: str, state: PartialState, events: Events) -> RunRecord | None:
    """Lock the folder, check that this run may use it, and tell the other processes whether there is one to make.

    Returns the record of an earlier start that finished, else None. Raises FinetuneError.
    """
    settings = recipe.train
    assert settings is not None
    begins = False
    try:
        folder.open()
        earlier = folder.earlier(recipe, resume)
        if earlier is not None and earlier.status in WHOLE:
            return earlier
        attempts = Attempts()
        attempts(lambda: services.check(recipe))
        attempts(lambda: hardware.refuse_impossible_precision(settings.precision))
        begins = not attempts.failed
    finally:
        agree_on(begins, state)
    if attempts.failed:  # no run; the mistakes of the rest of the recipe are told in the same go
        attempts(lambda: prepare(recipe, events))
    attempts.check()
    return None


def _join_processes() -> PartialState:
    """Join the group of processes that the launcher started. Raises RecipeError when it is not whole."""
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted > 1 and int(os.environ.get("LOCAL_RANK", "-1")) < 0:
        raise _incomplete(wanted, 1)  # a launcher that starts several processes tells each its number
    arguments: dict[str, Any] = {"timeout": PROCESS_TIMEOUT} if wanted > 1 else {}
    state = PartialState(cpu=not torch.cuda.is_available(), **arguments)
    if state.num_processes != wanted:
        raise _incomplete(wanted, state.num_processes)
    return state


def _incomplete(wanted: int, found: int) -> RecipeError:
    return RecipeError(
        f"the launcher announced {wanted} processes (WORLD_SIZE), but {found} found each other; start with"
        " accelerate launch --config_file configs/cpu.yaml (or ddp.yaml) -m finetune train …"
    )


def _finished_before(recipe: Recipe, folder: RunFolder, record: RunRecord, events: Events) -> RunRecord:
    """Nothing to train; what a killed or failed start still owes (verification, push, report) is done."""
    events.message(f"{folder.path}: this run is {record.status} already; nothing to train")
    there = record.published
    owed = recipe.hub is not None and not (there and there.verified and there.repo_id == recipe.hub.repo_id)
    heeded = ("hub.", "card.") if owed else ("hub.",) if recipe.hub is not None else ()
    if unheeded := [key for key in folder.changed(recipe) if not key.startswith(heeded)]:
        events.message(f"{', '.join(unheeded)}: changed, without effect on a run that is whole; choose another output")
    if owed:
        with _recorded(folder, record, recipe, events):
            finish.push(recipe, folder, record, events)
            of_run = load(folder.recipe)
            folder.write_recipe(of_run.model_copy(update={"hub": recipe.hub, "card": recipe.card}), record.versions)
    elif record.export is None or not record.export.verified or not (folder.path / "report.html").exists():
        with _recorded(folder, record, recipe, events):
            finish.verify(folder, record, events)
    return record


def _new_record(recipe: Recipe, state: PartialState) -> RunRecord:
    assert recipe.train is not None
    return RunRecord(
        command=f"finetune train {recipe.source.name}",
        started=_now(),
        versions=hardware.versions(),
        hardware=hardware.describe(),
        processes=state.num_processes,
        seed=recipe.train.seed,
        recipe_sha256=recipe.sha256(),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextmanager
def _recorded(folder: RunFolder, record: RunRecord, recipe: Recipe, events: Events) -> Iterator[None]:
    """Keep run.json true to what happens in the block: running, then how it ended. A whole run gets its report."""
    record.exit_code, record.error = None, None
    folder.write_record(record)
    try:
        yield
    except BaseException as error:
        if record.status not in WHOLE:
            record.status = "pre-empted" if isinstance(error, Preempted) else "failed"
        record.exit_code = error.exit_code if isinstance(error, FinetuneError) else 1
        record.error = str(error) or type(error).__name__
        with suppress(StorageError):  # a disk that ends a run may refuse its record, too
            _close(folder, record)
            if isinstance(error, PublishError):
                finish.write_report(recipe, folder, record, events)
        raise
    record.exit_code = 0
    _close(folder, record)
    finish.write_report(recipe, folder, record, events)


def _close(folder: RunFolder, record: RunRecord) -> None:
    record.ended = _now()
    folder.write_record(record)


def _beating(state: PartialState, folder: RunFolder, record: RunRecord) -> AbstractContextManager[Heartbeat]:
    """Watch the other processes, and let them watch this one. Ended because of another one, the record says so."""

    def lost(why: str) -> None:
        if state.is_main_process:
            record.status, record.exit_code, record.error = "failed", MachineError.exit_code, why
            record.ended = _now()
            folder.write_record(record)

    return heartbeat.beating(state.process_index, state.num_processes, lost)


def _train(job: Job) -> RunRecord:
    """The run as one process goes through it."""
    if job.recipe.train is not None and job.recipe.train.deterministic:
        hardware.be_deterministic()
    ready, fit, callbacks = _set_up(job)
    try:
        with callbacks.meter.phase("train"):
            loop.fit(fit)
        if job.main and saved_step(job.folder) != fit.progress.step:
            callbacks.save(loop.snapshot(fit))
        finish.conclude(job, ready, fit, callbacks.meter, callbacks.tracking)
    except FinetuneError as error:
        if callbacks.tracking is not None:
            job.record.exit_code = error.exit_code
            job.record.tracking = callbacks.tracking.finish(job.record)
        raise
    return job.record


def _set_up(job: Job) -> tuple[Prepared, loop.Fit, Callbacks]:
    """Everything before the first step. Only the Fit holds the model, so that its memory can be given back."""
    assert job.recipe.train is not None
    saved = _last_snapshot(job)
    carried = saved.progress.carried if saved else {}
    meter = _meter(job, carried)
    with job.stop.at_once() if job.state.num_processes == 1 else nullcontext():  # nobody waits for this process
        ready = prepare(job.recipe, job.events)
        origin = {"inputs": inputs(ready), "commits": commits(ready), "surroundings": hardware.surroundings()}
        _require_same(job, origin["inputs"], carried)
        tried = try_out(ready)
        loaded = model.load_for_training(ready.checkpoint, ready.config, ready.task, job.recipe)
    _describe(job, ready, loaded)
    net = _trainable(job, loaded)
    restore_model = _make_cheaper(net, ready, job.state)
    if job.main:
        _claim(job, loaded.num_parameters, net)
    plan = make_plan(ready.task, ready.features["train"], job.recipe.train)
    chosen = _choose(job, ready, net, plan, carried)
    tracking = _tracking(job, carried) if job.main else None
    callbacks = Callbacks(job, ready, meter, tracking, {"chosen": chosen} | origin)
    accelerator = build_accelerator(chosen["precision"], leaves_out=tried.leaves_out)
    fit = _fit(job, ready, net, plan, accelerator, chosen, saved, callbacks)
    fit.restore_model, fit.heart = restore_model, job.heart
    return ready, fit, callbacks


def saved_step(folder: RunFolder) -> int | None:
    """The step of the newest checkpoint, by its name."""
    found = checkpoint.steps_on_disk(folder.checkpoints)
    return int(found[0].name.removeprefix("step-")) if found else None


def _last_snapshot(job: Job) -> Snapshot | None:
    """The newest intact checkpoint, the same on every process. Raises ResumeError."""
    step: int | None = None
    found: Snapshot | None = None
    if job.main:
        found, problems = checkpoint.latest(job.folder.checkpoints)
        for problem in problems:
            job.events.message(f"damaged checkpoint passed over: {problem}")
        step = found.progress.step if found else None
        if found is None and job.folder.metrics.exists():
            job.events.message("the earlier start saved no checkpoint: begins again at step 0")
        job.folder.cut_metrics(found.progress.metrics_lines if found else 0)
    step = agree_on(step, job.state)
    if step is not None and not job.main:
        found = checkpoint.read(job.folder.checkpoints / checkpoint.name_of(step))
    if found is not None:
        _note_resume(job, found.progress)
    return found


def _note_resume(job: Job, progress: Progress) -> None:
    job.events.message(f"continues from step {progress.step}")
    progress.resumed_from.append(progress.step)
    if progress.processes != job.state.num_processes:
        progress.inexact.append(f"world {progress.processes}->{job.state.num_processes} at step {progress.step}")
        progress.processes = job.state.num_processes
    here = hardware.surroundings()
    for name, earlier in progress.carried.get("surroundings", here).items():
        if here.get(name) != earlier:
            progress.inexact.append(f"{name} {earlier}->{here.get(name, 'none')} at step {progress.step}")


def _require_same(job: Job, now: dict[str, str], carried: dict[str, Any]) -> None:
    """Raises OutputError when rows or checkpoint are others than those the run was begun with."""
    changed = [key for key, digest in carried.get("inputs", now).items() if now.get(key) != digest]
    if changed:
        pins = " ".join(f"{key}={commit}" for key, commit in carried.get("commits", {}).items())
        remedy = f"add {pins} to go on with the Hub's earlier commits" if pins else "put the files back"
        raise OutputError(
            f"output: {job.folder.path} holds a run that was begun with another content of {', '.join(changed)};"
            f" {remedy}, or choose another output"
        )


def _tracking(job: Job, carried: dict[str, Any]) -> Tracking:
    previous = {name: Tracker.model_validate(value) for name, value in carried.get("tracking", {}).items()}
    track = job.recipe.track
    config = job.recipe.model_dump(mode="json")
    return Tracking(track.wandb, track.tensorboard, job.folder.path, config, previous, warn=job.events.message)


def _meter(job: Job, carried: dict[str, Any]) -> Carbon:
    previous = carried.get("emissions")
    emissions = Emissions.model_validate(previous) if previous and job.main else None
    if emissions is not None:
        emissions.lower_bound = True  # what the earlier process used after its last checkpoint is not known
    country = job.recipe.carbon.country if job.recipe.carbon else None
    return Carbon(country, enabled=bool(job.state.is_local_main_process), previous=emissions)


def _describe(job: Job, ready: Prepared, loaded: model.Loaded) -> None:
    """Fill the record with what is known before training, and say it."""
    record, swap = job.record, loaded.head_swap
    record.data = {name: facts(rows, ready.features[name]) for name, rows in ready.splits.items()}
    record.audit = ready.audit
    record.head_swap = swap
    record.model = ModelFacts(
        checkpoint=ready.checkpoint.name,
        revision=ready.checkpoint.revision,
        architecture=type(loaded.model).__name__,
        parameters=loaded.num_parameters,
        pipeline=ready.task.pipeline,
        problem=ready.task.problem,
        labels=ready.task.labels,
        snippet=ready.task.snippet(next(iter(ready.splits.values()))),
    )
    job.events.message(
        f"head swap: {swap.reused.count} weights reused, {swap.new.count} new, {swap.dropped.count} dropped"
    )
    for line in [*(finding.text for finding in ready.audit.findings), *ready.audit.notes]:
        job.events.message(line)


def _claim(job: Job, parameters: int, net: Any) -> None:
    """Make the folder this run's own: enough space, the resolved recipe, the record so far."""
    assert job.recipe.train is not None
    keep_last = job.recipe.train.keep_last
    job.folder.require_space(space_needed(parameters, optim.trained_parameters(net), keep_last))
    checkpoint.prune(job.folder.checkpoints, keep_last + 1)
    job.folder.write_recipe(job.recipe, job.record.versions)
    job.folder.write_record(job.record)


def _trainable(job: Job, loaded: model.Loaded) -> Any:
    """The model as it is trained: with LoRA and gradient checkpointing where the recipe asks for them."""
    settings = job.recipe.train
    assert settings is not None
    net = loaded.model
    if settings.gradient_checkpointing:
        net.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if job.recipe.model.lora is not None:
        net = lora.add_lora(net, loaded.head_swap, job.recipe.model.lora, settings.seed)
    return net


def _make_cheaper(net: Any, ready: Prepared, state: PartialState) -> Callable[[], None]:
    """Make a step cheaper without changing what is computed; returns the function that restores the model."""
    restore = ExitStack()
    others = [features for name, features in ready.features.items() if name != "train"]
    restore.callback(install_seen_vocabulary(net, ready.features["train"], others, ready.tokenizer.pad_token_id))
    restore.callback(install_first_position(net))
    if state.device.type != "cpu":  # a CPU has no kernel for sequences of unequal length
        restore.callback(install_unpadded(net))
        restore.callback(install_masks())
    else:
        hardware.keep_heap()
        restore.callback(attention.install(net))
        if state.num_processes == 1:  # processes exchange dense gradients
            restore.callback(install_row_gradients(net))
        if hasattr(net, "peft_config"):
            restore.callback(lora.install_cheap_adapters(net))
    return restore.close


def _choose(job: Job, ready: Prepared, net: Any, plan: Plan, carried: dict[str, Any]) -> dict[str, Any]:
    """What `auto` decides: measured once, reused by every resume."""
    settings = job.recipe.train
    assert settings is not None
    chosen = carried.get("chosen") or choose(
        settings, plan, net, ready.task, ready.features["train"], ready.tokenizer, job.state
    )
    hardware.refuse_impossible_precision(chosen["precision"])  # a run may go on where there is no GPU
    torch.set_num_threads(int(chosen["threads"]))
    job.record.chosen, job.record.precision = chosen, chosen["precision"]
    assert job.record.model is not None
    job.record.model.trainable_parameters = optim.trained_parameters(net)
    job.record.model.unseen_tokens = unseen_tokens(net)
    job.events.message(f"precision {chosen['precision']}, micro-batches of at most {chosen['micro_batch_size']} rows")
    return chosen


def _fit(
    job: Job,
    ready: Prepared,
    net: Any,
    plan: Plan,
    accelerator: Accelerator,
    chosen: dict[str, Any],
    saved: Snapshot | None,
    callbacks: Callbacks,
) -> loop.Fit:
    """Everything the loop needs, at the step to continue from."""
    settings = job.recipe.train
    assert settings is not None
    optimizer = optim.adamw(net, settings.learning_rate, settings.weight_decay)
    prepared, optimizer = accelerator.prepare(net, optimizer)
    prepared.train()
    progress = (
        saved.progress
        if saved
        else Progress(processes=accelerator.num_processes, micro_rows=chosen["micro_batch_size"])
    )
    select_on = job.recipe.evaluate.select_on or ready.task.default_metric()
    fit = loop.Fit(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        task=ready.task,
        tokenizer=ready.tokenizer,
        features=ready.features["train"],
        rows=ready.splits["train"],
        plan=plan,
        settings=settings,
        progress=progress,
        stop=job.stop,
        evaluate_every=None if job.recipe.evaluate.every == "epoch" else int(job.recipe.evaluate.every),
        patience=job.recipe.evaluate.patience,
        larger_is_better=select_on not in LOWER_IS_BETTER,
        evaluate=callbacks.evaluate if "validation" in ready.splits else None,
        log=callbacks.log,
        save=callbacks.save,
        save_due=callbacks.schedule(settings.save_every, net),
        unpadded=bool(chosen.get("unpadded")),
    )
    callbacks.fit, callbacks.select_on = fit, select_on
    if saved is not None:
        loop.restore(fit, saved)
    return fit


def push(
    run_dir: Path,
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    events: Events | None = None,
) -> RunRecord:
    """Verify and push the export of a finished run; can be repeated. Raises PublishError, OutputError."""
    folder = RunFolder(run_dir)
    record = folder.read_record() if run_dir.is_dir() else None
    if record is None or record.status not in WHOLE:
        state = "no run" if record is None else f"a run that is {record.status}"
        raise OutputError(f"{run_dir}: holds {state}; expected the folder of a finished run")
    folder.open()
    try:
        recipe, events = load(folder.recipe), events or Events()
        with _recorded(folder, record, recipe, events):
            finish.push(
                recipe,
                folder,
                record,
                events,
                repo_id=repo_id,
                private=private,
                create_pr=create_pr,
            )
    finally:
        folder.close()
    return record
