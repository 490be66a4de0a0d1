"""A surface as HDF5: loss-landscape's keys and orientation, the same bytes, clear complaints."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lltopo.errors import InputError
from lltopo.storage import place
from lltopo.surface_files import (
    PlaneKey,
    Surface,
    file_digest,
    read_surface,
    surface_attributes,
    surface_bytes,
    surface_file,
    write_surface,
)

X, Y = np.linspace(-1, 1, 5), np.linspace(-1, 1, 3)


def planted() -> Surface:
    """A surface on which each point tells where it is."""
    loss = 10.0 + Y[:, None] + 0.1 * X[None, :]
    grids = {"train": loss, "val": loss + 1}
    accuracy = {"train": 0.5 + 0.25 * X * Y[:, None], "val": np.full((3, 5), 0.125)}
    return Surface(X, Y, grids, accuracy)


def foreign(path: Path, **changed: object) -> Path:
    """A file as loss-landscape's plot_surface.py leaves it, some of its keys changed."""
    content = {
        "dir_file": "model_300.t7_weights_xignore=biasbn_xnorm=filter.h5",
        "xcoordinates": np.linspace(-1, 1, 4),
        "ycoordinates": np.linspace(-1, 1, 4),
        "train_loss": np.arange(16.0).reshape(4, 4),
        "train_acc": np.arange(16.0).reshape(4, 4) * 5,
    }
    with h5py.File(path, "w") as file:
        for name, value in (content | changed).items():
            if value is not None:
                file[name] = value
    return path


def test_keys_shapes_and_units_are_loss_landscapes() -> None:
    with h5py.File(io.BytesIO(surface_bytes(planted(), {})), "r") as file:
        names = {"xcoordinates", "ycoordinates", "train_loss", "train_acc", "test_loss", "test_acc"}
        assert set(file) == names
        assert_array_equal(file["xcoordinates"][:], X)
        assert_array_equal(file["ycoordinates"][:], Y)
        # as its plots take them: meshgrid(x, y) has a row for each y
        grid_x, grid_y = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])
        np.testing.assert_allclose(file["train_loss"][:], 10 + grid_y + 0.1 * grid_x)
        assert_array_equal(file["test_acc"][:], np.full((3, 5), 12.5))
        assert all(file[name].dtype == np.float64 for name in names)


def test_a_surface_reads_back_as_it_was(tmp_path: Path) -> None:
    target = surface_file(place(tmp_path), PlaneKey("a", 12, 3))
    assert target.path.endswith("surfaces/run=a/epoch=00012/seed=3/surface.h5")
    surface = planted()
    surface.loss["train"][1, 1] = np.inf
    surface.loss["train"][0, 0] = np.nan
    write_surface(target, surface, {"run": "a", "epoch": 12, "seed": 3, "cosine": -0.25})
    found = read_surface(target)
    for split in ("train", "val"):
        assert_array_equal(found.loss[split], surface.loss[split])
        assert_array_equal(found.accuracy[split], surface.accuracy[split])
    assert_array_equal(found.x, X)
    made = surface_attributes(target)
    assert made == {"run": "a", "epoch": 12, "seed": 3, "cosine": -0.25}
    assert [type(value) for value in made.values()] == [str, int, int, float]


def test_the_same_surface_has_the_same_bytes(tmp_path: Path) -> None:
    made = {"run": "a", "epoch": 1, "cosine": 0.1, "settings": "0" * 64}
    first, again = (surface_bytes(planted(), made) for _ in range(2))
    assert first == again
    assert first != surface_bytes(planted(), made | {"epoch": 2})
    for name in ("a.h5", "b.h5"):
        write_surface(place(tmp_path / name), planted(), made)
    assert file_digest(place(tmp_path / "a.h5")) == file_digest(place(tmp_path / "b.h5"))


def test_a_file_of_loss_landscape_reads_back(tmp_path: Path) -> None:
    found = read_surface(place(foreign(tmp_path / "theirs.h5")))
    assert list(found.loss) == ["train"]
    assert_array_equal(found.loss["train"], np.arange(16.0).reshape(4, 4))
    np.testing.assert_allclose(found.accuracy["train"], np.arange(16.0).reshape(4, 4) / 20)
    assert surface_attributes(place(tmp_path / "theirs.h5")) == {}
    both = foreign(tmp_path / "both.h5", test_loss=np.ones((4, 4)))
    found = read_surface(place(both))
    assert list(found.loss) == ["train", "val"]
    assert np.isnan(found.accuracy["val"]).all()


def test_points_that_it_has_not_computed_are_not_known(tmp_path: Path) -> None:
    losses = np.arange(16.0).reshape(4, 4)
    losses[2:] = -1
    found = read_surface(place(foreign(tmp_path / "theirs.h5", train_loss=losses)))
    assert np.isnan(found.loss["train"][2:]).all()
    assert_array_equal(found.loss["train"][:2], losses[:2])


def test_unequal_axes_are_read_as_they_were_filled(tmp_path: Path) -> None:
    # loss-landscape declares (x, y), and fills it in the order of meshgrid(x, y)
    grid_x, grid_y = np.meshgrid(X, Y)
    declared = -np.ones((len(X), len(Y)))
    declared.ravel()[:] = (100 + 10 * grid_y + grid_x).ravel()
    axes = {"xcoordinates": X, "ycoordinates": Y, "train_acc": None}
    found = read_surface(place(foreign(tmp_path / "theirs.h5", train_loss=declared, **axes)))
    assert_array_equal(found.loss["train"], 100 + 10 * Y[:, None] + X[None, :])


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"ycoordinates": None}, r"ycoordinates: does not make a surface: .* got none"),
        ({"train_loss": None, "train_acc": None}, "expected train_loss or test_loss, got neither"),
        ({"train_loss": np.ones((3, 4))}, r"train_loss: .* expected shape \(4, 4\), got \(3, 4\)"),
        ({"train_loss": "text"}, "train_loss: .* expected an array of numbers, got one of object"),
        ({"xcoordinates": np.ones((2, 2))}, "expected two axes"),
        ({"train_acc": np.ones(3)}, r"train_acc: .* got \(3,\)"),
    ],
)
def test_what_makes_no_surface_is_refused(
    tmp_path: Path, changed: dict[str, object], complaint: str
) -> None:
    path = foreign(tmp_path / "theirs.h5", **changed)
    with pytest.raises(InputError, match=complaint):
        read_surface(place(path))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "surface.h5"
    with pytest.raises(InputError, match=r"surface\.h5: is missing"):
        read_surface(place(path))
    assert surface_attributes(place(path)) is None
    content = surface_bytes(planted(), {"run": "a"})
    for damaged in (b"", b"no HDF5 at all", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"surface\.h5: is damaged"):
            read_surface(place(path))
        assert surface_attributes(place(path)) is None


def test_nothing_in_a_file_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("was unpickled",))

    trap = np.void(pickle.dumps(Trap()))
    path = foreign(tmp_path / "theirs.h5", dir_file=trap, object=trap)
    with h5py.File(path, "a") as file:
        file.attrs["trap"] = trap
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("was unpickled"))
    assert read_surface(place(path)).loss["train"][3, 3] == 15
    assert surface_attributes(place(path)) == {}
