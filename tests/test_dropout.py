"""The fast dropout has the distribution, the gradient and the randomness rules of torch's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune.dropout import FastDropout, install_dropout, keep_mask, quantise, sign_mask

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(20)
        yield


def kept(size: int, p: float) -> np.ndarray:
    return keep_mask((size,), quantise(p)[0], torch.float32).float().numpy()


def deviations(observed, expected, variance) -> float:
    return float(np.abs(np.asarray(observed) - expected).max() / np.sqrt(variance))


# ------------------------------------------------------------------------------------------------ distribution


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_the_scale_makes_the_expectation_exact(p):
    threshold, scale = quantise(p)
    assert abs(threshold / 65536 - p) <= 2**-17
    assert scale * (1 - threshold / 65536) == pytest.approx(0.0 if p == 1 else 1.0, abs=1e-12)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match="drop probability: expected a number from 0 to 1"):
        quantise(p)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_p(p):
    size = 4_000_000
    assert deviations(1 - kept(size, p).mean(), p, p * (1 - p) / size) < 4


def test_the_four_elements_of_a_word_are_independent():
    words = kept(4_000_000, 0.1).reshape(-1, 4) == 0
    observed = np.bincount(words @ np.array([1, 2, 4, 8]), minlength=16)
    probability = np.array([0.1 ** n.bit_count() * 0.9 ** (4 - n.bit_count()) for n in range(16)])
    expected = probability * len(words)
    assert ((observed - expected) ** 2 / expected).sum() < 37.7  # chi-square, 15 degrees of freedom: 0.1 %
    assert deviations(words.mean(0), 0.1, 0.09 / len(words)) < 4


def test_elements_are_uncorrelated_at_every_small_distance():
    noise = kept(2_000_000, 0.1) - 0.9
    correlations = [float((noise[:-lag] * noise[lag:]).mean()) / 0.09 for lag in (*range(1, 17), 384, 1536)]
    assert max(map(abs, correlations)) < 4.5 / np.sqrt(len(noise))


def test_successive_draws_and_neighbouring_seeds_are_uncorrelated():
    first, second = kept(2_000_000, 0.1), kept(2_000_000, 0.1)
    torch.manual_seed(21)
    other_seed = kept(2_000_000, 0.1)
    for a, b in ((first, second), (first, other_seed)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(len(a))


def test_the_number_dropped_varies_as_a_binomial_does():
    dropped = 1000 - kept(4_000_000, 0.1).reshape(-1, 1000).sum(1)
    assert np.var(dropped) == pytest.approx(90, rel=4 * np.sqrt(2 / len(dropped)))


def test_the_moments_are_those_of_torch():
    x = torch.full((1_000_000,), 2.0)
    ours, theirs = FastDropout(0.1)(x), nn.functional.dropout(x, 0.1)
    assert float(ours.mean()) == pytest.approx(2.0, abs=4 * float(theirs.std()) / 1000)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.01)
    assert sorted(ours.unique().tolist()) == pytest.approx([0.0, 2 / 0.9], rel=1e-5)


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (7, 5), (2, 3, 13), (64, 33)])
def test_shape_and_dtype_are_kept_for_any_size(shape, dtype):
    x = torch.ones(shape, dtype=dtype)
    out = FastDropout(0.5)(x)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_elements_are_scaled_and_rounded_once(dtype):
    x = torch.randn(5000, dtype=torch.float64).to(dtype)
    out = FastDropout(0.1)(x)
    scale = quantise(0.1)[1]
    wide = torch.promote_types(dtype, torch.float32)  # the precision in which torch multiplies
    exact = (x.to(wide) * scale).to(dtype)
    alive = out != 0
    assert 4000 < int(alive.sum()) < 4800
    torch.testing.assert_close(out[alive], exact[alive], rtol=0, atol=0)


def test_a_strided_input_meets_the_same_mask_as_its_copy():
    x = torch.randn(31, 17).t()
    drop = FastDropout(0.3)
    torch.manual_seed(1)
    strided = drop(x)
    torch.manual_seed(1)
    torch.testing.assert_close(strided, drop(x.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 1.0])
def test_a_sign_mask_has_minus_one_where_a_keep_mask_has_zero(p, dtype):
    masks = []
    for draw in (keep_mask, sign_mask):
        torch.manual_seed(2)
        masks.append(draw((7, 101), quantise(p)[0], dtype).to(torch.float32))
    assert torch.equal(masks[1], 2 * masks[0] - 1)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (1e-9, True), (0.1, False)])
def test_identity_without_dropout_takes_no_random_number(p, training):
    x, state = torch.randn(10), torch.get_rng_state()
    assert FastDropout(p).train(training)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_everything_is_dropped_at_1():
    assert not keep_mask((99,), quantise(1.0)[0], torch.float32).any()
    x = torch.randn(9, 3, requires_grad=True)
    out = FastDropout(1.0)(x)
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()


def test_inplace_changes_the_input_and_its_gradient_is_the_mask():
    leaf = torch.ones(1000, requires_grad=True)
    hidden = leaf * 1
    out = FastDropout(0.25, inplace=True)(hidden)
    assert out.data_ptr() == hidden.data_ptr()
    assert 150 < int((hidden == 0).sum()) < 350
    hidden.sum().backward()
    torch.testing.assert_close(leaf.grad, out.detach(), rtol=0, atol=0)


def test_inplace_is_seen_by_autograd_where_the_old_values_are_needed():
    hidden = torch.ones(10, requires_grad=True) * 1
    needs_hidden = hidden.sin()
    FastDropout(0.5, inplace=True)(hidden)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        needs_hidden.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_meets_the_mask_and_scale_of_the_forward_pass(dtype):
    x = torch.ones(4001, dtype=dtype, requires_grad=True)
    out = FastDropout(0.1)(x)
    out.backward(torch.full_like(out, 3.0))
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, out.detach() * 3, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_first_and_second_derivatives_are_right():
    def function(x):
        torch.manual_seed(3)
        return FastDropout(0.4)(x) ** 2

    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


# ------------------------------------------------------------------------------------------------ randomness


def test_a_seed_fixes_every_bit_and_another_seed_changes_it():
    def draw(seed):
        torch.manual_seed(seed)
        return [FastDropout(0.1)(torch.ones(50, 33)) for _ in range(3)]

    assert all(map(torch.equal, draw(5), draw(5)))
    first, second, _ = draw(5)
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(6)[0])


def test_the_mask_does_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    masks = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            masks.append(keep_mask((300_001,), 6554, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*masks)


def test_a_draw_takes_one_number_of_torchs_generator_whatever_its_size():
    states = []
    for size in (3, 100_000):
        torch.manual_seed(5)
        keep_mask((size,), 6554, torch.float32)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_the_same_mask(reentrant):
    block = nn.Sequential(nn.Linear(16, 16), FastDropout(0.5), nn.GELU(), nn.Linear(16, 16), FastDropout(0.5))
    grads = []
    for wrapped in (False, True):
        torch.manual_seed(9)
        x = torch.randn(8, 16, requires_grad=True)
        out = checkpoint(block, x, use_reentrant=reentrant) if wrapped else block(x)
        out.square().sum().backward()
        grads.append(x.grad)
    assert grads[0].any()
    assert torch.equal(*grads)


# --------------------------------------------------------------------------------------------------- install


class OwnDropout(nn.Dropout):
    pass


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), OwnDropout(0.1), nn.Dropout1d(0.1), nn.Dropout(0.3, True))


def test_install_turns_plain_dropouts_and_undo_turns_them_back():
    model = network()
    weights, held = copy.deepcopy(model.state_dict()), model[1]
    undo = install_dropout(model)
    assert [type(module) for module in model[1:]] == [FastDropout, OwnDropout, nn.Dropout1d, FastDropout]
    assert model[1] is held
    assert (model[1].p, model[4].p, model[4].inplace) == (0.1, 0.3, True)
    assert model.state_dict().keys() == weights.keys()
    undo()
    assert [type(module) for module in model[1:]] == [nn.Dropout, OwnDropout, nn.Dropout1d, nn.Dropout]


def test_an_installed_model_evaluates_as_before():
    model, x = network().eval(), torch.randn(4, 8)
    before = model(x)
    install_dropout(model)
    assert torch.equal(model(x), before)


def test_another_device_is_left_to_torch():
    assert FastDropout(0.5)(torch.ones(4, device="meta")).device.type == "meta"
