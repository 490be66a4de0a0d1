"""Whose a fault of a disk or a store is, and which of them are waited for.

A path that cannot be, a store that is closed to us: somebody has to choose again
(:class:`InputError`). A store that does not answer may do so soon (:class:`TransientError`). A
disk that is full, say, will not mend by itself (:class:`StorageError`).
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Iterator

from lltopo.errors import InputError, StorageError, TransientError

_PATH_FAULTS = {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_PATH_FAULTS |= {errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS}
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# pyarrow tells of an answer of S3 in words alone
_S3_ERROR = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?")
_BAD_CREDENTIALS = {"INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "UNRECOGNIZED_CLIENT"}
_BAD_CREDENTIALS |= {"INVALID_CLIENT_TOKEN_ID", "MISSING_AUTHENTICATION_TOKEN"}
# a redirect to another region, an expired token
_FINAL_STATUS = {"301", "400", "401", "403"}
_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0


def told_fault(
    error: OSError, target: str, done: str, *, is_local: bool
) -> InputError | TransientError | StorageError:
    """Return the error that says in one line what is wrong with a path, and what to do.

    Parameters
    ----------
    error
        As the operating system or pyarrow raised it.
    target, done
        The path, and what could not be done with it: read, written, removed.
    is_local
        Whether it lies on a disk of this machine.
    """
    fault = f"{target}: cannot be {done}"
    if error.errno in _PATH_FAULTS:
        reason = os.strerror(error.errno)
        return InputError(f"{fault}: {reason}. Choose another folder with --out.")
    if is_local:
        reason = os.strerror(error.errno) if error.errno else first_line(error)
        advice = "Make room" if error.errno in _FULL_DISK else "Mend the disk"
        return StorageError(
            f"{fault}: {reason}. {advice} or choose another --out; the same command then goes on."
        )
    refusal = _refusal(str(error), target)
    if refusal:
        return InputError(f"{fault}: {refusal}")
    return TransientError(f"{fault}: {first_line(error)}. Try again.")


def _refusal(message: str, target: str) -> str | None:
    """Why S3 will refuse the same request for ever, and what to do; None where it may not."""
    found = _S3_ERROR.search(message)
    if not found:
        return None
    code, status = found.groups()
    if code == "ACCESS_DENIED":
        return "access is denied. Check the credentials in the environment and what they allow."
    if code in _BAD_CREDENTIALS:
        return f"{code}: the store does not know the credentials. Mend those in the environment."
    if code == "NO_SUCH_BUCKET":
        bucket = target.partition("://")[2].partition("/")[0]
        return f"there is no bucket {bucket}. Make it, or choose another --out."
    if status in _FINAL_STATUS:
        reason = message[found.start() :].splitlines()[0]
        return f"{reason}. Check the region and the credentials in the environment."
    return None


def delays() -> Iterator[float]:
    """Yield seconds to wait between tries: doubling up to a longest, a random part taken off.

    So that many who were cut off at once do not come back at once (Brooker, "Exponential Backoff
    And Jitter", AWS Architecture Blog, 2015).
    """
    longest = _FIRST_DELAY
    while True:
        yield longest * random.uniform(0.5, 1.0)
        longest = min(2.0 * longest, _LONGEST_DELAY)


def told_error(error: BaseException) -> str:
    """Return an error's name and text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
