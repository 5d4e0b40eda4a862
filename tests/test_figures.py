"""Numbers as a reader sees them."""

from __future__ import annotations

import pytest

from finetune.card.figures import amount, count, duration, interval, score, share, size
from finetune.record import Interval


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (score("accuracy", 0.81749), "0.817"),
        (score("rougeL", 22.16), "22.2"),
        (score("mse", 1.23456), "1.235"),
        (interval("f1", Interval(value=0.8171, low=0.7936, high=0.8396)), "0.817 ± 0.023"),
        (interval("bleu", Interval(value=30.04, low=29.0, high=31.2)), "30.0 ± 1.1"),
        (interval("f1", Interval(value=0.5)), "0.500"),
        (interval("f1", Interval(value=None)), "undefined"),
        (share(0.0214), "2.1 %"),
        (count(1234567), "1,234,567"),
        (count(5498.3), "5,498"),
        (amount(0.000034712), "0.0000347"),
        (amount(1234.5), "1230"),
        (amount(0.0), "0"),
        (amount(12.0), "12"),
        (duration(4.24), "4.2 s"),
        (duration(59.94), "59.9 s"),
        (duration(59.97), "1 min 0 s"),
        (duration(185), "3 min 5 s"),
        (duration(7800), "2 h 10 min"),
        (size(1_930_000_000), "1.9 GB"),
        (size(22_000_000), "22 MB"),
        (size(999_999_999), "1.0 GB"),
        (size(999_999), "1 MB"),
        (size(650), "0.7 kB"),
    ],
)
def test_shown_as(shown: str, expected: str):
    assert shown == expected
