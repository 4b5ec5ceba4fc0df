"""Recurrent scans against a NumPy oracle row by row, and all derivatives against those of a plain `lax.scan`."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxai.ops.recurrent import gru, gru_step, lstm, lstm_step, project, rnn, rnn_step
from tests.ops import reference
from tests.ops.oracle import TOLERANCE, assert_close, assert_maps, assert_same_derivatives, assert_scans, compiled, draw

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
OPTIONS: list[dict[str, Any]] = [{}, {"reverse": True}, {"lengths": (5, 1, 3)}, {"lengths": (4, 0, 2), "reverse": True}]


def shapes_of(cell, T=5, B=3, H=4):
    """Of x, kernel, bias, and the states."""
    gates = GATES[cell] * H
    return ((T, B, gates), (H, gates), (gates,), *[(B, H)] * (2 if cell == "lstm" else 1))


def ours(cell, **options):
    """Arrays of those shapes to outputs and last states, side by side in one array [T + states, B, H]."""
    options |= {"lengths": jnp.array(options["lengths"])} if "lengths" in options else {}

    def f(x, kernel, bias, *states):
        if cell == "lstm":
            outputs, states = lstm(x, states, kernel, bias, **options)
        else:
            outputs, *states = {"rnn": rnn, "gru": gru}[cell](x, *states, kernel, bias, **options)
        return jnp.concatenate([outputs, jnp.stack(states)])

    return f


def plain(cell, lengths=None, reverse=False):
    """The same by a scan that JAX differentiates."""

    def f(x, kernel, bias, *states):
        def body(states, inputs):
            x, step = inputs
            real = jnp.full((x.shape[0], 1), True) if lengths is None else (step < jnp.array(lengths))[:, None]
            new = steps(cell, x, states, kernel, bias)
            states = tuple(jnp.where(real, a, b) for a, b in zip(new, states, strict=True))
            return states, jnp.where(real, new[0], 0)

        states, outputs = lax.scan(body, states, (x, jnp.arange(len(x))), reverse=reverse)
        return jnp.concatenate([outputs, jnp.stack(states)])

    return f


def steps(cell, x, states, kernel, bias):
    """The states after one step."""
    if cell == "lstm":
        return lstm_step(x, states, kernel, bias)
    return ({"rnn": rnn_step, "gru": gru_step}[cell](x, *states, kernel, bias),)


def by_rows(cell, x, kernel, bias, *states, **options):
    """The same by the oracle."""
    outputs, states = reference.recurrent(cell, x, states, kernel, bias, **options)
    return np.concatenate([outputs, np.stack(states)])


@pytest.mark.parametrize("cell", GATES)
def test_forward_is_the_oracle(cell):
    with jax.enable_x64(True):
        arrays = draw(*shapes_of(cell), dtype="float64")
        every = compiled(lambda *arrays: [ours(cell, **options)(*arrays) for options in OPTIONS])
        for actual, options in zip(every(*arrays), OPTIONS, strict=True):
            assert_close(actual, by_rows(cell, *map(np.asarray, arrays), **options), 1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.grid(fast=1)
def test_derivatives_are_the_plain_scan_s(cell, options):
    forms = ours(cell, **options), plain(cell, **options)
    assert_same_derivatives(*forms, shapes_of(cell), "float64", TOLERANCE["float64"])


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.grid(fast=1)
def test_derivatives_in_float32(cell):
    # sums of 60 products of values up to 3, through five steps forward and five back
    assert_same_derivatives(ours(cell), plain(cell), shapes_of(cell), "float32", 1e-4)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.grid(fast=1)
def test_hessian_and_third_derivative(cell):
    with jax.enable_x64(True):
        arrays = draw(*shapes_of(cell, T=3, B=2, H=2), dtype="float64")

        def both(*arrays):
            def of(f):
                energy = lambda *arrays: jnp.sin(f(*arrays)).sum()  # noqa: E731
                third = jax.jacfwd(lambda x: jax.grad(lambda x: (jax.grad(energy)(x, *arrays[1:]) ** 2).sum())(x))
                return jax.hessian(energy, (0, 1))(*arrays), third(arrays[0])

            return tuple(of(f) for f in (ours(cell, lengths=(3, 2)), plain(cell, lengths=(3, 2))))

        assert_close(*compiled(both)(*arrays), TOLERANCE["float64"])


sizes = st.integers(1, 4)


@pytest.mark.parametrize("examples", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_any_shape(examples):
    cases = given(st.sampled_from(sorted(GATES)), sizes, sizes, sizes, st.booleans(), st.data())
    settings(max_examples=examples, deadline=None, derandomize=True)(cases(check_shape))()


def check_shape(cell, steps, batch, width, reverse, data):
    lengths = data.draw(st.none() | st.tuples(*[st.integers(0, steps)] * batch))
    options: Any = {"reverse": reverse} | ({} if lengths is None else {"lengths": lengths})
    forms = ours(cell, **options), plain(cell, **options)
    assert_same_derivatives(*forms, shapes_of(cell, steps, batch, width), "float64", TOLERANCE["float64"])


@pytest.mark.parametrize("cell", GATES)
def test_padding_changes_nothing(cell):
    x, *rest = draw(*shapes_of(cell))
    f = ours(cell, lengths=(5, 1, 3), reverse=True)
    padding = np.arange(5)[:, None] >= np.array([5, 1, 3])

    @compiled
    def both(x):
        y, vjp = jax.vjp(lambda x: f(x, *rest), x)
        return y, *vjp(jnp.ones_like(y))

    y, gradient = map(np.asarray, both(x))
    np.testing.assert_array_equal(y, both(np.where(padding[..., None], np.float32(100), x))[0])
    assert not y[:5][padding].any()
    assert not gradient[padding].any()
    assert gradient[~padding].any(-1).all()


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.grid(fast=1)
def test_maps_and_scans(cell):
    arrays = draw(*shapes_of(cell))
    choices = [(0, *[None] * len(arrays[1:])), (None, 0, *[None] * len(arrays[2:])), (0,) * len(arrays)]
    gradient = lambda *arrays: jax.grad(lambda *arrays: jnp.sin(ours(cell)(*arrays)).sum())(*arrays)  # noqa: E731
    assert_maps(ours(cell, lengths=(5, 1, 3)), arrays, choices, TOLERANCE["float32"])
    assert_maps(gradient, arrays, choices, TOLERANCE["float32"])
    assert_scans(lambda x: ours(cell)(x, *arrays[1:]), arrays[0], TOLERANCE["float32"])


@pytest.mark.parametrize("cell", GATES)
def test_small_floats_stay_small(cell):
    arrays = draw(*shapes_of(cell), dtype="bfloat16")
    f = compiled(ours(cell))
    y = f(*arrays)
    assert y.dtype == jnp.bfloat16
    # eight bits at each of five steps
    exact = f(*(x.astype("float32") for x in arrays))
    np.testing.assert_allclose(y.astype("float32"), exact, atol=0.1)


@pytest.mark.parametrize("cell", GATES)
def test_the_loops_hold_one_product_each(cell):
    """The kernel's gradient is one product after the backward loop."""
    arrays = draw(*shapes_of(cell))
    loss = lambda f: lambda *arrays: jnp.sin(f(*arrays)).sum()  # noqa: E731
    every = tuple(range(len(arrays)))
    for f, products in ((ours(cell), [1, 1]), (plain(cell), [1, 2])):
        jaxpr = jax.make_jaxpr(jax.grad(loss(f), every))(*arrays)
        loops = [eqn.params["jaxpr"].jaxpr for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "scan"]
        assert [sum(eqn.primitive.name == "dot_general" for eqn in equations(loop)) for loop in loops] == products


def equations(jaxpr):
    """All, those of inner functions too, but not those inside loops."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name != "scan":
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("cell", GATES)
def test_a_sharded_batch_gives_the_same(cell):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    arrays = *draw((5, 8, 3), (3, GATES[cell] * 4)), *draw(*shapes_of(cell, B=8))[1:]
    sharded = jax.device_put(arrays[0], NamedSharding(mesh, P(None, "data"))), *arrays[1:]

    def loss(x, kernel, *rest):
        return jnp.sin(ours(cell)(project(x, kernel), *rest)).sum()

    every = compiled(jax.value_and_grad(loss, tuple(range(len(arrays)))))
    program = every.lower(*sharded).compile()
    assert_close(program(*sharded), every(*arrays), 1e-5)  # sums in another order
    for copies in ("all-gather", "all-to-all", "collective-permute"):
        assert copies not in program.as_text()


def test_the_barrier_is_for_cpu_alone():
    arrays = draw(*shapes_of("rnn"))
    f = jax.jit(jax.grad(lambda *arrays: ours("rnn")(*arrays).sum(), 1))
    for platform, barrier in [("cpu", True), ("cuda", False)]:
        program = export.export(f, platforms=[platform])(*arrays).mlir_module()
        assert ("optimization_barrier" in program) == barrier


@pytest.mark.parametrize("cell", GATES)
def test_without_bias(cell):
    x, kernel, bias, *states = draw(*shapes_of(cell))
    none, zeros = (ours(cell)(x, kernel, b, *states) for b in (None, jnp.zeros_like(bias)))
    np.testing.assert_array_equal(none, zeros)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": (4, 12)}, r"x \(5, 3, 16\), kernel \(4, 12\).*give {'x': \(3, 16\), 'kernel': \(4, 16\)}"),
        ({"x": (5, 2, 16)}, r"x \(5, 2, 16\)"),
        ({"c": (3, 5)}, r"states \[\(3, 4\), \(3, 5\)\]"),
    ],
)
def test_bad_shapes(change, message):
    shapes = {"x": (5, 3, 16), "h": (3, 4), "c": (3, 4), "kernel": (4, 16)} | change
    x, h, c, kernel = map(jnp.zeros, shapes.values())
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(lstm)(x, (h, c), kernel)  # without the tests' own shape checker, as users call it


def test_dtypes_must_agree_and_the_bias_must_fit():
    x, h, kernel = jnp.zeros((5, 3, 12)), jnp.zeros((3, 4)), jnp.zeros((4, 12))
    with pytest.raises(ValueError, match=r"bfloat16, float32: cast them to one dtype"):
        gru(x.astype("bfloat16"), h, kernel)
    with pytest.raises(ValueError, match=r"bias \(4,\) for kernel \(4, 12\): give \(12,\)"):
        inspect.unwrap(gru)(x, h, kernel, jnp.zeros(4))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_projection_is_a_product(dtype):
    plain = lambda x, kernel: jnp.einsum("tbi,ig->tbg", x, kernel)  # noqa: E731
    assert_same_derivatives(project, plain, ((4, 3, 5), (5, 2)), dtype, TOLERANCE[dtype])
    with pytest.raises(ValueError, match=r"kernel \(4, 2\) for x \(4, 3, 5\): give \[5, G\]"):
        inspect.unwrap(project)(jnp.zeros((4, 3, 5)), jnp.zeros((4, 2)))
