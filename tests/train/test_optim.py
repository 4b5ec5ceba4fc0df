"""airbench's optimiser against its recipe, written out in NumPy; Adam's clipping and decay."""

import jax
import numpy as np
import optax
import pytest

from jaxai.train.optim import Adam, Airbench, airbench_groups, airbench_optimizer, optimizer

HORIZON, BATCH = 40, 20
SHAPES = {
    "whiten": {"kernel": (2, 2, 3, 24), "bias": (24,)},
    "group_0": {"Conv_0": {"kernel": (3, 3, 4, 6)}, "BatchNorm_0": {"bias": (6,)}},
    "linear": {"kernel": (6, 10)},
}


def random_like_parameters(rng):
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def newton_schulz(matrix):
    """Three steps of Muon's iteration, as a polynomial of the singular values."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(matrix)
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left * values[None] @ right


def muon(kernel, gradients, rate):
    """airbench94_muon's filter update: kernel as [out, in * kh * kw]."""
    momentum = np.zeros((kernel.shape[-1], kernel.size // kernel.shape[-1]))
    matrices = [g.reshape(-1, g.shape[-1]).T for g in (kernel, *gradients)]
    weight = np.asarray(matrices[0], np.float64)
    trajectory = []
    for step, gradient in enumerate(matrices[1:]):
        momentum = 0.6 * momentum + gradient
        weight = weight * len(weight) ** 0.5 / np.linalg.norm(weight)
        weight = weight - rate * (1 - step / HORIZON) * newton_schulz(gradient + 0.6 * momentum)
        trajectory.append(weight.T.reshape(kernel.shape))
    return trajectory


def sgd(parameter, gradients, rate, decay_steps):
    """PyTorch's SGD with Nesterov momentum 0.85 on the summed loss, with coupled weight decay."""
    momentum, parameter, trajectory = 0.0, np.asarray(parameter, np.float64), []
    for step, gradient in enumerate(gradients):
        total = BATCH * gradient + 2e-6 * BATCH / rate * parameter
        momentum = 0.85 * momentum + total
        parameter = parameter - rate * max(0, 1 - step / decay_steps) * (total + 0.85 * momentum)
        trajectory.append(parameter)
    return trajectory


def test_airbench_is_its_recipe():
    rng = np.random.default_rng(0)
    params = first = random_like_parameters(rng)
    gradients = [random_like_parameters(rng) for _ in range(HORIZON)]
    tx = airbench_optimizer(Airbench(), HORIZON, BATCH)
    state, trajectory = tx.init(params), []

    @jax.jit
    def step(params, gradient, state):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, gradient, state)
        trajectory.append(params)

    def compare(select, recipe, **tolerance):
        desired = recipe(select(first), list(map(select, gradients)))
        for found, wanted in zip(map(select, trajectory), desired, strict=True):
            np.testing.assert_allclose(found, wanted, **tolerance)

    # float32 sums over 40 steps: parameters of biases move by tens, those of the head by hundreds
    compare(lambda p: p["whiten"]["kernel"], lambda kernel, _: [kernel] * HORIZON, rtol=0)
    compare(lambda p: p["whiten"]["bias"], lambda p, g: sgd(p, g, 0.053, 15), rtol=1e-4, atol=1e-3)
    compare(lambda p: p["group_0"]["BatchNorm_0"]["bias"], lambda p, g: sgd(p, g, 0.053, HORIZON), rtol=1e-4, atol=1e-3)
    compare(lambda p: p["linear"]["kernel"], lambda p, g: sgd(p, g, 0.67, HORIZON), rtol=1e-4, atol=1e-2)

    def kernel(p):
        return p["group_0"]["Conv_0"]["kernel"]

    moves = list(map(move, *pairs(kernel(first), map(kernel, trajectory))))
    wanted = list(map(move, *pairs(kernel(first), muon(kernel(first), map(kernel, gradients), 0.24))))
    # optax corrects the bias of its averages, which turns the first moves
    np.testing.assert_allclose(moves[15:], wanted[15:], atol=1e-4)
    assert max(np.abs(moves[1] - wanted[1]).ravel()) > 1e-3


def pairs(first, trajectory):
    """What each step began with, and what it led to."""
    trajectory = list(trajectory)
    return [first, *trajectory[:-1]], trajectory


def move(before, after):
    """What a step added to a kernel beside rescaling it."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return after - before.shape[-1] ** 0.5 / np.linalg.norm(before) * before


def test_groups():
    assert airbench_groups(random_like_parameters(np.random.default_rng(0))) == {
        "whiten": {"kernel": "whitening kernel", "bias": "whitening bias"},
        "group_0": {"Conv_0": {"kernel": "kernel"}, "BatchNorm_0": {"bias": "bias"}},
        "linear": {"kernel": "head"},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter_rate": 0.0}, "filter_rate, bias_rate and head_rate must be positive"),
        ({"head_rate": -1.0}, "must be positive"),
        ({"weight_decay": -1e-6}, "weight_decay must be 0 or more"),
        ({"whitening_share": 0.0}, "whitening_share"),
        ({"whitening_share": 1.5}, "whitening_share"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Airbench(**options)


def test_decay_of_matrices_alone_and_clipping():
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    config = Adam(learning_rate=0.1, weight_decay=0.5, decay="matrices", clip=1.0)
    tx = optimizer(config, 10)
    first = jax.jit(lambda gradients: tx.update(gradients, tx.init(params), params))
    updates, _ = first(jax.tree.map(np.zeros_like, params))
    np.testing.assert_allclose(updates["kernel"], -0.05)
    np.testing.assert_array_equal(updates["bias"], 0)
    # Adam's first moment tells what came through the clipping: 0.1 of the gradient.
    _, state = first(jax.tree.map(lambda x: 100 * np.ones_like(x), params))
    np.testing.assert_allclose(optax.tree.norm(optax.tree.get(state, "mu")), 0.1, rtol=1e-5)


def test_muon_moves_kernels_as_far_as_adam_and_adam_the_rest():
    """The first step of each: orthogonal with elements of 0.2 for kernels, alone or stacked, signs for the others."""
    rng = np.random.default_rng(0)
    shapes = {"tokens": (7, 4), "mlp": {"kernel": (4, 6), "bias": (6,)}, "blocks": {"kernel": (2, 4, 6)}}
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params, grads = (jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple)) for _ in range(2))
    tx = optimizer(Adam(learning_rate=0.1, muon=True, weight_decay=0.5, decay="matrices"), 10)
    updates, _ = jax.jit(lambda grads: tx.update(grads, tx.init(params), params))(grads)
    np.testing.assert_allclose(updates["mlp"]["bias"], -0.1 * np.sign(grads["mlp"]["bias"]), rtol=1e-4)
    decayed = -0.1 * (np.sign(grads["tokens"]) + 0.5 * params["tokens"])
    np.testing.assert_allclose(updates["tokens"], decayed, rtol=1e-4, atol=1e-6)
    pairs = [(updates["mlp"], params["mlp"], grads["mlp"], ...)]
    pairs += [(updates["blocks"], params["blocks"], grads["blocks"], layer) for layer in range(2)]
    for update, param, grad, part in pairs:
        moved = -np.asarray(update["kernel"][part]) / 0.1 - 0.5 * param["kernel"][part]
        values = np.linalg.svd(moved / (0.2 * 6**0.5), compute_uv=False)
        assert ((values > 0.6) & (values < 1.3)).all()  # five Newton-Schulz steps bring them near 1, no further
        left, _, right = np.linalg.svd(grad["kernel"][part], full_matrices=False)
        assert (moved * (left @ right)).sum() > 0.9 * np.linalg.norm(moved) * np.linalg.norm(left @ right)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_optaxs_with_a_first_moment_or_without(beta1, weight_decay):
    """And without one its state holds none."""
    rng = np.random.default_rng(0)
    params = random_like_parameters(rng)
    ours = optimizer(Adam(1e-2, beta1, 0.99, final_rate=0.5, weight_decay=weight_decay), HORIZON)
    rate = optax.warmup_cosine_decay_schedule(1e-2, 1e-2, 0, HORIZON, 5e-3)
    theirs = optax.adamw(rate, beta1, 0.99, weight_decay=weight_decay)
    trajectories = []
    for tx in (ours, theirs):
        state, now, update = tx.init(params), params, jax.jit(tx.update)
        for seed in range(5):
            updates, state = update(random_like_parameters(np.random.default_rng(seed)), state, now)
            now = optax.apply_updates(now, updates)
        trajectories.append(now)
    # weights of about 1 move by 1e-2 a step; float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *trajectories)
    moments = [leaf for leaf in jax.tree.leaves(ours.init(params)) if leaf.ndim]
    assert len(moments) == len(jax.tree.leaves(params)) * (2 if beta1 else 1)
