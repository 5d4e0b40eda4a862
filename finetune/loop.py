"""The training loop and the prediction loop. They know no task, no tracker and no Hub.

One optimizer step is one global batch: its gradient is (sum of the loss over the batch) / (its count), whatever the
micro-batches and the number of processes. Rows and randomness of step k are functions of (seed, k), so a resumed run
makes the very steps the uninterrupted one would have made.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator

from finetune import batching, masking, optim, unpadded
from finetune.batching import Plan
from finetune.checkpoint import Progress, Snapshot
from finetune.embedding_gradient import RowGradients
from finetune.errors import MachineError, NonFiniteError, Preempted
from finetune.features import Features
from finetune.heartbeat import Heartbeat
from finetune.recipe import TrainBlock
from finetune.rows import Rows
from finetune.signals import StopFlag
from finetune.tasks.base import Batch, Task

__all__ = ["Fit", "fit", "predict", "predict_here", "release", "restore", "snapshot", "trainable_weights"]

FP16_SKIPS = 20  # consecutive overflows after which fp16 training is given up
LOG_EVERY = 10  # steps
LOOK_EVERY = {
    "cpu": 1
}  # steps between two looks for gradients that were not finite; else LOG_EVERY: looking is waiting


@dataclass
class Fit:
    """Everything one call of `fit` needs; `progress` and `best` change while it runs."""

    accelerator: Accelerator
    model: Any  # prepared by the Accelerator
    optimizer: Any  # prepared by the Accelerator
    task: Task
    tokenizer: Any
    features: Features
    rows: Rows
    plan: Plan
    settings: TrainBlock
    progress: Progress
    stop: StopFlag
    evaluate_every: int | None  # steps; None: at the end of each epoch
    patience: int | None
    larger_is_better: bool
    evaluate: Callable[[], float | None] | None  # the value that selects, the same on every process
    log: Callable[[dict[str, float]], None]
    save: Callable[[Snapshot], None]
    save_due: Callable[[int], bool]  # asked on the main process after each step
    heart: Heartbeat = field(default_factory=Heartbeat)
    unpadded: bool = False  # micro-batches hold tokens only, if the model takes them (`install_unpadded`)
    restore_model: Callable[[], None] = lambda: None  # undoes what was changed in the model to train it faster
    best: dict[str, torch.Tensor] | None = None
    counts: np.ndarray = field(init=False)
    widths: np.ndarray = field(init=False)  # tokens of each feature, (n, k)
    warmup: int = field(init=False)
    guard: optim.FiniteGuard = field(init=False)
    row_gradients: RowGradients = field(init=False, default_factory=RowGradients)
    look_every: int = field(init=False)  # steps
    skips: int = 0  # consecutive, fp16
    proven_slots: int = 0  # of a micro-batch that fits into the memory of every process
    first_step_time: float | None = None  # when this process had made its first step, seconds since the epoch

    def __post_init__(self) -> None:
        self.counts = self.task.counts(self.features)
        self.widths = self.task.widths(self.features)
        self.warmup = optim.warmup_steps(self.settings.warmup, self.plan.steps)
        self.guard = optim.FiniteGuard(_inner(self.optimizer), self.accelerator.device)
        # A run may go on where there is no such kernel.
        self.unpadded = self.unpadded and unpadded.can_unpad(self.accelerator.unwrap_model(self.model))
        self.look_every = LOOK_EVERY.get(self.accelerator.device.type, LOG_EVERY)


def fit(run: Fit) -> None:
    """Train to the end of the plan, to early stopping, or until a stop is asked for.

    A gradient that is not finite makes no step; NonFiniteError is raised within `look_every` steps, before anything
    is logged, evaluated or saved. Raises Preempted after saving on a stop request.
    """
    progress, accelerator = run.progress, run.accelerator
    window = torch.tensor(progress.window_loss, dtype=torch.float64, device=_accumulator_device(accelerator))
    _settle_buckets(run)
    while True:
        if progress.evaluation_owed:
            _evaluate(run, window)
        if progress.step >= run.plan.steps or progress.stopped_early:
            break
        started = time.perf_counter()
        run.heart.step(progress.step + 1)
        rows = run.plan.rows(progress.step)
        window += _optimizer_step(run, rows)
        run.first_step_time = run.first_step_time or time.time()
        _count(run, rows)
        if progress.step % run.look_every == 0:
            _require_finite(run)
        progress.seconds += time.perf_counter() - started
        if progress.step % LOG_EVERY == 0 or progress.step == run.plan.steps:
            _log(run, window)
        progress.evaluation_owed = run.evaluate is not None and _evaluation_due(run)
        due = accelerator.is_main_process and run.save_due(progress.step)
        reason, save = _largest(accelerator, run.stop.code, int(due))
        if reason or save:
            _save(run, window)
        if reason:
            run.stop.agree(reason)
            _leave(run)
    progress.window_loss = float(window)


def _save(run: Fit, window: torch.Tensor) -> None:
    _require_finite(run)
    run.heart.phase(f"the checkpoint of step {run.progress.step}")
    started = time.perf_counter()
    run.progress.window_loss = float(window)
    run.save(snapshot(run))
    run.progress.seconds += time.perf_counter() - started


def _leave(run: Fit) -> NoReturn:
    """End a run whose state is saved. Raises Preempted."""
    run.accelerator.wait_for_everyone()  # a launcher ends all processes as soon as one has ended
    run.stop.obeyed = True
    raise Preempted(run.stop.message(f" at step {run.progress.step} of {run.plan.steps}"))


# -------------------------------------------------------------------------------------------- one optimizer step


def _optimizer_step(run: Fit, rows: np.ndarray) -> torch.Tensor:
    """Make one optimizer step from the global batch `rows`; the loss of the step, float64 (), the same on all ranks."""
    progress, accelerator = run.progress, run.accelerator
    rate = optim.learning_rate(
        run.settings.schedule, run.settings.learning_rate, progress.step, run.plan.steps, run.warmup
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss = _gradients(run, rows)
    trainable = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    limit = run.settings.max_grad_norm
    touched = run.row_gradients.narrow(trainable)
    if accelerator.scaler is None:
        run.guard.watch(optim.clip_in_update(_inner(run.optimizer), touched, limit), progress.step)
    else:
        accelerator.clip_grad_norm_(touched, float("inf") if limit is None else limit)
    run.row_gradients.widen()
    run.optimizer.step()
    run.row_gradients.clear()
    run.optimizer.zero_grad(set_to_none=True)
    if accelerator.scaler is not None:
        _watch_scale(run)
    return loss


def _gradients(run: Fit, rows: np.ndarray) -> torch.Tensor:
    """Add up the gradients of the micro-batches, halving them when memory runs out; the loss of the global batch."""
    if run.accelerator.num_processes > 1:
        _prove_memory(run, rows)
        return _accumulate(run, rows)
    while True:
        try:
            return _accumulate(run, rows)
        except torch.OutOfMemoryError:
            pass
        _halve(run)  # outside the handler, whose exception holds on to the memory


def _halve(run: Fit) -> None:
    if run.progress.micro_rows <= 1:
        raise MachineError(
            f"step {run.progress.step + 1}: memory ran out with a micro-batch of one row; lower data.max_length, or use"
            " train.gradient_checkpointing or model.lora"
        )
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.micro_rows = -(-run.progress.micro_rows // 2)
    torch.cuda.empty_cache()


def _prove_memory(run: Fit, rows: np.ndarray) -> None:
    """Try out a micro-batch larger than any before on every process, and halve it on all when one has no room for it.

    Inside a step the others would already wait in a collective that a process without memory does not reach.
    """
    while True:
        share = -(-len(rows) // run.accelerator.num_processes)
        count = min(run.progress.micro_rows, share)
        slots = count * int(run.widths[rows].max(axis=0).sum())
        if slots <= run.proven_slots:
            return
        longest = rows[np.argsort(-run.widths[rows].sum(axis=1), kind="stable")[:count]]
        (missing,) = _largest(run.accelerator, int(not _fits(run, longest)))
        run.optimizer.zero_grad(set_to_none=True)
        if not missing:
            # Before the first step the optimizer has no tensors yet: the next step has less room.
            run.proven_slots = slots if _inner(run.optimizer).state else 0
            return
        _halve(run)


def _fits(run: Fit, piece: np.ndarray) -> bool:
    """Whether this process has memory for the gradients of a micro-batch, beside those of another."""
    try:
        with run.accelerator.no_sync(run.model):
            for _ in range(2):
                run.accelerator.backward(_micro_loss(run, piece) * 0.0)
    except torch.OutOfMemoryError:
        return False
    return True


def _accumulate(run: Fit, rows: np.ndarray) -> torch.Tensor:
    accelerator, progress = run.accelerator, run.progress
    count = float(run.counts[rows].sum())
    world = accelerator.num_processes
    pieces = batching.share_of_rank(rows, accelerator.process_index, world, progress.micro_rows)
    total = torch.zeros((), dtype=torch.float64, device=_accumulator_device(accelerator))
    for number, piece in enumerate(pieces):
        last = number + 1 == len(pieces)
        _seed(run.settings.seed, progress.step, number, accelerator.process_index)
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            loss = _micro_loss(run, piece if len(piece) else rows[-1:])
            if last:
                run.heart.move()
            scale = world / count if count and len(piece) else 0.0  # DDP takes the mean over the processes
            accelerator.backward(loss * scale)
        if len(piece) and count:
            total += loss.detach().double() / count
    return accelerator.reduce(total, "sum") if world > 1 else total


def _micro_loss(run: Fit, index: np.ndarray) -> torch.Tensor:
    batch = run.task.collate(run.features, index, run.tokenizer)
    if run.unpadded:
        batch = Batch(unpadded.pack(batch.inputs), batch.targets)
    with masking.seen(batch.inputs):
        batch = batch.to(run.accelerator.device)
        return run.task.loss(run.model(**batch.inputs), batch)


def _seed(seed: int, step: int, micro: int, rank: int) -> None:
    """Key all generators of this process to one micro-step."""
    key = batching.random_key(seed, "step", step, micro, rank)
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key % 2**32)


def _accumulator_device(accelerator: Accelerator) -> torch.device:
    """Where float64 sums live: on the accelerator itself, so that a step does not wait for the host."""
    return torch.device(accelerator.device)


def _settle_buckets(run: Fit) -> None:
    """Let DDP arrange its gradient buckets before the first step, in fresh and resumed runs alike.

    DDP regroups them after its first backward; with three or more processes another grouping means another order of
    summation. Source: torch.nn.parallel.DistributedDataParallel, `_rebuild_buckets`.
    """
    if run.accelerator.num_processes == 1 or run.progress.step >= run.plan.steps:
        return
    for _ in range(2):
        loss = _micro_loss(run, run.plan.rows(run.progress.step)[-1:])
        run.accelerator.backward(loss * 0.0)
        run.optimizer.zero_grad(set_to_none=True)


def _require_finite(run: Fit) -> None:
    step = run.guard.first()
    if step is not None:
        raise NonFiniteError(_non_finite(run, step, "the gradient is NaN or infinite"))


def _non_finite(run: Fit, step: int, what: str) -> str:
    rows = run.plan.rows(step)
    ids = _ids(run, rows[:8])
    return (
        f"step {step + 1}: {what}; no step was made of it, and the last checkpoint is intact."
        f" The batch holds the rows {', '.join(ids)}{' …' if len(rows) > 8 else ''}. Lower train.learning_rate, or use"
        " precision fp32 or bf16"
    )


def _watch_scale(run: Fit) -> None:
    """fp16: an overflow skips the update; too many in a row, or a scale below 1, end the run."""
    skipped = bool(run.accelerator.optimizer_step_was_skipped)
    run.skips = run.skips + 1 if skipped else 0
    run.progress.skipped_steps += skipped
    scale = run.accelerator.scaler.get_scale()
    if run.skips > FP16_SKIPS or scale < 1:
        raise NonFiniteError(
            _non_finite(run, run.progress.step, f"fp16 overflowed {run.skips} times in a row, loss scale {scale:g}")
        )


def _count(run: Fit, rows: np.ndarray) -> None:
    """Book the step: pure arithmetic, the same on every process."""
    progress = run.progress
    progress.step += 1
    progress.window_steps += 1
    progress.examples += len(rows)
    progress.tokens += int(run.widths[rows].sum())
    progress.slots += _slots(run, rows)
    text = progress.sample_log_sha256 + "\n".join(_ids(run, rows))
    progress.sample_log_sha256 = hashlib.sha256(text.encode()).hexdigest()


def _ids(run: Fit, rows: np.ndarray) -> list[str]:
    """Of features; one by one, since `take` joins all chunks of a text column first."""
    column = run.rows.table.column("id")
    return [column[row].as_py() for row in run.features.scalars["row"][rows].tolist()]


def _slots(run: Fit, rows: np.ndarray) -> int:
    """Slots of all micro-batches of a step over all processes, padding included."""
    if run.unpadded:
        return int(run.widths[rows].sum())
    world = run.accelerator.num_processes
    pieces = [
        p for r in range(world) for p in batching.share_of_rank(rows, r, world, run.progress.micro_rows) if len(p)
    ]
    return sum(len(piece) * int(run.widths[piece].max(axis=0).sum()) for piece in pieces)


# -------------------------------------------------------------------------------------------- between the steps


def _largest(accelerator: Accelerator, *values: int) -> tuple[int, ...]:
    """Each of the values, small whole numbers, as the process has it where it is largest; the same on all."""
    if accelerator.num_processes == 1:
        return values
    mine = torch.tensor([values], dtype=torch.int32, device=accelerator.device)
    return tuple(accelerator.gather(mine).amax(dim=0).tolist())


def _log(run: Fit, window: torch.Tensor) -> None:
    _require_finite(run)
    rate = run.optimizer.param_groups[0]["lr"]
    run.log({"loss": float(window) / max(1, run.progress.window_steps), "learning_rate": rate})
    window.zero_()
    run.progress.window_steps = 0


def _evaluation_due(run: Fit) -> bool:
    step = run.progress.step
    if step == run.plan.steps:
        return True
    if run.evaluate_every is None:
        return run.plan.ends_epoch(step - 1)
    return step % run.evaluate_every == 0


def _evaluate(run: Fit, window: torch.Tensor) -> None:
    """Evaluate; keep the weights when they are the best so far; stop after `patience` evaluations without gain.

    Raises Preempted on a stop request, after saving: the evaluation is still owed.
    """
    assert run.evaluate is not None
    progress = run.progress
    _require_finite(run)
    run.heart.phase(f"the evaluation after step {progress.step}")
    run.model.eval()
    try:
        value = run.evaluate()
    except Preempted:
        _save(run, window)
        _leave(run)
    run.model.train()
    progress.evaluation_owed = False
    sign = 1 if run.larger_is_better else -1
    if value is not None and (progress.best_value is None or sign * value > sign * progress.best_value):
        progress.best_step, progress.best_value, progress.evaluations_without_gain = progress.step, value, 0
        run.best = trainable_weights(run.accelerator.unwrap_model(run.model))
    else:
        progress.evaluations_without_gain += 1
    progress.stopped_early = run.patience is not None and progress.evaluations_without_gain >= run.patience


def trainable_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trainable parameters on the CPU, by name."""
    named = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: parameter.detach().to("cpu", copy=True).contiguous() for name, parameter in named}


def snapshot(run: Fit) -> Snapshot:
    """The state of the run at a step boundary; all processes hold the same, one of them saves it."""
    accelerator = run.accelerator
    if accelerator.scaler is not None:
        run.progress.scaler = accelerator.scaler.state_dict()
    model = accelerator.unwrap_model(run.model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    tensors = {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for parameter, state in _inner(run.optimizer).state.items()
        for key, value in state.items()
    }
    best = run.best if run.progress.best_step != run.progress.step else None
    return Snapshot(run.progress, weights, tensors, best)


def restore(run: Fit, saved: Snapshot) -> None:
    """Put a snapshot's tensors into the model and the optimizer. The Progress is taken over by the caller."""
    model = run.accelerator.unwrap_model(run.model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in saved.weights.items():
            parameters[name].copy_(value)
    state = _inner(run.optimizer).state
    for name, value in saved.optimizer.items():
        parameter, _, key = name.rpartition("/")
        # AdamW's fused kernel wants its step counters on the parameter's device.
        state[parameters[parameter]][key] = value.to(parameters[parameter].device)
    if saved.progress.scaler is not None and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(saved.progress.scaler)
    run.best = saved.best
    if saved.best is None and saved.progress.best_step == saved.progress.step:
        run.best = trainable_weights(model)


def release(run: Fit) -> None:
    """Give back the memory of model, optimizer and best weights, which training alone needs; `run` cannot train again.

    A caller that still holds the model keeps its memory, too.
    """
    del run.model, run.optimizer, run.guard
    run.best = None
    run.accelerator.free_memory()


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


# -------------------------------------------------------------------------------------------- predictions


def predict(
    accelerator: Accelerator,
    model: Any,
    task: Task,
    features: Features,
    tokenizer: Any,
    *,
    max_rows: int = 64,
    max_slots: int = 8192,
    on_batch: Callable[[int, int], None] | None = None,
    stop: StopFlag | None = None,
    heart: Heartbeat | None = None,
) -> dict[str, list[np.ndarray]] | None:
    """Run the model over all features, each exactly once, longest first.

    Returns, on the main process, name -> one array per feature in the order of the features; None on the others.
    `on_batch` is told (features done, all features), of this process. Raises Preempted on all processes once `stop` is
    set on one of them.
    """
    batches = batching.sorted_batches(features.lengths, max_rows, max_slots)
    rounds = -(-len(batches) // accelerator.num_processes)
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    outputs = _outputs(model, task, features, tokenizer, batches, accelerator.device, on_batch)
    found: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    for _ in range(rounds):
        found += itertools.islice(outputs, 1)
        if heart is not None:
            heart.move()
        if stop is not None and (reason := _largest(accelerator, stop.code)[0]):
            stop.agree(reason)
            raise Preempted(stop.message())
    shares = _gather(accelerator, found)
    return None if shares is None else _in_order(shares, len(features))


def predict_here(
    model: Any, task: Task, features: Features, tokenizer: Any, device: torch.device
) -> dict[str, list[np.ndarray]]:
    """`predict` on this process alone, one feature at a time, as a pipeline does."""
    batches = batching.sorted_batches(features.lengths, 1, 1)
    found = _outputs(model, task, features, tokenizer, batches, device, None, predict=task.predict_case)
    return _in_order(list(found), len(features))


def _outputs(
    model: Any,
    task: Task,
    features: Features,
    tokenizer: Any,
    batches: list[np.ndarray],
    device: torch.device,
    on_batch: Callable[[int, int], None] | None,
    predict: Callable[[Any, Batch], dict[str, torch.Tensor]] | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    done, total = 0, sum(map(len, batches))
    for index in batches:
        batch = task.collate(features, index, tokenizer)
        with torch.inference_mode(), masking.seen(batch.inputs):
            outputs = (predict or task.predict)(model, batch.to(device))
        found = {name: value.cpu().numpy() for name, value in outputs.items()}
        done += len(index)
        if on_batch is not None:
            on_batch(done, total)
        yield index, found


def _gather(accelerator: Accelerator, found: list[Any]) -> list[Any] | None:
    if accelerator.num_processes == 1:
        return found
    shares: list[Any] | None = [None] * accelerator.num_processes if accelerator.is_main_process else None
    torch.distributed.gather_object(found, shares, dst=0)
    return None if shares is None else [item for share in shares for item in share]


def _in_order(shares: list[tuple[np.ndarray, dict[str, np.ndarray]]], total: int) -> dict[str, list[np.ndarray]]:
    names = shares[0][1] if shares else {}
    ordered: dict[str, list[Any]] = {name: [None] * total for name in names}
    seen = np.zeros(total, dtype=bool)
    for index, outputs in shares:
        assert not seen[index].any(), "a feature was predicted twice"
        seen[index] = True
        for name, values in outputs.items():
            for place, value in zip(index.tolist(), values, strict=True):
                ordered[name][place] = value
    assert seen.all(), "a feature was not predicted"
    return ordered
