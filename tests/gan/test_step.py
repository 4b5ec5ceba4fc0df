"""gan_step against the same update written out plainly, in float64."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai.gan.losses import LOSSES
from jaxai.gan.regularizers import pack
from jaxai.gan.state import init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.train.ema import ema_decay
from jaxai.train.keys import Keys
from tests.helpers import SHAPE, TinyDiscriminator, TinyGenerator, generator_loss, tiny_gan


def to_float64(tree):
    return jax.tree.map(lambda x: np.float64(x) if x.dtype == jnp.float32 else x, tree)


def softplus(x):
    return jnp.logaddexp(0.0, x)


def plain_step(state, images, loss, gamma):
    """Discriminator first, then the generator through the new discriminator; one image after the other."""

    def draw(params, noise):
        return TinyGenerator().apply({"params": params}, noise[None])[0]

    def logit(params, image):
        return TinyDiscriminator().apply({"params": params}, image[None])[0]

    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (len(images), 8), images.dtype)

    def d_loss(params):
        total = 0.0
        for image, z in zip(images, noise, strict=True):
            fake = draw(state.generator, z)
            real_logit, fake_logit = logit(params, image), logit(params, fake)
            if loss == "relativistic":
                total += softplus(fake_logit - real_logit)
            else:
                total += -jnp.log(jax.nn.sigmoid(real_logit)) - jnp.log(1 - jax.nn.sigmoid(fake_logit))
            for point in (image, fake):
                total += gamma / 2 * (jax.grad(logit, 1)(params, point) ** 2).sum()
        return total / len(images)

    tx = optax.adam(1e-3, 0.0, 0.99)
    d_value, grads = jax.value_and_grad(d_loss)(state.discriminator)
    updates, _ = tx.update(grads, state.discriminator_opt)
    discriminator = optax.apply_updates(state.discriminator, updates)

    def g_loss(params):
        total = 0.0
        for image, z in zip(images, noise, strict=True):
            fake_logit = logit(discriminator, draw(params, z))
            if loss == "relativistic":
                total += softplus(logit(discriminator, image) - fake_logit)
            else:
                total += -jnp.log(jax.nn.sigmoid(fake_logit))
        return total / len(images)

    g_value, grads = jax.value_and_grad(g_loss)(state.generator)
    updates, _ = tx.update(grads, state.generator_opt)
    return discriminator, optax.apply_updates(state.generator, updates), d_value, g_value


@pytest.mark.parametrize("loss", ["relativistic", "non_saturating"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.grid(fast=1)
def test_step_is_the_plain_update(loss, gamma):
    with jax.enable_x64(True):
        step, init = tiny_gan(loss=loss, penalty=gamma, half_life=50.0)
        state = to_float64(jax.jit(init)())
        images = np.random.default_rng(7).normal(size=(4, *SHAPE))
        new, metrics = jax.jit(step)(state, {"image": images})
        plain = jax.jit(plain_step, static_argnums=(2, 3))
        discriminator, generator, d_value, g_value = jax.tree.map(np.asarray, plain(state, images, loss, gamma))
        # Adam with beta1 = 0 divides a gradient by its own size: 1e-9 leaves room for gradients near zero
        chex.assert_trees_all_close(new.discriminator, discriminator, rtol=0, atol=1e-9)
        chex.assert_trees_all_close(new.generator, generator, rtol=0, atol=1e-9)
        np.testing.assert_allclose(metrics["discriminator_loss"], d_value, rtol=1e-12)
        np.testing.assert_allclose(metrics["generator_loss"], g_value, rtol=1e-12)
        decay = float(ema_decay(0, 4, 50.0))
        mixed = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema_params, generator)
        chex.assert_trees_all_close(new.ema_params, mixed, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", ["relativistic", "hinge"])
@pytest.mark.slow
def test_generator_sees_packed_noisy_examples_and_the_discriminators_answer(loss):
    """The generator's gradient through two more steps of a discriminator that sees pairs, all in one expression."""
    with jax.enable_x64(True):
        txs = optax.sgd(1.0), optax.sgd(1.0)
        pair = jnp.zeros((2, *SHAPE[:2], 2 * SHAPE[2]))
        first = init_fn(TinyGenerator(), jnp.zeros((1, 8))), init_fn(TinyDiscriminator(), pair)
        state = to_float64(jax.jit(partial(init_gan_state, Keys(0), *first, txs=txs, keep_ema=False))())
        real = np.random.default_rng(7).normal(size=(4, *SHAPE))
        step = partial(
            gan_step,
            generate=from_noise(TinyGenerator(), 8, 4),
            discriminate=lambda params, x: apply(TinyDiscriminator(), jax.tree.map(lambda x: x / 2, params), x),
            loss=LOSSES[loss],
            augment_fn=lambda x, key, state: pack(3 * x + state.step, 2),
            reconstruction=lambda fakes: 5 * (fakes**2).mean(),
            unroll=2,
            unroll_rate=0.2,
            txs=txs,
        )
        new, _ = jax.jit(step)(state, real)
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (4, 8), "float64")

        def logits(params, x):
            halved = jax.tree.map(lambda x: x / 2, params)
            packed = jnp.concatenate([3 * x[::2], 3 * x[1::2]], -1)
            return TinyDiscriminator().apply({"params": halved}, packed)

        def d_loss(params, fakes):
            return LOSSES[loss].discriminator(logits(params, real), logits(params, fakes)).mean()

        def g_loss(params, discriminator):
            fakes = TinyGenerator().apply({"params": params}, noise)
            for _ in range(2):
                grads = jax.grad(d_loss)(discriminator, fakes)
                discriminator = jax.tree.map(lambda p, g: p - 0.2 * g, discriminator, grads)
            seen = logits(discriminator, fakes)
            return generator_loss(LOSSES[loss], logits(discriminator, real), seen).mean() + 5 * (fakes**2).mean()

        @jax.jit
        def both(state):
            fakes = TinyGenerator().apply({"params": state.generator}, noise)
            moved = jax.tree.map(lambda p, g: p - g, state.discriminator, jax.grad(d_loss)(state.discriminator, fakes))
            return moved, jax.tree.map(lambda p, g: p - g, state.generator, jax.grad(g_loss)(state.generator, moved))

        moved, generator = both(state)
        chex.assert_trees_all_close(new.discriminator, moved, rtol=0, atol=1e-9)
        chex.assert_trees_all_close(new.generator, generator, rtol=0, atol=1e-9)


def test_metrics_name_losses_logits_penalties_and_gradient_norms():
    step, init = tiny_gan()
    _, metrics = jax.jit(step)(jax.jit(init)(), {"image": np.ones((4, *SHAPE))})
    networks = [f"{network}_{name}" for network in ("generator", "discriminator") for name in ("loss", "gradient_norm")]
    assert metrics.keys() == {"real_logit", "fake_logit", "penalty", *networks}
    chex.assert_shape(list(metrics.values()), ())


def test_steps_draw_fresh_noise_and_states_are_reproducible():
    step, init = tiny_gan()
    step, init, batch = jax.jit(step), jax.jit(init), {"image": np.ones((4, *SHAPE))}
    state, first = step(init(), batch)
    _, second = step(state, batch)
    _, again = step(init(), batch)
    assert first["fake_logit"] == again["fake_logit"] != second["fake_logit"]
