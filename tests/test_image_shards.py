"""Image shards in the Hugging Face layout load, and what cannot be used is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import png, write_shard

from lltopo.data import DataSet, load_data
from lltopo.errors import InputError
from lltopo.image_shards import image_shards
from lltopo.study_data import ParquetData

RNG = np.random.default_rng(5)


def refusal(data: Any) -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(InputError) as caught:
        load_data(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def hub(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Colour images of 5 x 6 pixels: three shards to train on, one to test."""
    arrays = {
        "x_train": RNG.integers(0, 256, (50, 5, 6, 3)).astype(np.uint8),
        "x_test": RNG.integers(0, 256, (11, 5, 6, 3)).astype(np.uint8),
        "y_train": np.arange(50) % 4,
        "y_test": np.arange(11) % 4,
    }
    folder = tmp_path / "hub"
    folder.mkdir()
    for name, rows in (
        ("train-00000-of-00003", slice(0, 20)),
        ("train-00001-of-00003", slice(20, 20)),
        ("train-00002-of-00003", slice(20, 50)),
        ("test-00000-of-00001", slice(None)),
    ):
        split = name.split("-")[0]
        images = [png(pixels) for pixels in arrays[f"x_{split}"][rows]]
        write_shard(folder / f"{name}.parquet", images, arrays[f"y_{split}"][rows].tolist())
    (folder / "README.md").write_text("images")
    return folder, arrays


def hub_data(folder: Path, **settings: str) -> ParquetData:
    return ParquetData(source="parquet", path=str(folder), **settings)


def assert_is_hub(data: DataSet, arrays: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(data.train.x, arrays["x_train"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.val.x, arrays["x_test"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.train.y, arrays["y_train"])
    np.testing.assert_array_equal(data.val.y, arrays["y_test"])


def test_parquet_takes_all_shards_in_their_order(hub: tuple[Path, dict[str, np.ndarray]]) -> None:
    data = load_data(hub_data(hub[0]))
    assert_is_hub(data, hub[1])
    assert data.n_classes == 4
    assert data.train.x.flags.c_contiguous


def test_parquet_takes_validation_where_there_is_no_test(
    hub: tuple[Path, dict[str, np.ndarray]],
) -> None:
    test = hub[0] / "test-00000-of-00001.parquet"
    test.rename(hub[0] / "validation-00000-of-00001.parquet")
    assert_is_hub(load_data(hub_data(hub[0], image_column="img", label_column="label")), hub[1])


def test_parquet_takes_grey_and_indexed_images(hub: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, arrays = hub
    for name in ("train-00000-of-00003", "train-00001-of-00003"):
        (folder / f"{name}.parquet").unlink()
    for name, mode in (("train-00002-of-00003", "L"), ("test-00000-of-00001", "L")):
        split = name.split("-")[0]
        images = [png(pixels, mode) for pixels in arrays[f"x_{split}"]]
        write_shard(folder / f"{name}.parquet", images, arrays[f"y_{split}"].tolist())
    grey = load_data(hub_data(folder)).train.x
    assert grey.shape == (50, 1, 5, 6)
    np.testing.assert_array_equal(grey[3, 0], Image.fromarray(arrays["x_train"][3]).convert("L"))
    two_colours = np.where(arrays["x_train"][0] > 128, 255, 0).astype(np.uint8)
    images = [png(two_colours, "P")] * 3
    for name in ("train-00002-of-00003", "test-00000-of-00001"):
        write_shard(folder / f"{name}.parquet", images, [0, 1, 0])
    np.testing.assert_array_equal(
        load_data(hub_data(folder)).train.x[0], two_colours.transpose(2, 0, 1)
    )


def test_a_parquet_folder_without_a_split_is_refused(
    hub: tuple[Path, dict[str, np.ndarray]],
) -> None:
    folder, _ = hub
    (folder / "test-00000-of-00001.parquet").unlink()
    text = refusal(hub_data(folder))
    assert text.startswith(f"{folder}: holds no test-*.parquet or validation-*.parquet.")
    assert refusal(hub_data(folder / "x")).startswith(f"{folder / 'x'}: data.path is missing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": "fine_label"}, "fine_label: no such column: expected one of ['note', "),
        ({"image_column": "image"}, "image: no such column: expected one of ['note', 'label', "),
        ({"image_column": "note"}, "holds a cell that is no image"),
    ],
)
def test_a_wrong_column_is_refused(
    hub: tuple[Path, dict[str, np.ndarray]], settings: dict[str, str], message: str
) -> None:
    shard = hub[0] / "train-00000-of-00003.parquet"
    assert refusal(hub_data(hub[0], **settings)).startswith(f"{shard}: {message}")


def test_a_file_without_an_image_column_is_refused(hub: tuple[Path, dict[str, Any]]) -> None:
    shard = hub[0] / "train-00000-of-00003.parquet"
    pq.write_table(pa.table({"pixels": [1, 2], "label": [0, 1]}), shard)
    assert refusal(hub_data(hub[0])).startswith(f"{shard}: no image column: expected a struct wit")


GREY = np.zeros((5, 6), np.uint8)
SIXTEEN_BITS = png(np.full((5, 6), 40_000, np.uint16))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([b"no image", png(GREY)], [0, 1], "holds a cell that is no image"),
        ([png(GREY)[:45], png(GREY)], [0, 1], "holds a cell that is no image"),
        ([None, png(GREY)], [0, 1], "holds a cell that is no image"),
        ([SIXTEEN_BITS, SIXTEEN_BITS], [0, 1], "holds an image of mode I;16: expected one of L"),
        (
            [png(GREY), png(GREY[1:])],
            [0, 1],
            "images differ in shape: expected one for all, got [(1, 4, 6), (1, 5, 6)]",
        ),
        ([png(GREY), png(GREY)], [0, None], "label: does not fit the samples"),
        ([png(GREY), png(GREY)], [0, -1], "label: is out of range: expected 0 to 32767, got -1"),
        ([], [], "holds no images in t"),
    ],
)
def test_a_wrong_cell_is_refused(
    tmp_path: Path, images: list[bytes | None], labels: list[int | None], message: str
) -> None:
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}-0.parquet", images, labels)
    text = refusal(hub_data(tmp_path))
    assert text.startswith(str(tmp_path))
    assert message in text


def test_a_damaged_shard_is_refused(hub: tuple[Path, dict[str, np.ndarray]]) -> None:
    shard = hub[0] / "train-00002-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert refusal(hub_data(hub[0])).startswith(f"{shard}: cannot be read: ")


def test_images_are_decoded_into_place(tmp_path: Path) -> None:
    images = [png(RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8))] * 3000
    write_shard(tmp_path / "train-0.parquet", images, [0] * len(images))
    tracemalloc.start()
    x = image_shards(hub_data(tmp_path), ("train",))[0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert x.shape == (3000, 3, 40, 40)
    # a list of all images and then their stack would be twice the array
    assert peak < 1.5 * x.nbytes
