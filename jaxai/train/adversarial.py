"""One step of GAN training: both networks in one jitted program."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Key

from jaxai.adversarial.augment import adapted
from jaxai.adversarial.losses import Loss
from jaxai.adversarial.penalties import Discriminate, Penalty, pairs, split_pairs
from jaxai.adversarial.remedies import pack, unrolled
from jaxai.train.optim import average_decay, update_average
from jaxai.train.state import GanState
from jaxai.typing import PyTree, Samples


def init_gan_state(
    key: Array,
    shape: tuple[int, ...],
    *,
    generator: nn.Module,
    discriminator: nn.Module,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    latent_size: int,
    keep_average: bool,
    packing: int = 1,
    adaptive: bool = False,
) -> GanState:
    """The state before the first step, for examples of a ``shape``; ``average`` is None without ``keep_average``, and
    ``strength``, 0 at first, without ``adaptive``.
    """
    key_generator, key_discriminator, key_steps = jax.random.split(key, 3)
    generator_params = generator.init(key_generator, jnp.zeros((1, latent_size)))["params"]
    example = pack(jnp.zeros((packing, *shape)), packing)
    discriminator_params = discriminator.init(key_discriminator, jnp.repeat(example, 2, 0))["params"]
    return GanState(
        step=jnp.zeros((), "int32"),
        generator=generator_params,
        discriminator=discriminator_params,
        average=jax.tree.map(jnp.copy, generator_params) if keep_average else None,
        generator_opt=generator_tx.init(generator_params),
        discriminator_opt=discriminator_tx.init(discriminator_params),
        key=key_steps,
        strength=jnp.zeros(()) if adaptive else None,
    )


def gan_step(
    state: GanState,
    real: Samples,
    *,
    generator: nn.Module,
    discriminator: nn.Module,
    loss: Loss,
    generator_tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    latent_size: int,
    penalty: Penalty | None = None,
    penalty_weight: Callable[[Array], Array] | None = None,
    view: Callable[[Samples, Key[Array, ""], GanState], Samples] | None = None,
    packing: int = 1,
    constrain: Callable[[PyTree], PyTree] | None = None,
    unroll: int = 0,
    unroll_rate: float = 0.1,
    adapt_images: float = 500_000,
    average_half_life: float = 0.0,
) -> tuple[GanState, dict[str, Array]]:
    """Update the discriminator, then the generator through the new discriminator, on the same generated examples.

    Discriminator: mean of loss.discriminator(D(x), D(G(z))) + penalty_weight(step) * mean of ``penalty``. Generator:
    mean of loss.generator. G(z) is computed once: its pullback waits until the discriminator has moved. D sees real and
    generated examples through ``view(examples, key, state)`` and then ``packing`` at once; ``constrain`` makes the
    parameters that it computes with. With ``unroll`` the generator looks through a discriminator that has gone so many
    steps of gradient descent further, as an answer to these very examples. ``average_half_life``, in examples, must be
    positive where ``state.average`` is kept; ``state.strength`` follows `jaxai.adversarial.augment.adapted`, from 0 to
    1 in ``adapt_images`` at the fastest. real: [B, ...] float32. Returns the new state and float32 [] metrics.
    ValueError for a penalty without its weight, or a weight alone.
    """
    if (penalty is None) != (penalty_weight is None):
        raise ValueError("penalty and penalty_weight go together: give both, or neither")
    key_noise = jax.random.fold_in(state.key, state.step)
    key_real, key_fake, key_penalty = jax.random.split(jax.random.fold_in(key_noise, 1), 3)
    noise = jax.random.normal(key_noise, (len(real), latent_size), real.dtype)
    fakes, pull_back = jax.vjp(lambda params: apply(generator, params, noise), state.generator)

    def seen(x: Samples, key: Array) -> Array:
        x = view(x, key, state) if view else x
        return pack(x, packing) if packing > 1 else x

    def discriminate(params: PyTree, x: Samples) -> Array:
        return apply(discriminator, constrain(params) if constrain else params, x)

    real = seen(real, key_real)
    weighted = (penalty, penalty_weight(state.step)) if penalty and penalty_weight else None

    def discriminator_loss(params: PyTree, fakes: Samples) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        fake = seen(fakes, key_fake)
        return discriminator_objective(partial(discriminate, params), real, fake, loss, weighted, key_penalty)

    value_and_grad = jax.value_and_grad(discriminator_loss, has_aux=True)
    (d_value, (margins, d_metrics)), d_grads = value_and_grad(state.discriminator, fakes)
    d_params, d_opt = update(discriminator_tx, d_grads, state.discriminator_opt, state.discriminator)

    def generator_loss(fakes: Samples) -> Array:
        gradient = jax.grad(lambda params: discriminator_loss(params, fakes)[0])
        params = unrolled(gradient, d_params, unroll, unroll_rate)
        return generator_objective(seen(fakes, key_fake), real, partial(discriminate, params), loss)

    g_value, fakes_gradient = jax.value_and_grad(generator_loss)(fakes)
    (g_grads,) = pull_back(fakes_gradient)
    g_params, g_opt = update(generator_tx, g_grads, state.generator_opt, state.generator)

    average = state.average
    if average is not None:
        average = update_average(average, g_params, average_decay(state.step, len(noise), average_half_life))
    strength = state.strength
    if strength is not None:
        strength = adapted(strength, margins, len(noise), images=adapt_images)
        d_metrics["strength"] = strength
    # Only gradient norms: those of parameters and updates too would cost the article's 10 M parameters 6 % of the step.
    metrics = {
        "discriminator_loss": d_value,
        "generator_loss": g_value,
        **d_metrics,
        "discriminator_gradient_norm": optax.tree.norm(d_grads),
        "generator_gradient_norm": optax.tree.norm(g_grads),
    }
    return GanState(state.step + 1, g_params, d_params, average, g_opt, d_opt, state.key, strength), metrics


def apply(network: nn.Module, params: PyTree, x: Array) -> Array:
    """The network's output for its parameters."""
    return cast(Array, network.apply({"params": params}, x))


def update(tx: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    """New parameters and optimiser state."""
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
    """The discriminator's loss; the margins of the real examples, and what else it saw.

    Real and generated examples go through it as one batch. `r1_r2` at the same points shares the forward pass:
    XLA finds that it is the same.
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
    """The generator's loss; the real examples are looked at only by a relativistic one."""
    if loss.relativistic:
        return loss.generator(*split_pairs(discriminate(pairs(real, fake)))).mean()
    return loss.generator(discriminate(fake)).mean()


def drawing(state: GanState) -> PyTree:
    """The generator's parameters that draw: their moving average where there is one."""
    return state.generator if state.average is None else state.average


class Draw:
    """Draws examples from a state."""

    def __init__(self, generator: nn.Module, latent_size: int, seed: int) -> None:
        self._apply = jax.jit(partial(apply, generator))
        self._latent_size = latent_size
        self._key = jax.random.key(seed)

    def latents(self, count: int, purpose: int) -> np.ndarray:
        """float32 [count, latent_size], the same for the same purpose."""
        key = jax.random.fold_in(self._key, purpose)
        return np.asarray(jax.random.normal(key, (count, self._latent_size)))

    def from_latents(self, state: GanState, latents: np.ndarray) -> np.ndarray:
        """float32 [n, ...] for n latents, a multiple of 100: in blocks of that, so that it compiles once."""
        blocks = [self._apply(drawing(state), block) for block in np.split(latents, len(latents) // 100)]
        return np.concatenate(jax.device_get(blocks))

    def __call__(self, state: GanState, count: int, purpose: int = 1) -> np.ndarray:
        """Examples from the first ``count`` latents of always the same noise, float32 [count, ...]."""
        return self.from_latents(state, self.latents(-(-count // 100) * 100, purpose))[:count]
