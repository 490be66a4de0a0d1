"""A headless Chromium, spoken to in its DevTools protocol over a pair of pipes.

Two pipes and JSON need no package: each message ends with a zero byte. Chromium reads commands
from descriptor 3 and answers on descriptor 4.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60.0
_IDS = itertools.count(1)


class Tab(NamedTuple):
    """An open tab: the pipes to its browser, its session, and the events seen so far."""

    commands: int
    answers: int
    session: str
    events: list[dict[str, Any]]
    unread: bytearray


@contextmanager
def chromium_tab(profile: Path) -> Iterator[Tab]:
    """A tab of a Chromium of its own, whose profile lies in an empty folder."""
    read_command, commands = os.pipe()
    answers, write_answer = os.pipe()
    # the shell moves the two pipes to the descriptors that Chromium expects
    line = f'exec "$0" "$@" 3<&{read_command} 4>&{write_answer}'
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        ["bash", "-c", line, str(PROGRAM), *options, "about:blank"],
        pass_fds=(read_command, write_answer),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_command)
    os.close(write_answer)
    try:
        browser = Tab(commands, answers, "", [], bytearray())
        target = send(browser, "Target.createTarget", url="about:blank")["targetId"]
        attached = send(browser, "Target.attachToTarget", targetId=target, flatten=True)
        tab = browser._replace(session=attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            send(tab, f"{domain}.enable")
        yield tab
        send(browser, "Browser.close")
    finally:
        os.close(commands)
        os.close(answers)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def send(tab: Tab, method: str, **params: Any) -> dict[str, Any]:
    """Give a command and wait for its answer; events that come in between are kept."""
    message: dict[str, Any] = {"id": next(_IDS), "method": method, "params": params}
    if tab.session:
        message["sessionId"] = tab.session
    os.write(tab.commands, json.dumps(message).encode() + b"\0")
    while True:
        answer = _next_message(tab)
        if answer.get("id") == message["id"]:
            assert "error" not in answer, answer
            return answer["result"]
        tab.events.append(answer)


def open_page(tab: Tab, url: str, width: int, height: int = 900) -> None:
    """Load a page in a window of a size and wait until it has loaded."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    send(tab, "Emulation.setDeviceMetricsOverride", **size)
    tab.events.clear()
    send(tab, "Page.navigate", url=url)
    while not any(event.get("method") == "Page.loadEventFired" for event in tab.events):
        tab.events.append(_next_message(tab))


def evaluate(tab: Tab, script: str) -> Any:
    """The value of a JavaScript expression in the page."""
    answer = send(tab, "Runtime.evaluate", expression=script, returnByValue=True)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")


def press(tab: Tab, key: str) -> None:
    """Press and release a key that is named by its code, such as ArrowLeft."""
    codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
    for kind in ("rawKeyDown", "keyUp"):
        send(
            tab,
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            windowsVirtualKeyCode=codes[key],
        )


def complaints(tab: Tab) -> list[dict[str, Any]]:
    """Errors and warnings of the console, and exceptions, since the page was opened."""
    evaluate(tab, "0")
    return [
        event
        for event in tab.events
        if event["method"] == "Runtime.exceptionThrown"
        or (
            event["method"] == "Runtime.consoleAPICalled"
            and event["params"]["type"] in ("error", "warning", "assert")
        )
        or (
            event["method"] == "Log.entryAdded"
            and event["params"]["entry"]["level"] in ("error", "warning")
        )
    ]


def screenshot(tab: Tab) -> bytes:
    """The whole page as PNG."""
    answer = send(tab, "Page.captureScreenshot", format="png", captureBeyondViewport=True)
    return base64.b64decode(answer["data"])


def _next_message(tab: Tab) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(tab.answers, selectors.EVENT_READ)
        while b"\0" not in tab.unread:
            assert selector.select(deadline - time.monotonic()), "Chromium does not answer"
            piece = os.read(tab.answers, 1 << 20)
            assert piece, "Chromium has ended"
            tab.unread.extend(piece)
    message, _, rest = bytes(tab.unread).partition(b"\0")
    tab.unread[:] = rest
    return json.loads(message)
