"""Other people's attention by name."""

import jax.numpy as jnp
import pytest

from jaxai.attention import dot_product_attention


def test_cudnn_by_name_says_what_is_missing():
    query = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=r"implementation='cudnn' refuses the call .*use implementation=None"):
        dot_product_attention(query, query, query, implementation="cudnn")
