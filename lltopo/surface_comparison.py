"""Which tells runs apart better: the losses of samples, or the loss on planes? (thesis, 7.4)

Two groups of runs differ in a setting; runs that differ in nothing but their seed are one group.
How far the groups' persistence diagrams lie apart (mean W_1) says little by itself. It is divided
by its spread, the mean W_1 of diagrams that differ in chance alone: in the seed of the directions
for surfaces, in the seed of the training for samples. A ratio well above 1 tells the groups apart.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lltopo.analysis import read_points
from lltopo.distances import wasserstein_distance
from lltopo.fanout import Call, fan_out
from lltopo.sections import SPLITS, Split
from lltopo.session import Session, study_session
from lltopo.storage import Place
from lltopo.study import Analysis, Study
from lltopo.surface_files import PlaneKey, file_digest, read_surface, surface_file
from lltopo.surface_topology import surface_diagrams
from lltopo.tables import COMPARISON, TREES, Field, Tree, diagram_file, footer, write_table

Row = dict[str, Any]
Group = tuple[str, ...]
Pair = tuple[Hashable, Hashable]
Domain = Literal["samples", "surface"]

_ONE_SEED: dict[Domain, str] = {
    "surface": "one seed of directions: their spread cannot be told; name several in surface.seeds",
    "samples": "one training seed: the spread cannot be told; add runs that differ in "
    "training.seed alone",
}


class Pairs(NamedTuple):
    """Which diagrams to compare: of two groups, and of one, differing in chance alone."""

    between: list[Pair]
    within: list[Pair]


def write_comparison(session: Session, keys: Sequence[PlaneKey], ray: ExitStack) -> list[str]:
    """Write ``comparison.parquet``, unless it is there and of the very same diagrams.

    Parameters
    ----------
    session
        The study, where its results go, and whom to tell of the progress.
    keys
        The surfaces that are there; each run's last epoch is compared.
    ray
        Gets the study's Ray session where there are distances to compute.

    Returns
    -------
    list of str
        A line for each distance that could not be computed.
    """
    study, out, notify = session
    target = out / "comparison.parquet"
    planes = last_planes(keys)
    groups = run_groups(study, list(dict.fromkeys(key.run for key in planes)))
    inputs = _inputs_digest(study, out, groups, planes)
    if (footer(target) or {}).get("inputs") == inputs:
        return []
    couples = list(itertools.combinations(groups, 2))
    of_samples = [sample_pairs(a, b) for a, b in couples]
    seeds = sorted({key.seed for key in planes})
    of_planes = [surface_pairs(a, b, seeds) for a, b in couples]
    samples, problems = _sample_distances(session, of_samples, ray)
    surfaces = _surface_distances(out, planes, of_planes)
    rows = [
        {"group_a": ", ".join(a), "group_b": ", ".join(b), "split": split, "tree": tree}
        | contrast(domain, pairs, distances[split, tree])
        for (a, b), by_samples, by_planes in zip(couples, of_samples, of_planes, strict=True)
        for split, tree in FIELDS
        for domain, pairs, distances in (
            ("samples", by_samples, samples),
            ("surfaces", by_planes, surfaces),
        )
    ]
    notify("comparison", len(rows), len(rows), "rows")
    write_table(target, rows, COMPARISON, {} if problems else {"inputs": inputs})
    return problems


def run_groups(study: Study, runs: Sequence[str]) -> list[Group]:
    """Put runs that differ in nothing but ``training.seed`` into one group, in order."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        chance = {"training": {"seed", "keep_checkpoints"}}
        settings = study.runs[run].model_dump(mode="json", exclude=chance)
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return [tuple(group) for group in groups.values()]


def last_planes(keys: Sequence[PlaneKey]) -> list[PlaneKey]:
    """Return the planes of each run's last epoch that has any."""
    last = {key.run: key.epoch for key in sorted(keys)}
    return [key for key in keys if key.epoch == last[key.run]]


def sample_pairs(a: Group, b: Group) -> Pairs:
    """Return pairs of runs: across two groups, and within each, of another training seed."""
    within = [*itertools.combinations(a, 2), *itertools.combinations(b, 2)]
    return Pairs(list(itertools.product(a, b)), list(within))


def surface_pairs(a: Group, b: Group, seeds: Sequence[int]) -> Pairs:
    """Return pairs of (run, seed of the directions): across two groups with the same seed, and of
    one run with another seed."""
    between = [((r, seed), (s, seed)) for r in a for s in b for seed in seeds]
    within = [((r, s), (r, t)) for r in (*a, *b) for s, t in itertools.combinations(seeds, 2)]
    return Pairs(list(between), list(within))


def contrast(domain: Domain, pairs: Pairs, distances: Mapping[Pair, float | str]) -> Row:
    """Set how far two groups lie apart against the spread of each.

    Parameters
    ----------
    domain
        What the diagrams are of.
    pairs
    distances
        Of each pair, or the reason why there is none.

    Returns
    -------
    dict
        The columns of ``comparison.parquet`` from ``domain`` on; what cannot be told is None, and
        ``reason`` says why.
    """
    between, within = ([distances[pair] for pair in side] for side in pairs)
    lost = [d for d in (*between, *within) if isinstance(d, str)]
    distance, spread = (
        float(np.mean(side)) if side and not any(isinstance(d, str) for d in side) else None
        for side in (between, within)
    )
    reason = lost[0] if lost else None
    if not lost and not within:
        reason = _ONE_SEED[domain]
    elif spread == 0:
        reason = "the spread is zero: the seeds change nothing"
    told = distance is not None and spread is not None and spread > 0
    return {
        "domain": domain,
        "n_between": len(between),
        "n_within": len(within),
        "distance": distance,
        "spread": spread,
        "ratio": distance / spread if told and distance is not None and spread else None,
        "reason": reason,
    }


def sample_distance(
    out: Place, fields: tuple[Field, Field], tree: Tree, analysis: Analysis
) -> float:
    """Compute W_1 of two fields' diagrams, which lie below ``out``."""
    a, b = (read_points(out, field, tree, analysis) for field in fields)
    return wasserstein_distance(a, b)


def _sample_distances(
    session: Session, wanted: Sequence[Pairs], ray: ExitStack
) -> tuple[dict[tuple[Split, Tree], dict[Pair, float | str]], list[str]]:
    """The distances of the runs' samples after their last epochs, and what went wrong."""
    study, out, notify = session
    distances: dict[tuple[Split, Tree], dict[Pair, float | str]] = {key: {} for key in FIELDS}
    calls = []
    for pair in dict.fromkeys(pair for pairs in wanted for side in pairs for pair in side):
        for split, tree in FIELDS:
            fields = tuple(_last_field(study, str(run), split) for run in pair)
            lost = [reason for field in fields if (reason := _lost_field(out, field, tree))]
            if lost:
                distances[split, tree][pair] = lost[0]
            else:
                calls.append(Call((split, tree, pair), (out, fields, tree, study.analysis)))
    if calls:
        ray.enter_context(study_session(study))
    problems = []
    for done, outcome in enumerate(fan_out(sample_distance, iter([calls])) if calls else (), 1):
        split, tree, pair = outcome.key
        distances[split, tree][pair] = outcome.value if outcome.error is None else outcome.error
        if outcome.error is not None:
            problems.append(f"comparison of {' and '.join(pair)}, {split}: {outcome.error}")
        notify("comparison", done, len(calls), "distances")
    return distances, problems


def _surface_distances(
    out: Place, planes: Sequence[PlaneKey], wanted: Sequence[Pairs]
) -> dict[tuple[Split, Tree], dict[Pair, float | str]]:
    """The distances of surfaces: few points each, so that they need no tasks."""
    distances: dict[tuple[Split, Tree], dict[Pair, float | str]] = {key: {} for key in FIELDS}
    surfaces = {(key.run, key.seed): read_surface(surface_file(out, key)) for key in planes}
    for split in SPLITS:
        diagrams = {key: _diagrams(surface.loss[split]) for key, surface in surfaces.items()}
        for tree in TREES:
            for pair in (pair for pairs in wanted for side in pairs for pair in side):
                run = next((key for key in pair if key not in diagrams), None)
                ...
    return distances
