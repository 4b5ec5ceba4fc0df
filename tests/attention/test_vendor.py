"""Attention of other libraries by name: numbers, masks, and the errors for what they lack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention import Lengths, SlidingWindow, dot_product_attention
from tests.attention.oracle import KEY, VALUE, assert_close, call, draw, normal

REFUSED = {  # name: (implementation, options, what the message says)
    "cudnn on a CPU": ("cudnn", {}, "cuDNN"),
    "score_mod": ("xla", {"score_mod": lambda score, *indices: score}, "score_mod"),
    "sinks": ("xla", {"sinks": jnp.zeros(4)}, "sinks"),
    "cap": ("xla", {"logits_soft_cap": 3.0}, "logits_soft_cap"),
    "dropout": ("xla", {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}, "dropout_rate"),
    "value size": ("xla", {"value": VALUE}, "value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_implementations_say_what_they_cannot_do(name):
    implementation, options, message = REFUSED[name]
    with pytest.raises(NotImplementedError, match=f"implementation='{implementation}'.*{message}.*implementation=None"):
        call(**{"value": KEY, "implementation": implementation} | options)


def test_xla_equals_the_rest_and_has_a_gradient():
    arrays = draw(2, 9, 12, 2, 2, 4, 4)
    options = {"bias": normal(4, 9, 12), "mask": Lengths(None, 11), "local_window_size": 8, "is_causal": True}
    options |= {"key_value_seq_lengths": jnp.array([12, 5])}
    value, desired = (  # of the output alone: the log-sum-exp of jax.nn has no gradient
        lambda *arrays, name=name: jnp.sin(dot_product_attention(*arrays, **options, implementation=name)).sum()
        for name in ("xla", "reference")
    )
    expected = jax.jit(jax.value_and_grad(desired, (0, 1, 2)))(*arrays)
    for transform in (lambda f: f, jax.jit, lambda f: lambda *arrays: jax.vmap(f)(*(x[None] for x in arrays))):
        actual = transform(jax.value_and_grad(value, (0, 1, 2)))(*arrays)
        assert_close(jax.tree.map(np.squeeze, actual), jax.tree.map(np.squeeze, expected), 1e-5)


REPEATED = {
    "windows": {"mask": SlidingWindow(1, 5), "local_window_size": (5, 1)},
    "lengths": {"mask": Lengths(None, jnp.array([3, 12])), "key_value_seq_lengths": jnp.array([12, 7])},
}


@pytest.mark.parametrize("implementation", ["xla", "tokamax"])
@pytest.mark.parametrize("name", REPEATED)
def test_others_get_every_mask_of_a_kind(name, implementation):
    """jax.nn has one argument for a window and one for lengths; of two windows or lengths both must count."""
    if implementation == "tokamax":
        pytest.importorskip("tokamax")
    arrays = draw(2, 9, 12, 2, 1, 4, 4)
    with jax.numpy_rank_promotion("allow"):  # tokamax needs it
        actual = dot_product_attention(*arrays, **REPEATED[name], implementation=implementation)
    assert_close(actual, dot_product_attention(*arrays, **REPEATED[name]), 1e-5)


HIGHER = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "jitted jvp": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "hvp": lambda f, x: jax.jvp(jax.grad(f), (x,), (x,)),
    "grad of grad": lambda f, x: jax.grad(lambda x: jax.grad(f)(x).sum())(x),
    "hessian": lambda f, x: jax.hessian(f)(x),
}


@pytest.mark.parametrize("name", HIGHER)
@pytest.mark.parametrize("implementation", ["xla", "tokamax"])
def test_others_say_that_they_have_first_derivatives_only(name, implementation):
    if implementation == "tokamax":
        pytest.importorskip("tokamax")
    query, key, value = draw(1, 2, 2, 1, 1, 2, 2)

    def loss(query):
        return dot_product_attention(query, key, value, implementation=implementation).sum()

    with pytest.raises(NotImplementedError, match=f"implementation='{implementation}'.*use implementation=None"):
        HIGHER[name](loss, query)


def test_cudnn_by_name_says_what_is_missing():
    query = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=r"implementation='cudnn' refuses the call .*use implementation=None"):
        dot_product_attention(query, query, query, implementation="cudnn")
