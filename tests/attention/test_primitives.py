"""Helpers that define primitives, and that JAX's extension interfaces are used nowhere else."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxai.attention
from jaxai.attention._primitives import (
    aligned,
    avals_by_definition,
    batch_by_definition,
    differentiated,
    jvp_by_definition,
    lift_captured,
    loop_lowering,
    primitive,
    register,
    replace,
    spread,
    zero_tangent,
)
from tests.attention.oracle import assert_close

FOLDER = Path(jaxai.attention.__file__).parent
EXTENSIONS = "jax.core", "jax.extend", "jax.interpreters", "jax.ffi", "jax._src", "jax.experimental.custom_partitioning"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_extension_interfaces_of_jax_stay_in_two_modules(path):
    if path in (FOLDER / "_primitives.py", FOLDER / "cudnn.py"):
        return
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            used.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            used.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
    assert not [name for name in used if name.startswith(EXTENSIONS)]


def products(x, y):
    return [x * y, x + y]


products_p = primitive("test_products")
register(
    products_p,
    avals=avals_by_definition(products),
    lowerings={None: loop_lowering(products)},
    jvp=jvp_by_definition(products),
    batch=batch_by_definition(products),
)


def test_a_primitive_has_the_rules_of_its_definition():
    x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])
    for f in (products_p.bind, jax.jit(products_p.bind)):
        assert_close(f(x, y), products(x, y))
        assert_close(jax.jvp(f, (x, y), (y, x)), jax.jvp(products, (x, y), (y, x)))
        assert_close(jax.jvp(lambda x, f=f: f(x, y), (x,), (y,)), jax.jvp(lambda x: products(x, y), (x,), (y,)))
        assert_close(jax.vmap(f, in_axes=(0, None))(x, y), jax.vmap(products, in_axes=(0, None))(x, y))
    with jax.disable_jit():
        assert_close(products_p.bind(x, y), products(x, y))


def test_operands_with_a_tangent():
    x, n = jnp.ones(2), jnp.arange(2)
    assert differentiated([x, x, n], [x, zero_tangent(x), n]) == [0]
    assert replace([1, 2, 3], [2, 0], ["c", "a"]) == ["a", 2, "c"]


def test_captured_tracers_become_arguments():
    table, x = np.arange(3.0, dtype=np.float32), jnp.ones(3)

    def f(masked, x):
        return jnp.where(x > 5, x, x * table) if masked else x

    same, arrays = lift_captured(f, [False, True], [x])
    assert same is f
    assert arrays == []

    @jax.jit
    def lifted(captured):
        def f(masked, x):
            return x * captured if masked else x + captured.sum()

        run, arrays = lift_captured(f, [False, True], [x])
        assert all(isinstance(x, jax.core.Tracer) for x in arrays)
        return run(False, x, *arrays), run(True, x, *arrays)

    assert_close(lifted(jnp.asarray(table)), (x + 3, x * table))


@pytest.mark.parametrize("together", [aligned, spread])
def test_arrays_vary_over_the_same_mesh_axes(together):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    spec = PartitionSpec("x")

    def run(x):
        arrays = together([x, jnp.ones(3)])
        assert all(str(jax.typeof(x)).endswith("{V:x}") for x in arrays)
        return arrays

    x = jnp.arange(4.0)
    assert_close(jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec))(x), [x, jnp.ones(6)])
    assert_close(together([x, jnp.ones(3)]), [x, jnp.ones(3)])
