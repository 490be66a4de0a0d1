"""Studies as YAML: read with ``--set`` put in, resolved, and written beside the results."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lltopo.errors import InputError
from lltopo.sections import Json, nearest
from lltopo.study import Study


class _StudyLoader(yaml.SafeLoader):
    """YAML as it should be: a key that is given twice is an error, not the last one's."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Compose a mapping whose keys differ."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study's YAML file.

    Parameters
    ----------
    path
        Relative paths in the file are taken relative to it.
    overrides
        ``dotted.key=value`` each, put in on top; relative paths in them are taken relative to
        the working folder.

    Returns
    -------
    Study
        As resolved: every path absolute, ``model`` and ``training`` merged into each run.

    Raises
    ------
    InputError
        For a missing or malformed file, an unknown key (with the nearest known one), a value
        of the wrong type.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}. Give the path of a study file."
        ) from error
    return parsed_study(content, str(path), path.absolute().parent, overrides)


def parsed_study(
    content: bytes, origin: str, folder: Path | None = None, overrides: Sequence[str] = ()
) -> Study:
    """Return the study of a YAML text.

    Parameters
    ----------
    content
        UTF-8.
    origin
        Where it is from, for errors.
    folder
        What relative paths are relative to; default: the working folder.
    overrides
        As in `read_study`, whose errors are raised.
    """
    try:
        raw = yaml.load(content.decode(), _StudyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{origin}: no valid YAML: {reason}. Mend the file.") from error
    if not isinstance(raw, dict):
        raise InputError(
            f"{origin}: no study: expected keys such as data and runs, got "
            f"{type(raw).__name__}. See jobs/quickstart.yaml."
        )
    _absolute_paths(raw, folder or Path.cwd())
    return resolved_study(raw, origin, overrides)


def resolved_study(raw: Json, origin: str, overrides: Sequence[str] = ()) -> Study:
    """Return the study of a mapping: ``model`` and ``training`` are merged into each run.

    Parameters
    ----------
    raw
        As in a study's file; it is not changed.
    origin, overrides
        As in `parsed_study`.

    Raises
    ------
    InputError
        For the first key that is unknown, missing or of a wrong value; `origin` and the key are
        named.
    """
    raw = copy.deepcopy(raw)
    for override in overrides:
        _set(raw, override)
    _absolute_paths(raw, Path.cwd())
    base: Json = {key: raw.pop(key) for key in ("model", "training") if key in raw}
    _check_runs(raw, base, origin)
    _name_python(raw.get("data"), "source")
    _name_python(base.get("model"), "name")
    if raw.get("runs"):
        raw["runs"] = {name: _merged_run(base, run) for name, run in raw["runs"].items()}
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explained(error)}") from error


def with_section(study: Study, key: str) -> Study:
    """Return a study that has a section such as ``surface``, its defaults where it had none."""
    if getattr(study, key) is not None:
        return study
    return resolved_study(study.model_dump(mode="json") | {key: {}}, "study")


def study_yaml(study: Study) -> str:
    """Return the resolved study as YAML; reading it back gives the same study."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _check_runs(raw: Json, base: Json, origin: str) -> None:
    """Refuse a study that trains without a run, one of given losses with any, and numeric names."""
    data, runs = raw.get("data"), raw.get("runs")
    if isinstance(data, Mapping) and data.get("source") == "losses":
        if runs or base:
            raise InputError(
                f"{origin}: {'runs' if runs else next(iter(base))}: has no use: the losses are "
                "given, nothing is trained. Remove runs, model and training."
            )
    elif not isinstance(runs, Mapping) or not runs:
        raise InputError(
            f"{origin}: runs: is empty: expected at least one run by its name, got {runs!r}. "
            "Add one, such as runs: {large: {training: {lr: 0.1}}}."
        )
    given = data.get("losses") if isinstance(data, Mapping) else None
    for key, named in (("runs", runs), ("data.losses", given)):
        for name in named if isinstance(named, Mapping) else ():
            if not isinstance(name, str):
                raise InputError(
                    f"{origin}: {key}: {name!r} is no name: expected text, got "
                    f"{type(name).__name__}. Quote it, as in '{name}'."
                )


def _merged_run(base: Json, run: Any) -> Any:
    if isinstance(run, Mapping):
        _name_python(run.get("model"), "name")
    return _merged(base, run or {})


def _merged(base: Json, override: Any) -> Any:
    """``override`` on top of ``base``, key by key; a model of another name replaces the whole."""
    if not isinstance(override, Mapping) or not isinstance(base, Mapping):
        return override
    if "name" in override and override["name"] != base.get("name", override["name"]):
        return dict(override)
    merged = dict(base)
    for key, value in override.items():
        merged[key] = _merged(base[key], value) if key in base else value
    return merged


def _set(raw: Json, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(
            f"--set: {override!r} is malformed: expected dotted.key=value, such as training.lr=0.1."
        )
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        inner = section.get(parent)
        section[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[parent]
    try:
        section[last] = yaml.load(text, _StudyLoader)
    except yaml.YAMLError as error:
        raise InputError(f"--set: {key}: the value {text!r} is no valid YAML.") from error


def _absolute_paths(raw: Json, folder: Path) -> None:
    data = raw.get("data")
    for key in ("path", "root"):
        if isinstance(data, dict) and isinstance(data.get(key), str):
            data[key] = _absolute(data[key], folder)
    if isinstance(data, dict) and data.get("source") == "losses":
        for key in ("losses", "features"):
            data[key] = _each_absolute(data.get(key), folder)


def _each_absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _each_absolute(inner, folder) for key, inner in value.items()}
    return _absolute(value, folder) if isinstance(value, str) else value


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / Path(path).expanduser()).resolve())


def _name_python(section: Any, tag: str) -> None:
    """``{python: module:function}`` alone is enough to mean one's own."""
    if isinstance(section, dict) and "python" in section:
        section.setdefault(tag, "python")


def _explained(error: ValidationError) -> str:
    """Put the first of pydantic's complaints into one line."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    if isinstance(context.get("error"), InputError):
        return str(context["error"])
    key = _dotted(first["loc"])
    match first["type"]:
        case "unknown_key":
            return f"{key}.{first['msg']}" if key else first["msg"]
        case "missing":
            return f"{key}: is missing. Add it."
        case "union_tag_not_found":
            return f"{key}.{context['discriminator'].strip(chr(39))}: is missing. Add it."
        case "union_tag_invalid":
            tag, known = str(context["tag"]), context["expected_tags"]
            advice = nearest(tag, [name.strip("' ") for name in known.split(",")])
            return f"{key}: is unknown: expected one of {known}, got {tag!r}. {advice}"
    got = first["input"]
    shown = "" if isinstance(got, Mapping) else f", got {repr(got)[:80]}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{key}: is not valid: {message[0].lower()}{message[1:]}{shown}. Mend the study."


def _dotted(loc: Sequence[int | str]) -> str:
    """Return the key of pydantic's location, without what is pydantic's own in it."""
    parts = [str(part) for part in loc]
    # behind a union's key stands the tag of the member that was tried
    for union in (("data",), ("data", "losses"), ("runs", None, "model")):
        if len(parts) > len(union) and all(
            want in (None, part) for want, part in zip(union, parts, strict=False)
        ):
            del parts[len(union)]
    return ".".join(part for part in parts if part != "[key]")
