"""The trainer of two adversaries, and the options of GAN experiments."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai.errors import UserError
from jaxai.experiment import Trainer
from jaxai.gan.losses import LOSSES
from jaxai.gan.penalties import PENALTIES, r1_r2
from jaxai.gan.state import init_fn
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.gan.trainer import Gan, GanConfig
from jaxai.train.keys import Keys
from tests.helpers import SHAPE, TinyDiscriminator, TinyGenerator, same_bits

TXS = optax.adam(1e-3, 0.0, 0.99), optax.adam(2e-3, 0.0, 0.99)
BATCH = {"image": np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)}


FIRST = {
    "init_generator": jax.jit(init_fn(TinyGenerator(), jnp.zeros((1, 8)))),
    "init_discriminator": jax.jit(init_fn(TinyDiscriminator(), jnp.zeros((2, *SHAPE)))),
}


def weight(step):
    return jnp.asarray(0.5)


def generate(params, key, batch):
    return from_noise(TinyGenerator(), 8, len(batch["image"]))(params, key)


def discriminate(params, examples, batch):
    return apply(TinyDiscriminator(), params, examples)


def trainer(**options) -> Gan:
    fields = FIRST | {
        "real": lambda batch: batch["image"],
        "generate": generate,
        "discriminate": discriminate,
        "loss": LOSSES["relativistic"],
        "txs": TXS,
    }
    return Gan(**(fields | options))


def test_it_is_a_trainer():
    assert isinstance(trainer(), Trainer)


@pytest.mark.parametrize(("half_life", "ada"), [(0.0, 0.0), (100.0, 0.0), (0.0, 500.0), (100.0, 500.0)])
def test_average_and_adaptive_strength_are_kept_where_they_are_wanted(half_life, ada):
    gan = trainer(ema_half_life=half_life, ada_images=ada)
    state = gan.init(Keys(0))
    assert (state.ema_params is None, state.strength is None) == (not half_life, not ada)
    new, metrics = jax.jit(gan.step)(state, BATCH)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert int(new.step) == 1
    assert ("strength" in metrics) == bool(ada)
    drawing = gan.params(new)
    assert same_bits(drawing, new.ema_params if half_life else new.generator)
    assert same_bits(drawing, new.generator) == (not half_life)


def test_seeds_give_different_first_states():
    gan = trainer()
    assert same_bits(gan.init(Keys(3)), gan.init(Keys(3)))
    one, other = gan.init(Keys(3)), gan.init(Keys(4))
    assert not same_bits(one.generator, other.generator)
    assert not same_bits(one.discriminator, other.discriminator)


def test_a_step_is_gan_step_on_the_batch():
    """With every option: the functions see the batch, which the plain step's have closed over."""
    target = jnp.asarray(BATCH["image"])
    options = {
        "penalty": (r1_r2, weight),
        "augment_fn": lambda examples, key, state: examples + 0.1 * jax.random.normal(key, (4, 1, 1, 1)),
        "unroll": 1,
        "unroll_rate": 0.05,
        "ema_half_life": 50.0,
    }
    gan = trainer(reconstruction=lambda generated, batch: ((generated - batch["image"]) ** 2).mean(), **options)
    state = gan.init(Keys(0))
    found, metrics = jax.jit(gan.step)(state, BATCH)
    plain = partial(
        gan_step,
        generate=from_noise(TinyGenerator(), 8, 4),
        discriminate=partial(apply, TinyDiscriminator()),
        reconstruction=lambda generated: ((generated - target) ** 2).mean(),
        loss=LOSSES["relativistic"],
        txs=TXS,
        **options,
    )
    expected, desired = jax.jit(plain)(state, target)
    assert metrics.keys() == desired.keys()
    assert "reconstruction" in metrics
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)  # XLA may round apart in two programs
    jax.tree.map(close, metrics, desired)
    jax.tree.map(close, (found.generator, found.discriminator), (expected.generator, expected.discriminator))


def test_default_options_are_valid():
    config = GanConfig()
    assert dataclasses.replace(config) == config
    assert config.save_evaluations is False
    assert GanConfig(on_collapse="rollback").save_evaluations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "--hidden must be at least 1, got 0"),
        ({"latent_size": 0}, "--latent-size must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"eval_every": 0}, "--eval-every must be at least 1"),
        ({"penalty_weight": -0.1}, "--penalty-weight must be at least 0, got -0.1"),
        ({"ema_half_life": float("nan")}, "--ema-half-life must be at least 0, got nan"),
        ({"widths": ()}, r"--widths must be one or two positive numbers .*, got \(\)"),
        ({"widths": (8, 4, 2)}, "--widths must be one or two"),
        ({"widths": (8, 0)}, "--widths must be one or two"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"collapse_after": 0}, "--collapse-after must be at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        GanConfig(**options)


@pytest.mark.parametrize("name", ["none", "r1", "r2", "r1_r2"])
def test_the_penalty_has_its_weights_course(name):
    found = GanConfig(penalty=name, penalty_weight=2.0, final_penalty_weight=0.5, decay_steps=100).weighted_penalty
    if name == "none":
        assert found is None
        return
    penalty, weight = found
    assert penalty is PENALTIES[name]
    weights = [float(weight(jnp.int32(step))) for step in (0, 25, 50, 100, 1000)]
    half_cosine = 0.5 + 1.5 * (1 + np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose(weights, [2.0, half_cosine, 1.25, 0.5, 0.5], rtol=1e-5)
