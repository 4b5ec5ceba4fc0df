"""Sessions of several processes: addresses, a process of its own, failures."""

import os

import pytest

from jaxai.distributed.cluster import distributed_session, is_loopback
from jaxai.errors import Interrupted, Stopped, UserError


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("example.org", "10.0.0.1", "0.0.0.0")))


def test_a_process_of_its_own_joins_nothing(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: pytest.fail("joined"))
    with distributed_session("", 0, -1):
        pass
    with pytest.raises(RuntimeError, match="as it was"), distributed_session("", 0, -1):
        raise RuntimeError("as it was")


@pytest.fixture
def joined(monkeypatch) -> list[dict]:
    """Options of each joined cluster; nothing is joined, and no setting changes."""
    found = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: found.append(options))
    monkeypatch.setattr("jax.config.update", lambda name, value: None)
    monkeypatch.setenv("no_grpc_proxy", "")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return found


@pytest.mark.parametrize(
    ("coordinator", "own", "proxy"),
    [
        ("auto", set(), ""),
        ("localhost:80", {"coordinator_bind_address"}, "localhost"),
        ("[::1]:80", {"coordinator_bind_address"}, "::1"),
        ("example.org:80", set(), "example.org"),
    ],
)
def test_a_coordinator_on_this_machine_listens_there_alone(joined, coordinator, own, proxy):
    with distributed_session(coordinator, 2, 1):
        assert os.environ.get("no_grpc_proxy") == proxy  # noqa: SIM112
    (options,) = joined
    assert {"coordinator_bind_address"} & options.keys() == own
    if coordinator != "auto":
        assert (options["coordinator_address"], options["num_processes"], options["process_id"]) == (coordinator, 2, 1)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_cluster_that_does_not_come_is_named(joined, monkeypatch, kind):
    def fail(**options):
        raise kind("DEADLINE_EXCEEDED:\n nobody came")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    with (
        pytest.raises(UserError, match=r"--coordinator localhost:80: DEADLINE_EXCEEDED: nobody came"),
        distributed_session("localhost:80", 2, 1),
    ):
        pytest.fail("entered")


@pytest.mark.parametrize("error", [Interrupted(15), FloatingPointError("loss is nan")])
def test_ends_that_all_processes_share_are_raised(joined, error):
    with pytest.raises(type(error)), distributed_session("auto", 0, -1):
        raise error


class Ended(Exception):
    """Instead of the end of this process."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("--steps must be at least 1"), 2, "error: --steps must be at least 1 (process 0)"),
        (Stopped("collapsed"), 1, "stopped: collapsed (process 0)"),
        (TypeError("a bug"), 1, "stopped: this process failed, or lost another (process 0)"),
    ],
)
def test_a_process_that_fails_alone_says_so_and_ends_at_once(joined, monkeypatch, capsys, error, code, words):
    codes = []

    def end(code):
        codes.append(code)
        raise Ended

    monkeypatch.setattr("os._exit", end)
    with pytest.raises(Ended), distributed_session("auto", 0, -1):
        raise error
    said = capsys.readouterr().err
    assert codes == [code]
    assert words in said
    assert ("Traceback" in said) == isinstance(error, TypeError)
