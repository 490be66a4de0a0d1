"""Every kind of data set loads, and what cannot be used is refused by its name."""

from __future__ import annotations

import gzip
import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny import tiny_arrays, tiny_npz

from lltopo.data import graph_features, load_data, read_array
from lltopo.errors import InputError
from lltopo.study_data import DigitsData, NpzData, PythonData, TorchvisionData

RNG = np.random.default_rng(5)


def npz(folder: Path, **changed: np.ndarray) -> NpzData:
    return NpzData(source="npz", path=str(tiny_npz(folder, **changed)))


def refusal(data: Any) -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(InputError) as caught:
        load_data(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- digits --


def test_digits_are_split_by_class_and_always_alike() -> None:
    data = load_data(DigitsData())
    assert data.train.x.shape == (1437, 1, 8, 8)
    assert data.val.x.shape == (360, 1, 8, 8)
    assert data.input_shape == (1, 8, 8)
    assert data.n_classes == 10
    counts = np.bincount(data.train.y) + np.bincount(data.val.y)
    np.testing.assert_array_equal(counts, np.bincount(load_digits().target))
    np.testing.assert_allclose(np.bincount(data.val.y), counts / 5, atol=1)
    again = load_data(DigitsData())
    assert all(np.array_equal(a, b) for a, b in zip(data.val, again.val, strict=True))


def test_digits_keep_each_image_with_its_label_and_lose_none() -> None:
    data = load_data(DigitsData())

    def rows(x: np.ndarray, y: np.ndarray) -> list[bytes]:
        pairs = zip(x.astype(np.uint8), y, strict=True)
        return sorted(image.tobytes() + bytes([label]) for image, label in pairs)

    whole = load_digits()
    assert rows(*data.train) != rows(*data.val)
    assert sorted(rows(*data.train) + rows(*data.val)) == rows(whole.images, whole.target)
    assert data.train.x.dtype == np.uint8
    assert data.train.y.dtype == np.int64


# -- npz, limits, normalisation --


def test_npz_loads_as_it_is(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    data = load_data(npz(tmp_path))
    for split in ("train", "val"):
        np.testing.assert_array_equal(data.split(split).x, arrays[f"x_{split}"])
        np.testing.assert_array_equal(data.split(split).y, arrays[f"y_{split}"])
    assert data.train.x.dtype == np.uint8
    assert data.n_classes == 3


def test_floats_become_float32_and_rows_may_be_flat(tmp_path: Path) -> None:
    x_train, x_val = RNG.normal(size=(60, 5)), RNG.normal(size=(25, 5))
    data = load_data(npz(tmp_path, x_train=x_train, x_val=x_val))
    assert data.train.x.dtype == np.float32
    assert data.input_shape == (5,)
    np.testing.assert_array_equal(data.val.x, x_val.astype(np.float32))
    np.testing.assert_allclose(data.mean, x_train.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(data.std, x_train.std(axis=0), rtol=1e-5)


def test_only_the_first_samples_are_kept(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    data = npz(tmp_path, y_train=np.r_[np.zeros(59, int), 2])
    limited = load_data(data.model_copy(update={"train_samples": 7, "val_samples": 4}))
    np.testing.assert_array_equal(limited.train.x, arrays["x_train"][:7])
    np.testing.assert_array_equal(limited.val.x, arrays["x_val"][:4])
    assert limited.train.y.tolist() == [0] * 7
    # a class that is not among the first is still one
    assert limited.n_classes == 3
    np.testing.assert_allclose(limited.mean, arrays["x_train"][:7].mean(), rtol=1e-6)


def test_the_normalisation_is_each_channels_own(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (1500, 3, 4, 5)).astype(np.uint8)
    x[:, 1] //= 4
    x[:, 2] = 9
    data = load_data(npz(tmp_path, x_train=x, y_train=np.zeros(1500, int), x_val=x[:25],
                         y_val=np.zeros(25, int)))  # fmt: skip
    np.testing.assert_allclose(data.mean, x.mean(axis=(0, 2, 3)), rtol=1e-6)
    # a channel that never changes is not divided by zero
    np.testing.assert_allclose(data.std, [*x.std(axis=(0, 2, 3))[:2], 1.0], rtol=1e-6)


def test_a_given_normalisation_is_taken(tmp_path: Path) -> None:
    data = npz(tmp_path)
    given = load_data(data.model_copy(update={"mean": [3.0], "std": [2.0]}))
    assert (given.mean.tolist(), given.std.tolist()) == ([3.0], [2.0])
    half = load_data(data.model_copy(update={"mean": [3.0]}))
    spread = np.sqrt(((tiny_arrays()["x_train"] - 3.0) ** 2).mean())
    np.testing.assert_allclose(half.std, spread, rtol=1e-6)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_normalisation_of_a_wrong_length_is_refused(tmp_path: Path, key: str) -> None:
    text = refusal(npz(tmp_path).model_copy(update={key: [1.0, 2.0]}))
    assert text.startswith(f"data.{key}: has a wrong length: expected 1 numbers, one a channel")


X, Y = tiny_arrays()["x_train"], tiny_arrays()["y_train"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_train": Y[:-1]}, "label: does not fit the samples: expected 60 integers"),
        ({"y_val": Y}, "label: does not fit the samples: expected 25 integers"),
        ({"y_train": Y.astype(float)}, "label: does not fit the samples"),
        ({"y_train": Y[:, None]}, "label: does not fit the samples"),
        ({"y_train": np.int64(3)}, "label: does not fit the samples"),
        ({"y_train": np.where(Y == 1, -1, Y)}, "label: is out of range: expected 0 to 32767, got"),
        ({"y_train": Y + 40000}, "label: is out of range: expected 0 to 32767, got 40002"),
        ({"y_val": np.full(25, 3)}, "label: is out of range: expected 0 to 2 as in the training"),
        ({"x_train": np.where(X == 7, np.nan, X)}, "x: is not finite"),
        ({"x_train": np.where(X == 7, np.inf, X)}, "x: is not finite"),
        ({"x_val": np.zeros((25, 1, 9, 8))}, "x: has another shape than the training samples"),
        ({"x_train": np.zeros((60, 2, 2))}, "x: has a wrong shape"),
        ({"x_train": np.float64(1.0)}, "x: has a wrong shape"),
        ({"x_train": np.zeros((60, 0))}, "x: has a wrong shape"),
        ({"x_train": X[:1], "y_train": Y[:1]}, "x: has a wrong shape"),
        ({"x_train": X.astype(str)}, "x: has a wrong type"),
        ({"x_train": X.astype(complex)}, "x: has a wrong type"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], message: str
) -> None:
    data = npz(tmp_path, **changed)
    assert refusal(data).startswith(f"{data.path}: {message}")


def test_an_npz_without_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x_train=X, y_train=Y, x_val=X)
    text = refusal(NpzData(source="npz", path=str(path)))
    assert text.startswith(f"{path}: y_val: no such array: expected x_train, y_train, x_val, y_val")


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    data = NpzData(source="npz", path=str(path))
    assert refusal(data) == f"{path}: cannot be read: No such file or directory. Mend data.path."
    whole = tiny_npz(tmp_path).read_bytes()
    pickled = io.BytesIO()
    np.savez(pickled, **{name: np.array([{}]) for name in tiny_arrays()})
    plain = io.BytesIO()
    np.save(plain, X)
    for content in (b"", b"PK\x03\x04", whole[:-40], whole[:900] + b"\0\0" + whole[902:],
                    plain.getvalue(), pickled.getvalue()):  # fmt: skip
        path.write_bytes(content)
        assert refusal(data).startswith(f"{path}: cannot be read: it is no .npz file of plain num")
    data = NpzData(source="npz", path=str(tmp_path))
    assert refusal(data) == f"{tmp_path}: cannot be read: Is a directory. Mend data.path."


# -- torchvision --


def write_idx(path: Path, values: np.ndarray) -> None:
    """A file in MNIST's own format: magic number, sizes, bytes."""
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())
    with gzip.open(f"{path}.gz", "wb") as stream:
        stream.write(path.read_bytes())


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_torchvisions_mnist_is_found_on_disk(tmp_path: Path, name: str) -> None:
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    arrays = {
        "train": (RNG.integers(0, 256, (30, 28, 28)), np.arange(30) % 10),
        "t10k": (RNG.integers(0, 256, (20, 28, 28)), np.arange(20) % 10),
    }
    for split, (images, labels) in arrays.items():
        write_idx(raw / f"{split}-images-idx3-ubyte", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte", labels)
    data = load_data(TorchvisionData(source="torchvision", name=name, root=str(tmp_path)))
    np.testing.assert_array_equal(data.train.x, arrays["train"][0][:, None])
    np.testing.assert_array_equal(data.val.x, arrays["t10k"][0][:, None])
    np.testing.assert_array_equal(data.val.y, arrays["t10k"][1])
    assert data.train.x.dtype == np.uint8
    assert data.input_shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("name", "shape", "channels_last"),
    [("CIFAR10", (32, 32, 3), True), ("CIFAR100", (32, 32, 3), True), ("SVHN", (3, 8, 9), False)],
)
def test_torchvisions_colour_images_have_their_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: Any, channels_last: bool
) -> None:
    from torchvision import datasets

    images = RNG.integers(0, 256, (12, *shape)).astype(np.uint8)

    class Found:
        # their files are known by their checksum, so a test cannot write them
        def __init__(self, root: str, download: bool, **split: Any) -> None:
            assert (root, download) == (str(tmp_path), False)
            first = split in ({"train": True}, {"split": "train"})
            assert first or split in ({"train": False}, {"split": "test"})
            self.data = images if first else images[::-1]
            labels = [i % 3 for i in range(12)]
            setattr(self, "labels" if name == "SVHN" else "targets", labels)

    monkeypatch.setattr(datasets, name, Found)
    data = load_data(TorchvisionData(source="torchvision", name=name, root=str(tmp_path)))
    expected = images.transpose(0, 3, 1, 2) if channels_last else images
    np.testing.assert_array_equal(data.train.x, expected)
    np.testing.assert_array_equal(data.val.x, expected[::-1])
    assert data.n_classes == 3


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SVHN"])
def test_torchvision_data_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    text = refusal(TorchvisionData(source="torchvision", name=name, root=str(tmp_path)))
    assert text.startswith(f"{tmp_path}: {name} cannot be had: ")
    assert text.endswith("Set data.download: true or put its files there.")


# -- python --


def test_ones_own_function_gives_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_of_a_test.py").write_text(
        "import numpy as np\n\n\n"
        "def load(n):\n"
        "    x, y = np.arange(4.0 * n).reshape(n, 4), np.arange(n) % 2\n"
        '    return {"train": (x, y), "val": (x[:3].tolist(), y[:3].tolist())}\n\n\n'
        "def wrong():\n    return [1, 2]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "data_of_a_test", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own = PythonData(source="python", python="data_of_a_test:load", options={"n": 10})
    data = load_data(own)
    assert data.train.x.shape == (10, 4)
    assert data.val.y.tolist() == [0, 1, 0]
    text = refusal(PythonData(source="python", python="data_of_a_test:wrong"))
    assert text.startswith("data.python: data_of_a_test:wrong gave no data set: expected {'train'")


# -- the graph's features --


def test_pixels_are_taken_as_they_are() -> None:
    x = RNG.integers(0, 256, (5, 3, 4, 4)).astype(np.uint8)
    features = graph_features(x, "pixels")
    assert features.dtype == np.uint8
    np.testing.assert_array_equal(features, x.reshape(5, 48))


def test_grey28_is_the_luma_of_the_centre() -> None:
    x = RNG.integers(0, 256, (6, 3, 32, 34)).astype(np.uint8)
    features = graph_features(x, "grey28")
    assert features.shape == (6, 784)
    assert features.dtype == np.uint8
    for image, found in zip(x, features, strict=True):
        luma = np.array(Image.fromarray(image.transpose(1, 2, 0)).convert("L"), dtype=int)
        # Pillow counts in fixed point
        difference = luma[2:30, 3:31].ravel() - found.astype(int)
        assert np.abs(difference).max() <= 1
        assert np.count_nonzero(difference) < 40
    grey = RNG.integers(0, 256, (6, 1, 28, 28)).astype(np.uint8)
    np.testing.assert_array_equal(graph_features(grey, "grey28"), grey.reshape(6, 784))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 784), np.uint8),
        np.zeros((2, 3, 27, 32), np.uint8),
        np.zeros((2, 4, 32, 32), np.uint8),
        np.zeros((2, 3, 32, 32), np.float32),
    ],
)
def test_grey28_of_something_else_is_refused(x: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"graph\.features: grey28 does not fit: expected grey"):
        graph_features(x, "grey28")


# -- arrays of somebody else --


def test_an_array_is_a_read_only_map(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6.0).reshape(2, 3))
    array = read_array(str(path), "losses")
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(InputError, match=r"a\.npy: losses cannot be read: No such file"):
        read_array(str(path), "losses")
    with pytest.raises(InputError, match=r"losses cannot be read: Is a directory"):
        read_array(str(tmp_path), "losses")
    np.save(path, np.array([{}, {}]), allow_pickle=True)
    pickled = path.read_bytes()
    for content in (b"", b"x", b"\x93NUMPY", pickled, tiny_npz(tmp_path).read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"losses cannot be read: it is no \.npy file"):
            read_array(str(path), "losses")
    np.save(path, np.array(["a"]))
    with pytest.raises(InputError, match=r"losses are no numbers: expected .*, got <U1"):
        read_array(str(path), "losses")
