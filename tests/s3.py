"""A real S3 API over HTTP for the tests: moto's server, a process of its own on 127.0.0.1."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from processes import free_port

BUCKET = "bucket"
ACCESS_KEY = "AKIA-MARKER-ACCESS"
SECRET_KEY = "marker/secret+key/0123456789"
SESSION_TOKEN = "marker-session-token"
SECRETS = (SECRET_KEY, SESSION_TOKEN)
_PATIENCE = 60.0


def is_whole(name: str, content: bytes) -> bool:
    """Say whether a file of results can be read to its end, by its own format."""
    try:
        match name.rpartition(".")[2]:
            case "parquet":
                pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
            case "npz" | "pt":
                return zipfile.ZipFile(io.BytesIO(content)).testzip() is None
            case "png":
                Image.open(io.BytesIO(content)).load()
            case "yaml":
                return set(yaml.safe_load(content)) >= {"data", "storage"}
            case "html":
                return content.rstrip().endswith(b"</html>")
            case other:
                raise AssertionError(f"{name}: a file of an unknown kind, {other}")
    except (pa.ArrowException, OSError, zipfile.BadZipFile, yaml.YAMLError):
        return False
    return True


class Store(NamedTuple):
    """A running server with one empty bucket, `BUCKET`."""

    port: int


@contextmanager
def s3_store() -> Iterator[Store]:
    """A store for as long as the block lasts."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "moto"}
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        _make_bucket(port, server)
        yield Store(port)
    finally:
        server.kill()
        server.wait()


def s3_environment(port: int) -> Mapping[str, str]:
    """The variables by which a process finds a store and its (dummy) credentials."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _make_bucket(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("PUT", f"/{BUCKET}")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return
        except (OSError, HTTPException):
            assert server.poll() is None, "moto's server has ended"
            assert time.monotonic() < end, "moto's server does not answer"
            time.sleep(0.1)
        finally:
            connection.close()
