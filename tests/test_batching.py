"""Order is a function of seed, epoch and lengths; batches waste little; every row comes once."""

import hashlib

import numpy as np
import pytest

from finetune import checkpoint
from finetune.batching import Plan, epoch_batches, random_key, share_of_rank, sorted_batches

LENGTHS = np.random.default_rng(0).integers(3, 65, size=8530)


@pytest.mark.parametrize("settings", [{"batch_size": 32}, {"batch_size": None, "batch_tokens": 1000}])
def test_every_row_once(settings):
    batches = epoch_batches(LENGTHS, seed=0, epoch=0, **settings)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(LENGTHS)))


def test_a_checkpoint_of_this_format_goes_on_in_the_order_that_it_was_begun_in():
    """Where this fails, rows would be trained twice or never after a resume: raise checkpoint.FORMAT with the order."""
    long = np.random.default_rng(1).integers(3, 65, size=(30_000, 2))
    settings = ((LENGTHS, 8, None), (LENGTHS, None, 1000), (long[:, 0], 32, None), (long, 16, None))
    orders = [epoch_batches(each, size, 0, 1, tokens) for each, size, tokens in settings]
    rows = np.concatenate([np.append(batch, -1) for order in orders for batch in order]).astype(np.int64)
    digest = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    assert (checkpoint.FORMAT, digest) == (4, "b91a64000e018fb2")


@pytest.mark.parametrize("rows", [100, 3199, 6500, 8530])
def test_one_batch_at_most_is_smaller(rows):
    sizes = sorted(len(batch) for batch in epoch_batches(LENGTHS[:rows], 32, 0, 0))
    assert sizes == sorted([*[32] * (rows // 32), *([rows % 32] if rows % 32 else [])])


def test_same_arguments_same_order_and_other_epoch_or_seed_another():
    first = epoch_batches(LENGTHS, 32, 0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(first, epoch_batches(LENGTHS, 32, 0, 0), strict=True))
    for other in (epoch_batches(LENGTHS, 32, 0, 1), epoch_batches(LENGTHS, 32, 1, 0)):
        assert not np.array_equal(first[0], other[0])


LONG_TAILED = np.random.default_rng(0).lognormal(3.2, 0.7, size=5437).clip(3, 128).astype(np.int64)


@pytest.mark.parametrize(("lengths", "size"), [(LENGTHS, 32), (LONG_TAILED, 32), (LONG_TAILED, 16), (LONG_TAILED, 8)])
def test_padding_is_at_most_two_percent_and_order_stays_random(lengths, size):
    batches = epoch_batches(lengths, size, 0, 0)
    slots = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / slots <= 0.02
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


@pytest.mark.parametrize("widths", [LONG_TAILED, np.stack([LONG_TAILED, LONG_TAILED[::-1]], axis=1)])
@pytest.mark.parametrize("settings", [{"batch_size": 32}, {"batch_size": None, "batch_tokens": 4000}])
def test_rows_of_any_length_come_together_where_they_are_not_grouped(widths, settings):
    total = widths.reshape(len(widths), -1).sum(axis=1)
    batches = epoch_batches(widths, seed=0, epoch=0, group_by_length=False, **settings)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(widths)))
    assert all(np.all(np.diff(total[batch]) <= 0) for batch in batches)
    within = np.array([total[batch].var() for batch in batches if len(batch) > 8])
    assert within.mean() > 0.8 * total.var()
    if settings["batch_size"] is None:
        slots = [len(batch) * widths.reshape(len(widths), -1)[batch].max(axis=0).sum() for batch in batches]
        assert max(slots) <= 4000
    else:
        assert [len(batch) for batch in batches] == [32] * 169 + [29]


def test_a_plan_groups_rows_unless_it_is_told_not_to():
    settings = {"batch_size": 32, "batch_tokens": None, "seed": 3, "epochs": 1, "max_steps": None}
    for grouped in (True, False):
        plan = Plan(LONG_TAILED, **settings, group_by_length=grouped)
        wanted = epoch_batches(LONG_TAILED, 32, 3, 0, group_by_length=grouped)
        assert all(np.array_equal(plan.rows(step), wanted[step]) for step in range(plan.steps))
    assert Plan(LONG_TAILED, **settings).group_by_length


def test_neighbours_of_a_row_change_between_epochs():
    together = [
        {frozenset(batch.tolist()) for batch in epoch_batches(LENGTHS[:480], 16, 0, epoch)} for epoch in range(2)
    ]
    assert len(together[0] & together[1]) <= 1


def test_token_budget_is_kept_but_for_single_rows():
    for batch in epoch_batches(LENGTHS, None, 0, 0, batch_tokens=100):
        assert len(batch) == 1 or len(batch) * LENGTHS[batch].max() <= 100


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_shares_cover_the_batch_and_have_equally_many_pieces(rows, processes):
    batch = np.arange(100, 100 + rows)
    shares = [share_of_rank(batch, rank, processes, micro_rows=3) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert all(len(piece) <= 3 for share in shares for piece in share)
    assert sorted(row for share in shares for piece in share for row in piece) == list(batch)


def test_evaluation_batches_are_sorted_and_bounded():
    batches = sorted_batches(LENGTHS, rows=64, tokens=1024)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(LENGTHS)))
    longest = [LENGTHS[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(len(batch) * LENGTHS[batch].max() <= 1024 for batch in batches)


def test_plan_counts_steps_and_finds_any_step_without_the_ones_before():
    plan = Plan(LENGTHS[:100], batch_size=8, batch_tokens=None, seed=3, epochs=2.5, max_steps=None)
    assert plan.steps == 13 + 13 + round(0.5 * 13)
    late = Plan(LENGTHS[:100], batch_size=8, batch_tokens=None, seed=3, epochs=2.5, max_steps=None)
    expected = [plan.rows(step) for step in range(plan.steps)]
    assert np.array_equal(late.rows(20), expected[20])
    assert late.epochs_done(13) == 1.0
    assert late.ends_epoch(12)
    assert not late.ends_epoch(13)


def test_max_steps_repeat_the_data_as_often_as_needed():
    plan = Plan(LENGTHS[:20], batch_size=8, batch_tokens=None, seed=0, epochs=None, max_steps=7)
    assert plan.steps == 7
    assert plan.place(6) == (2, 0)


def test_random_keys_differ_by_every_part():
    keys = {
        random_key(seed, "step", step, micro, rank)
        for seed in (0, 1)
        for step in (0, 1)
        for micro in (0, 1)
        for rank in (0, 1)
    }
    assert len(keys) == 16
    assert all(0 <= key < 2**63 for key in keys)


def slots(batches, widths):
    return sum(len(batch) * int(widths[batch].max(axis=0).sum()) for batch in batches)


def two_widths(n=8000, seed=0):
    """Sources and targets that are long together, as far as they are."""
    draw = np.random.default_rng(seed)
    source = draw.integers(5, 60, n)
    return np.stack([source, np.clip(source // 2 + draw.integers(-4, 12, n), 2, None)], axis=1)


@pytest.mark.parametrize("size", [16, 32])
def test_rows_of_a_batch_are_alike_in_source_and_target(size):
    widths = two_widths()
    batches = epoch_batches(widths, size, seed=0, epoch=0)
    assert np.sort(np.concatenate(batches)).tolist() == list(range(len(widths)))
    assert max(map(len, batches)) == size
    assert sum(len(batch) < size for batch in batches) <= -(-len(widths) // (400 * size))
    assert 1 - widths.sum() / slots(batches, widths) < 0.05
    means = np.array([widths[batch].sum(axis=1).mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_tokens_of_a_batch_count_source_and_target_with_their_padding():
    widths = two_widths(2000)
    batches = epoch_batches(widths, None, seed=0, epoch=0, batch_tokens=600)
    assert np.sort(np.concatenate(batches)).tolist() == list(range(len(widths)))
    assert max(slots([batch], widths) for batch in batches) <= 600
    assert 1 - widths.sum() / slots(batches, widths) < 0.1
