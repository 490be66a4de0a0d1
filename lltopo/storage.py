"""Folders and files, here or in an object store, through pyarrow's file systems.

A file is whole or absent. On a local disk it is written under another name and renamed; in an
object store it is put in one piece, from memory, because an error inside an open output stream
would commit what had been written so far.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pyarrow import ArrowException
from pyarrow import fs as pafs

from lltopo.errors import InputError

_PARTIAL = ".partial"
# what no second try would mend: the fault is the path's
_UNWRITABLE = {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT}
_UNWRITABLE |= {errno.ENOTDIR, errno.EPERM, errno.EROFS}
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Place(NamedTuple):
    """A folder or file: a pyarrow file system and a path in it."""

    filesystem: pafs.FileSystem
    path: str

    def __truediv__(self, name: str) -> Place:
        return Place(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        return f"{self.filesystem.type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)


def place(uri: str | os.PathLike[str]) -> Place:
    """Return the place that a path or a URI (``file``, ``s3``, ``gs``) names.

    Parameters
    ----------
    uri
        A relative path is relative to the working folder.

    Raises
    ------
    InputError
        For a URI that no file system takes.
    """
    text = os.fspath(uri)
    if "://" not in text:
        return Place(pafs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (ArrowException, ValueError) as error:
        raise InputError(
            f"{text}: cannot be opened as a file, s3 or gs URI: {_first_line(error)}. "
            "Check its spelling and the credentials in the environment."
        ) from error
    return Place(filesystem, path)


def safe_name(name: str, what: str) -> str:
    """Return ``name`` itself, where it may become a part of a path.

    Parameters
    ----------
    name
        Perhaps a person's.
    what
        The key or argument that it is the value of, for the error.

    Raises
    ------
    InputError
        Unless it is 1 to 100 letters, digits, dots, dashes and underscores and starts with a
        letter or digit.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise InputError(
            f"{what}: {name!r} is no safe file name: expected up to 100 letters, digits, '.', "
            "'-' or '_', a letter or digit first. Rename it."
        )
    return name


def write_bytes(target: Place, content: bytes) -> None:
    """Write a whole file, or none; a file already there is replaced in one step.

    Raises
    ------
    InputError
        Where the path is one that cannot be written, such as below a regular file.
    """
    if not target.is_local:
        with target.filesystem.open_output_stream(target.path) as stream:
            stream.write(content)
        return
    final = Path(target.path)
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(final)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise InputError(
            f"{target}: cannot be written: {error.strerror}. Choose another folder with --out."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def read_bytes(source: Place) -> bytes:
    """Return the content of a file; FileNotFoundError where there is none."""
    with source.filesystem.open_input_file(source.path) as stream:
        content: bytes = stream.read()
    return content


def exists(target: Place) -> bool:
    """Say whether a file or folder is there."""
    try:
        info = target.filesystem.get_file_info(target.path)
    except NotADirectoryError:
        return False
    return bool(info.type != pafs.FileType.NotFound)


def files_below(folder: Place) -> list[str]:
    """List all files below a folder, relative to it and sorted; none where there is no folder.

    A file that is being written is absent as yet.
    """
    return [name for name in _all_below(folder) if not name.endswith(_PARTIAL)]


def _all_below(folder: Place) -> list[str]:
    root = folder.path.rstrip("/") + "/"
    if folder.filesystem.get_file_info(folder.path).type == pafs.FileType.File:
        return []
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    return sorted(
        info.path.removeprefix(root)
        for info in folder.filesystem.get_file_info(selector)
        if info.type == pafs.FileType.File
    )


def remove(target: Place) -> None:
    """Remove a file or a whole folder; one that is not there is no error."""
    info = target.filesystem.get_file_info(target.path)
    if info.type == pafs.FileType.File:
        target.filesystem.delete_file(target.path)
    elif info.type == pafs.FileType.Directory:
        target.filesystem.delete_dir(target.path)


def remove_partial_files(folder: Place) -> None:
    """Clear away what a killed process left half written."""
    for name in _all_below(folder) if folder.is_local else []:
        if name.endswith(_PARTIAL):
            remove(folder / name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
