"""The claims' verdicts on planted results, in either direction."""

from __future__ import annotations

import numpy as np
import pytest
from planted import Plan, falling, planted_study

from lltopo.claims import smoothest_runs, thesis_claims
from lltopo.results import read_results, topology_rows
from lltopo.study_files import resolved_study

FALLS, SMOOTHER, TRACKS, GENERALISES = range(4)


def claims_of(folder, **plan):
    return thesis_claims(read_results(*planted_study(Plan(n_pairs=5, **plan), folder)))


def verdicts(claim):
    return {finding.verdict for finding in claim.findings}


def test_all_hold_where_they_were_planted(tmp_path):
    claims = claims_of(tmp_path)
    assert [claim.verdict for claim in claims] == ["holds"] * 4
    assert [len(claim.findings) for claim in claims] == [8, 2, 8, 1]
    assert claims[FALLS].count("holds") == 8


def test_none_holds_where_the_opposite_was_planted(tmp_path):
    claims = claims_of(
        tmp_path,
        persistence=lambda run, split, tree, epoch: (5 if run == "large" else 2) + epoch,
        accuracy=lambda run, split, epoch: 0.5 if run == "large" else 0.6,
        correlation=lambda *_: 0.3,
    )
    assert [claim.verdict for claim in claims] == ["does not hold"] * 4


@pytest.mark.parametrize(
    ("total", "verdict"),
    [
        (lambda epoch: 20 - epoch, "holds"),
        (lambda epoch: 5 + epoch, "does not hold"),
        # falls, but ends above where it began
        (lambda epoch: 9.1 if epoch == 12 else 9 - epoch / 2, "does not hold"),
        # ends lower after rising
        (lambda epoch: 5 + epoch / 2 if 1 < epoch < 12 else 6 - epoch / 4, "does not hold"),
        (lambda epoch: (7 + epoch % 2) * (1.0 if epoch < 12 else 0.5), "cannot be told"),
        (lambda epoch: 5.0, "does not hold"),
    ],
)
def test_falling_persistence(tmp_path, total, verdict):
    claim = claims_of(tmp_path, persistence=lambda run, split, tree, e: total(e))[FALLS]
    assert verdicts(claim) == {verdict}


def test_the_untrained_network_is_no_part_of_the_trend(tmp_path):
    def total(run, split, tree, epoch):
        return 1.0 if epoch == 0 else 30.0 - epoch

    assert verdicts(claims_of(tmp_path, persistence=total)[FALLS]) == {"holds"}


def test_a_trend_needs_epochs(tmp_path):
    claim = claims_of(tmp_path, epochs=range(5), milestones=())[FALLS]
    assert verdicts(claim) == {"cannot be told"}
    assert "fewer than 5 epochs" in claim.findings[0].reason


def test_rank_correlation_equals_that_of_the_ranks(tmp_path):
    rng = np.random.default_rng(1)
    noise = {
        (run, split, tree, epoch): rng.uniform(5, 9)
        for run in ("large", "small")
        for split in ("train", "val")
        for tree in ("join", "split")
        for epoch in range(13)
    }
    study, out = planted_study(Plan(n_pairs=5, persistence=lambda *key: noise[key]), tmp_path)
    results = read_results(study, out)
    for finding in thesis_claims(results)[FALLS].findings:
        rows = topology_rows(results, finding.runs[0], finding.split, finding.tree)
        told = [row for row in rows if row["epoch"] > 0]
        ranks = np.argsort(np.argsort([row["total_persistence"] for row in told]))
        expected = np.corrcoef(ranks, [row["epoch"] for row in told])[0, 1]
        numbers = [number.value for _, number in finding.numbers]
        assert numbers[0] == pytest.approx(expected, abs=1e-12)
        assert numbers[1:] == [told[0]["total_persistence"], told[-1]["total_persistence"]]


def test_trees_may_disagree_on_the_smoother_run(tmp_path):
    def total(run, split, tree, epoch):
        return 4.0 if (run == "large") == (tree == "join") else 6.0

    study, out = planted_study(Plan(n_pairs=5, persistence=total), tmp_path)
    results = read_results(study, out)
    claim = thesis_claims(results)[SMOOTHER]
    assert [finding.verdict for finding in claim.findings] == ["holds", "does not hold"]
    assert claim.verdict == "cannot be told"
    assert [(end.tree, end.run) for end in smoothest_runs(results)] == [
        ("join", "large"),
        ("split", "small"),
    ]
    assert all(end.ratio.value == pytest.approx(1.5) for end in smoothest_runs(results))


def test_equal_ends_are_no_proof(tmp_path):
    plan = {"persistence": lambda *_: 5.0, "accuracy": lambda *_: 0.9}
    study, out = planted_study(Plan(n_pairs=5, **plan), tmp_path)
    results = read_results(study, out)
    claims = thesis_claims(results)
    assert verdicts(claims[SMOOTHER]) == verdicts(claims[GENERALISES]) == {"does not hold"}
    assert all(end.tied for end in smoothest_runs(results))


def test_a_run_that_diverged_at_the_end_cannot_be_compared(tmp_path):
    lost = {("large", "val", 12): ("diverged", "losses are not finite")}
    study, out = planted_study(Plan(n_pairs=5, lost=lost), tmp_path)
    results = read_results(study, out)
    claim = thesis_claims(results)[SMOOTHER]
    assert verdicts(claim) == {"cannot be told"}
    assert [(end.run, end.others) for end in smoothest_runs(results)] == [("small", ())] * 2
    # the epochs before are judged all the same
    assert thesis_claims(results)[FALLS].verdict == "holds"


def test_runs_that_differ_in_more_than_the_rate_cannot_be_compared(tmp_path):
    claims = claims_of(tmp_path, settings={"small": {"weight_decay": 0.1}})
    assert verdicts(claims[SMOOTHER]) == verdicts(claims[GENERALISES]) == {"cannot be told"}
    assert claims[SMOOTHER].findings[0].reason == "the runs differ in more than the rate"


def test_another_seed_is_no_other_setting(tmp_path):
    claims = claims_of(tmp_path, settings={"small": {"seed": 7}})
    assert claims[SMOOTHER].verdict == claims[GENERALISES].verdict == "holds"


def test_every_run_of_the_largest_rate_meets_every_run_of_the_smallest(tmp_path):
    rates = {"large": 0.1, "large2": 0.1, "middle": 0.05, "small": 0.01}
    settings = {"large2": {"batch_size": 64}}

    def total(run, split, tree, epoch):
        return falling("large" if run.startswith("large") else run, split, tree, epoch)

    claim = claims_of(tmp_path, rates=rates, settings=settings, persistence=total)[SMOOTHER]
    pairs = {finding.runs for finding in claim.findings}
    assert pairs == {("large", "small"), ("large2", "small")}
    assert claim.count("holds") == 2  # of the run that differs in its batches, too, nothing is told


SEEDS = {
    "rates": {"large-0": 0.1, "large-1": 0.1, "small-0": 0.01, "small-1": 0.01},
    "settings": {"large-1": {"seed": 1}, "small-1": {"seed": 1}},
}


@pytest.mark.parametrize(
    ("ends", "verdict", "reason"),
    [
        ({"large-0": 1, "large-1": 2, "small-0": 3, "small-1": 4}, "holds", ""),
        ({"large-0": 4, "large-1": 3, "small-0": 1, "small-1": 2}, "does not hold", ""),
        (
            {"large-0": 1, "large-1": 3, "small-0": 2, "small-1": 4},
            "cannot be told",
            "the seeds of the two overlap",
        ),
    ],
)
def test_seeds_are_held_against_their_spread(tmp_path, ends, verdict, reason):
    def total(run, split, tree, epoch):
        return ends[run] + (12 - epoch) / 2

    study, out = planted_study(Plan(n_pairs=5, persistence=total, **SEEDS), tmp_path)
    results = read_results(study, out)
    claim = thesis_claims(results)[SMOOTHER]
    assert len(claim.findings) == 2  # one a tree
    for finding in claim.findings:
        assert finding.runs == ("large (2 seeds)", "small (2 seeds)")
        assert (finding.verdict, finding.reason) == (verdict, reason)
        for (label, mean), name in zip(finding.numbers, ("large", "small"), strict=True):
            seeds = [ends[run] for run in ends if run.startswith(name)]
            assert mean.value == pytest.approx(sum(seeds) / 2, rel=1e-12)
            spread = finding.spread[label]
            assert spread.smallest.value == pytest.approx(min(seeds), rel=1e-12)
            assert spread.largest.value == pytest.approx(max(seeds), rel=1e-12)
    smoothest = smoothest_runs(results)
    smoother = "small" if verdict == "does not hold" else "large"
    assert [end.run for end in smoothest] == [smoother] * 2
    assert all(end.tied == (verdict == "cannot be told") for end in smoothest)


def test_seeds_must_agree_on_a_trend(tmp_path):
    def total(run, split, tree, epoch):
        return 20 + (epoch if run == "large-1" else -epoch)

    claim = claims_of(tmp_path, persistence=total, **SEEDS)[FALLS]
    told = {finding.runs[0]: (finding.verdict, finding.reason) for finding in claim.findings}
    assert told == {
        "large (2 seeds)": ("cannot be told", "the seeds differ"),
        "small (2 seeds)": ("holds", ""),
    }
    [rho] = {
        finding.spread["rank correlation with the epoch"].largest.value
        for finding in claim.findings
        if finding.runs == ("large (2 seeds)",)
    }
    assert rho == pytest.approx(1)


def test_a_seed_that_diverged_leaves_nothing_to_compare(tmp_path):
    lost = {("large-1", "val", 12): ("diverged", "losses are not finite")}
    claim = claims_of(tmp_path, lost=lost, **SEEDS)[SMOOTHER]
    assert verdicts(claim) == {"cannot be told"}


def test_networks_with_and_without_shortcuts_are_compared(tmp_path):
    plan = Plan(n_pairs=5, rates={"large": 0.1, "small": 0.01})
    study, out = planted_study(plan, tmp_path)
    raw = study.model_dump(mode="json")
    for run, shortcuts in (("large", True), ("small", False)):
        raw["runs"][run]["model"] = {"name": "resnet", "shortcuts": shortcuts}
    results = read_results(resolved_study(raw, "planted"), out)
    claims = thesis_claims(results)
    assert len(claims) == 5
    assert claims[4].verdict == "holds"
    assert claims[4].findings[0].runs == ("large", "small")
    # the networks differ in more than the rate
    assert claims[SMOOTHER].verdict == "cannot be told"


@pytest.mark.parametrize(
    ("plain", "differenced", "verdict"),
    [
        (-0.9, -0.6, "holds"),
        (-0.9, 0.1, "does not hold"),
        (0.2, -0.9, "does not hold"),
        (-0.9, -0.2, "cannot be told"),
        (None, -0.9, "cannot be told"),
        (None, None, "cannot be told"),
    ],
)
def test_distance_tracks_accuracy_in_values_and_differences(tmp_path, plain, differenced, verdict):
    claim = claims_of(
        tmp_path,
        correlation=lambda run, split, tree, of_differences: (
            differenced if of_differences else plain
        ),
    )[TRACKS]
    assert verdicts(claim) == {verdict}
    assert [n.value for _, n in claim.findings[0].numbers] == [plain, differenced]


def test_without_rates_or_accuracy_nothing_is_told_of_them(tmp_path):
    claims = claims_of(
        tmp_path, trained=False, accuracy=lambda *_: None, correlation=lambda *_: None
    )
    assert claims[FALLS].verdict == "holds"
    assert [claims[i].verdict for i in (SMOOTHER, TRACKS, GENERALISES)] == ["cannot be told"] * 3
    assert claims[SMOOTHER].findings == ()


def test_recorded_rates_serve_where_the_study_trained_nothing(tmp_path):
    study, out = planted_study(Plan(n_pairs=5), tmp_path)
    untrained, _ = planted_study(Plan(n_pairs=5, trained=False), tmp_path / "other")
    claims = thesis_claims(read_results(untrained, out))
    assert claims[SMOOTHER].verdict == "holds"
    assert claims[SMOOTHER].findings[0].runs == tuple(study.runs)
