"""Who may import what: the data flows one way, and only a few files know Ray, torch or a disk."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tiny import tiny_arrays

import lltopo

PACKAGE = Path(lltopo.__file__).parent
KERNELS = (
    "arrays",
    "assignment",
    "bottleneck",
    "candidates",
    "contour",
    "diagrams",
    "distances",
    "graph",
    "jump_topology",
    "lengths",
    "neighbours",
    "network_simplex",
    "surface_topology",
    "threads",
    "transport",
    "trees",
)
KNOW_RAY = {"training", "fanout", "submission"}
KNOW_TORCH = {"checkpoints", "evaluation", "graph_torch", "jump", "loop", "rates", "surface"}
KNOW_TORCH |= {"slices", "training"}
DRAW = {"figures", "heatmaps", "jump_plates", "plates", "slider", "trajectories"}
DRAW |= {"surface_figures", "surface_plates"}
FILES = {"io", "os", "pathlib", "pickle", "pyarrow", "shutil", "tempfile", "zipfile"}
FILE_CALLS = {"open", "load", "save", "savez", "memmap", "open_memmap", "fromfile", "tofile"}


class Import(NamedTuple):
    """One imported module, and whether it is loaded with the file that imports it."""

    module: str
    at_once: bool


def module_name(path: Path) -> str:
    """The name of a file below the package: graph, models.mlp, models."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax tree of every file of the package, by its name; "" is the package itself."""
    return {module_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def imports_in(node: ast.AST, at_once: bool = True) -> Iterator[Import]:
    """Every import below a node, but those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield Import(str(child.module), at_once)
            # a name imported from a package may be a module of it
            yield from (Import(f"{child.module}.{alias.name}", at_once) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        else:
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_in(child, at_once and not inner)


@cache
def foreign(name: str) -> frozenset[Import]:
    """What a file imports of other people's packages, by their top-level names."""
    found = {Import(i.module.split(".")[0], i.at_once) for i in imports_in(sources()[name])}
    return frozenset(i for i in found if i.module != "lltopo")


@cache
def ours(name: str) -> frozenset[str]:
    """Which files of ours a file imports, at once or later."""
    modules = {i.module.removeprefix("lltopo.") for i in imports_in(sources()[name])}
    return frozenset((modules & sources().keys()) - {name, ""})


def reached(*names: str) -> set[str]:
    """These files and all that they import, directly or not."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += ours(name)
    return found


def know(*packages: str) -> set[str]:
    """The files that import one of some packages."""
    return {name for name in sources() if {i.module for i in foreign(name)} & {*packages}}


def test_the_reading_of_imports_sees_them_all() -> None:
    assert Import("ray", True) in foreign("fanout")
    assert Import("gudhi", False) in foreign("verification")
    assert Import("torch", True) in foreign("models.mlp")
    assert not any(i.module == "torch" for i in foreign("recorder"))
    assert {"tables", "storage", "errors"} <= ours("recorder")
    assert "report" in ours("stages")
    assert {"claims", "plates"} <= ours("report")
    assert set(KERNELS) <= sources().keys()


def test_imports_go_one_way() -> None:
    order = list(TopologicalSorter({name: ours(name) for name in sources()}).static_order())
    assert order.index("errors") < order.index("study") < order.index("loop")
    assert order[-1] in {"__main__", "cli", ""}
    # the schema of a study is read without any of the work
    schema = {"study", "study_data", "study_models", "sections"}
    assert (
        reached("study_files") == {"study_files", "storage", "faults", "orphans", "errors"} | schema
    )


def test_kernels_are_functions_of_arrays() -> None:
    kernels = reached(*KERNELS)
    assert not kernels & know("ray", "torch", "matplotlib", "pydantic", *FILES)
    # of ours they reach errors and each other, never what holds a study or a file
    above = {"analysis", "data", "recorder", "results", "storage", "study", "tables"}
    assert not kernels & above
    for name in kernels:
        for node in ast.walk(sources()[name]):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                called = node.func.attr if isinstance(node.func, ast.Attribute) else called
                assert called not in FILE_CALLS, f"{name} calls {called}"


def test_slow_libraries_are_loaded_when_they_are_needed() -> None:
    for name in sources():
        for slow in ("gudhi", "ot", "phate", "pynndescent", "sklearn", "torchvision"):
            assert Import(slow, True) not in foreign(name), f"{name} loads {slow} at once"


def test_only_a_few_files_know_ray_torch_and_matplotlib() -> None:
    assert {"training", "fanout"} <= know("ray") <= KNOW_RAY
    knows_torch = {name for name in know("torch", "torchvision") if not name.startswith("models")}
    assert {"loop", "evaluation"} <= knows_torch <= KNOW_TORCH | {"data"}
    assert Import("torch", True) not in foreign("data")
    assert "figures" in know("matplotlib") <= DRAW


def test_the_loop_reaches_neither_ray_nor_a_kernel() -> None:
    below = reached("loop", "recorder")
    assert not below & know("ray", "numba", "gudhi", "matplotlib")
    assert not below & reached(*KERNELS) - {"errors"}


def test_fanout_knows_nothing_of_what_its_tasks_do() -> None:
    assert reached("fanout") == {"fanout", "driver_folders", "orphans"}


# -- what really is loaded --


def run(code: str, *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    times = run("import lltopo", "-X", "importtime").stderr
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in times.splitlines()}
    assert "lltopo" in loaded
    heavy = {"ray", "torch", "numba", "numpy", "gudhi", "matplotlib", "pyarrow", "scipy"}
    assert not loaded & heavy


def test_every_name_of_the_package_is_there() -> None:
    exported = set(lltopo.__all__)
    assert exported <= set(dir(lltopo))
    assert all(getattr(lltopo, name).__name__ == name for name in exported)
    contract = {"Graph", "knn_graph", "join_tree", "split_tree", "contour_tree", "LossRecorder"}
    contract |= {"persistence_pairs", "persistence_diagram", "total_persistence", "as_ascending"}
    contract |= {"wasserstein_distance", "bottleneck_distance"}
    assert exported >= contract
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        lltopo.no_such_name  # noqa: B018
    # what the type checker is told is what is loaded
    checked = [node for node in ast.walk(sources()[""]) if isinstance(node, ast.If)]
    told = {
        alias.name: str(node.module).removeprefix("lltopo.")
        for node in ast.walk(checked[0])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == lltopo._HOME


TRAIN = """
import sys
import torch
from lltopo.data import load_data
from lltopo.loop import Worker, train_run
from lltopo.storage import place
from lltopo.study_files import resolved_study

raw = {{
    "data": {{"source": "npz", "path": {data!r}}},
    "model": {{"name": "mlp", "hidden": [4]}},
    "training": {{"epochs": 1, "lr": 0.1}},
    "runs": {{"only": {{}}}},
}}
study = resolved_study(raw, "test")
train_run(study, "only", load_data(study.data), place({out!r}), Worker(0, 1, torch.device("cpu")))
print("loaded", *sorted(name for name in sys.modules if "." not in name))
"""


def test_the_loop_trains_with_neither_ray_nor_a_kernel_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **tiny_arrays())
    code = TRAIN.format(data=str(tmp_path / "data.npz"), out=str(tmp_path / "out"))
    [line] = [line for line in run(code).stdout.splitlines() if line.startswith("loaded ")]
    loaded = set(line.split())
    assert {"torch", "lltopo", "pyarrow"} <= loaded
    assert not loaded & {"ray", "numba", "gudhi", "matplotlib", "sklearn"}
    assert (tmp_path / "out/losses/run=only/split=val/epoch=00001/part-0.parquet").exists()


# -- how it is written --


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_public_things_say_what_they_are(path: Path) -> None:
    tree = sources()[module_name(path)]
    assert ast.get_docstring(tree)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    without = [node.name for node in public if not ast.get_docstring(node)]
    # a section of a study may be named by its keys alone
    assert [name for name in without if not re.search(r"(Section|Model)$", name)] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420
    for node in ast.walk(sources()[module_name(path)]):
        if isinstance(node, ast.FunctionDef):
            length = int(node.end_lineno or 0) - node.lineno
            assert length <= 90, f"{node.name} has {length} lines"
