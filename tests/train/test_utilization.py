"""The share of the peak, against nanoGPT's arithmetic."""

import pytest

from jaxai.train.utilization import PEAKS, language_model_operations, utilization


def test_as_nanogpt_counts():
    """Its `estimate_mfu` for GPT-2 on an A100: 6 N + 12 L H Q T operations a token."""
    layers, heads, size, tokens = 12, 12, 64, 1024
    positions, embedding, vectors = 1024 * 768, 50257 * 768, (2 * 12 + 1) * 768
    parameters = positions + embedding + vectors + 12 * 12 * 768**2
    token = language_model_operations(parameters - positions, layers, heads * size, tokens)
    assert token == 6 * (parameters - positions) + 12 * layers * heads * size * tokens
    operations = token * tokens * 12 * 40 / 0.25  # 480 sequences in a quarter of a second
    assert utilization(operations, "NVIDIA A100-SXM4-80GB", 8) == pytest.approx(operations / (8 * 312e12))


def test_unknown_devices_have_none():
    assert utilization(1e12, "cpu") is None
    assert min(PEAKS.values()) > 1e14
