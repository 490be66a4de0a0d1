"""Functions named in a study."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lltopo.errors import InputError
from lltopo.plugins import imported_function


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plugin_of_a_test.py").write_text(
        "number = 3\n\ndef double(x):\n    return 2 * x\n"
    )
    (tmp_path / "broken_plugin_of_a_test.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "plugin_of_a_test", raising=False)
    return tmp_path


@pytest.mark.usefixtures("working_folder")
def test_a_module_of_the_working_folder_is_found() -> None:
    assert imported_function("plugin_of_a_test:double", "model.python")(4) == 8


@pytest.mark.usefixtures("working_folder")
def test_the_working_folder_shadows_no_installed_module() -> None:
    Path("fractions.py").write_text("gcd = None\n")
    sys.modules.pop("fractions", None)
    assert imported_function("fractions:Fraction", "k")(1, 2) == 0.5


@pytest.mark.usefixtures("working_folder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plugin_of_a_test", "is malformed: expected module:function"),
        (":double", "is malformed: expected module:function"),
        ("plugin_of_a_test:", "is malformed: expected module:function"),
        (".plugin_of_a_test:double", "is malformed: expected module:function"),
        ("plugin_of_a_test:double:x", "is malformed: expected module:function"),
        ("no_such_plugin:f", "cannot be imported: No module named 'no_such_plugin'"),
        ("broken_plugin_of_a_test:f", "cannot be imported: No module named 'nowhere_to_be_found'"),
        ("plugin_of_a_test:triple", "cannot be imported: module 'plugin_of_a_test' has no attr"),
        ("plugin_of_a_test:number", "is no function: got int"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        imported_function(name, "data.python")
    assert str(caught.value).startswith(f"data.python: {name!r} {message}")
