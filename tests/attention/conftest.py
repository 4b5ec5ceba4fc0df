"""Fixtures of the attention tests."""

import jax
import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Disable the type checks of the tests, which would raise before the function's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
