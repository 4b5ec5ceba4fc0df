"""cuDNN's calls: which programs contain them on CUDA, and that they equal jax.nn's."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.sharding import AxisType

from jaxai.attention import Causal, Lengths, SlidingWindow, alibi, cudnn, dot_product_attention
from tests.attention.gpu import TARGETS, counts, cuda_text, shapes

LENGTHS = np.array([700, 1024], np.int32)
EXPRESSIBLE = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "local_window_size": (128, 0)},
    "sinks": {"sinks": np.zeros(8, np.float32)},
    "lengths": {"query_seq_lengths": LENGTHS, "key_value_seq_lengths": LENGTHS},
    "lengths of keys, causal": {"key_value_seq_lengths": LENGTHS, "is_causal": True},
    "lengths and sinks": {"key_value_seq_lengths": LENGTHS, "sinks": np.zeros(8, np.float32)},
    "windows together": {"mask": Causal() & SlidingWindow(128, 0) & SlidingWindow(64, None)},
}
NOT_EXPRESSIBLE = {
    "soft cap": {"logits_soft_cap": 3.0},
    "window to both sides": {"local_window_size": 3},
    "score function": {"score_mod": alibi(8)},
    "bias": {"bias": jnp.zeros((1, 1, 1, 1024), jnp.bfloat16)},
    "later causal": {"mask": Causal(5)},
    "dropout": {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)},
    "array scale": {"scale": jnp.float32(0.1)},
    "segments": {"segment_ids": np.arange(1024)[None] // 100},
    "lengths in a window": {"key_value_seq_lengths": LENGTHS, "is_causal": True, "local_window_size": (128, 0)},
    "an alternative": {"mask": Causal() | Lengths(None, 5)},
    "negative scale": {"scale": -1.0},
}


def loss_of(attend):
    return lambda *qkv: attend(*qkv).astype(np.float32).sum()


def derivatives(attend):
    """The function, its gradient, jvp, and a Hessian-vector product."""
    gradient = jax.grad(loss_of(attend), (0, 1, 2))
    return {
        "forward": attend,
        "gradient": gradient,
        "jvp": lambda *qkv: jax.jvp(attend, qkv, qkv),
        "hvp": lambda *qkv: jax.jvp(gradient, qkv, qkv)[1],
    }


@pytest.mark.parametrize("name", EXPRESSIBLE)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.grid(fast=5)
def test_a_gradient_is_one_call_forward_and_one_backward_without_a_loop(name, dtype):
    programs = derivatives(functools.partial(dot_product_attention, **EXPRESSIBLE[name]))
    found = {kind: counts(cuda_text(f, *shapes(dtype))) for kind, f in programs.items()}
    assert found["forward"] == (1, 0, 0)
    assert found["gradient"] == (1, 1, 0)
    assert found["jvp"][:2] == found["hvp"][:2] == (1, 0)


def test_so_it_is_under_vmap_remat_and_scan_over_layers():
    attend = functools.partial(dot_product_attention, is_causal=True)
    gradient = jax.grad(loss_of(attend), (0, 1, 2))
    of_vmap = jax.grad(loss_of(jax.vmap(attend)), (0, 1, 2))
    query, key, value = shapes("bfloat16")
    for f in (jax.vmap(gradient), of_vmap):
        assert counts(cuda_text(f, *shapes("bfloat16", 3))) == (1, 1, 0)
    unmapped = jax.vmap(gradient, in_axes=(0, None, None))
    assert counts(cuda_text(unmapped, jax.ShapeDtypeStruct((3, *query.shape), query.dtype), key, value)) == (1, 1, 0)
    rematerialised = jax.grad(loss_of(jax.checkpoint(attend)), (0, 1, 2))
    assert counts(cuda_text(rematerialised, query, key, value))[1:] == (1, 0)

    def layers(query, key, value):
        return lax.scan(lambda x, _: (attend(x, key, value), None), query, length=4)[0]

    assert counts(cuda_text(jax.grad(loss_of(layers)), query, key, value)) == (1, 1, 2)  # the loops over layers


def test_a_mesh_without_devices_is_lowered_for_too():
    mesh = jax.sharding.AbstractMesh((2,), ("x",), axis_types=(AxisType.Auto,))
    gradient = derivatives(functools.partial(dot_product_attention, is_causal=True))["gradient"]
    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x"))
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in TARGETS]
    lowered = jax.export.export(jax.jit(sharded), platforms=["cuda"], disabled_checks=checks)(*shapes("bfloat16"))
    assert counts(lowered.mlir_module()) == (1, 1, 0)


@pytest.mark.parametrize("tokens", [600, 777, 1000])
def test_odd_lengths_are_as_good(tokens):
    programs = derivatives(functools.partial(dot_product_attention, is_causal=True))
    assert counts(cuda_text(programs["gradient"], *shapes("bfloat16", tokens=tokens))) == (1, 1, 0)


def test_a_gradient_by_the_log_sum_exp_goes_by_blocks():
    def loss(*qkv):
        out, lse = dot_product_attention(*qkv, return_residual=True)
        return out.astype(np.float32).sum() + lse.sum()

    assert counts(cuda_text(jax.grad(loss), *shapes("bfloat16")))[:2] == (1, 0)


@pytest.mark.parametrize("name", NOT_EXPRESSIBLE)
@pytest.mark.grid(fast=4)
def test_other_calls_run_by_blocks(name):
    programs = derivatives(functools.partial(dot_product_attention, **NOT_EXPRESSIBLE[name]))
    for kind in ("forward", "gradient"):
        assert "__cudnn" not in cuda_text(programs[kind], *shapes("bfloat16"))


@pytest.mark.parametrize(
    "qkv",
    [shapes("float32"), shapes("bfloat16", size=60), shapes("bfloat16", size=264), shapes("bfloat16", tokens=1)],
    ids=["float32", "heads of 60", "heads of 264", "one query"],
)
def test_other_arrays_run_by_blocks(qkv):
    for f in derivatives(dot_product_attention).values():
        assert "__cudnn" not in cuda_text(f, *qkv)


@pytest.mark.parametrize(
    ("capability", "size", "runs"),
    [
        *(("7.5", 64, False), ("8.0", 64, True), ("8.0", 192, False), ("9.0", 192, True)),
        *(("10.0", 192, False), ("10.3", 128, True), ("12.0", 128, True)),
    ],
)
def test_the_device_decides_while_a_program_is_lowered(capability, size, runs, monkeypatch):
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    axes = types.SimpleNamespace(device_assignment=(device,))
    context = types.SimpleNamespace(module_context=types.SimpleNamespace(axis_context=axes))
    monkeypatch.setattr(cudnn, "cuda_versions", None)
    assert cudnn.runs(context, size) == runs
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91002)
    monkeypatch.setattr(cudnn, "cuda_versions", versions)
    assert cudnn.runs(context, size) == (runs and capability != "10.3")  # cuDNN 9.11 was the first for 10.3
    versions.cudnn_get_version = lambda: 91001
    assert not cudnn.runs(context, size)


def test_without_a_gpu_large_heads_are_lowered_by_blocks_and_on_a_hopper_by_cudnn(monkeypatch):
    gradient = derivatives(dot_product_attention)["gradient"]
    assert counts(cuda_text(gradient, *shapes("bfloat16", size=192)))[:2] == (0, 0)
    monkeypatch.setattr(cudnn, "AMPERE", (9, 0))
    jax.clear_caches()
    assert counts(cuda_text(gradient, *shapes("bfloat16", size=192))) == (1, 1, 0)


@pytest.mark.parametrize("name", ["full", "causal", "window", "lengths", "lengths of keys, causal"])
def test_the_calls_are_those_of_jax_nn(name, monkeypatch):
    """The cudnn module with a patched version number, cuDNN 9.10."""
    installed = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", installed)
    attends = (
        functools.partial(f, **EXPRESSIBLE[name])
        for f in (dot_product_attention, functools.partial(jax.nn.dot_product_attention, implementation="cudnn"))
    )
    ours, theirs = (
        cuda_text(lambda *qkv, attend=attend: jax.vjp(attend, *qkv)[1](qkv[0]), *shapes("bfloat16"))
        for attend in attends
    )
    for target in TARGETS:
        pattern = rf"@{re.escape(target)}\([^)]*\) (\{{.*\}} : .*) loc"
        found = re.search(pattern, ours), re.search(pattern, theirs)
        assert found[0], target
        assert found[1], target
        assert found[0][1] == found[1][1], f"JAX has changed its call {target}: compare jaxai/attention/cudnn.py"


def test_what_is_private_in_jax_is_as_it_was():
    """Private names of JAX that `jaxai/attention/cudnn.py` relies on, and their behaviour."""
    from jax._src import dispatch
    from jax._src.lib import cuda_versions

    advice = "JAX has changed {}: see the same place in jax._src.cudnn.fused_attention_stablehlo, then adapt cudnn.py"
    primitive = Primitive("asks_for_devices")
    cudnn.needs_devices(primitive)
    has_one = jax.make_jaxpr(
        lambda: dot_product_attention(*(jnp.zeros(x.shape, x.dtype) for x in shapes("bfloat16")))
    )()
    known = dispatch.jaxpr_has_prim_requiring_devices(has_one.jaxpr)
    assert isinstance(dispatch.prim_requires_devices_during_lowering, set), advice.format("dispatch")
    assert known, advice.format("dispatch.prim_requires_devices_during_lowering")
    dispatch.prim_requires_devices_during_lowering.discard(primitive)
    assert cuda_versions is None or callable(cuda_versions.cudnn_get_version), advice.format("lib.cuda_versions")
