"""Learning rates equal transformers' schedules; biases and norms do not decay."""

import pytest

from finetune import optim


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedule_equals_transformers(schedule, warmup):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=40)
    for step in range(40):
        ours = optim.learning_rate(schedule.removesuffix("_with_warmup"), 0.5, step, 40, warmup)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        reference.step()


def test_warmup_is_a_share_below_one_and_steps_from_one():
    assert optim.warmup_steps(0.06, 100) == 6
    assert optim.warmup_steps(0.001, 100) == 1
    assert optim.warmup_steps(25.0, 100) == 25


def test_no_decay_on_biases_and_norms_and_frozen_weights_left_out():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    decay, plain = optim.parameter_groups(model, 0.01)
    assert [tuple(p.shape) for p in decay["params"]] == [(4, 3)]
    assert decay["weight_decay"] == 0.01
    assert sorted(tuple(p.shape) for p in plain["params"]) == [(2,), (4,), (4,), (4,)]
    assert plain["weight_decay"] == 0.0


@pytest.mark.parametrize("limit", [0.05, 1e6, None])
def test_an_update_that_clips_is_that_of_clipped_gradients(limit):
    import torch

    def trained(clip):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optimizer = optim.adamw(model, 0.1, 0.01)
        for group in optimizer.param_groups:
            group["eps"] = 0.1  # else Adam makes the same step of any multiple of a gradient
        norms = []
        for step in range(4):
            model(torch.randn(7, 5) * (step + 1)).square().mean().backward()
            norms.append(clip(model, optimizer))
            optimizer.step()
            optimizer.zero_grad()
        return [*model.parameters(), torch.stack(norms)]

    found = trained(lambda model, optimizer: optim.clip_in_update(optimizer, model.parameters(), limit))
    most = float("inf") if limit is None else limit
    expected = trained(lambda model, _: torch.nn.utils.clip_grad_norm_(model.parameters(), most))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
