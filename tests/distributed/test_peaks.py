"""The share of a peak."""

import pytest

from jaxai.distributed.peaks import PEAKS, utilization


def test_the_share_of_several_devices():
    assert utilization(312e12, "NVIDIA A100-SXM4-80GB", 8) == pytest.approx(1 / 8)


def test_unknown_devices_have_none():
    assert utilization(1e12, "cpu") is None
    assert min(PEAKS.values()) > 1e14
