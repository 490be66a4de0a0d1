"""The commands of jobs, where the study or the address is wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from processes import free_port

from lltopo.errors import InputError
from lltopo.submission import job_client


@pytest.fixture
def web_server() -> Iterator[Callable[[int], str]]:
    """Starts a web server that has one answer to everything; its address."""
    servers = []

    def start(status: int) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"no")

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, args=[0.05]).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_wrong_study_is_told_before_the_cluster_is_asked(
    command: Command, study_file: Path
) -> None:
    nowhere = ["--out", "s3://b/r", "--address", f"http://127.0.0.1:{free_port()}"]
    ended = command("submit", str(study_file), *nowhere, "--set", "training.epoch=3")
    assert ended == (2, "", ended[2])
    assert "epoch: unknown key. Did you mean epochs?" in ended[2]


@pytest.mark.parametrize(
    "arguments", [["status", "a-1"], ["logs", "a-1"], ["logs", "a-1", "--follow"]]
)
def test_nobody_at_the_address(command: Command, arguments: list[str]) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    code, _, error = command(*arguments, "--address", address)
    assert code == 2
    assert f"{address}: no job server of Ray answers" in error
    code, _, error = command(*arguments, "--address", "localhost:8265")
    assert code == 2
    assert "--address: 'localhost:8265' is malformed" in error


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the cluster asks for a token. Set RAY_AUTH_MODE=token"),
        (403, "the cluster takes another token. Set RAY_AUTH_MODE=token"),
        (404, "no job server of Ray answers"),
        (500, "no job server of Ray answers"),
        (200, "no job server of Ray answers"),
    ],
)
def test_somebody_else_at_the_address(
    command: Command, web_server: Callable[[int], str], status: int, said: str
) -> None:
    address = web_server(status)
    code, _, error = command("status", "a-1", "--address", address)
    assert (code, error.count("\n")) == (2, 1)
    assert f"{address}: {said}" in error


def test_address_counts_for_more_than_ray_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, here = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    monkeypatch.setenv("RAY_ADDRESS", elsewhere)
    with pytest.raises(InputError, match=here), job_client(here):
        pass
    assert os.environ["RAY_ADDRESS"] == elsewhere
