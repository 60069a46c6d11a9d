"""What every test may use."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real models, data sets, videos and broken inputs (`EDGE_TESTDATA`)."""
    path = Path(os.environ.get("EDGE_TESTDATA", ROOT.parent / "shared" / "testdata"))
    if not (path / "manifest.json").is_file():
        pytest.skip(f"no test material at {path}: set EDGE_TESTDATA")
    return path


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
