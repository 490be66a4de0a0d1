"""The kinds of failure that the rest of lltopo tells apart."""

from __future__ import annotations


class InputError(ValueError):
    """A study, option, file or array that cannot be used as it is (exit status 2).

    The message is one line: ``<file or argument>: <key or column> <what is wrong>:
    expected X, got Y. <What to do.>``
    """


class VerificationError(RuntimeError):
    """Other people's code finds otherwise than what was computed here: the study has failed."""


class TransientError(RuntimeError):
    """A passing fault (a store that does not answer, say): the same work may be tried again."""


class StorageError(RuntimeError):
    """A disk that does not take or give what it should, such as a full one: no retry mends it."""
