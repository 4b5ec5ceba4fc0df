"""How much of its devices' peak a training reaches: model FLOP utilisation (MFU)."""

import jax

from jaxai.distributed.peaks import utilization
from jaxai.nn.transformer import TransformerConfig
from jaxai.train.loop import Result
from jaxai.typing import PyTree


def language_model_operations(parameters: int, layers: int, width: int, length: int) -> int:
    """Floating-point operations of training on one token, forward and backward, as nanoGPT and PaLM count them.

    ``6 N + 12 L E T`` for N ``parameters`` without learned positions, L layers of ``width`` E (heads times their size)
    and contexts of ``length`` T tokens (arXiv:2204.02311, appendix B). Causal attention counts in full, and what is
    computed again does not count.

    >>> language_model_operations(124_000_000, 12, 768, 1024)
    857246208
    """
    return 6 * parameters + 12 * layers * width * length


def training_speed(result: Result, operations: float | None) -> dict[str, float | None]:
    """``iterations_per_second`` of the training without its evaluations, and ``mfu``, the share of the peak.

    ``operations`` are a step's, None if nobody counted them: then, and on devices of unknown peak, ``mfu`` is None.
    """
    rate = result.step / max(result.train_seconds - result.evaluation_seconds, 1e-9)
    kind = result.mesh.devices.flat[0].device_kind
    mfu = None if operations is None else utilization(rate * operations, kind, result.mesh.size)
    return {"iterations_per_second": round(rate, 2), "mfu": mfu}


def transformer_operations(config: TransformerConfig, params: PyTree, batch_size: int, length: int) -> int:
    """Floating-point operations of a training step of a language model on ``batch_size`` windows of ``length`` tokens.

    Counted by `language_model_operations`; ``params`` may be shapes.
    """
    positions = config.max_length * config.embed_dim if config.position == "learned" else 0
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params)) - positions
    return batch_size * length * language_model_operations(parameters, config.num_layers, config.embed_dim, length)
