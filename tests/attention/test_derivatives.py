"""Every derivative of attention, in every mode and under every transformation, against those of the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxai.attention import Causal, FunctionMask, Lengths, alibi, dot_product_attention
from tests.attention.oracle import CASES, SETTINGS, Case, assert_close, compiled, energy


def squares(tree):
    return sum((x**2).sum() for x in jax.tree.leaves(tree))


def derivatives(f, arrays, directions):
    """The derivatives to compare, by name; f maps a dict of arrays to (out, lse)."""
    value = energy(f)
    one, two = directions

    def along(function, direction=one):
        return lambda arrays: jax.jvp(function, (arrays,), (direction,))

    return {
        "jvp": along(f)(arrays),
        "grad, forward over reverse and both once more": along(along(jax.value_and_grad(value)), two)(arrays),
        "reverse over forward": jax.grad(lambda arrays: along(value)(arrays)[1])(arrays),
        "reverse over reverse": jax.grad(lambda arrays: squares(jax.grad(value)(arrays)))(arrays),
    }


def few_derivatives(f, arrays, directions):
    """Gradient and Hessian-vector product, for most cases."""
    return {"grad, forward over reverse": jax.jvp(jax.value_and_grad(energy(f)), (arrays,), (directions[0],))}


ALL = ["everything", "lengths"]
FEW = ["causal, more queries, groups", "segments", "array mask", "function mask", "combination", "one key"]
FEW += ["bias", "bias of keys", "sinks"]


@pytest.mark.parametrize("name", [*ALL, *FEW])
@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_derivatives_equal_those_of_the_oracle(name):
    case = CASES[name]
    battery = derivatives if name in ALL else few_derivatives
    arrays, directions = case.draw(), [case.directions(seed) for seed in (1, 2)]
    desired = compiled(functools.partial(battery, case.expected))(arrays, directions)
    for setting in ("reference", "small blocks", *(["default"] if name in ALL else [])):
        call = functools.partial(case.call, **SETTINGS[setting])
        actual = compiled(functools.partial(battery, call))(arrays, directions)
        assert_close(actual, desired)
        assert {x.dtype for x in jax.tree.leaves(actual)} == {np.dtype("float64")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_small_floats_err_no_more_than_twice_the_reference(dtype):
    options = {"is_causal": True, "key_value_seq_lengths": jnp.array([40, 23])}
    case = Case(
        (2, 40, 40, 2, 2, 16, 16),
        lambda: options,
        lambda b, n, q, k: (k <= q) & (k < np.array([40, 23])[b]),
        extra={"sinks": (4,)},
    )
    with jax.enable_x64(True):
        arrays = {name: x.astype(dtype) for name, x in case.draw().items()}
        wide = {name: x.astype("float64") for name, x in arrays.items()}
        desired = jax.device_get(compiled(jax.grad(energy(case.expected)))(wide))
    errors = {}
    for setting in ("reference", "small blocks", "default"):
        value = energy(functools.partial(case.call, **SETTINGS[setting]))
        actual = compiled(jax.grad(value))(arrays)
        assert {x.dtype for x in actual.values()} == {jnp.dtype(dtype)}
        errors[setting] = [np.linalg.norm(np.asarray(actual[key], "float64") - x) for key, x in desired.items()]
        alone = compiled(jax.grad(lambda x, value=value: value(arrays | {"sinks": x})))(arrays["sinks"])
        alone, together = (np.asarray(x, "float64") for x in (alone, actual["sinks"]))
        last_bit = float(jnp.finfo(dtype).eps) * abs(together).max()  # of sums whose terms are that large
        np.testing.assert_allclose(alone, together, rtol=0, atol=last_bit, err_msg=setting)
    for setting in ("small blocks", "default"):
        assert (np.array(errors[setting]) <= 2 * np.array(errors["reference"])).all(), setting


@pytest.mark.parametrize("options", [{"is_causal": True}, {"local_window_size": 9}], ids=["kernel", "blocks"])
def test_residuals_keep_the_inputs_dtype(options):
    """The backward pass stores only the log-sum-exp in float32."""
    query, key, value = jnp.ones((3, 2, 48, 4, 8), jnp.bfloat16)
    run = functools.partial(dot_product_attention, **options, block_size=16)
    _, pullback = jax.vjp(run, query, key, value)
    stored = [x for x in jax.tree.leaves(pullback) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in stored if x.size >= query.size} == {jnp.dtype("bfloat16")}
    assert sum(x.nbytes for x in stored) <= 4 * query.nbytes + 2 * 4 * 2 * 48 * 4  # query, key, value, out, lse, NaN


@pytest.mark.parametrize("how", [{}, {"block_size": 8}], ids=["dense", "blocks"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.grid(fast=1)
def test_functions_capture_small_floats_beside_float32(dtype, how):
    """Score functions and masks get captured arrays in their own dtype, whatever that of the queries."""
    query = jax.random.normal(jax.random.key(0), (1, 20, 2, 8))
    table = jnp.linspace(0, 1, 20).astype(dtype)

    def loss(table, ready, **how):
        def bias(table, score, b, n, q, k):
            return score + (table * jnp.asarray(2, dtype))[abs(q - k)]

        mask = FunctionMask(lambda b, n, q, k: table[k] * jnp.asarray(2, dtype) >= table[q])
        mod = jax.tree_util.Partial(bias, table) if ready else functools.partial(bias, table)
        return jnp.sin(dot_product_attention(query, query, query, mask=mask, score_mod=mod, **how)).sum()

    for ready in (False, True):
        actual, desired = (
            jax.jit(jax.grad(functools.partial(loss, ready=ready, **x)))(table) for x in (how, REFERENCE)
        )
        assert actual.dtype == desired.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(  # both round their sums to 8 or 11 bits
            np.asarray(actual, "float32"), np.asarray(desired, "float32"), atol=3e-2 * abs(desired).max().item()
        )


def test_float32():
    case = CASES["everything"]
    with jax.enable_x64(True):
        arrays = {name: x.astype("float32") for name, x in case.draw().items()}
        wide = {name: x.astype("float64") for name, x in arrays.items()}
        desired = jax.device_get(compiled(jax.grad(energy(case.expected)))(wide))
    for setting in ("reference", "small blocks"):
        actual = compiled(jax.grad(energy(functools.partial(case.call, **SETTINGS[setting]))))(arrays)
        assert {x.dtype for x in actual.values()} == {np.dtype("float32")}
        assert_close(actual, desired, 1e-5)  # sums of some 400 terms of size 1


# Parts of the gradient, and other ways to it

SMALL = Case(
    (2, 9, 12, 1, 2, 2, 3),
    lambda: {"is_causal": True, "logits_soft_cap": 2.0, "key_value_seq_lengths": jnp.array([12, 7])},
    lambda b, n, q, k: (k <= q) & (k < np.array([12, 7])[b]),
    extra={"bias": (1, 2, 9, 12), "sinks": (2,), "slope": (2,), "scale": ()},
)
BLOCKS = {"implementation": "blockwise", "block_size": 4}
REFERENCE = {"implementation": "reference"}
blocks = functools.partial(SMALL.call, **BLOCKS)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_derivatives_by_one_argument_alone_and_of_one_result_alone():
    """Shorter code runs if only values or only scores are differentiated, or one result has no cotangent."""
    arrays, tangents = SMALL.draw(), SMALL.directions(1)

    def parts(f, arrays, tangents):
        def of(name, x):
            return f(arrays | {name: x})

        results = {}
        for name in ("query", "value", "bias", "sinks"):
            one = functools.partial(of, name)
            results[name] = jax.jvp(one, (arrays[name],), (tangents[name],))[1], jax.grad(energy(one))(arrays[name])
        results["out"] = jax.grad(lambda arrays: jnp.sin(f(arrays)[0]).sum())(arrays)
        results["lse"] = jax.grad(lambda arrays: jnp.sin(f(arrays)[1]).sum())(arrays)
        results["hvp of lse"] = jax.jvp(jax.grad(lambda a: jnp.sin(f(a)[1]).sum()), (arrays,), (tangents,))[1]
        return results

    desired = compiled(functools.partial(parts, SMALL.expected))(arrays, tangents)
    assert_close(compiled(functools.partial(parts, blocks))(arrays, tangents), desired)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_jacobians_and_hessian():
    arrays = SMALL.draw()
    few = ("sinks", "slope", "scale")

    def matrices(f, arrays):
        def of(some):
            return f(arrays | some)

        some = {name: arrays[name] for name in few}
        value = functools.partial(lambda key: f(arrays | {"key": key})[0])
        return {
            "jacfwd": jax.jacfwd(of)(some),
            "jacrev": jax.jacrev(of)(some),
            "hessian": jax.hessian(energy(of))(some),
            "hessian, reverse over reverse": jax.jacrev(jax.jacrev(energy(of)))(some),
            "jacrev of keys": jax.jacrev(value)(arrays["key"]),
        }

    desired = compiled(functools.partial(matrices, SMALL.expected))(arrays)
    actual = compiled(functools.partial(matrices, blocks))(arrays)
    assert_close(actual, desired)
    assert_close(actual["jacfwd"], actual["jacrev"])


@pytest.mark.usefixtures("x64")
def test_gradient_by_a_score_function_that_is_a_pytree():
    arrays = Case((1, 9, 12, 2, 1, 3, 3)).draw()

    def loss(mod, **how):
        return jnp.sin(dot_product_attention(**arrays, score_mod=mod, is_causal=True, **how)).sum()

    mod = alibi(jnp.array([0.3, 0.1]))
    blocked = jax.jit(jax.grad(functools.partial(loss, **BLOCKS)))(mod)
    assert_close(blocked, jax.jit(jax.grad(functools.partial(loss, implementation="reference")))(mod))
    epsilon = 1e-6
    step = alibi(jnp.array([0.3 + epsilon, 0.1])), alibi(jnp.array([0.3 - epsilon, 0.1]))
    value = jax.jit(loss)
    difference = (value(step[0]) - value(step[1])) / (2 * epsilon)
    np.testing.assert_allclose(blocked.slopes[0], difference, rtol=1e-6)  # a central difference


@pytest.mark.slow
def test_without_jit_of_the_caller_and_without_any():
    arrays = Case((1, 9, 12, 1, 2, 3, 3)).draw(dtype="float32")
    run = functools.partial(dot_product_attention, is_causal=True, implementation="blockwise", block_size=8)

    def value(arrays):
        return jnp.sin(run(**arrays)).sum()

    gradient = jax.grad(value)
    desired = jax.jit(lambda arrays: (value(arrays), jax.jvp(gradient, (arrays,), (arrays,))))(arrays)
    eager = value(arrays), jax.jvp(gradient, (arrays,), (arrays,))
    assert_close(eager, desired, 1e-5)
    with jax.disable_jit():
        assert_close((value(arrays), gradient(arrays)), (desired[0], desired[1][0]), 1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_checkpoint_scan_linearize_and_transpose():
    arrays, tangents = SMALL.draw(), SMALL.directions(1)
    value = energy(blocks)

    def scanned(arrays):
        """Three attentions in a row, the output of each the query of the next, with rematerialisation."""

        @jax.checkpoint
        def step(query, _):
            out, lse = blocks(arrays | {"query": query, "value": arrays["value"][..., :2]})
            return out, lse

        query, lse = lax.scan(step, arrays["query"], length=3)
        return query, lse

    def unrolled(arrays):
        query, lses = arrays["query"], []
        for _ in range(3):
            query, lse = SMALL.expected(arrays | {"query": query, "value": arrays["value"][..., :2]})
            lses.append(lse)
        return query, jnp.stack(lses)

    def ways(arrays, tangents):
        out, linear = jax.linearize(blocks, arrays)
        (transposed,) = jax.linear_transpose(linear, arrays)(out)
        return {
            "checkpoint": jax.grad(jax.checkpoint(value))(arrays),
            "checkpoint, hvp": jax.jvp(jax.grad(jax.checkpoint(value)), (arrays,), (tangents,))[1],
            "linearize": linear(tangents),
            "transpose": transposed,
        }

    def expected(arrays, tangents):
        value = energy(SMALL.expected)
        return {
            "checkpoint": jax.grad(value)(arrays),
            "checkpoint, hvp": jax.jvp(jax.grad(value), (arrays,), (tangents,))[1],
            "linearize": jax.jvp(SMALL.expected, (arrays,), (tangents,))[1],
            "transpose": jax.vjp(SMALL.expected, arrays)[1](SMALL.expected(arrays))[0],
        }

    assert_close(compiled(ways)(arrays, tangents), compiled(expected)(arrays, tangents))
    loops = [compiled(jax.value_and_grad(energy(f)))(arrays) for f in (scanned, unrolled)]
    assert_close(*loops)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.grid(fast=1)
def test_integer_arguments_have_float0_derivatives(implementation):
    arrays = Case((1, 9, 12, 1, 2, 3, 3)).draw(dtype="float32")
    ids, lengths = np.arange(9, dtype="int32")[None] // 5, np.array([11], "int32")
    kv_ids = np.arange(12, dtype="int32")[None] // 5
    key = jax.random.key_data(jax.random.key(3))

    def value(arrays, ids, kv_ids, lengths, key):
        options = {"segment_ids": (ids, kv_ids), "key_value_seq_lengths": lengths, "dropout_rate": 0.2}
        how = {"implementation": implementation, "block_size": 8}
        return jnp.sin(dot_product_attention(**arrays, **options, dropout_key=key, **how)).sum()

    whole = arrays, ids, kv_ids, lengths, key
    gradient, *integers = jax.jit(jax.grad(value, tuple(range(5)), allow_int=True))(*whole)
    assert {x.dtype for x in integers} == {jax.dtypes.float0}
    zeros = [np.zeros(x.shape, jax.dtypes.float0) for x in whole[1:]]
    _, tangent = jax.jit(lambda gradient: jax.jvp(value, whole, (gradient, *zeros)))(gradient)
    np.testing.assert_allclose(tangent, squares(gradient), rtol=1e-5)


# vmap

INTEGERS = {  # what may be mapped beside the floats: name -> (option of one call, the stack of three)
    "mask": lambda: {"mask": jnp.asarray(np.random.default_rng(5).random((3, 9, 12)) < 0.7)},
    "mask object": lambda: {"mask": Causal(jnp.array([0, 3, 5])) | Lengths(None, jnp.array([2, 1, 0]))},
    "lengths": lambda: {"key_value_seq_lengths": jnp.array([[12, 7], [3, 5], [0, 12]])},
    "segments": lambda: {"segment_ids": (jnp.zeros((3, 9), int), (jnp.arange(36) % 5 < 3).astype(int).reshape(3, 12))},
    "dropout": lambda: {"dropout_key": jax.random.split(jax.random.key(0), 3)},
}


def stacked(case, names):
    """The arrays of a case, those in `names` stacked for three calls."""
    draws = [case.draw(seed) for seed in range(3)]
    return {name: np.stack([draw[name] for draw in draws]) if name in names else x for name, x in draws[0].items()}


VMAPPED = Case((2, 9, 12, 1, 2, 2, 3), extra={"bias": (1, 2, 9, 12), "sinks": (2,), "slope": (2,), "scale": ()})
FLOATS = ["query", "key", "value", "bias", "sinks", "slope", "scale"]
GROUPS = [["query"], ["key"], ["bias"], ["slope"], ["query", "value", "scale"], FLOATS]


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: "+".join(names))
@pytest.mark.usefixtures("x64")
@pytest.mark.grid(fast=1)
def test_vmap_over_each_argument(names):
    """Gradient of the vmap and vmap of the gradient, against separate calls."""
    arrays = stacked(VMAPPED, names)
    axes = {name: 0 if name in names else None for name in arrays}
    value = energy(functools.partial(VMAPPED.call, **BLOCKS, is_causal=True))

    @compiled
    def actual(arrays):
        of_vmap = jax.grad(lambda arrays: jax.vmap(value, in_axes=(axes,))(arrays).sum())
        return jax.vmap(jax.value_and_grad(value), in_axes=(axes,))(arrays), of_vmap(arrays)

    one = compiled(jax.value_and_grad(energy(functools.partial(VMAPPED.call, **REFERENCE, is_causal=True))))
    rows = [one({name: x[i] if name in names else x for name, x in arrays.items()}) for i in range(3)]
    values, gradients = jax.tree.map(lambda *x: np.stack(x), *rows)
    total = {name: x if name in names else x.sum(0) for name, x in gradients.items()}
    assert_close(actual(arrays), ((values, gradients), total))


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.usefixtures("x64")
@pytest.mark.grid(fast=2)
def test_vmap_over_masks_and_keys(name):
    arrays = Case((2, 9, 12, 1, 2, 2, 3)).draw()
    stack = INTEGERS[name]()

    def both(option, **how):
        rate = {"dropout_rate": 0.4} if name == "dropout" else {}

        def call(arrays):
            return dot_product_attention(**arrays, **option | rate, **how, return_residual=True)

        return jax.value_and_grad(energy(call))(arrays)

    actual = compiled(jax.vmap(functools.partial(both, **BLOCKS)))(stack)
    one = compiled(functools.partial(both, **REFERENCE))
    rows = [one(jax.tree.map(lambda x, i=i: x[i], stack)) for i in range(3)]
    assert_close(actual, jax.tree.map(lambda *x: np.stack(x), *rows))


@pytest.mark.usefixtures("x64")
def test_nested_vmap_and_hessians_inside():
    """Two vmaps over different arrays, an axis in the middle, and a second-order derivative inside."""
    arrays = stacked(VMAPPED, ["query", "key"])
    arrays["query"] = np.moveaxis(arrays["query"], 0, 2)

    def each(f):
        def second(query, key, slope):
            value = energy(lambda slope: f(arrays | {"query": query, "key": key, "slope": slope}))
            return jax.jvp(jax.value_and_grad(value), (slope,), (jnp.ones(2),))

        inner = jax.vmap(second, in_axes=(None, 0, None), out_axes=-1)
        return compiled(jax.vmap(inner, in_axes=(2, None, None)))(arrays["query"], arrays["key"], arrays["slope"])

    how = {"is_causal": True}
    assert_close(
        each(functools.partial(VMAPPED.call, **BLOCKS, **how)),
        each(functools.partial(VMAPPED.call, **REFERENCE, **how)),
    )


# Devices


DEVICES = Case((4, 9, 12, 4, 1, 4, 4), extra={"slope": (4,)})


def on_devices(**how):
    """The loss and the output of a causal call with a score function that captures an array."""

    def run(query, key, value, slope):
        arrays = {"query": query, "key": key, "value": value}

        def score_mod(score, b, n, q, k):
            return score - slope * jnp.abs(q - k)

        return dot_product_attention(**arrays, is_causal=True, score_mod=score_mod, **how)

    return run


@pytest.mark.parametrize(
    ("implementation", "check_vma", "axis"),
    [("reference", True, "batch"), *(("blockwise", vma, axis) for vma in (True, False) for axis in ("batch", "heads"))],
)
@pytest.mark.grid(fast=1)
def test_shard_map(implementation, check_vma, axis):
    """Forward, gradient inside and outside, and a second derivative; the score function's array is replicated."""
    query, key, value, _ = DEVICES.draw(dtype="float32").values()
    args = query, key, value, jnp.float32(0.3)
    run = on_devices(implementation=implementation, block_size=8)
    spec = P("x") if axis == "batch" else P(None, None, "x")
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    over = functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec, spec, P()), check_vma=check_vma)

    def gradient(run):
        return jax.grad(lambda *args: jnp.sin(run(*args)).sum(), (0, 1, 2, 3))

    def inside(*args):
        *gradients, by_slope = gradient(run)(*args)
        if not check_vma:  # with it, the transpose of the slope's broadcast to the devices has summed already
            by_slope = lax.psum(by_slope, "x")
        return *gradients, by_slope

    def everything(run, inside):
        return compiled(lambda *args: (run(*args), jax.jvp(gradient(run), args, args), inside(*args)))(*args)

    actual = everything(over(run, out_specs=spec), over(inside, out_specs=(spec, spec, spec, P())))
    assert_close(actual, everything(run, gradient(run)), 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.grid(fast=1)
def test_shard_map_with_operands_that_differ_in_what_they_vary_over(implementation):
    """Queries are split over devices; the key head, the bias and the sinks are replicated."""
    case = Case((2, 9, 12, 1, 4, 3, 3), extra={"bias": (2, 1, 9, 12), "sinks": (4,)})
    arrays = case.draw(dtype="float32")
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    specs = dict.fromkeys(arrays, P()) | {"query": P(None, None, "x"), "sinks": P("x")}
    how = {"implementation": implementation, "block_size": 8, "key_value_seq_lengths": jnp.array([12, 7])}

    def run(arrays):
        return dot_product_attention(**arrays, **how, return_residual=True)

    sharded = jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=P(None, None, "x"))
    actual, desired = (jax.jit(lambda a, f=f: (f(a), jax.grad(energy(f))(a)))(arrays) for f in (sharded, run))
    assert_close(actual, desired, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_shard_map_with_the_device_in_the_score_function(implementation):
    """Positions that depend on the device, as in ring attention."""
    arrays = (*DEVICES.draw(dtype="float32").values(),)[:3]
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))

    def run(query, key, value):
        def score_mod(score, b, n, q, k):
            return score * (1 + lax.axis_index("x") + b)

        return dot_product_attention(
            query, key, value, score_mod=score_mod, implementation=implementation, block_size=8
        )

    def together(query, key, value):
        return dot_product_attention(query, key, value, score_mod=lambda score, b, n, q, k: score * (1 + b))

    sharded = jax.shard_map(run, mesh=mesh, in_specs=(P("x"),) * 3, out_specs=P("x"))
    assert_close(jax.jit(sharded)(*arrays), together(*arrays), 1e-5)


@pytest.mark.parametrize("spec", [P("x"), P(None, None, "x")], ids=["batch", "heads"])
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.grid(fast=2)
def test_sharded_batches_and_heads_stay_where_they_are(implementation, spec):
    arrays = (*DEVICES.draw(dtype="float32").values(),)[:3]
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))

    def both(*args):
        run = functools.partial(on_devices(implementation=implementation, block_size=8), slope=jnp.float32(0.3))
        out, pullback = jax.vjp(lambda *args: run(*args), *args)
        return out, pullback(jnp.cos(out))

    desired = jax.jit(both)(*arrays)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in arrays]
        program = jax.jit(both).lower(*placed).compile()
        assert_close(program(*placed), desired, 1e-5)
        assert all(x.sharding.is_equivalent_to(NamedSharding(mesh, spec), 4) for x in jax.tree.leaves(program(*placed)))
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in program.as_text()]


# Memory


def of_query(run):
    return lambda query, *args: jnp.sin(run(query, *args)).sum()


MEMORY = {
    "forward": lambda run: run,
    "grad": lambda run: jax.grad(of_query(run), (0, 1, 2)),
    "jvp": lambda run: lambda *args: jax.jvp(run, args, args)[1],
    "hvp": lambda run: lambda *args: jax.jvp(jax.grad(of_query(run), (0, 1, 2)), args, args)[1],
    "penalty": lambda run: jax.grad(lambda *args: squares(jax.grad(of_query(run))(*args)), (0, 1, 2)),
}


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        *((name, Causal()) for name in MEMORY),
        ("penalty", None),
        ("penalty", FunctionMask(lambda b, n, q, k: q * k > 9)),
    ],
)
@pytest.mark.grid(fast=1)
def test_memory_grows_with_the_length_and_not_with_its_square(name, mask):
    def temporary(T):
        x = jax.ShapeDtypeStruct((1, T, 1, 8), "float32")
        return compiled(MEMORY[name](functools.partial(dot_product_attention, mask=mask))).lower(x, x, x).compile()

    sizes = [temporary(T).memory_analysis().temp_size_in_bytes for T in (2048, 4096)]
    assert sizes[1] <= 2.2 * sizes[0]
    assert sizes[1] < 4096**2 * 4 / 4  # a quarter of one dense score matrix
