"""What is lowered for CUDA on a host without a GPU, and cuDNN's call beside jax.nn's."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxai.attention import Causal, dot_product_attention, vendor
from jaxai.attention.api import checked
from jaxai.attention.reference import Call, reference

TARGET = "__cudnn$fmhaSoftmax"
EXPRESSIBLE = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "local_window_size": (128, 0)},
    "sinks": {"sinks": np.zeros(8, np.float32)},
}
NOT_EXPRESSIBLE = {
    "soft cap": {"logits_soft_cap": 3.0},
    "window to both sides": {"local_window_size": 3},
    "score function": {"score_mod": lambda score, *indices: score},
    "bias": {"bias": jnp.zeros((1, 1, 1, 1024), jnp.bfloat16)},
    "later causal": {"mask": Causal(5)},
    "dropout": {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)},
    "array scale": {"scale": jnp.float32(0.1)},
}


def shapes(dtype, *lead, tokens=1024):
    """Query, key and value with grouped heads."""
    query, key = ((*lead, 2, tokens, heads, 64) for heads in (8, 2))
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in (query, key, key))


def cuda_text(f, *arguments):
    """The program that would be sent to a GPU."""
    check = jax.export.DisabledSafetyCheck.custom_call(TARGET)
    return jax.export.export(jax.jit(f), platforms=["cuda"], disabled_checks=[check])(*arguments).mlir_module()


def derivatives(attend):
    """The function, its gradient, jvp, and a Hessian-vector product."""
    gradient = jax.grad(lambda *qkv: attend(*qkv).astype(np.float32).sum(), (0, 1, 2))
    return [
        attend,
        gradient,
        lambda *qkv: jax.jvp(attend, qkv, qkv),
        lambda *qkv: jax.jvp(gradient, qkv, qkv)[1],
    ]


@pytest.mark.parametrize("name", EXPRESSIBLE)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cudnn_runs_forward_where_it_can_express_the_call(name, dtype):
    attend = functools.partial(dot_product_attention, **EXPRESSIBLE[name])
    for f in derivatives(attend):
        assert cuda_text(f, *shapes(dtype)).count(f"@{TARGET}") == 1
    assert TARGET in cuda_text(jax.vmap(attend), *shapes(dtype, 3))


@pytest.mark.parametrize("tokens", [600, 777, 1000])
def test_cudnn_runs_forward_where_blocks_do_not_divide_the_sequence(tokens):
    for f in derivatives(functools.partial(dot_product_attention, is_causal=True))[:2]:
        assert cuda_text(f, *shapes("bfloat16", tokens=tokens)).count(f"@{TARGET}") == 1


@pytest.mark.parametrize("name", NOT_EXPRESSIBLE)
def test_blocks_run_where_it_can_not(name):
    attend = functools.partial(dot_product_attention, **NOT_EXPRESSIBLE[name])
    for f in derivatives(attend)[:2]:
        assert "cudnn" not in cuda_text(f, *shapes("bfloat16"))


def test_blocks_run_in_float32():
    for f in derivatives(dot_product_attention):
        assert "cudnn" not in cuda_text(f, *shapes("float32"))


@pytest.mark.parametrize("name", ["full", "causal", "window"])
def test_the_call_is_that_of_jax_nn(name, monkeypatch):
    """Its module believes that cuDNN 9.10 is there."""
    installed = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", installed)
    options = EXPRESSIBLE[name]
    texts = (
        cuda_text(functools.partial(f, return_residual=True, **options), *shapes("bfloat16"))
        for f in (dot_product_attention, functools.partial(jax.nn.dot_product_attention, implementation="cudnn"))
    )
    ours, theirs = (re.search(rf"@{re.escape(TARGET)}\([^)]*\) (\{{.*\}} : .*) loc", text) for text in texts)
    assert ours
    assert theirs
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["heads", "grouped heads"])
@pytest.mark.parametrize("spec", [("x",), (None, None, "x"), ("x", None, "y"), ()], ids=str)
def test_every_device_calls_the_kernel_for_its_part(heads, spec, monkeypatch):
    """With the reference in the kernel's place, on four CPU devices."""
    seen = []

    def kernel(query, key, value, scale, causal, window):
        seen.append((query.shape, key.shape))
        out, lse = reference(Call(query, key, value, mask=Causal(), scale=scale))
        return out.astype(np.float32), lse

    monkeypatch.setattr(vendor, "fused", kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [
        jax.random.normal(key, (4, 16, count, 8), jnp.bfloat16)
        for key, count in zip(keys, (heads[0], heads[1], heads[1]), strict=True)
    ]
    call, _ = checked(*qkv, is_causal=True)
    forward = vendor.cudnn_forward(call)
    assert forward is not None
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    program = jax.jit(forward).lower(*(jax.device_put(x, sharding) for x in qkv)).compile()
    assert not re.search("all-gather|all-to-all|collective-permute", program.as_text())
    parts = [2 if name else 1 for name in (*spec, *(None,) * (4 - len(spec)))]
    assert seen[-1][0] == tuple(size // part for size, part in zip((4, 16, heads[0], 8), parts, strict=True))
    out, _ = program(*(jax.device_put(x, sharding) for x in qkv))
    # both round to bfloat16, 8 bits of numbers of order 1
    np.testing.assert_allclose(np.asarray(out), reference(call)[0].astype(np.float32), atol=1e-2)


def test_cudnn_by_name_says_what_is_missing():
    query = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=r"implementation='cudnn' refuses the call .*use implementation=None"):
        dot_product_attention(query, query, query, implementation="cudnn")
