"""A report that is written again: what has not changed stays as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import SMALL, report_of, state
from planted import planted_study

from lltopo import report, schemas, tables
from lltopo.report import inputs_digest, write_report
from lltopo.results import read_results


def test_unchanged_results_leave_every_file_untouched(small):
    before = state(small.folder)
    study, out = planted_study(SMALL, small.folder)
    tables_before = {name for name in before if name.endswith(".parquet")}
    write_report(study, out)
    after = state(small.folder)
    assert {n: s for n, s in after.items() if n not in tables_before} == {
        n: s for n, s in before.items() if n not in tables_before
    }


def test_other_timings_are_no_other_results(small):
    study, out = planted_study(SMALL, small.folder)
    rows = tables.read_table(out / "metrics.parquet").to_pylist()
    tables.write_table(
        out / "metrics.parquet", [row | {"seconds": 99.0} for row in rows], schemas.METRICS
    )
    before = state(small.folder)
    write_report(study, out)
    assert state(small.folder) == before


def test_a_missing_figure_is_drawn_again(small):
    figure = small.folder / "figures/figure-7.3.png"
    content = figure.read_bytes()
    figure.unlink()
    write_report(*planted_study(SMALL, small.folder))
    assert figure.read_bytes() == content
    assert (small.folder / "report.html").read_text(encoding="utf-8") == small.page


def test_another_title_makes_another_page(small):
    write_report(*planted_study(SMALL._replace(title="Another"), small.folder))
    page = (small.folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>Another</h1>" in page


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Another"},
        {"accuracy": lambda *_: 0.25},
        {"persistence": lambda *_: 9.0},
        {"correlation": lambda *_: 0.1},
        {"milestones": (2,)},
    ],
)
def test_another_input_has_another_digest(tmp_path, change):
    before, after = (
        inputs_digest(read_results(*planted_study(plan, tmp_path)))
        for plan in (SMALL, SMALL._replace(**change))
    )
    assert before != after


@pytest.mark.parametrize(
    "name",
    [
        "figures/..&#47;..&#47;victim",
        "figures/../../victim",
        "figures/figure-..&#47;..&#47;..&#47;victim.png",
        "&#46;./victim",
        "figures/mine.png",
        "figures/figure-folder.png",
    ],
)
def test_a_foreign_page_removes_nothing_of_others(undrawn, tmp_path, name):
    out = tmp_path / "out"
    kept = ["victim/file", "victim.png/file", "out/figures/mine.png"]
    kept.append("out/figures/figure-folder.png/file")
    for path in kept:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("mine")
    (out / "report.html").write_text(f'<img data-file="{name}">')
    write_report(*planted_study(SMALL, out))
    assert all((tmp_path / path).is_file() for path in kept)


def test_how_much_is_verified_draws_nothing_anew(small):
    study, out = planted_study(SMALL, small.folder)
    verified = study.analysis.model_copy(update={"verify": 5})
    results = read_results(study, out)
    other = results._replace(study=study.model_copy(update={"analysis": verified}))
    assert inputs_digest(other) == inputs_digest(results)


def test_every_file_that_the_page_is_made_by_is_of_its_inputs():
    package = Path(report.__file__).parent
    sources = set(report._SOURCES)
    # where a thing lies and what is wrong with it are not what is drawn
    elsewhere = {"errors.py", "storage.py", "study.py", "study_models.py", "tables.py"}
    elsewhere |= {"schemas.py", "sections.py", "side_by_side.py"}
    for source in sources - {"diagrams.py"}:  # which reaches the trees: not drawn, but tabled
        text = (package / source).read_text()
        names = re.findall(r"^from lltopo\.(\w+) import", text, re.MULTILINE)
        for group in re.findall(r"^from lltopo import (.+)$", text, re.MULTILINE):
            names += group.split(", ")
        assert {f"{name}.py" for name in names} <= sources | elsewhere, source


def test_figures_that_are_no_longer_shown_are_removed(undrawn, tmp_path):
    report_of(SMALL._replace(milestones=(2,)), tmp_path)
    assert (tmp_path / "figures/figure-7.7.png").exists()
    (tmp_path / "figures/mine.png").write_bytes(b"")
    report_of(SMALL, tmp_path)
    assert not (tmp_path / "figures/figure-7.7.png").exists()
    assert (tmp_path / "figures/mine.png").exists()
