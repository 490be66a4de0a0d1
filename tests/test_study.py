"""Studies: what is refused and how, what is merged, what counts as the same study."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lltopo.errors import InputError
from lltopo.study import Study, Training, changed_keys, run_digest
from lltopo.study_files import parsed_study, read_study, resolved_study, study_yaml
from lltopo.study_models import MlpModel

RAW = {
    "data": {"source": "digits"},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 2, "lr": 0.1, "milestones": [2]},
    "runs": {"large": {}, "small": {"training": {"lr": 0.01}}},
}


def with_(changes: dict[str, Any]) -> dict[str, Any]:
    """RAW with the values of dotted keys put in."""
    raw = deepcopy(RAW)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return raw


def study(**changes: Any) -> Study:
    return resolved_study(with_(changes), "s.yaml")


# -- what is refused --

REFUSED = [
    # unknown keys, at any depth, with the nearest known one
    ({"grpah": {}}, "grpah: unknown key. Did you mean graph?"),
    ({"graph.kk": 3}, "graph.kk: unknown key. Did you mean k?"),
    ({"data.pth": 3}, "data.pth: unknown key."),
    ({"runs.large.training.learning": 1}, "runs.large.training.learning: unknown key."),
    ({"training.momentun": 1}, "runs.large.training.momentun: unknown key. Did you mean momentum?"),
    ({"model.hiden": [1]}, "runs.large.model.hiden: unknown key. Did you mean hidden?"),
    # a run may have the name of a section: nothing of its key is lost
    ({"runs.model.training.lr": "x"}, "runs.model.training.lr: is not valid: expected a valid num"),
    ({"runs.data.training.lr": "x"}, "runs.data.training.lr: is not valid"),
    # wrong types and values
    ({"graph.k": "many"}, "graph.k: is not valid: expected a valid integer"),
    ({"graph.k": 0}, "graph.k: is not valid: expected greater than or equal to 1, got 0."),
    ({"graph": None}, "graph: is not valid"),
    ({"training.epochs": 2.5}, "runs.large.training.epochs: is not valid"),
    ({"training.lr": math.nan}, "runs.large.training.lr: is not valid: expected a finite number"),
    ({"training.lr": -1}, "runs.large.training.lr: is not valid"),
    ({"training.milestones": [3, 2]}, "runs.large.training.milestones: is not valid: expected ris"),
    (
        {"training.batch_size": 7, "training.workers": 4},
        "runs.large.training: is not valid: batch_size is too small: expected 2 samples a worker "
        "or more, 8 in all, got 7.",
    ),
    ({"training.momentum": 0}, "runs.large.training: is not valid: nesterov needs a momentum"),
    ({"training": [1]}, "runs.large.training: is not valid"),
    ({"runs.large": 3}, "runs.large: is not valid"),
    ({"data.std": [0.0]}, "data.std.0: is not valid: expected greater than 0, got 0.0."),
    ({"data.mean": [math.inf]}, "data.mean.0: is not valid"),
    ({"analysis.order": []}, "analysis.order: is not valid"),
    ({"analysis.order": [1, 0.5]}, "analysis.order.1: is not valid"),
    ({"analysis.order": [2, 2]}, "analysis.order: is not valid: expected each order once"),
    ({"model": {"name": "wideresnet", "depth": 17}}, "runs.large.model.depth: is not valid: expe"),
    # unions
    ({"data.source": "digit"}, "data: is unknown: expected one of 'digits', 'parquet'"),
    ({"model.name": "convnext"}, "runs.large.model: is unknown: expected one of"),
    ({"model": {}}, "runs.large.model.name: is missing. Add it."),
    ({"data": {"source": "npz"}}, "data.path: is missing. Add it."),
    ({"training": {"epochs": 1}}, "runs.large.training.lr: is missing. Add it."),
    ({"data": {}}, "data.source: is missing. Add it."),
    ({"data": "digits"}, "data: is not valid"),
    # runs
    ({"runs": {}}, "runs: is empty: expected at least one run by its name, got {}."),
    ({"runs": None}, "runs: is empty"),
    ({"runs": ["large"]}, "runs: is empty"),
    *[
        (
            {"runs": {name: {}}},
            f"runs: {name!r} is no name: expected text, got {kind}. Quote it, as",
        )
        for name, kind in ((0.1, "float"), (7, "int"), (True, "bool"))
    ],
    *[
        ({"runs": {name: {}}}, f"runs: {name!r} is no safe file name")
        for name in ("a/b", "..", ".hidden", "", "a b", "a=b", "a\n", "é", "x" * 101)
    ],
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_a_wrong_study_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolved_study(with_(changes), "s.yaml")
    text = str(caught.value)
    assert text.startswith(f"s.yaml: {message}")
    assert "\n" not in text
    assert text.endswith((".", "?"))


GIVEN = {"source": "losses", "losses": {"r": {"train": "a.npy"}}, "features": {"train": "x.npy"}}


@pytest.mark.parametrize(
    ("data", "others", "message"),
    [
        ({"losses": {"r/": {"train": "a"}}}, {}, "data.losses: 'r/' is no safe file name"),
        ({"losses": {"r": {"trian": "a"}}}, {}, "data.losses.r.trian: is not valid: expected 'tr"),
        ({"losses": {0.1: {"train": "a"}}}, {}, "data.losses: 0.1 is no name: expected text, got"),
        ({"losses": 3}, {}, "data.losses: is not valid"),
        ({"features": {"test": "x"}}, {}, "data.features.test: is not valid"),
        ({"first_epoch": -1}, {}, "data.first_epoch: is not valid"),
        ({}, {"runs": {"a": {}}}, "runs: has no use: the losses are given"),
        ({}, {"training": {"epochs": 1}}, "training: has no use: the losses are given"),
    ],
)
def test_given_losses_are_refused_in_one_line(
    data: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        resolved_study({"data": GIVEN | data, **others}, "s.yaml")
    assert str(caught.value).startswith(f"s.yaml: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {source: digits", "no valid YAML"),
        (b"\xff\xfe", "no valid YAML"),
        (
            b"runs:\n  a: {}\n  b: {}\n  a: {training: {lr: 1}}\n",
            "no valid YAML: the key a is given tw",
        ),
        (b"graph: {k: 3}\ngraph: {k: 4}\n", "no valid YAML: the key graph is given twice in"),
        (b"- 1\n- 2\n", "no study: expected keys such as data and runs, got list."),
        (b"", "no study: expected keys such as data and runs, got NoneType."),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_study(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read: .*Give the path of a study file"):
        read_study(tmp_path / name)


# -- what is merged --


def test_model_and_training_are_merged_into_each_run() -> None:
    runs = study(**{"runs.small.model": {"hidden": [5, 6]}}).runs
    assert runs["large"].training == Training(epochs=2, lr=0.1, milestones=[2])
    assert runs["small"].training == Training(epochs=2, lr=0.01, milestones=[2])
    assert runs["large"].model == MlpModel(name="mlp", hidden=[4])
    assert runs["small"].model == MlpModel(name="mlp", hidden=[5, 6])


def test_a_model_of_another_name_inherits_nothing() -> None:
    runs = study(**{"runs.small.model": {"name": "convnet"}}).runs
    assert runs["small"].model.model_dump() == {"name": "convnet", "width": 16}
    assert runs["large"].model.name == "mlp"


@pytest.mark.parametrize("key", ["model", "runs.small.model"])
def test_python_alone_means_a_model_of_ones_own(key: str) -> None:
    model = study(**{key: {"python": "mine:build"}}).runs["small"].model
    assert model.model_dump() == {"name": "python", "python": "mine:build", "options": {}}


def test_python_alone_means_data_of_ones_own() -> None:
    data = study(data={"python": "mine:load", "options": {"n": 3}}).data
    assert data.source == "python"
    assert data.options == {"n": 3}


def test_a_run_may_be_empty_in_the_file() -> None:
    assert study(runs={"a": None}).runs["a"].training.lr == 0.1


def test_a_single_order_is_a_list_of_one() -> None:
    assert study(**{"analysis.order": 2}).analysis.order == [2.0]
    assert study(**{"analysis.order": "inf"}).analysis.order == [math.inf]


def test_the_given_mapping_is_left_alone() -> None:
    raw = deepcopy(RAW)
    resolved_study(raw, "s.yaml", ["training.lr=0.5"])
    assert raw == RAW


# -- --set --


def test_set_overrides_and_adds_keys() -> None:
    changes = ["runs.small.training.lr=0.3", "graph.k=5", "runs.third.training.seed=7"]
    found = resolved_study(RAW, "s.yaml", [*changes, "analysis.order=[1, 2]"])
    assert found.runs["small"].training.lr == 0.3
    assert found.runs["large"].training.lr == 0.1
    assert found.runs["third"].training.seed == 7
    assert found.graph.k == 5
    assert found.analysis.order == [1.0, 2.0]


def test_set_reads_exponents_and_equals_signs() -> None:
    found = resolved_study(RAW, "s.yaml", ["training.weight_decay=5e-4", "report.title='a=b'"])
    assert found.runs["large"].training.weight_decay == 5e-4
    assert found.report.title == "a=b"


def test_a_merged_anchor_is_no_repeated_key() -> None:
    text = b"""
    data: {source: digits}
    model: {name: mlp}
    training: {epochs: 1, lr: 0.1}
    runs:
      a: &a {training: {lr: 0.2, seed: 3}}
      b: &b {<<: *a, model: {hidden: [3]}}
      c: {<<: *b, model: {hidden: [4]}}
    """
    runs = parsed_study(text, "s.yaml").runs
    assert [run.training.seed for run in runs.values()] == [3, 3, 3]
    assert [run.model.hidden for run in runs.values()] == [[128], [3], [4]]


def test_a_set_of_repeated_keys_is_refused() -> None:
    with pytest.raises(InputError, match=r"--set: graph: the value .* is no valid YAML"):
        resolved_study(RAW, "s.yaml", ["graph={k: 3, k: 4}"])


@pytest.mark.parametrize("override", ["graph.k", "=3", "graph..k=3", ".k=3", ""])
def test_a_malformed_set_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=r"--set: .* is malformed: expected dotted\.key=value"):
        resolved_study(RAW, "s.yaml", [override])


def test_a_set_of_no_yaml_is_refused() -> None:
    with pytest.raises(InputError, match=r"--set: graph\.k: the value '\[1' is no valid YAML"):
        resolved_study(RAW, "s.yaml", ["graph.k=[1"])


def test_set_of_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"graph\.methd: unknown key\. Did you mean method\?"):
        resolved_study(RAW, "s.yaml", ["graph.methd=exact"])


# -- paths --


def test_paths_are_relative_to_the_file_and_in_set_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "jobs" / "s.yaml"
    path.write_text(yaml.safe_dump(with_({"data": {"source": "npz", "path": "../x.npz"}})))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_study(Path("../jobs/s.yaml")).data.path == str(tmp_path / "x.npz")
    assert read_study(path, ["data.path=y.npz"]).data.path == str(tmp_path / "elsewhere/y.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_study(path, ["data.path=~/z.npz"]).data.path == str(tmp_path / "z.npz")


def test_all_paths_of_given_losses_become_absolute(tmp_path: Path) -> None:
    text = yaml.safe_dump({"data": GIVEN}).encode()
    data = parsed_study(text, "s.yaml", tmp_path).data
    assert data.losses == {"r": {"train": str(tmp_path / "a.npy")}}
    assert data.features == {"train": str(tmp_path / "x.npy")}
    folder = parsed_study(yaml.safe_dump({"data": GIVEN | {"losses": "f"}}).encode(), "s", tmp_path)
    assert folder.data.losses == str(tmp_path / "f")
    remote = GIVEN | {"losses": "s3://bucket/losses"}
    assert resolved_study({"data": remote}, "s").data.losses == "s3://bucket/losses"


# -- the resolved copy, and what counts as the same study --


def test_the_resolved_study_reads_back_as_itself() -> None:
    found = study(
        **{"analysis.order": [1, math.inf], "training.weight_decay": 1e-5, "report.title": "größer"}
    )
    assert parsed_study(study_yaml(found).encode(), "copy") == found
    given = resolved_study({"data": GIVEN}, "s.yaml")
    assert parsed_study(study_yaml(given).encode(), "copy") == given


FREE = [
    {"report.title": "other"},
    {"report.bins": 7},
    {"resources.local_cpus": 7},
    {"storage.retry_s": 7.0},
    {"analysis.verify": 3},
    {"training.epochs": 9},
    {"runs.third": {"training": {"lr": 1.0}}},
]


@pytest.mark.parametrize("changes", FREE, ids=str)
def test_a_rerun_may_change(changes: dict[str, Any]) -> None:
    assert changed_keys(study(), study(**changes)) == []


CHANGED = [
    ({"runs.small.training.lr": 0.2}, ["runs.small.training.lr (was 0.01, now 0.2)"]),
    ({"training.seed": 1}, ["runs.large.training.seed", "runs.small.training.seed"]),
    ({"training.epochs": 1}, ["runs.large.training.epochs (was 2, now 1)", "runs.small"]),
    ({"graph.k": 3, "analysis.degree": 2}, ["analysis.degree", "graph.k (was 20, now 3)"]),
    ({"analysis.contour": True}, ["analysis.contour"]),
    ({"analysis.order": [1, 2]}, ["analysis.order (was [1.0], now [1.0, 2.0])"]),
    ({"data.train_samples": 100}, ["data.train_samples (was None, now 100)"]),
    ({"runs.small.model": {"name": "convnet"}}, ["runs.small.model.hidden", "runs.small.model."]),
]


@pytest.mark.parametrize(("changes", "keys"), CHANGED, ids=[str(keys) for _, keys in CHANGED])
def test_what_made_the_results_may_not_change(changes: dict[str, Any], keys: list[str]) -> None:
    found = changed_keys(study(), study(**changes))
    assert all(text.startswith(key) for text, key in zip(found, keys, strict=False))
    assert len(found) >= len(keys)


@pytest.mark.parametrize("longer", ["ab", "a.b"])
def test_a_run_may_not_go_away_and_a_longer_name_is_another_run(longer: str) -> None:
    before = study(runs={"a": {}, longer: {}})
    assert changed_keys(before, study(runs={"a": {}})) == [f"runs.{longer} (is gone)"]
    assert changed_keys(
        study(runs={longer: {}}), study(runs={"a": {}, longer: {"training": {"lr": 1}}})
    ) == [f"runs.{longer}.training.lr (was 0.1, now 1.0)"]


def test_given_runs_may_be_added_and_may_not_change_or_go_away() -> None:
    def given(**losses: Any) -> Study:
        return resolved_study({"data": GIVEN | {"losses": losses}}, "s.yaml")

    a, other = {"train": "/a.npy"}, {"train": "/b.npy", "val": "/c.npy"}
    assert changed_keys(given(a=a), given(a=a, b=other)) == []
    assert changed_keys(given(a=a, b=other), given(a=a)) == ["data.losses.b (is gone)"]
    assert changed_keys(given(a=a), given(a={"train": "/b.npy"}, b=other)) == [
        "data.losses.a.train (was '/a.npy', now '/b.npy')"
    ]
    folder = resolved_study({"data": GIVEN | {"losses": "/a"}}, "s.yaml")
    assert changed_keys(folder, given(a=a)) == ["data.losses (was '/a', now None)"]


def test_a_download_makes_no_result() -> None:
    data = {"source": "torchvision", "name": "MNIST", "root": "/data"}
    before, after = study(data=data), study(data=data | {"download": True})
    assert changed_keys(before, after) == []
    assert run_digest(before, "large") == run_digest(after, "large")
    assert changed_keys(before, study(data=data | {"root": "/other"}))


def test_the_digest_of_a_run_says_what_made_its_losses() -> None:
    digest = run_digest(study(), "large")
    assert run_digest(study(**{"training.epochs": 9}), "large") == digest
    assert run_digest(study(**{"training.keep_checkpoints": [1]}), "large") == digest
    assert run_digest(study(**{"graph.k": 3, "runs.small.training.lr": 1.0}), "large") == digest
    for change in ({"training.lr": 0.2}, {"data.val_samples": 9}, {"training.threads": 2}):
        assert run_digest(study(**change), "large") != digest
    assert run_digest(study(), "small") != digest


# -- the schedule --


def test_the_rate_falls_from_each_milestone_on() -> None:
    training = Training(epochs=9, lr=0.1, gamma=0.2, milestones=[3, 6])
    rates = [training.learning_rate(epoch) for epoch in range(1, 9)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.02, 0.004, 0.004, 0.004], rel=1e-15)
    assert Training(epochs=2, lr=0.1, milestones=[1]).learning_rate(1) == 0.1 * 0.1
