"""The page says what the tables say, and shows every figure."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chromium import PROGRAM, chromium_tab, complaints, evaluate, open_page, press
from pages import SMALL, Elements, report_of
from planted import Plan, planted_study
from pyarrow import fs as pafs

from lltopo import schemas, tables
from lltopo.errors import InputError
from lltopo.report import write_report
from lltopo.results import read_results
from lltopo.sections import SPLITS
from lltopo.slider import shown_epochs
from lltopo.storage import Place
from lltopo.tables import TREES

TITLE = "<script>alert('title')</script> & “quotes”"
REASON = "<b>7 losses</b> are not finite"
FULL = Plan(title=TITLE, lost={("small", "val", 7): ("diverged", REASON)})
THESIS = {"2.1", *(f"7.{number}" for number in range(1, 35))}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return report_of(FULL, tmp_path_factory.mktemp("full"))


def rows_by_key(folder: Path, table: str, names: tuple[str, ...]) -> dict[tuple[str, ...], dict]:
    rows = pq.read_table(folder / f"{table}.parquet").to_pylist()
    return {tuple(str(row[name]) for name in names): row for row in rows}


BIRTH_DEATH = ("birth", "death")
KEYS = {
    "series": ("run", "split", "tree", "epoch", "order"),
    "metrics": ("run", "split", "epoch"),
    "correlations": ("run", "split", "tree", "measure", "target", "differenced"),
}


def test_every_number_is_that_of_its_table(full):
    numbers = full.all("data")
    seen = set()
    for table, names in KEYS.items():
        rows = rows_by_key(full.folder, table, names)
        for number in (one for one in numbers if one.data["table"] == table):
            column = number.data["column"]
            value = rows[tuple(number.data[name] for name in names)][column]
            written = number.attributes["value"]
            assert (float(written) if written else None) == value
            seen.add((table, column))
    assert seen >= {
        *(("series", name) for name in ("n_pairs", "total_persistence", "max_persistence")),
        *(("series", name) for name in ("wasserstein", "reference_epoch", "n_nonfinite")),
        *(("metrics", name) for name in ("loss", "accuracy", "learning_rate")),
        *(("correlations", name) for name in ("pearson", "spearman", "n")),
    }
    assert {one.data["table"] for one in numbers} == {*KEYS, "derived"}


def test_every_number_is_shown_rounded_to_what_it_is(full):
    for number in full.all("data"):
        written = number.attributes["value"]
        if not written:
            assert number.text == "–"
            continue
        shown = float(number.text.replace(",", "").replace("−", "-"))
        assert shown == pytest.approx(float(written), rel=6e-4, abs=0)


def test_derived_numbers_follow_from_the_series(full):
    series = rows_by_key(full.folder, "series", KEYS["series"])
    derived = [one for one in full.all("data") if one.data["table"] == "derived"]
    assert {one.data["column"] for one in derived} == {"ratio", "spearman_epoch"}
    for number in derived:
        if number.data["column"] == "ratio":
            ends = [
                series[number.data[name], "val", number.data["tree"], "12", "1.0"]
                for name in ("run", "over")
            ]
            expected = ends[0]["total_persistence"] / ends[1]["total_persistence"]
        else:
            # planted to fall at every epoch
            expected = -1.0
        assert float(number.attributes["value"]) == pytest.approx(expected, rel=1e-14)


def test_the_tables_on_the_page_are_whole(full):
    for table, names in KEYS.items():
        shown = {
            tuple(row.data[name] for name in names)
            for row in full.all("tr")
            if row.data.get("table") == table
        }
        assert shown == rows_by_key(full.folder, table, names).keys()


def test_every_figure_of_the_thesis_has_its_counterpart(full):
    plates = [one for one in full.all("figure") if "data-figure" in one.attributes]
    assert sorted(one.attributes["data-figure"] for one in plates) == sorted(THESIS)
    for one in plates:
        assert one.attributes["id"] == f"figure-{one.attributes['data-figure']}"
        assert (full.folder / f"figures/figure-{one.attributes['data-figure']}.png").is_file()


def test_topological_figures_say_maxima_or_minima(full):
    captions = {
        one.data["figure"]: one.text for one in full.all("figcaption") if "figure" in one.data
    }
    for number in THESIS - {"2.1", "7.1", "7.2"}:
        assert ("join tree (maxima)" in captions[number].lower()) != (
            "split tree (minima)" in captions[number].lower()
        )


def test_heatmaps_show_both_sides_of_every_change_of_every_run(full):
    captions = " ".join(one.text for one in full.all("figcaption") if "figure" in one.data)
    for tree in ("Join tree (maxima)", "Split tree (minima)"):
        for split in ("training data", "validation data"):
            for run in ("large", "small"):
                for change, epoch in enumerate((4, 8, 10), start=1):
                    assert (
                        f"{tree}, {split}, run {run}: before and after change {change} of the "
                        f"learning rate, epochs {epoch - 1} and {epoch}."
                    ) in captions


def test_images_are_the_files_and_have_words_for_those_who_cannot_see_them(full):
    images = full.all("img")
    names = [image.attributes["data-file"] for image in images]
    assert sorted(names) == sorted(
        f"figures/{path.name}" for path in (full.folder / "figures").iterdir()
    )
    for image, name in zip(images, names, strict=True):
        content = (full.folder / name).read_bytes()
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        assert image.attributes["src"] == uri
        assert len(image.attributes["alt"]) > 20


def test_page_needs_no_network(full):
    for element in full.elements:
        for name in ("src", "href"):
            target = element.attributes.get(name) or ""
            assert target.startswith(("data:", "#")) or not target
    assert "http:" not in full.page.replace("http-equiv", "")
    assert "https:" not in full.page


def test_links_and_ids_fit(full):
    ids = [one.attributes["id"] for one in full.elements if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    targets = {one.attributes["href"] for one in full.all("a")}
    assert targets <= {f"#{name}" for name in ids}


def test_names_and_reasons_are_escaped(full):
    assert TITLE not in full.page
    assert REASON not in full.page
    assert next(one.text for one in full.all("h1")) == TITLE
    assert REASON in [one.text for one in full.all("td")]


def test_an_epoch_without_result_is_shown(full):
    cells = [one for one in full.all("tr") if REASON in one.text]
    assert [one.data["epoch"] for one in cells] == ["7"]
    assert "diverged" in cells[0].text
    slid = json.loads(next(one.text for one in full.all("script") if "id" in one.attributes))
    lost = next(one for one in slid["views"]["val/join"]["runs"][1] if one["epoch"] == 7)
    assert (lost["status"], lost["reason"], lost["cells"]) == ("diverged", REASON, [])


def test_slider_has_every_heatmap_and_number(full):
    slid = json.loads(next(one.text for one in full.all("script") if "id" in one.attributes))
    assert slid["epochs"] == list(FULL.epochs)
    assert slid["milestones"] == [4, 8, 10]
    assert slid["views"].keys() == {f"{split}/{tree}" for split in SPLITS for tree in TREES}
    series = rows_by_key(full.folder, "series", KEYS["series"])
    metrics = rows_by_key(full.folder, "metrics", KEYS["metrics"])
    for name, view in slid["views"].items():
        split, tree = name.split("/")
        fullest = 0
        for run, shown in zip(slid["runs"], view["runs"], strict=True):
            assert [one["epoch"] for one in shown] == slid["epochs"]
            for one in shown:
                row = series[run, split, tree, str(one["epoch"]), "1.0"]
                accuracy = metrics[run, split, str(one["epoch"])]["accuracy"]
                assert one["accuracy"] == accuracy
                for column in ("n_pairs", "total_persistence", "wasserstein", "status"):
                    assert one[column] == row[column]
                gaps, counts = one["cells"][::2], one["cells"][1::2]
                assert sum(counts) == (row["n_pairs"] or 0)
                assert 0 <= sum(gaps) < view["bins"] ** 2
                fullest = max([fullest, *counts])
        assert view["fullest"] == fullest


def test_slider_counts_the_points_of_the_diagrams(full):
    slid = json.loads(next(one.text for one in full.all("script") if "id" in one.attributes))
    for name, view in slid["views"].items():
        split, tree = name.split("/")
        edges = np.arcsinh(np.array([view["low"], view["high"]]) / view["linear_width"])
        part = f"run=small/split={split}/tree={tree}/epoch=00005/part-0.parquet"
        dgm = pq.ParquetFile(full.folder / "diagrams" / part).read()
        points = [np.arcsinh(dgm[side].to_numpy() / view["linear_width"]) for side in BIRTH_DEATH]
        expected, _, _ = np.histogram2d(
            *points, bins=view["bins"], range=[(edges[0] - 1e-9, edges[1] + 1e-9)] * 2
        )
        cells = view["runs"][1][5]["cells"]
        counts = np.zeros(view["bins"] ** 2)
        counts[np.cumsum(cells[::2])] = cells[1::2]
        np.testing.assert_array_equal(counts.reshape(expected.shape), expected)


def test_headline_names_the_smoother_run(full):
    headline = next(one for one in full.all("p") if one.attributes.get("class") == "headline")
    assert headline.text == "large ends smoother on validation data."


def test_claims_and_verdicts_are_on_the_page(full):
    rows = [one for one in full.all("tr") if "data-verdict" in one.attributes]
    assert [one.text.split()[0] for one in rows[:4]] == ["1.", "2.", "3.", "4."]
    assert [one.attributes["data-verdict"] for one in rows] == ["holds"] * (4 + 8 + 2 + 8 + 1)


def test_without_training_the_page_says_what_is_not_known(undrawn, tmp_path):
    plan = Plan(
        epochs=range(1, 7),
        trained=False,
        accuracy=lambda *_: None,
        correlation=lambda *_: None,
        n_pairs=5,
    )
    page = report_of(plan, tmp_path)
    numbers = {one.attributes.get("data-figure") for one in page.all("figure")} - {None}
    assert numbers == {"2.1", *(f"7.{n}" for n in (1, 2, 3, 4, 5, 6, 31, 32, 33, 34))}
    assert "Accuracy was not recorded." in [one.text for one in page.all("p")]
    assert [one.text for one in page.all("td")].count("not known") == 2
    assert "known changes of this study: large: none, small: none." in page.page


def test_one_run_is_compared_with_none(small):
    headline = next(one for one in small.all("p") if one.attributes.get("class") == "headline")
    assert headline.text == "One run, only: nothing to compare its smoothness with."


def test_a_rate_that_changes_at_once_has_no_epoch_before_it(undrawn, tmp_path):
    page = report_of(SMALL._replace(milestones=(1,)), tmp_path)
    assert {"7.7", "7.13", "7.19", "7.25"} <= {
        one.attributes.get("data-figure") for one in page.all("figure")
    }


def test_report_goes_to_any_file_system(undrawn, tmp_path):
    study, out = planted_study(SMALL, tmp_path)
    os.mkdir(tmp_path / "figures")
    elsewhere = Place(pafs.SubTreeFileSystem(str(tmp_path), out.filesystem), "")
    write_report(study, elsewhere)
    assert (tmp_path / "report.html").is_file()
    assert len(list((tmp_path / "figures").iterdir())) > 10


def test_a_missing_table_is_named(tmp_path):
    study, out = planted_study(SMALL, tmp_path)
    (tmp_path / "correlations.parquet").unlink()
    with pytest.raises(InputError, match=r"correlations\.parquet: is missing"):
        write_report(study, out)


def test_contour_tree_is_shown_where_it_was_made(undrawn, tmp_path):
    study, out = planted_study(SMALL, tmp_path)
    counts = {"n_maxima": 3, "n_minima": 2, "n_merges": 3, "n_arcs": 7}
    rows = [
        {"run": "only", "split": split, "epoch": epoch} | counts
        for split in SPLITS
        for epoch in SMALL.epochs
    ]
    tables.write_table(out / "contours.parquet", rows, schemas.CONTOURS)
    page = Path(write_report(study, out).path).read_text(encoding="utf-8")
    assert {"contour", "figure-contour-train", "figure-contour-val"} <= {
        one.attributes.get("id") for one in Elements(page).found
    }


def test_hundreds_of_epochs_are_thinned_but_for_the_ones_that_matter(tmp_path):
    plan = Plan(epochs=range(601), milestones=(60, 125, 150), n_pairs=1, persistence=lambda *_: 1.0)
    series = pa.Table.from_pylist(
        [{"run": run, "epoch": epoch} for run in plan.rates for epoch in plan.epochs]
    )
    study, out = planted_study(plan._replace(epochs=range(1, 600, 599)), tmp_path)
    results = read_results(study, out)._replace(series=series)
    shown = shown_epochs(results)
    assert {0, 59, 60, 124, 125, 149, 150, 600} <= set(shown)
    assert 100 < len(shown) < 601
    assert np.diff(shown).max() < 10
    assert shown_epochs(results._replace(series=series[:20])) == list(range(20))


# how many coloured pixels of the first heatmap lie clearly above and below the diagonal
SIDES = """
(() => {
  const canvas = document.querySelector("canvas");
  const [left, top, side] = [48, 8, canvas.width - 60];
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const pen = copy.getContext("2d", { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  const pixels = pen.getImageData(left, top, side, side).data;
  let [above, below] = [0, 0];
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const [red, green, blue] = pixels.slice(4 * (y * side + x), 4 * (y * side + x) + 3);
      if (Math.max(red, green, blue) - Math.min(red, green, blue) < 40) continue;
      if (x < side - y - side / 15) above += 1;
      if (x > side - y + side / 15) below += 1;
    }
  }
  return [above, below];
})()
"""


@pytest.mark.skipif(
    PROGRAM is None and "LLTOPO_REQUIRE_CHROMIUM" not in os.environ,
    reason="no Chromium is installed",
)
def test_page_works_in_a_browser(full, tmp_path):
    drawn = (
        "[...document.querySelectorAll('.panel')].map((panel) => "
        "[panel.querySelector('.facts').textContent, panel.querySelector('canvas').toDataURL()])"
    )
    with chromium_tab(tmp_path / "profile") as tab:
        for width in (1280, 390):
            open_page(tab, (full.folder / "report.html").as_uri(), width)
            assert evaluate(tab, "document.documentElement.scrollWidth <= innerWidth")
            assert evaluate(tab, "[...document.images].every((image) => image.naturalWidth > 0)")
            last = evaluate(tab, drawn)
            evaluate(tab, "document.getElementById('epoch').focus()")
            press(tab, "ArrowLeft")
            assert evaluate(tab, "document.getElementById('epoch-shown').textContent") == "11"
            before = evaluate(tab, drawn)
            assert all(one != other for one, other in zip(last, before, strict=True))
            above, below = evaluate(tab, SIDES)
            assert above == 0 < below
            evaluate(tab, "document.querySelector('input[name=tree][value=split]').click()")
            assert all(a != b for a, b in zip(before, evaluate(tab, drawn), strict=True))
            above, below = evaluate(tab, SIDES)
            assert below == 0 < above
            evaluate(tab, "document.querySelector('input[value=join]').click()")
            assert evaluate(tab, drawn) == before
            press(tab, "Home")
            assert evaluate(tab, "document.getElementById('epoch-shown').textContent") == "0"
            assert re.search(r"accuracy 0\.\d+$", evaluate(tab, drawn)[0][0])
            evaluate(
                tab,
                "{ const epoch = document.getElementById('epoch'); epoch.value = 7;"
                "epoch.dispatchEvent(new Event('input')) }",
            )
            assert evaluate(tab, drawn)[1][0] == f"diverged: {REASON}"
            assert complaints(tab) == []
