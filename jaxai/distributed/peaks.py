"""Peak rates of accelerators, and the fraction of them that a program reaches."""

PEAKS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""Peak bfloat16 FLOP/s by JAX's device kind, from NVIDIA's data sheets, without sparsity."""


def utilization(operations: float, kind: str, devices: int = 1) -> float | None:
    """The fraction of the bfloat16 peak of ``devices`` devices that ``operations`` FLOP/s are; None for unknown kinds.

    >>> utilization(98.9e12, "NVIDIA H200"), utilization(1e9, "cpu")
    (0.1, None)
    """
    peak = PEAKS.get(kind)
    return operations / (devices * peak) if peak else None
