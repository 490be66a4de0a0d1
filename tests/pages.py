"""A report of planted results, read back as a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from planted import Plan, planted_study

from lltopo.report import write_report

SMALL = Plan(
    rates={"only": 0.1}, epochs=range(1, 4), milestones=(), n_pairs=5, correlation=lambda *_: None
)


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str | None]
    text: str
    # data-* attributes of the element and of all around it
    data: dict[str, str]


class Elements(HTMLParser):
    """Every element of a page, with its text and inherited data."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "line"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Element] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self._open.append((tag, dict(attrs), []))
        if tag in self.VOID:
            self.handle_endtag(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        data = {
            name.removeprefix("data-"): value
            for _, attributes, _ in self._open
            for name, value in attributes.items()
            if name.startswith("data-")
        }
        opened, attributes, pieces = self._open.pop()
        assert opened == tag
        self.found.append(Element(tag, attributes, "".join(pieces).strip(), data))

    def handle_data(self, data):
        for _, _, pieces in self._open:
            pieces.append(data)


class Report(NamedTuple):
    folder: Path
    page: str
    elements: list[Element]

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]


def report_of(plan: Plan, folder: Path) -> Report:
    written = write_report(*planted_study(plan, folder))
    assert written.path == str(folder / "report.html")
    page = Path(written.path).read_text(encoding="utf-8")
    return Report(folder, page, Elements(page).found)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
