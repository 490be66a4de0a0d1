"""The source thesis's claims, and what a study measured of each.

A claim is judged in every place where it can be (a run, split and tree; a pair of runs) by a
rule that is written beside the verdict. A trend counts as clear from a rank correlation of
``CLEAR`` on; what points neither way, and what was not measured, cannot be told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
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
from lltopo.seeds import SeedGroup, Spread, seed_groups, spread_over_seeds
from lltopo.study_models import ResNetModel
from lltopo.tables import TREES, Tree

Verdict = Literal["holds", "does not hold", "cannot be told"]

CLEAR = 0.5
ROUNDING = 1e-9  # two ends that differ by less, relatively, are equal
NAMES = {"lr": "the rate", "shortcuts": "the shortcuts"}
FEWEST = 5  # epochs below which no trend is judged


class Finding(NamedTuple):
    """A claim in one place: where, the labelled numbers measured, and the verdict of them.

    Of several seeds the numbers are means; ``spread`` has the smallest and largest by label.
    """

    runs: tuple[str, ...]
    split: Split
    tree: Tree | None
    numbers: tuple[tuple[str, Number], ...]
    verdict: Verdict
    reason: str
    spread: Mapping[str, Spread] = {}

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
    the next smoothest first; ``ratio`` is that one's total persistence over the first's. Runs
    that differ only in their seed count as one, by their mean; ``tied`` says that the next one's
    seeds do not all end rougher, to rounding."""

    tree: Tree
    run: str
    value: Number
    others: tuple[tuple[str, Number], ...]
    ratio: Number | None
    tied: bool


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
    groups = seed_groups(results)
    fields = [
        field
        for field in itertools.product(groups, SPLITS, TREES)
        if any(topology_rows(results, run, *field[1:]) for run in field[0].runs)
    ]
    separate = "Of several seeds, where each of the one run's is below each of the other's."
    claims = [
        Claim(
            "Total persistence falls as the network trains.",
            f"It holds where the rank correlation with the epoch (from epoch 1 on) is at most "
            f"−{CLEAR} and the last value is below the first; it does not where the correlation "
            "is not negative or the last value is not below the first. Of several seeds, all "
            "must agree.",
            tuple(_over_seeds(results, _falls, *field) for field in fields),
        ),
        Claim(
            "The run with the larger initial learning rate ends smoother on validation data.",
            "It holds where its total persistence after the last epoch is the smaller one. "
            f"{separate}",
            tuple(
                _compared(results, pair, tree, ("lr",))
                for pair in _rate_pairs(results, groups)
                for tree in TREES
            ),
        ),
        Claim(
            "The Wasserstein distance to the last epoch tracks accuracy.",
            f"It holds where the rank correlation with the same data's accuracy is at most "
            f"−{CLEAR}, both of the values and of their first differences (two trends always "
            "correlate); it does not where either is not negative. Of several seeds, all must "
            "agree.",
            tuple(_over_seeds(results, _tracks, *field) for field in fields),
        ),
        Claim(
            "The run with the larger initial learning rate generalises better.",
            "It holds where its validation accuracy after the last epoch is the larger one. "
            f"{separate.replace('below', 'above')}",
            tuple(_compared(results, pair, None, ("lr",)) for pair in _rate_pairs(results, groups)),
        ),
    ]
    pairs = _shortcut_pairs(results, groups)
    if pairs:
        claims.append(
            Claim(
                "The network with skip connections ends smoother on validation data.",
                "It holds where its total persistence after the last epoch is the smaller one; "
                f"the two may differ in their rate, too. {separate}",
                tuple(
                    _compared(results, pair, tree, ("lr", "shortcuts"))
                    for pair in pairs
                    for tree in TREES
                ),
            )
        )
    return tuple(claims)


def smoothest_runs(results: Results, split: Split = "val") -> list[Smoothest]:
    """For each tree, the runs by total persistence after their last epoch.

    Runs that have none, or an infinite one, are left out, and so is a tree where no run has any.
    """
    found = []
    for tree in TREES:
        ends = []
        for group in seed_groups(results):
            numbers = [end_persistence(results, run, split, tree) for run in group.runs]
            spread = spread_over_seeds(group.runs, numbers)
            if spread is not None:
                # one seed's number is the table's own
                shown = numbers[0] if len(numbers) == 1 else spread.mean
                ends.append((_value(spread.mean), group.name, shown, spread))
        if not ends:
            continue
        (_, run, value, spread), *others = sorted(ends, key=lambda end: end[0])
        ratio = None
        if others and value.value:
            key = {"run": others[0][1], "over": run, "split": split, "tree": tree}
            ratio = Number(others[0][0] / value.value, "derived", "ratio", key)
        tied = bool(others) and not _clearly_below(spread, others[0][3])
        shown_others = tuple((name, number) for _, name, number, _ in others)
        found.append(Smoothest(tree, run, value, shown_others, ratio, tied))
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


def _over_seeds(
    results: Results, judged: Callable[..., Finding], group: SeedGroup, split: Split, tree: Tree
) -> Finding:
    """What is found of each seed, as one finding: means, spreads, and the verdict of all."""
    findings = [judged(results, run, split, tree) for run in group.runs]
    if len(findings) == 1:
        return findings[0]
    spread = {}
    for label, _ in findings[0].numbers:
        same = [number for finding in findings for name, number in finding.numbers if name == label]
        of_all = spread_over_seeds(group.runs, same) if len(same) == len(findings) else None
        if of_all is not None:
            spread[label] = of_all
    numbers = tuple((label, of.mean) for label, of in spread.items())
    verdict, reason = findings[0].verdict, findings[0].reason
    if len({finding.verdict for finding in findings}) > 1:
        verdict, reason = "cannot be told", "the seeds differ"
    return Finding((group.label,), split, tree, numbers, verdict, reason, spread)


def _compared(
    results: Results,
    pair: tuple[SeedGroup, SeedGroup],
    tree: Tree | None,
    free: Sequence[str],
) -> Finding:
    """The end of one group against that of another, from which it differs in ``free`` at most."""
    numbers: list[tuple[str, Number]] = []
    spread: dict[str, Spread] = {}
    ends = []
    for group in pair:
        found = [
            end_persistence(results, run, "val", tree)
            if tree
            else end_accuracy(results, run, "val")
            for run in group.runs
        ]
        label = f"{group.label} (rate {initial_rate(results, group.runs[0]):g})"
        of_all = spread_over_seeds(group.runs, found)
        ends.append(of_all)
        several = of_all is not None and len(found) > 1
        numbers.append((label, of_all.mean if of_all and several else found[0]))
        if of_all and several:
            spread[label] = of_all
    first, second = ends
    verdict: Verdict = "cannot be told"
    reason = ""
    if first is None or second is None:
        reason = "not recorded at the end of both runs"
    elif not _alike(results, pair, free):
        reason = f"the runs differ in more than {' and '.join(NAMES[key] for key in free)}"
    else:
        below, above = _clearly_below(first, second), _clearly_below(second, first)
        verdict = _told(holds=below if tree else above, fails=above if tree else below)
        if not (below or above):
            single = all(len(group.runs) == 1 for group in pair)
            verdict = "does not hold" if single else "cannot be told"
            reason = "equal" if single else "the seeds of the two overlap"
    runs = tuple(group.label for group in pair)
    return Finding(runs, "val", tree, tuple(numbers), verdict, reason, spread)


def _end(results: Results, run: str, tree: Tree | None) -> Number:
    if tree is None:
        return end_accuracy(results, run, "val")
    return end_persistence(results, run, "val", tree)


def _clearly_below(one: Spread, other: Spread) -> bool:
    """Whether each seed of the one ends below each of the other, by more than rounding."""
    high, low = _value(one.largest), _value(other.smallest)
    return high < low and not math.isclose(high, low, rel_tol=ROUNDING)


def _rate_pairs(results: Results, groups: Sequence[SeedGroup]) -> list[tuple[SeedGroup, SeedGroup]]:
    """Every run of the largest initial rate with every run of the smallest; none for one rate."""
    rates = {group: initial_rate(results, group.runs[0]) for group in groups}
    known = {group: rate for group, rate in rates.items() if rate is not None}
    if len(set(known.values())) < 2:
        return []
    large = [group for group, rate in known.items() if rate == max(known.values())]
    small = [group for group, rate in known.items() if rate == min(known.values())]
    return list(itertools.product(large, small))


def _shortcut_pairs(
    results: Results, groups: Sequence[SeedGroup]
) -> list[tuple[SeedGroup, SeedGroup]]:
    """Every residual network with every one that lacks nothing but its shortcuts."""
    models = {
        group: results.study.runs[group.runs[0]].model
        for group in groups
        if group.runs[0] in results.study.runs
    }
    residual = {g: m for g, m in models.items() if isinstance(m, ResNetModel)}
    return [
        (one, other)
        for one, other in itertools.permutations(residual, 2)
        if residual[one].shortcuts and not residual[other].shortcuts
    ]


def _alike(results: Results, pair: Sequence[SeedGroup], free: Sequence[str]) -> bool:
    """Whether two groups differ in ``free`` and seeds at most, as far as is known."""
    excluded = {"training": {"seed", "keep_checkpoints", *free}, "model": {*free}}
    settings = [
        results.study.runs[group.runs[0]].model_dump(mode="json", exclude=excluded)
        for group in pair
        if group.runs[0] in results.study.runs
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
