"""The source thesis's claims, and what a study measured of each.

A claim is judged in every place where it can be (a run, split and tree; a pair of runs) by a
rule that is written beside the verdict. A trend counts as clear from a rank correlation of
``CLEAR`` on; what points neither way, and what was not measured, cannot be told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from lltopo.results import (
    Curve,
    Number,
    Results,
    curve,
    epochs,
    initial_rate,
    number,
    orders,
    topology_number,
    topology_rows,
    training_number,
)
from lltopo.sections import SPLITS, Split
from lltopo.tables import TREES, Tree

Verdict = Literal["holds", "does not hold", "cannot be told"]

CLEAR = 0.5
ROUNDING = 1e-9  # two ends that differ by less, relatively, are equal
FEWEST = 5  # epochs below which no trend is judged


class Finding(NamedTuple):
    """A claim in one place: where, the labelled numbers measured, and the verdict of them."""

    runs: tuple[str, ...]
    split: Split
    tree: Tree | None
    numbers: tuple[tuple[str, Number], ...]
    verdict: Verdict
    reason: str

    @property
    def told(self) -> bool:
        """Whether anything was measured."""
        return any(number.value is not None for _, number in self.numbers)


class Claim(NamedTuple):
    """A claim of the thesis, the rule by which it is judged, and all findings."""

    text: str
    rule: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The findings' common verdict; where they differ, it cannot be told."""
        found = {finding.verdict for finding in self.findings}
        return found.pop() if len(found) == 1 else "cannot be told"

    @property
    def extremes(self) -> tuple[tuple[str, Number, Number], ...]:
        """Of the numbers of more than two findings: label, smallest, largest."""
        labels = [label for label, _ in self.findings[0].numbers] if len(self.findings) > 2 else []
        found = []
        for label in labels:
            told = [
                number
                for finding in self.findings
                for name, number in finding.numbers
                if name == label and number.value is not None
            ]
            if len(told) > 1:
                found.append((label, min(told, key=_value), max(told, key=_value)))
        return tuple(found)

    def count(self, verdict: Verdict) -> int:
        """How many of the findings have a verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)


class Smoothest(NamedTuple):
    """The run of the least total persistence after its last epoch, in one tree, and the others,
    the next smoothest first; ``ratio`` is that one's total persistence over the first's."""

    tree: Tree
    run: str
    value: Number
    others: tuple[tuple[str, Number], ...]
    ratio: Number | None

    @property
    def tied(self) -> bool:
        """Whether the next one is as smooth, to rounding."""
        return bool(self.others) and (self.ratio is None or _value(self.ratio) < 1 + ROUNDING)


def thesis_claims(results: Results) -> tuple[Claim, ...]:
    """Judge each of the thesis's claims by a study's results.

    Parameters
    ----------
    results : Results

    Returns
    -------
    tuple of Claim
        In the thesis's order; a claim about two runs has no finding where no two runs of
        different, known initial rates are there.
    """
    fields = [
        field
        for field in itertools.product(results.runs, SPLITS, TREES)
        if topology_rows(results, *field)
    ]
    return (
        Claim(
            "Total persistence falls as the network trains.",
            f"It holds where the rank correlation with the epoch (from epoch 1 on) is at most "
            f"−{CLEAR} and the last value is below the first; it does not where the correlation "
            "is not negative or the last value is not below the first.",
            tuple(_falls(results, run, split, tree) for run, split, tree in fields),
        ),
        Claim(
            "The run with the larger initial learning rate ends smoother on validation data.",
            "It holds where its total persistence after the last epoch is the smaller one.",
            tuple(
                _compared(results, pair, tree) for pair in _rate_pairs(results) for tree in TREES
            ),
        ),
        Claim(
            "The Wasserstein distance to the last epoch tracks accuracy.",
            f"It holds where the rank correlation with the same data's accuracy is at most "
            f"−{CLEAR}, both of the values and of their first differences (two trends always "
            "correlate); it does not where either is not negative.",
            tuple(_tracks(results, run, split, tree) for run, split, tree in fields),
        ),
        Claim(
            "The run with the larger initial learning rate generalises better.",
            "It holds where its validation accuracy after the last epoch is the larger one.",
            tuple(_compared(results, pair, None) for pair in _rate_pairs(results)),
        ),
    )


def smoothest_runs(results: Results, split: Split = "val") -> list[Smoothest]:
    """For each tree, the runs by total persistence after their last epoch.

    Runs that have none, or an infinite one, are left out, and so is a tree where no run has any.
    """
    found = []
    for tree in TREES:
        ends = [(run, end_persistence(results, run, split, tree)) for run in results.runs]
        told = [(run, end) for run, end in ends if math.isfinite(_value(end))]
        if not told:
            continue
        (run, value), *others = sorted(told, key=lambda pair: _value(pair[1]))
        ratio = None
        if others and value.value:
            next_run, next_value = others[0]
            key = {"run": next_run, "over": run, "split": split, "tree": tree}
            ratio = Number(_value(next_value) / value.value, "derived", "ratio", key)
        found.append(Smoothest(tree, run, value, tuple(others), ratio))
    return found


def end_persistence(results: Results, run: str, split: Split, tree: Tree) -> Number:
    """Total persistence after a run's last epoch; no value where that epoch is not ok."""
    last = epochs(results, run)[-1]
    return topology_number(results, "total_persistence", run, split, tree, last)


def end_accuracy(results: Results, run: str, split: Split) -> Number:
    """Accuracy after a run's last epoch; no value where it was not recorded."""
    return training_number(results, "accuracy", run, split, epochs(results, run)[-1])


def _falls(results: Results, run: str, split: Split, tree: Tree) -> Finding:
    rows = topology_rows(results, run, split, tree)
    line = curve(rows, "total_persistence")
    told = (line.epoch > 0) & np.isfinite(line.value)
    line = Curve(line.epoch[told], line.value[told])
    rho = _rank_correlation(line)
    key = {"run": run, "split": split, "tree": tree}
    numbers = [("rank correlation with the epoch", Number(rho, "derived", "spearman_epoch", key))]
    for label, at in (("first", 0), ("last", -1)) if len(line.epoch) else ():
        epoch = int(line.epoch[at])
        end = topology_number(results, "total_persistence", run, split, tree, epoch)
        numbers.append((f"{label} (epoch {epoch})", end))
    if len(line.epoch) < FEWEST:
        reason = f"fewer than {FEWEST} epochs with a finite value"
        return Finding((run,), split, tree, tuple(numbers), "cannot be told", reason)
    first, last = line.value[[0, -1]]
    lower = last < first and not math.isclose(first, last, rel_tol=ROUNDING)
    trend = 0.0 if rho is None else rho
    verdict = _told(holds=lower and trend <= -CLEAR, fails=not lower or trend >= 0)
    reason = "the trend is not clear" if verdict == "cannot be told" else ""
    return Finding((run,), split, tree, tuple(numbers), verdict, reason)


def _tracks(results: Results, run: str, split: Split, tree: Tree) -> Finding:
    measure = f"wasserstein_{orders(results)[0]:g}"
    field = {"run": run, "split": split, "tree": tree}
    numbers = []
    for differenced, label in ((False, "values"), (True, "first differences")):
        key = field | {
            "measure": measure,
            "target": f"{split}_accuracy",
            "differenced": differenced,
        }
        of = number(results.correlations, "correlations", "spearman", **key)
        numbers.append((f"rank correlation of the {label}", of))
    rhos = [of.value for _, of in numbers if of.value is not None and math.isfinite(of.value)]
    if len(rhos) < 2:
        reason = "no correlation with accuracy was recorded"
        return Finding((run,), split, tree, tuple(numbers), "cannot be told", reason)
    verdict = _told(holds=max(rhos) <= -CLEAR, fails=max(rhos) >= 0)
    reason = "the correlation is not clear" if verdict == "cannot be told" else ""
    return Finding((run,), split, tree, tuple(numbers), verdict, reason)


def _compared(results: Results, pair: tuple[str, str], tree: Tree | None) -> Finding:
    """The end of the run of the larger rate against that of the smaller one."""
    numbers = tuple(
        (
            f"{run} (rate {initial_rate(results, run):g})",
            end_persistence(results, run, "val", tree)
            if tree
            else end_accuracy(results, run, "val"),
        )
        for run in pair
    )
    large, small = (of.value for _, of in numbers)
    verdict: Verdict = "cannot be told"
    reason = ""
    if large is None or small is None or not math.isfinite(large + small):
        reason = "not recorded at the end of both runs"
    elif not _alike(results, pair):
        reason = "the runs differ in more than the rate"
    elif math.isclose(large, small, rel_tol=ROUNDING):
        verdict, reason = "does not hold", "equal"
    else:
        verdict = "holds" if (large < small) == (tree is not None) else "does not hold"
    return Finding(pair, "val", tree, numbers, verdict, reason)


def _rate_pairs(results: Results) -> list[tuple[str, str]]:
    """Every run of the largest initial rate with every run of the smallest; none for one rate."""
    rates = {run: initial_rate(results, run) for run in results.runs}
    known = {run: rate for run, rate in rates.items() if rate is not None}
    if len(set(known.values())) < 2:
        return []
    large = [run for run, rate in known.items() if rate == max(known.values())]
    small = [run for run, rate in known.items() if rate == min(known.values())]
    return list(itertools.product(large, small))


def _alike(results: Results, pair: Sequence[str]) -> bool:
    """Whether two runs differ in their rate and seed at most, as far as is known."""
    free = {"training": {"lr", "seed", "keep_checkpoints"}}
    settings = [
        results.study.runs[run].model_dump(mode="json", exclude=free)
        for run in pair
        if run in results.study.runs
    ]
    return all(setting == settings[0] for setting in settings)


def _value(number: Number) -> float:
    return math.nan if number.value is None else number.value


def _rank_correlation(line: Curve) -> float | None:
    """Spearman's coefficient; None for fewer than two values and for equal ones."""
    if len(line.epoch) < 2 or np.ptp(line.value) == 0:
        return None
    return float(spearmanr(line.epoch, line.value).statistic)


def _told(*, holds: bool, fails: bool) -> Verdict:
    if holds:
        return "holds"
    return "does not hold" if fails else "cannot be told"
