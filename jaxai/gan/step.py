"""One GAN training step, to be jitted as one program for both networks."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import optax
from flax import linen as nn
from jaxtyping import Array, Key

from jaxai.distributed.sharding import gather_params
from jaxai.gan.augmentation import adapted
from jaxai.gan.losses import Loss
from jaxai.gan.penalties import Discriminate, Penalty, Values, pairs, split_pairs
from jaxai.gan.regularizers import unrolled
from jaxai.gan.state import GanState, Optimizers
from jaxai.train.ema import ema_decay, update_ema
from jaxai.typing import PyTree, Samples


def gan_step(
    state: GanState,
    real: Samples,
    *,
    generate: Callable[[PyTree, Key[Array, ""]], Samples],
    discriminate: Callable[[PyTree, Samples], Values],
    loss: Loss,
    txs: Optimizers,
    penalty: tuple[Penalty, Callable[[Array], Array]] | None = None,
    reconstruction: Callable[[Samples], Array] | None = None,
    augment_fn: Callable[[Samples, Key[Array, ""], GanState], Samples] | None = None,
    unroll: int = 0,
    unroll_rate: float = 0.1,
    ada_images: float = 500_000,
    ema_half_life: float = 0.0,
) -> tuple[GanState, dict[str, Array]]:
    """Update the discriminator, then the generator through the updated discriminator, on the same generated examples.

    Discriminator: mean(loss.discriminator(D(x), D(G))) + weight(step) mean(penalty), for ``penalty`` = (penalty,
    weight). Generator: mean(loss.generator) + ``reconstruction(G)``. ``generate(params, key)``, such as `from_noise`,
    returns as many examples G as ``real``, float32 [B, ...]; both updates use the same G. ``discriminate(params,
    examples)`` receives ``augment_fn(examples, key, state)`` of real and generated examples. With ``unroll`` the
    generator's loss uses the discriminator after that many more steps of gradient descent (arXiv 1611.02163).
    ``ema_half_life``, in examples, must be positive if ``state.ema_params`` is not None. `adapted` needs at least
    ``ada_images`` images to raise ``state.strength`` from 0 to 1. Returns the new state and float32 [] metrics.
    """
    key_noise = jax.random.fold_in(state.key, state.step)
    key_real, key_fake, key_penalty = jax.random.split(jax.random.fold_in(key_noise, 1), 3)
    fakes, pull_back = jax.vjp(lambda params: generate(params, key_noise), gather_params(state.generator))

    def seen(x: Samples, key: Array) -> Array:
        return augment_fn(x, key, state) if augment_fn else x

    real = seen(real, key_real)
    weighted = (penalty[0], penalty[1](state.step)) if penalty else None

    def discriminator_loss(params: PyTree, fakes: Samples) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        fake = seen(fakes, key_fake)
        return discriminator_objective(partial(discriminate, params), real, fake, loss, weighted, key_penalty)

    value_and_grad = jax.value_and_grad(discriminator_loss, has_aux=True)
    (d_value, (margins, d_metrics)), d_grads = value_and_grad(gather_params(state.discriminator), fakes)
    d_params, d_opt = update(txs[1], d_grads, state.discriminator_opt, state.discriminator)

    def generator_loss(fakes: Samples) -> tuple[Array, dict[str, Array]]:
        gradient = jax.grad(lambda params: discriminator_loss(params, fakes)[0])
        params = unrolled(gradient, gather_params(d_params), unroll, unroll_rate)
        value = generator_objective(seen(fakes, key_fake), real, partial(discriminate, params), loss)
        parts = {"reconstruction": reconstruction(fakes)} if reconstruction else {}
        return sum(parts.values(), start=value), parts

    (g_value, g_metrics), fakes_gradient = jax.value_and_grad(generator_loss, has_aux=True)(fakes)
    (g_grads,) = pull_back(fakes_gradient)
    g_params, g_opt = update(txs[0], g_grads, state.generator_opt, state.generator)
    losses = {"discriminator_loss": d_value, "generator_loss": g_value}
    metrics = losses | d_metrics | g_metrics | norms(d_grads, g_grads)
    if (strength := state.strength) is not None:
        metrics["strength"] = strength = adapted(strength, margins, len(fakes), images=ada_images)
    ema_params = averaged(state, g_params, len(fakes), ema_half_life)
    return GanState(state.step + 1, g_params, d_params, ema_params, g_opt, d_opt, state.key, strength), metrics


def averaged(state: GanState, params: PyTree, batch_size: int, half_life: float) -> PyTree:
    """The updated moving average of the generator's parameters; None if the state has none."""
    if state.ema_params is None:
        return None
    return update_ema(state.ema_params, params, ema_decay(state.step, batch_size, half_life))


def norms(discriminator: PyTree, generator: PyTree) -> dict[str, Array]:
    """The global L2 norms of both gradients.

    Norms of parameters and updates, as in supervised training, would take 6 % of a step with 10 M parameters.
    """
    gradients = {"discriminator": discriminator, "generator": generator}
    return {f"{name}_gradient_norm": optax.tree.norm(gradient) for name, gradient in gradients.items()}


def from_noise(
    generator: nn.Module, latent_size: int, count: int, *conditions: Array
) -> Callable[[PyTree, Key[Array, ""]], Samples]:
    """Return the function (params, key) -> ``count`` examples, from standard normal latents [count, latent_size].

    ``conditions``, such as labels [count], are the generator's further inputs.
    """
    return lambda params, key: apply(generator, params, jax.random.normal(key, (count, latent_size)), *conditions)


def apply(network: nn.Module, params: PyTree, *inputs: Array) -> Array:
    """The network's output for these parameters and inputs."""
    return cast(Array, network.apply({"params": params}, *inputs))


def update(tx: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters and optimiser state after one update."""
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def discriminator_objective(
    discriminate: Discriminate,
    real: Samples,
    fake: Samples,
    loss: Loss,
    weighted: tuple[Penalty, Array] | None,
    key: Key[Array, ""],
) -> tuple[Array, tuple[Array, dict[str, Any]]]:
    """The discriminator's loss, and as auxiliary output the margins of the real examples and the metrics.

    Real and generated examples form one batch. `r1_r2` evaluates the discriminator at the same batch, so XLA merges
    the two forward passes.
    """
    real_logits, fake_logits = split_pairs(discriminate(pairs(real, fake)))
    value, metrics = loss.discriminator(real_logits, fake_logits).mean(), {}
    if weighted:
        penalty, weight = weighted
        metrics["penalty"] = penalty(discriminate, real, fake, key).mean()
        value += weight * metrics["penalty"]
    metrics |= {"real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()}
    return value, (loss.margin(real_logits, fake_logits), metrics)


def generator_objective(fake: Samples, real: Samples, discriminate: Discriminate, loss: Loss) -> Array:
    """The generator's loss; only relativistic losses use the real examples."""
    if loss.relativistic:
        return loss.generator(discriminate(real), discriminate(fake)).mean()  # no gradient through the first
    return loss.generator(discriminate(fake)).mean()
