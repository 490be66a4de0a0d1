"""Runs that differ in nothing but their seed, taken together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from lltopo.results import Number, Results
from lltopo.study import Study


class SeedGroup(NamedTuple):
    """Runs of the same settings with different seeds, and what they have in common as a name."""

    name: str
    runs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name, with how many seeds there are."""
        return self.name if len(self.runs) == 1 else f"{self.name} ({len(self.runs)} seeds)"


class Spread(NamedTuple):
    """A number's mean over seeds, and the smallest and the largest one."""

    mean: Number
    smallest: Number
    largest: Number


def seed_groups(results: Results) -> list[SeedGroup]:
    """The runs by their settings, in the order of the first of each."""
    return groups_by_settings(results.study, results.runs)


def groups_by_settings(study: Study, runs: Sequence[str]) -> list[SeedGroup]:
    """Some runs by their settings, in the order of the first of each.

    A run whose settings are not known stands alone.
    """
    groups: dict[str, list[str]] = {}
    for run in runs:
        key = f"run {run}"
        if run in study.runs:
            free = {"training": {"seed", "keep_checkpoints"}}
            key = study.runs[run].model_dump_json(exclude=free)
        groups.setdefault(key, []).append(run)
    return [SeedGroup(_common_name(alike), tuple(alike)) for alike in groups.values()]


def first_seeds(results: Results) -> list[str]:
    """The first run of each group: what is shown where there is no room for all."""
    return [group.runs[0] for group in seed_groups(results)]


def styles(results: Results) -> dict[str, int]:
    """The number of each run's colour and line: one for all seeds of a group."""
    return {run: i for i, group in enumerate(seed_groups(results)) for run in group.runs}


def spread_over_seeds(runs: Sequence[str], numbers: Sequence[Number]) -> Spread | None:
    """The mean and the extremes of one number of several runs; None unless all are finite."""
    told = [number.value for number in numbers if number.value is not None]
    if len(told) < len(numbers) or not all(map(math.isfinite, told)):
        return None
    first = numbers[0]
    # what the runs have in common, and which they are
    key = dict(set.intersection(*(set(number.key.items()) for number in numbers)))
    key |= {"runs": " ".join(runs), "of": first.column}
    derived = (
        (math.fsum(told) / len(told), "mean_over_seeds"),
        (min(told), "smallest_over_seeds"),
        (max(told), "largest_over_seeds"),
    )
    return Spread(*(Number(value, "derived", column, key) for value, column in derived))


def _common_name(runs: Sequence[str]) -> str:
    """What the names of some runs begin with alike; the first ones where that is nothing."""
    if len(runs) == 1:
        return runs[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*runs, strict=False))
    shared = "".join(letters[0] for letters in alike).rstrip("-_. ")
    return shared or ", ".join(runs[:3])
