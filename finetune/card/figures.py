"""Numbers as a reader sees them."""

from __future__ import annotations

from finetune.record import Interval

__all__ = [
    "HUNDREDS",
    "amount",
    "bounds",
    "count",
    "duration",
    "interval",
    "milliseconds",
    "score",
    "share",
    "size",
    "with_bounds",
]

HUNDREDS = {"bleu", "chrf", "rouge1", "rouge2", "rougeL"}  # on 0-100, because the field reads them so


def score(metric: str, value: float) -> str:
    """A metric: three decimals, one for those on 0-100."""
    return f"{value:.1f}" if metric in HUNDREDS else f"{value:.3f}"


def interval(metric: str, found: Interval) -> str:
    """Value and half the width of its interval, `0.817 ± 0.023`; the value alone without an interval."""
    if found.value is None:
        return "undefined"
    if found.low is None or found.high is None:
        return score(metric, found.value)
    return f"{score(metric, found.value)} ± {score(metric, (found.high - found.low) / 2)}"


def bounds(metric: str, found: Interval) -> str:
    """The interval, `0.794 to 0.840`; a dash without one."""
    if found.low is None or found.high is None:
        return "–"
    return f"{score(metric, found.low)} to {score(metric, found.high)}"


def with_bounds(metric: str, found: Interval) -> str:
    """`0.100 (0.010 to 0.400)`, for what is seldom in the middle of its interval; the value alone without one."""
    if found.value is None or found.low is None or found.high is None:
        return interval(metric, found)
    return f"{score(metric, found.value)} ({bounds(metric, found)})"


def share(part: float) -> str:
    """A fraction of 1 in per cent, one decimal."""
    return f"{100 * part:.1f} %"


def count(number: float) -> str:
    """A whole number with separators of thousands."""
    return f"{number:,.0f}"


def amount(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    digits = f"{value:.3g}"
    return f"{float(digits):.12f}".rstrip("0").rstrip(".") if "e" in digits else digits


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 5 s` or `2 h 10 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def milliseconds(seconds: float) -> str:
    """What is over too soon for `duration`, `23.3 ms`."""
    return f"{1000 * seconds:.1f} ms"


def size(num_bytes: float) -> str:
    """Bytes in kB, MB or GB of 1,000."""
    if round(num_bytes / 1e3, 1) < 1000:
        return f"{num_bytes / 1e3:.1f} kB"
    return f"{num_bytes / 1e6:.0f} MB" if round(num_bytes / 1e6) < 1000 else f"{num_bytes / 1e9:.1f} GB"
