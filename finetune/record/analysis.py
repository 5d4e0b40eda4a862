"""Where a model fails on one split: counts, values and row ids, never the text of a row."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.record.parts import Interval, Part

__all__ = [
    "MEASURES",
    "Analysis",
    "Bin",
    "Calibration",
    "Check",
    "Confusion",
    "Example",
    "Measure",
    "Slice",
    "Suspect",
    "WorstRow",
]

Measure = Literal["share", "mean_difference", "failed"]
MEASURES: dict[Measure, str] = {
    "share": "share with another prediction",
    "mean_difference": "mean difference",
    "failed": "share of pairs that fail",
}
"""What a check measures, in words."""


class Bin(Part):
    """Scores from `low` (exclusive) to `high`; `confidence` is their mean, `accuracy` the share that came true."""

    low: float
    high: float
    n: int
    confidence: float | None = None  # None in an empty bin
    accuracy: float | None = None


class Calibration(Part):
    """Whether scores can be read as probabilities."""

    scores: str  # what they are scores of, in words
    n: int  # scores, of which a row may have several
    ece: Interval  # expected calibration error
    brier: Interval  # 0 to 1
    bins: list[Bin] = Field(default_factory=list)
    applied: Interval | None = None  # the temperature that is in the exported weights already
    temperature: Interval | None = None  # logits divided by it are best calibrated on validation; None: not fitted
    ece_after: Interval | None = None  # with logits divided by the temperature
    brier_after: Interval | None = None


class Confusion(Part):
    """counts[i][j]: rows (tokens, where tags are predicted) of label i that were given label j."""

    labels: list[str]
    counts: list[list[int]]
    merged: int = 0  # labels with the fewest mistakes that are counted together as the last one


class Slice(Part):
    """A metric on a group of rows; n: rows, or for one label its items in the data."""

    by: str  # label, type, length, … or the name of a column
    value: str
    n: int
    metric: str
    result: Interval


class WorstRow(Part):
    """A row with one of the highest losses; `gold` and `prediction` only where they are names of labels."""

    id: str
    loss: float
    gold: str | None = None
    prediction: str | None = None


class Suspect(Part):
    """A row whose label is perhaps wrong: the model is as sure of `likely` as of rows that have this label.

    Only of rows that the model was not trained on; a hint to look at the row, no proof.
    """

    id: str
    word: int | None = None  # of a row of words the number of the one in question, from 0
    gold: str
    likely: str
    gold_score: float
    likely_score: float


class Example(Part):
    """A row whose prediction changed; the words that were put in, never the rest of its text."""

    id: str
    words: list[str] = Field(default_factory=list)
    before: str | None = None  # only where predictions are names of labels
    after: str | None = None


class Check(Part):
    """A change of the text that should not change the prediction, or a change with a stated effect.

    changed: the share of rows with another prediction; where predictions are numbers, their mean absolute difference;
    of a check of the user's own, the share of pairs that failed it.
    """

    name: str
    n: int  # rows in which there was something to change, or pairs
    measure: Measure = "share"
    changed: Interval
    examples: list[Example] = Field(default_factory=list)


class Analysis(Part):
    """One split, analysed."""

    seconds: float = 0.0  # that the analysis took
    calibration: Calibration | None = None
    confusion: Confusion | None = None
    slices: list[Slice] = Field(default_factory=list)
    errors: dict[str, int] = Field(default_factory=dict)  # kind -> how many
    measures: dict[str, Interval] = Field(default_factory=dict)  # such as length_ratio of generated texts
    worst: list[WorstRow] = Field(default_factory=list)
    suspects: list[Suspect] = Field(default_factory=list)
    behaviour: list[Check] = Field(default_factory=list)
