"""Folders and files, here or in an object store, through pyarrow's file systems.

A file is whole or absent. On a local disk it is written under another name and renamed; into an
object store it is put in one call of pyarrow, for pyarrow commits an open output stream with what
it has got whenever Python lets go of it, and a signal could come between opening and writing.

A fault of a path is an :class:`InputError`; any other one of a store is a
:class:`TransientError`, and on a disk the OSError that it is.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pyarrow import ArrowException, NativeFile
from pyarrow import fs as pafs

from lltopo.errors import InputError, TransientError

_PARTIAL = ".partial"
# what no second try would mend: the fault is the path's
_PATH_FAULTS = {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_PATH_FAULTS |= {errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS}
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
    def parent(self) -> Place:
        """The folder that holds it."""
        return Place(self.filesystem, self.path.rstrip("/").rpartition("/")[0])

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
    TransientError
        Where a store does not take it.
    """
    with _told_faults(target, "written"):
        if target.is_local:
            _write_and_rename(Path(target.path), content)
        else:
            _put(target, content)


def _write_and_rename(final: Path, content: bytes) -> None:
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(final)
    finally:
        with suppress(OSError):
            partial.unlink()


def _put(target: Place, content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as whole:
        whole.write(content)
        whole.flush()
        pafs.copy_files(
            whole.name,
            target.path,
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=target.filesystem,
            use_threads=False,
        )


def open_file(source: Place) -> NativeFile:
    """Open a file for reading; FileNotFoundError where there is none."""
    with _told_faults(source, "read", FileNotFoundError):
        return source.filesystem.open_input_file(source.path)


def read_bytes(source: Place) -> bytes:
    """Return the content of a file; FileNotFoundError where there is none."""
    with _told_faults(source, "read", FileNotFoundError), open_file(source) as stream:
        content: bytes = stream.read()
    return content


def exists(target: Place) -> bool:
    """Say whether a file or folder is there."""
    try:
        return bool(_type(target) != pafs.FileType.NotFound)
    except NotADirectoryError:
        return False


def files_below(folder: Place) -> list[str]:
    """List all files below a folder, relative to it and sorted; none where there is no folder.

    A file that is being written is absent as yet.
    """
    return [name for name in _all_below(folder) if not name.endswith(_PARTIAL)]


def _all_below(folder: Place) -> list[str]:
    root = folder.path.rstrip("/") + "/"
    with _told_faults(folder, "read"):
        if _type(folder) == pafs.FileType.File:
            return []
        selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
        found = folder.filesystem.get_file_info(selector)
    return sorted(info.path.removeprefix(root) for info in found if info.type == pafs.FileType.File)


def remove(target: Place) -> None:
    """Remove a file or a whole folder; one that is not there is no error."""
    with _told_faults(target, "removed"):
        there = _type(target)
        if there == pafs.FileType.File:
            target.filesystem.delete_file(target.path)
        elif there == pafs.FileType.Directory:
            target.filesystem.delete_dir(target.path)


def remove_partial_files(folder: Place) -> None:
    """Clear away what a killed process left half written."""
    for name in _all_below(folder) if folder.is_local else []:
        if name.endswith(_PARTIAL):
            remove(folder / name)


def _type(target: Place) -> pafs.FileType:
    with _told_faults(target, "read", NotADirectoryError):
        return target.filesystem.get_file_info(target.path).type


@contextmanager
def _told_faults(target: Place, done: str, *passing: type[OSError]) -> Iterator[None]:
    """Tell the faults of a path and of a store apart; ``passing`` ones are left as they are."""
    try:
        yield
    except passing:
        raise
    except OSError as error:
        if error.errno in _PATH_FAULTS:
            reason = os.strerror(error.errno)
            raise InputError(
                f"{target}: cannot be {done}: {reason}. Choose another folder with --out."
            ) from error
        if not target.is_local:
            raise TransientError(
                f"{target}: cannot be {done}: {_first_line(error)}. Try again."
            ) from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
