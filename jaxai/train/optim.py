"""Optimisers and schedules from a config, and the moving average of parameters."""

import dataclasses
import math
from collections.abc import Hashable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxai.errors import UserError
from jaxai.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980), with optional warm-up, cosine decay, and decoupled weight decay (arXiv 1711.05101)."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    final_rate: float = 1.0
    """Learning rate after decay_steps as a fraction of learning_rate, reached by cosine decay after the warm-up."""
    weight_decay: float = 0.0
    decay: Literal["all", "matrices"] = "all"
    """Parameters subject to weight decay: all, or only kernels and embeddings (no ``bias``, no ``scale``)."""
    clip: float = 0.0
    """Maximum global gradient norm (clipping); 0: no clipping."""
    muon: bool = False
    """Muon for dense kernels (Jordan et al. 2024), updates scaled to the size of Adam's (arXiv:2502.16982)."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate must be positive, got {self.learning_rate}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"beta1 and beta2 must lie in [0, 1), got {self.beta1} and {self.beta2}")
        if not all(value >= 0 for value in (self.warmup, self.final_rate, self.weight_decay, self.clip)):
            raise UserError("warmup, final_rate, weight_decay and clip must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Airbench:
    """airbench94's optimiser: Muon for convolution kernels, SGD with Nesterov momentum 0.85 for biases and the head."""

    filter_rate: float = 0.24
    bias_rate: float = 0.053
    """Learning rate of biases for the loss summed over a batch, as head_rate is."""
    head_rate: float = 0.67
    weight_decay: float = 2e-6
    """Of biases and head: relative shrinkage per step and example at the initial learning rate."""
    whitening_share: float = 3 / 8
    """The fraction of decay_steps during which the whitening bias is trained."""

    def __post_init__(self) -> None:
        if not min(self.filter_rate, self.bias_rate, self.head_rate) > 0:
            raise UserError("filter_rate, bias_rate and head_rate must be positive")
        if not (self.weight_decay >= 0 and 0 < self.whitening_share <= 1):
            raise UserError("weight_decay must be 0 or more, whitening_share more than 0 and at most 1")


def schedule(config: Adam, decay_steps: int) -> optax.Schedule:
    """Learning rate schedule: linear warm-up, cosine decay to the final rate at ``decay_steps``, then constant.

    ValueError unless ``decay_steps`` exceeds the warm-up.
    """
    rate, start = config.learning_rate, 0.0 if config.warmup else config.learning_rate
    if decay_steps <= config.warmup:
        raise UserError(f"decay_steps {decay_steps} must exceed warmup {config.warmup}")
    return optax.warmup_cosine_decay_schedule(start, rate, config.warmup, decay_steps, rate * config.final_rate)


def optimizer(config: Adam, decay_steps: int) -> optax.GradientTransformation:
    """The optax optimiser of a config; its learning rate schedule runs over ``decay_steps`` steps."""
    rate = schedule(config, decay_steps)
    mask = None if config.decay == "all" else matrices
    parts = [optax.add_decayed_weights(config.weight_decay, mask)] if config.weight_decay else []
    tx = optax.chain(scale_by_adam(config.beta1, config.beta2), *parts, optax.scale_by_learning_rate(rate))
    if config.muon:
        tx = optax.partition({"adam": tx, "muon": muon(rate, config.weight_decay)}, muon_groups)
    return optax.chain(optax.clip_by_global_norm(config.clip), tx) if config.clip else tx


def scale_by_adam(beta1: float, beta2: float) -> optax.GradientTransformation:
    """Adam's scaling; with ``beta1`` = 0, common for GANs, no first moment is stored."""
    if beta1:
        return optax.scale_by_adam(beta1, beta2)
    return optax.scale_by_rms(beta2, eps_in_sqrt=False, bias_correction=True)


def muon(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Muon with momentum 0.95 (Nesterov) for kernels [I, O] or stacked [layers, I, O], and decoupled weight decay.

    The orthogonalised update is scaled by 0.2 sqrt(max(I, O)), so that its RMS matches Adam's and both can share one
    learning rate (Liu et al. 2025, arXiv:2502.16982).
    """

    def axes(kernels: PyTree) -> PyTree:
        return jax.tree.map(lambda x: MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), kernels)

    def scaled(updates: PyTree, _: PyTree) -> PyTree:
        return jax.tree.map(lambda x: 0.2 * math.sqrt(max(x.shape[-2:])) * x, updates)

    return optax.chain(
        scale_by_muon(weight_dimension_numbers=axes),
        optax.stateless(scaled),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def muon_groups(params: PyTree) -> PyTree:
    """Label each parameter: ``muon`` for dense kernels; ``adam`` for convolutions, embeddings, biases and scales."""

    def group(path: tuple, leaf: Any) -> str:
        return "muon" if path[-1].key == "kernel" and leaf.ndim <= 3 else "adam"

    return jax.tree_util.tree_map_with_path(group, params)


def matrices(params: PyTree) -> PyTree:
    """Mask of the parameters not named ``bias`` or ``scale``; by name, since those of stacked blocks have two axes."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def airbench_optimizer(config: Airbench, decay_steps: int, batch_size: int) -> optax.GradientTransformation:
    """The optimiser for the parameters of `jaxai.nn.cnn.AirbenchCNN`, given gradients of the mean loss over a batch.

    All rates fall linearly to 0 over ``decay_steps``, that of the whitening bias over ``whitening_share`` of them. A
    kernel w becomes sqrt(outputs) w / |w| - rate * Muon's update, orthogonalised by 3 Newton-Schulz steps as a matrix
    [outputs, inputs] (momentum 0.6, Nesterov). Biases and head use SGD on ``batch_size`` times their gradient plus
    weight_decay * batch_size / rate times the parameter. The whitening kernel is frozen.

    Sources: Jordan 2024, arXiv 2404.00498, and his airbench94_muon; Muon: Jordan et al. 2024,
    kellerjordan.github.io/posts/muon. optax corrects the bias of Muon's two averages, which changes the first steps.
    """

    def sgd(rate: float, steps: int) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale(batch_size),
            optax.add_decayed_weights(config.weight_decay * batch_size / rate),
            optax.sgd(optax.linear_schedule(rate, 0.0, steps), momentum=0.85, nesterov=True),
        )

    as_matrix = MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    muon = optax.chain(
        scale_by_muon(
            ns_steps=3, beta=0.6, weight_dimension_numbers=lambda kernels: jax.tree.map(lambda _: as_matrix, kernels)
        ),
        optax.scale_by_learning_rate(optax.linear_schedule(config.filter_rate, 0.0, decay_steps)),
        rescale_kernels(),
    )
    transforms: dict[Hashable, optax.GradientTransformation] = {
        "whitening kernel": optax.set_to_zero(),
        "whitening bias": sgd(config.bias_rate, max(1, round(config.whitening_share * decay_steps))),
        "kernel": muon,
        "bias": sgd(config.bias_rate, decay_steps),
        "head": sgd(config.head_rate, decay_steps),
    }
    return optax.partition(transforms, airbench_groups)


def airbench_groups(params: PyTree) -> PyTree:
    """The group of `airbench_optimizer` for each parameter."""
    by_rank = {1: "bias", 2: "head", 4: "kernel"}
    groups = jax.tree.map(lambda leaf: by_rank[leaf.ndim], params)
    return groups | {"whiten": {"kernel": "whitening kernel", "bias": "whitening bias"}}


def rescale_kernels() -> optax.GradientTransformation:
    """Add to each update of a kernel [..., F] the change that rescales the kernel to norm sqrt(F)."""

    def rescaled(update: Array, kernel: Array) -> Array:
        return update + (math.sqrt(kernel.shape[-1]) / jnp.linalg.norm(kernel) - 1) * kernel

    return optax.stateless(lambda updates, params: jax.tree.map(rescaled, updates, params))


def cosine(step: ArrayLike, start: float, end: float, decay_steps: int) -> Array:
    """A half-cosine from ``start`` at step 0 to ``end`` at step ``decay_steps``, then constant."""
    share = jnp.clip(step / max(decay_steps, 1), 0.0, 1.0)
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(math.pi * share))
