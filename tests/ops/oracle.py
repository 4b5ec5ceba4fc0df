"""What the tests of every op share: derivatives to compare, and what close means."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}  # float32: 72 terms of size 1, summed in another order


def compiled(f):
    """`jax.jit` in half the time: the tests compile far more than they compute."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shapes, dtype="float32", seed=0):
    """Normal arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def derivatives(f, arguments, directions):
    """Name -> value of every derivative that a battery compares, to second order in both modes."""
    every = tuple(range(len(arguments)))
    energy = lambda *arguments: jnp.sum(jnp.sin(f(*arguments)))  # noqa: E731
    gradient, along = jax.jvp(jax.grad(energy, every), arguments, directions)
    value, tangent = jax.jvp(f, arguments, directions)
    return {
        "forward": value,
        "jvp": tangent,
        "vjp": gradient,
        "jvp of grad (hvp)": along,
        "grad of penalty": jax.grad(penalty(f), every)(*arguments),
    }


def penalty(f):
    """The square of the input gradient of a non-linear function of f: what a GAN's gradient penalty differentiates."""
    return lambda x, *rest: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(f(x, *rest))))(x) ** 2)


def assert_same_derivatives(ours, theirs, shapes, dtype, tolerance):
    """Of two functions, in one program, at random arguments and in random directions."""
    with jax.enable_x64(dtype == "float64"):
        arguments, directions = draw(*shapes, dtype=dtype), draw(*shapes, dtype=dtype, seed=1)
        both = compiled(lambda *values: tuple(derivatives(f, *values) for f in (ours, theirs)))
        assert_close(*both(arguments, directions), tolerance)


def assert_close(actual, desired, tolerance):
    """Leaf by leaf, relative to the largest entry (but at least to 1)."""

    def check(a, b):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, rtol=0, atol=tolerance)

    jax.tree.map(check, actual, desired)


def assert_maps(f, arguments, choices, tolerance):
    """jax.vmap over some of the arguments is f of each."""

    def both(*arguments):
        pairs = []
        for axes in choices:
            mapped = [a if axis is None else jnp.stack([a, -2 * a]) for a, axis in zip(arguments, axes, strict=True)]
            rows = [[a if axis is None else a[i] for a, axis in zip(mapped, axes, strict=True)] for i in range(2)]
            pairs.append((jax.vmap(f, axes)(*mapped), jnp.stack([f(*row) for row in rows])))
        return pairs

    for mapped, each in compiled(both)(*arguments):
        assert_close(mapped, each, tolerance)


def assert_scans(f, x, tolerance):
    """Two steps down the gradient of f's square inside lax.scan are the two steps by hand."""
    step = lambda x: x - 1e-3 * jax.grad(lambda x: jnp.sum(f(x) ** 2))(x)  # noqa: E731
    both = lambda x: (lax.scan(lambda x, _: (step(x), None), x, None, length=2)[0], step(step(x)))  # noqa: E731
    assert_close(*compiled(both)(x), tolerance)
