"""What holds for all tests."""

from __future__ import annotations

import signal

# a shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
