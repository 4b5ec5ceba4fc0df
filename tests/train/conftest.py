"""Devices that pass for accelerators."""

import pytest


@pytest.fixture
def accelerated(monkeypatch):
    """The CPU's devices pass for accelerators."""
    monkeypatch.setattr("jaxai.train.loop.on_accelerator", lambda mesh: True)
