"""Folders and files, here or in an object store, through pyarrow's file systems.

A file is whole or absent. On a local disk it is written under another name and renamed; into an
object store it is put by a thread of its own, for pyarrow commits an open output stream with what
it has got whenever Python lets go of it, and a signal could come between opening and writing.

A store that is away is waited for (`faults.py` says which fault is one). Credentials are the
environment's of each process alone: a URI with any is refused, and no place holds any.
"""

from __future__ import annotations

import os
import pickle
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from pyarrow import ArrowException
from pyarrow import fs as pafs

from lltopo.errors import InputError, TransientError
from lltopo.faults import delays, first_line, told_fault
from lltopo.orphans import is_dead, is_of_this_machine, own_mark

Found = TypeVar("Found")

_nobody_waits: ContextVar[threading.Event | None] = ContextVar("nobody_waits", default=None)

RETRY_SECONDS = 60.0
_PARTIAL = ".partial"
_PARTIAL_NAME = re.compile(r"\..+\.(\w+-\d+)\.[0-9a-f]{32}\.partial")
_ORPHANED_SECONDS = 3600.0
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HARMLESS = {  # options of a URI
    "scheme",
    "region",
    "endpoint_override",
    "force_virtual_addressing",
    "allow_bucket_creation",
    "allow_bucket_deletion",
    "allow_delayed_open",
    "background_writes",
    "smart_defaults",
    "tls_ca_dir_path",
    "tls_ca_file_path",
    "tls_verify_certificates",
    "default_bucket_location",
    "project_id",
    "retry_limit_seconds",
}
_GS_PATIENCE = "retry_limit_seconds=10"  # of the client; ours comes on top of it


class Place(NamedTuple):
    """A folder or file: a pyarrow file system and a path in it.

    ``retry_s`` is how many seconds an operation waits for a store that is away.
    """

    filesystem: pafs.FileSystem
    path: str
    retry_s: float = RETRY_SECONDS

    def __reduce__(self) -> tuple[Any, ...]:
        # unpickled by itself, each would connect anew, and ask anew for credentials
        return _unpickled, (pickle.dumps(self.filesystem), self.path, self.retry_s)

    def __truediv__(self, name: str) -> Place:
        return self._replace(path=f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        # as it is written in a URI
        scheme = self.filesystem.type_name.replace("gcs", "gs")
        return f"{scheme}://{self.path}"

    @property
    def parent(self) -> Place:
        """The folder that holds it."""
        return self._replace(path=self.path.rstrip("/").rpartition("/")[0])

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)


def _unpickled(filesystem: bytes, path: str, retry_s: float) -> Place:
    return Place(_known(filesystem), path, retry_s)


@lru_cache(maxsize=16)
def _known(filesystem: bytes) -> pafs.FileSystem:
    """A file system of this process's own driver, once for all that it sends."""
    return pickle.loads(filesystem)


def place(uri: str | os.PathLike[str], retry_s: float = RETRY_SECONDS) -> Place:
    """Return the place that a path or a URI (``file``, ``s3``, ``gs``) names.

    Parameters
    ----------
    uri
        A relative path is relative to the working folder. The endpoint of a store that is not
        Amazon's is ``AWS_ENDPOINT_URL`` in the environment, or the URI's ``endpoint_override``.
    retry_s
        Its ``retry_s``.

    Raises
    ------
    InputError
        For a URI that no file system takes or that holds credentials.
    """
    text = os.fspath(uri)
    if "://" not in text:
        return Place(pafs.LocalFileSystem(), str(Path(text).expanduser().absolute()), retry_s)
    check_no_credentials(text)
    try:
        filesystem, path = pafs.FileSystem.from_uri(_with_patience(text))
    except (ArrowException, ValueError, OSError) as error:
        # not with the query, where a key may have come to stand
        shown = text.partition("?")[0]
        reason = first_line(error).replace(_with_patience(text), shown)
        raise InputError(
            f"{shown}: cannot be opened as a file, s3 or gs URI: {reason}. "
            "Check its spelling and the credentials in the environment."
        ) from error
    return Place(filesystem, path, retry_s)


def check_no_credentials(uri: str) -> None:
    """Raise an InputError for a store's URI with credentials in it, without repeating them."""
    scheme, _, rest = uri.partition("://")
    if scheme not in ("s3", "gs"):
        return
    bucket = re.split(r"[/?]", rest)[0].removeprefix("anonymous@")
    query = parse_qsl(rest.partition("?")[2], keep_blank_values=True)
    if re.search("[@:]", bucket) or not {key for key, _ in query} <= _HARMLESS:
        raise InputError(
            f"a {scheme} URI: holds credentials, a port or an unknown option: expected "
            f"{scheme}://BUCKET/PATH. Give credentials in the environment, such as "
            "AWS_ACCESS_KEY_ID, and an endpoint as AWS_ENDPOINT_URL."
        )


def _with_patience(uri: str) -> str:
    """A URI whose client gives up soon, as S3's does by itself, unless it says otherwise."""
    if not uri.startswith("gs://") or "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{_GS_PATIENCE}"


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
        Where the path is one that cannot be written, such as below a regular file, or a store
        refuses it.
    StorageError
        Where a disk does not take it: it is full, say.
    TransientError
        Where a store has not taken it for ``target.retry_s``.
    """
    if target.is_local:
        _patiently(target, "written", lambda: _write_and_rename(Path(target.path), content))
    else:
        _patiently(target, "written", lambda: _put(target, content))


def _write_and_rename(final: Path, content: bytes) -> None:
    partial = final.with_name(f".{final.name}.{own_mark()}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(final)
    finally:
        with suppress(OSError):
            partial.unlink()


def _put(target: Place, content: bytes) -> None:
    faults: list[BaseException] = []

    def put() -> None:
        try:
            with target.filesystem.open_output_stream(target.path) as stream:
                stream.write(content)
        except BaseException as fault:
            faults.append(fault)

    # signals interrupt the main thread alone, wherever it waits: it ends after the other
    other = threading.Thread(target=put, name="put")
    try:
        other.start()
        other.join()
    finally:
        if other.is_alive():
            other.join()
    if faults:
        raise faults[0]


def read_bytes(source: Place) -> bytes:
    """Return the content of a file; FileNotFoundError where there is none."""

    def content() -> bytes:
        with source.filesystem.open_input_file(source.path) as stream:
            return bytes(stream.read())

    return _patiently(source, "read", content, FileNotFoundError)


def read_end(source: Place, n_bytes: int) -> bytes:
    """Return the last bytes of a file, all of a shorter one; FileNotFoundError without one."""

    def end() -> bytes:
        with source.filesystem.open_input_file(source.path) as stream:
            start = max(0, stream.size() - n_bytes)
            return bytes(stream.read_at(n_bytes, start))

    return _patiently(source, "read", end, FileNotFoundError)


def read_part(source: Place, start: int, n_bytes: int) -> bytes:
    """Return some bytes of a file, fewer where it ends before; FileNotFoundError without one."""

    def part() -> bytes:
        with source.filesystem.open_input_file(source.path) as stream:
            return bytes(stream.read_at(n_bytes, start))

    return _patiently(source, "read", part, FileNotFoundError)


def file_size(source: Place) -> int:
    """Return a file's size in bytes; FileNotFoundError where there is none."""
    info = _patiently(source, "read", lambda: source.filesystem.get_file_info(source.path))
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(str(source))
    return int(info.size)


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
    if _type(folder) == pafs.FileType.File:
        return []
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    found = _patiently(folder, "read", lambda: folder.filesystem.get_file_info(selector))
    return sorted(info.path.removeprefix(root) for info in found if info.type == pafs.FileType.File)


def remove(target: Place) -> None:
    """Remove a file or a whole folder; one that is not there is no error."""

    def removed() -> None:
        there = target.filesystem.get_file_info(target.path).type
        if there == pafs.FileType.File:
            target.filesystem.delete_file(target.path)
        elif there == pafs.FileType.Directory:
            target.filesystem.delete_dir(target.path)

    _patiently(target, "removed", removed)


def remove_partial_files(folder: Place) -> None:
    """Clear away what a killed process left half written; what a living one writes stays.

    Of another machine's processes nothing is known: theirs stays for an hour.
    """
    for name in _all_below(folder) if folder.is_local else []:
        if name.endswith(_PARTIAL) and _is_orphaned(Path((folder / name).path)):
            remove(folder / name)


def _is_orphaned(partial: Path) -> bool:
    named = _PARTIAL_NAME.fullmatch(partial.name)
    if named is None:
        return False  # not ours
    if is_of_this_machine(named[1]):
        return is_dead(named[1])
    try:
        return time.time() - partial.stat().st_mtime > _ORPHANED_SECONDS
    except OSError:
        return False  # just ended


def _type(target: Place) -> pafs.FileType:
    def found() -> pafs.FileType:
        return target.filesystem.get_file_info(target.path).type

    return _patiently(target, "read", found, NotADirectoryError)


@contextmanager
def waiting_until(nobody_waits: threading.Event) -> Iterator[None]:
    """Have this thread wait for no store any longer once the event is set."""
    token = _nobody_waits.set(nobody_waits)
    try:
        yield
    finally:
        _nobody_waits.reset(token)


def _wait(seconds: float, fault: Exception) -> None:
    """Wait before a store is asked again; raise its fault where nobody wants to hear."""
    nobody_waits = _nobody_waits.get()
    if nobody_waits is None:
        time.sleep(seconds)
    elif nobody_waits.wait(seconds):
        raise fault


def _patiently(
    target: Place, done: str, operation: Callable[[], Found], *passing: type[OSError]
) -> Found:
    """The outcome of an operation, tried again while a store is away.

    An OSError becomes what `told_fault` makes of it; ``passing`` ones are left as they are.
    """
    give_up: float | None = None
    for delay in delays():
        try:
            return operation()
        except passing:
            raise
        except OSError as error:
            fault = told_fault(error, str(target), done, is_local=target.is_local)
            now = time.monotonic()
            # the first fault starts the clock
            give_up = now + target.retry_s if give_up is None else give_up
            if not isinstance(fault, TransientError) or now >= give_up:
                raise fault from error
        _wait(min(delay, give_up - now), fault)
    raise AssertionError("delays end")
