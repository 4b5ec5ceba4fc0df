"""Model FLOP utilisation (MFU): the fraction of the devices' peak rate that training reaches."""

import jax

from jaxai.distributed.peaks import utilization
from jaxai.nn.transformer import TransformerConfig
from jaxai.train.loop import Result
from jaxai.typing import PyTree


def language_model_operations(parameters: int, layers: int, width: int, length: int) -> int:
    """FLOPs of training on one token, forward and backward, as nanoGPT and PaLM count them.

    ``6 N + 12 L E T`` for N ``parameters`` without learned positions, L layers of ``width`` E (heads times head size)
    and contexts of ``length`` T tokens (arXiv:2204.02311, appendix B). Causal attention counts as full attention, and
    rematerialisation is not counted.

    >>> language_model_operations(124_000_000, 12, 768, 1024)
    857246208
    """
    return 6 * parameters + 12 * layers * width * length


def training_speed(result: Result, operations: float | None) -> dict[str, float | None]:
    """``iterations_per_second`` of training without evaluations, and ``mfu``, the fraction of the devices' peak rate.

    ``operations`` are the FLOPs of one step, or None if unknown: then, and on devices of unknown peak, ``mfu`` is None.
    """
    rate = result.step / max(result.train_seconds - result.evaluation_seconds, 1e-9)
    kind = result.mesh.devices.flat[0].device_kind
    mfu = None if operations is None else utilization(rate * operations, kind, result.mesh.size)
    return {"iterations_per_second": round(rate, 2), "mfu": mfu}


def transformer_operations(config: TransformerConfig, params: PyTree, batch_size: int, length: int) -> int:
    """FLOPs of a training step of a language model on ``batch_size`` windows of ``length`` tokens.

    Counted by `language_model_operations`; the leaves of ``params`` may be arrays or shapes.
    """
    positions = config.max_length * config.embed_dim if config.position == "learned" else 0
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params)) - positions
    return batch_size * length * language_model_operations(parameters, config.num_layers, config.embed_dim, length)
