"""Attention on an emulated GPU: half precision, derivatives of every order, loops of known length."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxai.attention import attention_stats, dot_product_attention
from jaxai.attention.api import checked, has_few_scores
from jaxai.attention.blocks.blockwise import block_sizes
from tests.attention.gpu import emulated_gpu
from tests.attention.oracle import CASES, SETTINGS, Case, assert_close, compiled


@pytest.fixture
def gpu():
    with emulated_gpu() as kernels:
        yield kernels


# Half precision, in every way that users call it

QKV = (4, 16, 4, 8), (4, 16, 2, 8), (4, 16, 2, 8)
TOLERANCES = {"bfloat16": 2**-6, "float16": 2**-9}
"""For numbers up to 1 with 8 and 11 bits: inputs, weights and results are rounded, at most three times in all."""


def attend(query, key, value, **how):
    return dot_product_attention(query, key, value, is_causal=True, **how)


def loss(qkv, **how):
    return jnp.sin(attend(*qkv, **how).astype(np.float32)).sum()


def mesh_of(devices):
    return jax.make_mesh((devices // 2 or 1, min(devices, 2)), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def sharding(mesh):
    return NamedSharding(mesh, P("x", None, "y"))


def with_mesh(f, mesh, qkv):
    with jax.set_mesh(mesh):
        return compiled(lambda qkv: f(qkv))(qkv)


def in_shardings(f, mesh, qkv):
    return compiled(lambda qkv: f(qkv), in_shardings=(sharding(mesh),))(qkv)


def in_shard_map(f, mesh, qkv):
    spec = sharding(mesh).spec
    return compiled(jax.shard_map(f, mesh=mesh, in_specs=(spec,), out_specs=spec))(qkv)


WAYS = {
    "eager": lambda f, mesh, qkv: f(qkv),
    "jit": lambda f, mesh, qkv: compiled(lambda qkv: f(qkv))(qkv),
    "set_mesh": with_mesh,
    "set_mesh and placed": lambda f, mesh, qkv: with_mesh(f, mesh, jax.device_put(qkv, sharding(mesh))),
    "in_shardings": in_shardings,
    "shard_map": in_shard_map,
}


def forward(qkv, **how):
    return attend(*qkv, **how)


def gradient(qkv, **how):
    return jax.grad(functools.partial(loss, **how))(qkv)


def of_vmap(qkv, **how):
    """The gradient of a vmap over the batch."""
    return jax.grad(lambda qkv: jax.vmap(functools.partial(loss, **how))([x[:, None] for x in qkv]).sum())(qkv)


def of_scan(qkv, **how):
    """The gradient through three layers, rematerialised."""
    query, key, value = qkv
    layer = jax.checkpoint(lambda x, _: (attend(x, key, value, **how), None))
    return jax.grad(lambda x: jnp.sin(lax.scan(layer, x, length=3)[0].astype(np.float32)).sum())(query)


PROGRAMS = {"forward": forward, "gradient": gradient, "vmap": of_vmap, "scan and remat": of_scan}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.grid(fast=1)
def test_half_precision_runs_by_the_kernels_in_every_way(program, dtype, devices, gpu):
    f, mesh = PROGRAMS[program], mesh_of(devices)
    draws = [np.random.default_rng(n).uniform(-1, 1, shape) for n, shape in enumerate(QKV)]
    qkv = [jnp.asarray(x, dtype) for x in draws]
    wide = [x.astype(np.float32) for x in qkv]
    desired = compiled(functools.partial(f, implementation="reference"))(wide)
    for name, way in WAYS.items():
        gpu.seen.clear()
        jax.clear_caches()
        actual = way(f, mesh, qkv)
        assert gpu.names == ({"forward"} if program == "forward" else {"forward", "backward"}), name
        for have, want in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
            assert have.dtype == jnp.dtype(dtype), name
            scale = max(1.0, float(abs(want).max()))
            atol = TOLERANCES[dtype] * scale * (3 if "scan" in program else 1)
            np.testing.assert_allclose(np.asarray(have, np.float32), want, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("lead", [(), (3,)], ids=["", "vmap"])
@pytest.mark.parametrize(
    ("heads", "spec"),
    [
        *(((4, 4), spec) for spec in (("x",), (None, None, "x"), ("x", None, "y"), ())),
        *(((4, 2), spec) for spec in (("x",), ("x", None, "y"))),
        ((4, 1), ("x",)),
        ((1, 1), ("x",)),
    ],
    ids=str,
)
@pytest.mark.grid(fast=1)
def test_every_device_calls_the_kernels_for_its_part(heads, spec, lead, gpu):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    shapes = [(4, 16, count, 8) for count in (heads[0], heads[1], heads[1])]
    lengths = jnp.array([16, 3, 0, 9])

    def run(qkv):
        f = functools.partial(dot_product_attention, key_value_seq_lengths=lengths)
        return jax.grad(lambda qkv: jnp.sin(f(*qkv).astype(np.float32)).sum())(qkv)

    place = NamedSharding(mesh, P(*(None for _ in lead), *spec))
    qkv = [jax.ShapeDtypeStruct((*lead, *shape), jnp.bfloat16, sharding=place) for shape in shapes]
    program = compiled(jax.vmap(run) if lead else run).lower(qkv).compile().as_text()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program)
    parts = [2 if name else 1 for name in (*spec, *(None,) * (4 - len(spec)))]
    batch, *local = (size // part for size, part in zip(shapes[0], parts, strict=True))
    local = (batch * (lead[0] if lead else 1), *local)
    assert {gpu.seen[-2], gpu.seen[-1]} == {("forward", local), ("backward", local)}


# Derivatives in float64


KINDS = {
    "full": Case((2, 9, 12, 2, 1, 8, 8)),
    "causal, grouped heads": Case((2, 12, 9, 2, 2, 8, 8), lambda: {"is_causal": True}, lambda b, n, q, k: k <= q),
    "window": Case(
        (1, 11, 12, 1, 2, 8, 8),
        lambda: {"is_causal": True, "local_window_size": (3, 0)},
        lambda b, n, q, k: (k <= q) & (k >= q - 3),
    ),
    "sinks": Case((2, 9, 12, 2, 1, 8, 8), lambda: {"is_causal": True}, lambda b, n, q, k: k <= q, {"sinks": (2,)}),
    "lengths": Case(
        (3, 11, 13, 1, 2, 8, 8),
        lambda: {"query_seq_lengths": jnp.array([11, 7, 5]), "key_value_seq_lengths": jnp.array([13, 4, 0])},
        lambda b, n, q, k: (q < np.array([11, 7, 5])[b]) & (k < np.array([13, 4, 0])[b]),
    ),
    "lengths, causal, sinks": Case(
        (2, 12, 11, 2, 1, 8, 8),
        lambda: {"key_value_seq_lengths": jnp.array([7, 0]), "is_causal": True},
        lambda b, n, q, k: (k < np.array([7, 0])[b]) & (k <= q),
        {"sinks": (2,)},
    ),
}


def energy(f, of_lse=False):
    """A function of the output, whose gradient the kernels compute; with ``of_lse`` of the log-sum-exp too."""

    def value(arrays):
        out, lse = f(arrays)
        return jnp.sin(out).sum() + (jnp.exp(0.3 * lse).sum() if of_lse else 0)

    return value


def every_derivative(f, arrays, one, two):
    """First, second and third derivatives in all modes, under vmap and remat, also for some arrays or the lse only."""
    value = energy(f)
    gradient = jax.grad(value)

    def along(function, direction):
        return lambda arrays: jax.jvp(function, (arrays,), (direction,))[1]

    def penalty(arrays):
        return sum((x**2).sum() for x in jax.tree.leaves(gradient(arrays)))

    def part(name):
        return lambda x: value(arrays | {name: x})

    stack = jax.tree.map(lambda x, y: jnp.stack([x, y]), arrays, one)
    some = {name: 0 if name in ("query", "sinks") else None for name in arrays}
    partly = {name: stack[name] if axis == 0 else arrays[name] for name, axis in some.items()}
    linear = jax.linearize(f, arrays)[1]
    pullback = jax.vjp(lambda arrays: f(arrays)[0], arrays)[1]
    return {
        "transpose of the pullback": jax.linear_transpose(pullback, f(arrays)[0])((one,)),
        "gradient": gradient(arrays),
        "by one": {name: jax.grad(part(name))(x) for name, x in arrays.items()},
        "through the log-sum-exp": jax.grad(energy(f, of_lse=True))(arrays),
        "jvp": along(f, one)(arrays),
        "linearize": linear(one),
        "transpose": jax.linear_transpose(linear, arrays)(f(arrays)),
        "forward over reverse": along(gradient, one)(arrays),
        "reverse over forward": jax.grad(along(value, one))(arrays),
        "reverse over reverse": jax.grad(penalty)(arrays),
        "third": along(along(gradient, one), two)(arrays),
        "remat": jax.grad(jax.checkpoint(value))(arrays),
        "vmap": jax.vmap(gradient)(stack),
        "vmap over some": jax.vmap(gradient, in_axes=(some,))(partly),
        "gradient of vmap": jax.grad(lambda arrays: jax.vmap(value, in_axes=(some,))(arrays).sum())(partly),
        "vmap of penalty": jax.vmap(jax.grad(penalty), in_axes=(some,))(partly),
        "jacobian": jax.jacrev(lambda query: f(arrays | {"query": query})[0][0, 1])(arrays["query"]),
        "hessian": jax.hessian(lambda x: value(arrays | {"value": arrays["value"].at[0, 0].set(x)}))(
            arrays["value"][0, 0]
        ),
    }


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_derivatives_of_every_order_are_exact_and_never_of_a_kernel(name, gpu):
    case = KINDS[name]
    arrays, directions = case.draw(), [case.directions(seed) for seed in (1, 2)]
    desired = compiled(functools.partial(every_derivative, case.expected))(arrays, *directions)
    actual = compiled(functools.partial(every_derivative, case.call))(arrays, *directions)
    assert gpu.names == {"forward", "backward"}
    assert_close(actual, desired)


@pytest.mark.usefixtures("x64")
def test_nan_in_padding_stays_there(gpu):
    case = KINDS["lengths"]
    arrays = case.draw()
    desired = compiled(jax.value_and_grad(energy(case.call)))(arrays)
    for name, length in (("query", 7), ("key", 4), ("value", 4)):
        arrays[name] = arrays[name].at[1, length:].set(jnp.nan)
    assert_close(compiled(jax.value_and_grad(energy(case.call)))(arrays), desired)
    assert gpu.names == {"forward", "backward"}


# Loops


FEW = ["everything", "lengths", "segments", "causal, more queries, groups", "function mask", "bias", "one key"]


@pytest.mark.parametrize("name", FEW)
@pytest.mark.usefixtures("x64")
@pytest.mark.grid(fast=1)
def test_the_loops_of_a_gpu_compute_the_same_and_know_their_length(name, gpu):
    case = CASES[name]
    arrays, direction = case.draw(), case.directions(1)

    def both(f, arrays, direction):
        return jax.jvp(jax.value_and_grad(energy(f, of_lse=True)), (arrays,), (direction,))

    desired = compiled(functools.partial(both, case.expected))(arrays, direction)
    for setting in ("small blocks", "default"):
        call = functools.partial(case.call, **SETTINGS[setting])
        program = compiled(functools.partial(both, call)).lower(arrays, direction).compile()
        assert_close(program(arrays, direction), desired)
        loops = [line for line in program.as_text().splitlines() if re.search(r" while\(", line)]
        assert [line for line in loops if "known_trip_count" not in line] == []
    assert not gpu.seen


def test_statistics_are_the_same(gpu):
    query, key = jax.random.normal(jax.random.key(0), (2, 2, 40, 4, 8))
    options = {"is_causal": True, "key_value_seq_lengths": jnp.array([40, 17]), "sinks": jnp.zeros(4)}
    actual = attention_stats(query, key, block_size=16, **options)
    desired = attention_stats(query, key, **options)
    assert_close(actual, desired, 1e-5)


def test_many_heads_are_not_dense_and_blocks_are_chosen_by_bytes(gpu):
    def call(*shape):
        return checked(*(jnp.zeros(shape),) * 3)[0]

    assert has_few_scores(call(4, 512, 4, 8))
    assert not has_few_scores(call(64, 512, 12, 1))
    sizes = [block_sizes(call(*shape))[0] for shape in ((1, 2048, 1, 8), (4, 2048, 16, 1), (64, 512, 12, 1))]
    assert sizes == [1024, 256, 128]
