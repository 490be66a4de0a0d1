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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lltopo.analysis import read_points
from lltopo.distances import wasserstein_distance
from lltopo.fanout import Call, fan_out
from lltopo.schemas import COMPARISON
from lltopo.sections import SPLITS, Split
from lltopo.seeds import groups_by_settings
from lltopo.session import Session, study_session
from lltopo.storage import Place
from lltopo.study import Analysis, Study
from lltopo.surface_files import PlaneKey, file_digest, read_surface, surface_file
from lltopo.surface_topology import surface_diagrams
from lltopo.tables import TREES, Field, Tree, diagram_file, footer, write_table

Row = dict[str, Any]
Domain = Literal["samples", "surfaces"]
Member = tuple[str, int]
"""A run, and the seed of its plane or the epoch of its samples."""
Pair = tuple[Member, Member]
Distance = float | str
"""A distance, or the reason why there is none."""

FIELDS: list[tuple[Split, Tree]] = list(itertools.product(SPLITS, TREES))
_ONE_SEED: dict[Domain, str] = {
    "samples": "one training seed, so the spread is not known: add runs that differ in "
    "training.seed alone",
    "surfaces": "one seed of directions, so the spread is not known: name several in surface.seeds",
}


class Pairs(NamedTuple):
    """Which diagrams to compare: those of two groups, and those that differ in chance alone."""

    between: list[Pair]
    within: list[Pair]


class _Couple(NamedTuple):
    """Two groups, and what of them is to be compared."""

    names: dict[str, str]
    samples: Pairs
    surfaces: Pairs


def write_comparison(session: Session, keys: Sequence[PlaneKey], ray: ExitStack) -> list[str]:
    """Write ``comparison.parquet``, unless it is there and of the very same diagrams.

    Parameters
    ----------
    session
        The study, where its results go, and whom to tell of the progress.
    keys
        The surfaces that are there; those of each run's last epoch are compared.
    ray
        Gets the study's Ray session where distances between samples are to be computed.

    Returns
    -------
    list of str
        A line for each distance that could not be computed.
    """
    study, out, _ = session
    target = out / "comparison.parquet"
    planes = last_planes(keys)
    runs = list(dict.fromkeys(key.run for key in planes))
    inputs = _inputs_digest(study, out, runs, planes)
    if (footer(target) or {}).get("inputs") == inputs:
        return []
    couples = list(_couples(study, runs, planes))
    rows: list[Row] = []
    problems: list[str] = []
    surfaces = {(key.run, key.seed): read_surface(surface_file(out, key)).loss for key in planes}
    for split, tree in FIELDS:
        pairs = _all_pairs(couple.samples for couple in couples)
        samples, lost = _sample_distances(session, split, tree, pairs, ray)
        problems += lost
        diagrams = {member: _diagram(loss[split], tree) for member, loss in surfaces.items()}
        on_planes = {
            pair: _distance(diagrams, pair)
            for pair in _all_pairs(couple.surfaces for couple in couples)
        }
        for couple in couples:
            common = couple.names | {"split": split, "tree": tree}
            rows.append(common | contrast("samples", couple.samples, samples))
            rows.append(common | contrast("surfaces", couple.surfaces, on_planes))
    write_table(target, rows, COMPARISON, {} if problems else {"inputs": inputs})
    return problems


def last_planes(keys: Sequence[PlaneKey]) -> list[PlaneKey]:
    """Return the planes at each run's last epoch that has any."""
    last = {key.run: key.epoch for key in sorted(keys)}
    return [key for key in keys if key.epoch == last[key.run]]


def contrast(domain: Domain, pairs: Pairs, distances: Mapping[Pair, Distance]) -> Row:
    """Set how far two groups lie apart against how far chance alone takes each.

    Parameters
    ----------
    domain
        What the diagrams are of.
    pairs, distances
        Which distances count for what.

    Returns
    -------
    dict
        The columns of ``comparison.parquet`` from ``domain`` on: mean ``distance`` and
        ``spread``, and their ``ratio``. What cannot be told is None, and ``reason`` says why.
    """
    sides = [[distances[pair] for pair in side] for side in pairs]
    reasons = [found for side in sides for found in side if isinstance(found, str)]
    distance, spread = (_mean(side) for side in sides)
    if not reasons and spread is None:
        reasons = [_ONE_SEED[domain]]
    if spread == 0:
        reasons = ["the spread is zero: its seeds change nothing"]
    ratio = distance / spread if distance is not None and spread else None
    return {
        "domain": domain,
        "n_between": len(pairs.between),
        "n_within": len(pairs.within),
        "distance": distance,
        "spread": spread,
        "ratio": ratio,
        "reason": None if ratio is not None else reasons[0],
    }


def sample_distance(
    out: Place, fields: tuple[Field, Field], tree: Tree, analysis: Analysis
) -> float:
    """Compute W_1 between the diagrams of two fields, which lie below ``out``."""
    a, b = (read_points(out, field, tree, analysis) for field in fields)
    return wasserstein_distance(a, b)


def _couples(study: Study, runs: Sequence[str], planes: Sequence[PlaneKey]) -> Iterator[_Couple]:
    """Each two groups of runs, with the pairs of their samples after the last epoch and of their
    planes."""
    seeds = sorted({key.seed for key in planes})
    last = {run: (run, study.runs[run].training.epochs) for run in runs}
    groups = [group.runs for group in groups_by_settings(study, runs)]
    for a, b in itertools.combinations(groups, 2):
        chance = [*itertools.combinations(a, 2), *itertools.combinations(b, 2)]
        yield _Couple(
            {"group_a": ", ".join(a), "group_b": ", ".join(b)},
            Pairs(
                [(last[r], last[s]) for r in a for s in b],
                [(last[r], last[s]) for r, s in chance],
            ),
            Pairs(
                [((r, n), (s, n)) for r in a for s in b for n in seeds],
                [((r, m), (r, n)) for r in a + b for m, n in itertools.combinations(seeds, 2)],
            ),
        )


def _all_pairs(sides: Iterable[Pairs]) -> list[Pair]:
    return list(dict.fromkeys(pair for pairs in sides for side in pairs for pair in side))


def _sample_distances(
    session: Session, split: Split, tree: Tree, pairs: Sequence[Pair], ray: ExitStack
) -> tuple[dict[Pair, Distance], list[str]]:
    """The distances between samples' diagrams, one task each, and what went wrong."""
    study, out, notify = session
    distances: dict[Pair, Distance] = {}
    calls = []
    for pair in pairs:
        fields = tuple(Field(run, split, epoch) for run, epoch in pair)
        lost = [reason for field in fields if (reason := _lost_diagram(out, field, tree))]
        if lost:
            distances[pair] = lost[0]
        else:
            calls.append(Call(pair, (out, fields, tree, study.analysis)))
    if not calls:
        return distances, []
    ray.enter_context(study_session(study))
    problems = []
    for done, outcome in enumerate(fan_out(sample_distance, iter([calls])), start=1):
        distances[outcome.key] = outcome.error if outcome.error is not None else outcome.value
        if outcome.error is not None:
            problems.append(f"comparison of {outcome.key}, {split}: {outcome.error}")
        notify(f"comparison, {split}, {tree}", done, len(calls), "distances")
    return distances, problems


def _lost_diagram(out: Place, field: Field, tree: Tree) -> str | None:
    """Why a field has no diagram to compare, if so."""
    found = footer(diagram_file(out, field, tree))
    if found is None:
        where = f"run {field.run}, epoch {field.epoch}"
        return f"{where}: the samples have no diagram there: lltopo analyze makes it"
    return None if found["status"] == "ok" else f"run {field.run}: {found.get('reason')}"


def _diagram(loss: NDArray[np.float64], tree: Tree) -> NDArray[np.float64] | str:
    n_lost = int(np.count_nonzero(~np.isfinite(loss)))
    if n_lost:
        return f"{n_lost} of {loss.size} losses on a plane are not finite"
    found = surface_diagrams(loss)
    return found.join if tree == "join" else found.split


def _distance(diagrams: Mapping[Member, NDArray[np.float64] | str], pair: Pair) -> Distance:
    ends = []
    for run, seed in pair:
        found = diagrams.get((run, seed), "there is no surface")
        if isinstance(found, str):
            return f"run {run}, seed {seed}: {found}"
        ends.append(found)
    return wasserstein_distance(ends[0], ends[1])


def _mean(side: Sequence[Distance]) -> float | None:
    known = [found for found in side if not isinstance(found, str)]
    return float(np.mean(known)) if known and len(known) == len(side) else None


def _inputs_digest(
    study: Study, out: Place, runs: Sequence[str], planes: Sequence[PlaneKey]
) -> str:
    """SHA-256 of all that the comparison is made of."""
    content: list[Any] = [groups_by_settings(study, runs), study.analysis.essential]
    content += [[*key, file_digest(surface_file(out, key))] for key in planes]
    for run, (split, tree) in itertools.product(runs, FIELDS):
        field = Field(run, split, study.runs[run].training.epochs)
        content.append(footer(diagram_file(out, field, tree)))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
