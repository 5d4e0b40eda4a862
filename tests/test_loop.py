"""One step is one global batch however it is cut; a resumed run is the uninterrupted one, bit for bit."""

import dataclasses
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
import torch
from accelerate.state import AcceleratorState

from finetune import checkpoint, embedding_gradient, loop, preparation, session
from finetune.batching import epoch_batches
from finetune.checkpoint import Progress
from finetune.embedding_gradient import install_row_gradients
from finetune.errors import MachineError, NonFiniteError, Preempted
from finetune.events import Events
from finetune.lora import add_lora
from finetune.model import load_for_training
from finetune.optim import adamw
from finetune.recipe import load
from finetune.signals import StopFlag

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import soak  # noqa: E402


class Stop(StopFlag):
    """A stop flag for tests: asks for a stop after so many questions."""

    def __init__(self, after=None):
        super().__init__(launched=False)
        self.left = after

    @property
    def code(self):
        if self.left is None:
            return super().code
        self.left -= 1
        return int(self.left < 0)


class Session:
    """What `run` wires, with everything logged and saved kept in lists."""

    def __init__(self, ready, settings, *, lora=None, stop_after=None, patience=None, values=None, row_gradients=False):
        loaded = load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)
        self.head_swap = loaded.head_swap
        net = loaded.model if lora is None else add_lora(loaded.model, loaded.head_swap, lora, settings.seed)
        if row_gradients:
            install_row_gradients(net)
        precision = "fp32" if settings.precision == "auto" else settings.precision
        AcceleratorState._reset_state()  # one process builds several, of different precision
        self.accelerator = session.build_accelerator(precision)
        model, optimizer = self.accelerator.prepare(net, adamw(net, settings.learning_rate, settings.weight_decay))
        self.lines, self.saved, self.values = [], [], list(values or [])
        self.fit = loop.Fit(
            accelerator=self.accelerator,
            model=model.train(),
            optimizer=optimizer,
            task=ready.task,
            tokenizer=ready.tokenizer,
            features=ready.features["train"],
            rows=ready.splits["train"],
            plan=session.make_plan(ready.task, ready.features["train"], settings),
            settings=settings,
            progress=Progress(micro_rows=int(settings.micro_batch_size)),
            stop=Stop(stop_after),
            evaluate_every=None,
            patience=patience,
            larger_is_better=True,
            evaluate=(lambda: self.values.pop(0)) if values else None,
            log=lambda line: self.lines.append((self.fit.progress.step, line["loss"])),
            save=self.saved.append,
            save_due=lambda step: False,
        )

    def weights(self):
        return {name: value.clone() for name, value in loop.trainable_weights(self.fit.model).items()}


@pytest.fixture
def ready(tmp_path, tiny_checkpoint):
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint, micro_batch_size=8)
    return preparation.prepare(load(path), Events())


def settings(ready, **changes):
    return ready.recipe.train.model_copy(update=changes)


def first_gradient(ready, micro_rows, dropout=0.0):
    """The gradient of the first step, before clipping."""
    run = Session(ready, settings(ready, micro_batch_size=micro_rows))
    for module in run.fit.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    for layer in run.fit.model.bert.encoder.layer:
        layer.attention.self.dropout.p = dropout
    run.fit.model.config.attention_probs_dropout_prob = dropout
    loop._gradients(run.fit, run.fit.plan.rows(0))
    return {name: p.grad.clone() for name, p in run.fit.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("grouped", [True, False])
def test_rows_are_grouped_by_length_as_the_recipe_says(ready, grouped):
    plan = session.make_plan(ready.task, ready.features["train"], settings(ready, group_by_length=grouped))
    assert np.array_equal(plan.rows(0), epoch_batches(plan.lengths, 8, plan.seed, 0, group_by_length=grouped)[0])


@pytest.mark.parametrize("micro_rows", [1, 3, 4])
def test_any_cut_into_micro_batches_has_the_gradient_of_the_whole_batch(ready, micro_rows):
    whole, cut = first_gradient(ready, 8), first_gradient(ready, micro_rows)
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], atol=1e-6, rtol=1e-4)


def test_class_weights_divide_by_the_weight_of_the_whole_batch(tmp_path, tiny_checkpoint):
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint, micro_batch_size=8, class_weights="{pos: 5.0, neg: 0.5}")
    weighted = preparation.prepare(load(path), Events())
    whole, cut = first_gradient(weighted, 8), first_gradient(weighted, 3)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], atol=1e-6, rtol=1e-4)


@pytest.fixture
def small_tables_count(monkeypatch):
    monkeypatch.setattr(embedding_gradient, "SMALLEST", 0)


def test_gradients_of_rows_train_the_same_weights(ready, small_tables_count):
    usual, narrow = Session(ready, settings(ready)), Session(ready, settings(ready), row_gradients=True)
    loop.fit(usual.fit)
    loop.fit(narrow.fit)
    assert narrow.fit.model.get_input_embeddings().sparse
    found, expected = narrow.weights(), usual.weights()
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("row_gradients", [False, True])
@pytest.mark.parametrize("micro_rows", [8, 3])
@pytest.mark.parametrize("stop_after", [0, 4, 7])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    ready, tmp_path, micro_rows, stop_after, row_gradients, small_tables_count
):
    wanted = settings(ready, micro_batch_size=micro_rows)
    whole = Session(ready, wanted, row_gradients=row_gradients)
    loop.fit(whole.fit)
    first = Session(ready, wanted, stop_after=stop_after, row_gradients=row_gradients)
    with pytest.raises(Preempted):
        loop.fit(first.fit)
    checkpoint.save(tmp_path / "checkpoints", first.saved[-1], 2)
    torch.rand(7)  # what else draws random numbers must not matter
    second = Session(ready, wanted, row_gradients=row_gradients)
    saved, _ = checkpoint.latest(tmp_path / "checkpoints")
    second.fit.progress = saved.progress
    loop.restore(second.fit, saved)
    loop.fit(second.fit)
    assert second.fit.progress.step == whole.fit.plan.steps
    for name, value in whole.weights().items():
        assert torch.equal(second.weights()[name], value), name
    assert second.fit.progress.sample_log_sha256 == whole.fit.progress.sample_log_sha256
    assert first.lines + second.lines == whole.lines
    ours, theirs = loop.snapshot(second.fit).optimizer, loop.snapshot(whole.fit).optimizer
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_evaluating_every_step_or_never_trains_the_same_weights(ready):
    never, always = Session(ready, settings(ready)), Session(ready, settings(ready), values=[0.5] * 16)
    always.fit.evaluate_every = 1
    loop.fit(never.fit)
    loop.fit(always.fit)
    assert always.values == []
    for name, value in never.weights().items():
        assert torch.equal(always.weights()[name], value)


HEADS = [("sequence", "lora", "bf16"), ("token", "full", "bf16"), ("span", "lora", "fp32"), ("seq2seq", "full", "fp32")]


@pytest.mark.parametrize(("head", "tuning", "precision"), HEADS)
def test_every_head_stopped_and_resumed_equals_uninterrupted(tmp_path, head, tuning, precision, small_tables_count):
    kind = soak.Kind(head, tuning, precision, accumulation=3, processes=1)
    encoder = soak.make_checkpoint(tmp_path / "checkpoint", head)
    changes = [change for change in kind.arguments(encoder, tmp_path / "out")[3:] if "epochs" not in change]
    recipe = load(ROOT / "recipes" / head / "tiny.yaml", [*changes, "train.max_steps=6"])
    prepared = preparation.prepare(recipe, Events())
    lora, wanted = prepared.recipe.model.lora, prepared.recipe.train
    whole = Session(prepared, wanted, lora=lora, row_gradients=True)
    loop.fit(whole.fit)
    first = Session(prepared, wanted, lora=lora, stop_after=3, row_gradients=True)
    with pytest.raises(Preempted):
        loop.fit(first.fit)
    checkpoint.save(tmp_path / "checkpoints", first.saved[-1], 2)
    second = Session(prepared, wanted, lora=lora, row_gradients=True)
    saved, _ = checkpoint.latest(tmp_path / "checkpoints")
    second.fit.progress = saved.progress
    loop.restore(second.fit, saved)
    loop.fit(second.fit)
    assert second.fit.progress.step == 6
    ours, theirs = loop.snapshot(second.fit), loop.snapshot(whole.fit)
    for group in ("weights", "optimizer"):
        for name, value in getattr(theirs, group).items():
            assert torch.equal(getattr(ours, group)[name], value), name


def test_dropout_depends_on_the_step_not_on_what_came_before(ready):
    wanted = settings(ready, seed=5)
    plain, disturbed = Session(ready, wanted), Session(ready, wanted)
    loop.fit(plain.fit)
    disturbed.fit.save_due = lambda step: bool(torch.rand(3).sum() < -1)  # draws between all steps
    loop.fit(disturbed.fit)
    for name, value in plain.weights().items():
        assert torch.equal(disturbed.weights()[name], value)


def test_a_gradient_that_is_not_finite_stops_before_the_step(ready):
    run = Session(ready, settings(ready))
    original = run.fit.task.loss
    run.fit.task.loss = lambda outputs, batch: original(outputs, batch) * float("nan")
    before = run.weights()
    with pytest.raises(NonFiniteError, match="step 1: the gradient is NaN or infinite") as caught:
        loop.fit(run.fit)
    assert caught.value.exit_code == 4
    assert all(torch.equal(run.weights()[name], value) for name, value in before.items())


def test_where_looking_is_dear_such_a_gradient_still_makes_no_step_and_is_named_later(ready):
    run = Session(ready, settings(ready, max_steps=8))
    run.fit.look_every = 4
    original = run.fit.task.loss

    def loss(outputs, batch):
        return original(outputs, batch) * (float("inf") if run.fit.progress.step == 1 else 1.0)

    run.fit.task.loss = loss
    with pytest.raises(NonFiniteError, match="step 2: the gradient is NaN or infinite"):
        loop.fit(run.fit)
    assert run.fit.progress.step == 4
    assert all(torch.isfinite(value).all() for value in run.weights().values())


class Scaler:
    """The loss scale of fp16 as it stands after each step, without a GPU."""

    def __init__(self, scale):
        self.scale = scale

    def get_scale(self):
        return self.scale


def watch(run, scale, skipped):
    device = torch.device("cpu")
    accelerator = SimpleNamespace(scaler=Scaler(scale), optimizer_step_was_skipped=skipped, device=device)
    loop._watch_scale(dataclasses.replace(run.fit, accelerator=accelerator))


def test_an_overflow_of_fp16_is_counted_and_a_collapsed_scale_ends_the_run(ready):
    run = Session(ready, settings(ready))
    watch(run, 1024.0, True)
    watch(run, 512.0, False)
    assert run.fit.progress.skipped_steps == 1
    with pytest.raises(NonFiniteError, match=r"fp16 overflowed 1 times in a row, loss scale 0\.5") as caught:
        watch(run, 0.5, True)
    assert caught.value.exit_code == 4


def test_too_many_overflows_in_a_row_end_the_run(ready):
    run = Session(ready, settings(ready))
    run.fit.skips = loop.FP16_SKIPS
    with pytest.raises(NonFiniteError, match="fp16 overflowed 21 times in a row"):
        watch(run, 65536.0, True)


def test_memory_for_not_even_one_row_is_said(ready, monkeypatch):
    run = Session(ready, settings(ready))

    def none(features, index, tokenizer):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(run.fit.task, "collate", none)
    with pytest.raises(MachineError, match=r"step 1: memory ran out with a micro-batch of one row; lower"):
        loop.fit(run.fit)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(ready, monkeypatch):
    whole = first_gradient(ready, 8)
    run = Session(ready, settings(ready, micro_batch_size=8))
    for module in run.fit.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    run.fit.model.config.attention_probs_dropout_prob = 0.0
    collate = run.fit.task.collate

    def small_memory(features, index, tokenizer):
        if len(index) > 3:
            raise torch.OutOfMemoryError("injected")
        return collate(features, index, tokenizer)

    monkeypatch.setattr(run.fit.task, "collate", small_memory)
    loop._gradients(run.fit, run.fit.plan.rows(0))
    assert run.fit.progress.micro_rows == 2
    for name, parameter in run.fit.model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], atol=1e-6, rtol=1e-4)


def test_saving_automatically_takes_a_hundredth_of_the_time_and_comes_every_ten_minutes():
    now = [0.0]
    for cost, gap in ((0.5, 50), (2.0, 200), (9.0, 600)):
        schedule = session.SaveSchedule("auto", expected_bytes=300_000_000, clock=lambda: now[0])
        saves = []
        for step in range(1, 20_000):
            now[0] += 1.0
            if schedule.due(step):
                now[0] += cost
                schedule.saved(cost)
                saves.append(step)
        assert saves[0] == 200  # until the first one is timed, a guess; twice its gap, for the save after the last step
        assert {later - earlier for earlier, later in itertools.pairwise(saves)} == {gap}


def test_saving_automatically_leaves_room_for_the_save_after_the_last_step():
    now, cost, spent = [0.0], 1.0, 0.0
    schedule = session.SaveSchedule("auto", expected_bytes=300_000_000, clock=lambda: now[0])
    for step in range(1, 5_000):
        now[0] += 1.0
        if schedule.due(step):
            now[0] += cost
            spent += cost
            schedule.saved(cost)
            assert (spent + cost) / (now[0] + cost) < 0.01, step


def test_early_stopping_keeps_the_best_weights(ready):
    run = Session(ready, settings(ready, epochs=6.0), patience=2, values=[0.5, 0.9, 0.7, 0.8, 0.1, 0.1])
    loop.fit(run.fit)
    progress = run.fit.progress
    assert progress.stopped_early
    assert progress.best_value == 0.9
    assert progress.best_step == 16
    assert progress.step == 32
    assert any(not torch.equal(run.fit.best[name], value) for name, value in run.weights().items())


def test_an_evaluation_owed_at_the_stop_comes_first_after_the_resume(ready):
    run = Session(ready, settings(ready), stop_after=7, values=[0.5, 0.6])
    with pytest.raises(Preempted):
        loop.fit(run.fit)
    assert run.saved[-1].progress.evaluation_owed
    assert len(run.values) == 2
    saved = dataclasses.replace(run.saved[-1])
    again = Session(ready, settings(ready), values=[0.5, 0.6])
    again.fit.progress = saved.progress
    loop.restore(again.fit, saved)
    loop.fit(again.fit)
    assert again.fit.progress.best_step == 16
    assert again.values == []


def test_a_stop_does_not_wait_for_the_end_of_an_evaluation(ready):
    whole = Session(ready, settings(ready), values=[0.5, 0.9])
    loop.fit(whole.fit)
    run = Session(ready, settings(ready), values=[0.5, 0.9])
    batches = []

    def evaluate():
        model, features = run.fit.model, ready.features["validation"]
        more = {"max_rows": 1, "stop": Stop(after=2), "on_batch": lambda done, total: batches.append(done)}
        loop.predict(run.accelerator, model, ready.task, features, ready.tokenizer, **more)
        raise AssertionError("it went on")

    run.fit.evaluate = evaluate
    with pytest.raises(Preempted, match="stopped at step 8 of 16"):
        loop.fit(run.fit)
    assert batches == [1, 2, 3]
    assert run.saved[-1].progress.evaluation_owed
    again = Session(ready, settings(ready), values=[0.5, 0.9])
    again.fit.progress = run.saved[-1].progress
    loop.restore(again.fit, run.saved[-1])
    loop.fit(again.fit)
    assert again.fit.progress.best_step == 16
    for name, value in whole.weights().items():
        assert torch.equal(again.weights()[name], value)


def test_predictions_come_once_per_feature_in_order(ready):
    run = Session(ready, settings(ready))
    features = ready.features["train"]
    run.fit.model.eval()
    together = loop.predict(run.accelerator, run.fit.model, ready.task, features, ready.tokenizer, max_rows=7)
    alone = loop.predict_here(run.fit.model, ready.task, features, ready.tokenizer, run.accelerator.device)
    assert len(together["logits"]) == len(features)
    np.testing.assert_allclose(np.stack(together["logits"]), np.stack(alone["logits"]), atol=1e-5)


def test_lora_moves_every_weight_of_the_new_head_and_none_of_the_backbone(ready):
    from finetune.recipe import LoraBlock

    run = Session(ready, settings(ready), lora=LoraBlock(r=4))
    before = {name: value.clone() for name, value in run.fit.model.named_parameters()}
    loop.fit(run.fit)
    moved = {name for name, value in run.fit.model.named_parameters() if not torch.equal(before[name], value)}
    assert {name for name in moved if "lora_" not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{part}" for part in ("weight", "bias")
    }
    assert any("lora_" in name for name in moved)
