"""train_step, optimisers and averages against their definitions."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai.train.ema import ema_decay
from jaxai.train.optim import Adam, cosine, optimizer, schedule
from jaxai.train.supervised import init_state, mean_gradient, train_step


def loss_fn(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    error = batch["x"] @ params["w"] + noise - batch["y"]
    return (error**2).mean(), {"largest_error": jnp.abs(error).max()}


@jax.jit
def problem(key):
    key_x, key_w = jax.random.split(key)
    x = jax.random.normal(key_x, (16, 3))
    return {"x": x, "y": x @ jnp.array([1.0, -2.0, 0.5])}, {"w": jax.random.normal(key_w, (3,))}


def test_step_is_one_gradient_step(key):
    batch, params = problem(key)
    tx = optax.sgd(0.1)
    state = init_state(params, tx, jax.random.key(5), keep_ema=True)
    new, metrics = jax.jit(lambda s, b: train_step(s, b, loss_fn=loss_fn, tx=tx, ema_half_life=1000.0))(state, batch)
    (loss, _), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        params, batch, jax.random.fold_in(jax.random.key(5), 0)
    )
    before, gradient = np.asarray(params["w"]), np.asarray(grads["w"])
    wanted = before - 0.1 * gradient
    np.testing.assert_allclose(new.params["w"], wanted, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"], 0.1 * np.linalg.norm(gradient), rtol=1e-6)
    np.testing.assert_allclose(metrics["parameter_norm"], np.linalg.norm(wanted), rtol=1e-6)
    decay = ema_decay(0, 16, 1000.0)
    np.testing.assert_allclose(new.ema_params["w"], decay * before + (1 - decay) * wanted, rtol=1e-5)
    assert int(new.step) == 1
    assert "largest_error" in metrics


def test_without_average_none_is_kept(key):
    batch, params = problem(key)
    tx = optax.sgd(0.1)
    state = init_state(params, tx, key)
    new, _ = jax.jit(partial(train_step, loss_fn=loss_fn, tx=tx))(state, batch)
    assert state.ema_params is None
    assert new.ema_params is None
    chex.assert_trees_all_equal_structs(state, new)


@pytest.mark.parametrize("devices", [1, 2])
def test_parts_of_a_batch_make_the_same_step(key, devices):
    batch, params = problem(key)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))

    def without_noise(params, batch, key):
        error = batch["x"] @ params["w"] - batch["y"]
        return (error**2).mean(), {"error": error.mean()}

    tx = optax.adam(0.1)
    state = init_state(params, tx, key)
    step = jax.jit(train_step, static_argnames=("loss_fn", "tx", "gradient"))
    whole, *others = (
        step(state, batch, loss_fn=without_noise, tx=tx, gradient=partial(mean_gradient, accumulation_steps=count))
        for count in (1, 2, 8)
    )
    for other in others:
        # Sums in another order; where a gradient is near 0, Adam's first step could amplify it, but none is here.
        chex.assert_trees_all_close((other[0].params, other[1]), (whole[0].params, whole[1]), rtol=1e-5)
    thirds = partial(mean_gradient, accumulation_steps=3)
    with pytest.raises(ValueError, match="accumulation_steps=3 for a batch of 16: give a divisor"):
        train_step(state, batch, loss_fn=without_noise, tx=tx, gradient=thirds)


def windowed(params, batch, key, carry):
    """A leaky sum over time, carried from window to window; rows that begin anew start from 0."""
    state, losses = jnp.where(batch["first"], 0.0, carry), []
    for t in range(batch["x"].shape[1]):
        state = params["w"] * state + batch["x"][:, t]
        losses.append((state - 1) ** 2)
    return jnp.stack(losses).mean(), ({"last": state.mean()}, state)


def test_the_carry_goes_from_step_to_step_without_gradient():
    x, params = np.arange(12, dtype=np.float32).reshape(2, 6) / 10, {"w": jnp.array(0.9)}
    batch = {"x": x, "first": np.array([False, False])}
    halves = [{**batch, "x": x[:, :3]}, {**batch, "x": x[:, 3:]}]
    tx = optax.sgd(0.0)  # so that both windows have the same parameters
    step = jax.jit(lambda state, batch: train_step(state, batch, loss_fn=windowed, tx=tx))
    state = init_state(params, tx, jax.random.key(0), carry=jnp.zeros(2))
    after, first = step(state, halves[0])
    end, second = step(after, halves[1])
    whole, (_, last) = jax.jit(windowed)(params, batch, None, jnp.zeros(2))
    np.testing.assert_allclose((first["loss"] + second["loss"]) / 2, whole, rtol=1e-6)
    np.testing.assert_allclose(end.carry, last, rtol=1e-6)
    np.testing.assert_allclose(second["last"], last.mean(), rtol=1e-6)
    # the second window's gradient takes the state before it as given
    truncated = jax.jit(jax.grad(lambda w: windowed({"w": w}, halves[1], None, after.carry)[0]))(params["w"])
    through = jax.grad(
        lambda w: (
            2 * windowed({"w": w}, batch, None, jnp.zeros(2))[0] - windowed({"w": w}, halves[0], None, jnp.zeros(2))[0]
        )
    )
    np.testing.assert_allclose(second["gradient_norm"], jnp.abs(truncated), rtol=1e-6)
    assert jnp.abs(jax.jit(through)(params["w"])) > 1.1 * second["gradient_norm"]


def test_rows_that_begin_anew_forget_the_carry():
    batch = {"x": jnp.ones((2, 3)), "first": jnp.array([True, False])}
    state = init_state({"w": jnp.array(0.9)}, optax.sgd(0.0), jax.random.key(0), carry=jnp.array([5.0, 5.0]))
    new, _ = jax.jit(partial(train_step, loss_fn=windowed, tx=optax.sgd(0.0)))(state, batch)
    np.testing.assert_allclose(new.carry, [1 + 0.9 + 0.81, 1 + 0.9 + 0.81 + 5 * 0.729], rtol=1e-6)


def test_a_carry_belongs_to_the_whole_batch(key):
    batch, params = problem(key)
    state = init_state(params, optax.sgd(0.1), key, carry=jnp.zeros(16))
    halves = partial(mean_gradient, accumulation_steps=2)
    with pytest.raises(ValueError, match=r"gradient= with a carry, .* leave it out"):
        train_step(state, batch, loss_fn=windowed, tx=optax.sgd(0.1), gradient=halves)


def test_parts_draw_noise_of_their_own(key):
    batch, params = {"y": jnp.ones(4)}, {"w": jnp.ones(())}

    def noise(params, batch, key):
        return params["w"] * jax.random.normal(key), {}

    def loss(count):
        gradient = jax.jit(partial(mean_gradient, noise, accumulation_steps=count))
        return float(gradient(params, batch, key)[0][0])

    assert len({loss(count) for count in (1, 2, 4)}) == 3


def test_schedules_take_their_course_over_the_horizon():
    rate = schedule(Adam(learning_rate=1.0, warmup=10, final_rate=0.1), 110)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 60, 110, 500)], [0, 0.5, 1, 0.55, 0.1, 0.1], rtol=1e-6)
    assert schedule(Adam(learning_rate=0.5), 10)(10**6) == 0.5
    assert schedule(Adam(learning_rate=0.5, warmup=4), 10)(2) == 0.25
    with pytest.raises(ValueError, match="decay_steps 4 must exceed warmup 4"):
        schedule(Adam(warmup=4), 4)


def test_optimizer_is_optaxs(key):
    _, params = problem(key)
    grads = jax.tree.map(np.ones_like, params)
    first = jax.jit(lambda tx: tx.update(grads, tx.init(params), params)[0], static_argnums=0)
    for config, wanted in [
        (Adam(learning_rate=0.1, beta1=0.0, beta2=0.9), optax.adam(0.1, 0.0, 0.9)),
        (Adam(learning_rate=0.1, weight_decay=0.5), optax.adamw(0.1, weight_decay=0.5)),
    ]:
        tx = optimizer(config, 100)
        chex.assert_trees_all_close(first(tx), first(wanted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"beta2": 1.0}, "beta1 and beta2"),
        ({"warmup": -1}, "must be 0 or more"),
        ({"clip": float("nan")}, "must be 0 or more"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Adam(**options)


def test_cosine_goes_from_start_to_end_and_stays():
    np.testing.assert_allclose([cosine(s, 10.0, 1.0, 100) for s in (0, 50, 100, 200)], [10, 5.5, 1, 1], rtol=1e-6)
