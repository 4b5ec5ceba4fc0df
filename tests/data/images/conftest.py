"""Small official files whose checksums count as the official ones, and a server of them."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxai.data.images import prepare as prepare
from tests.data.idx_files import trust, write_idx


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    return trust(monkeypatch, write_idx(tmp_path / "official"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(small, monkeypatch) -> Iterator[str]:
    """A loopback stand-in for the data set's server."""
    handler = functools.partial(Quiet, directory=str(small))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        trust(monkeypatch, small, url)
        monkeypatch.setattr(prepare, "_first_url", lambda name: f"{url}/train-images-idx3-ubyte.gz")
        yield url
        running.shutdown()
        thread.join()
