"""The arguments of attention: what is accepted, and the errors for what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention import Causal, Lengths, Segments, dot_product_attention
from tests.attention.oracle import IMPLEMENTATIONS, KEY, QUERY, VALUE, assert_close, call, draw

WRONG = {  # name: (options, what the message says)
    "query of rank 2": ({"query": (9, 8)}, r"query has shape \(9, 8\)"),
    "key of rank 5": ({"key": (1, 2, 12, 2, 8)}, r"key has shape \(1, 2, 12, 2, 8\)"),
    "integers": ({"value": np.zeros(VALUE, int)}, "value has dtype int.*give floats"),
    "complex numbers": ({"query": np.zeros(QUERY, np.complex64)}, "query has dtype complex.*give floats"),
    "batched and not": ({"query": (9, 4, 8)}, "3, 4 and 4 axes"),
    "dtypes": ({"key": np.zeros(KEY, np.float16)}, "float32, float16 and float32: cast"),
    "batches": ({"query": (3, 9, 4, 8)}, "query has batch size 3 and key 2"),
    "head sizes": ({"query": (2, 9, 4, 7)}, "query has head size 7 and key 8"),
    "key and value": ({"value": (2, 11, 2, 8)}, r"key has shape \(2, 12, 2, 8\) and value \(2, 11, 2, 8\)"),
    "heads": ({"query": (2, 9, 3, 8)}, r"query has 3 heads and key 2.*\(2, 9, 3, 8\) and \(2, 12, 2, 8\).*multiple"),
    "no queries": ({"query": (2, 0, 4, 8)}, r"\(2, 0, 4, 8\).*no axis may be empty"),
    "no keys": ({"key": (2, 0, 2, 8), "value": (2, 0, 2, 8)}, r"\(2, 0, 2, 8\).*no axis may be empty"),
    "no key heads": ({"key": (2, 12, 0, 8), "value": (2, 12, 0, 8)}, r"\(2, 12, 0, 8\).*no axis may be empty"),
    "BNTH": ({"query": (2, 4, 9, 8), "key": (2, 4, 12, 8), "value": (2, 4, 12, 8)}, r"swap axes 1 and 2"),
    "BNTH by the bias": (
        {"query": (2, 4, 9, 8), "key": (2, 4, 9, 8), "value": (2, 4, 9, 8), "bias": jnp.zeros((2, 4, 9, 9))},
        r"bias has shape \(2, 4, 9, 9\).*swap axes 1 and 2",
    ),
    "bias": ({"bias": np.zeros((2, 4, 9, 11), "float32")}, r"bias has shape \(2, 4, 9, 11\).*\[2, 4, 9, 12\]"),
    "bias of rank 5": ({"bias": np.zeros((1, 2, 4, 9, 12), "float32")}, r"bias has shape \(1, 2, 4, 9, 12\)"),
    "bias of bools": ({"bias": np.zeros((9, 12), bool)}, "bias has dtype bool"),
    "bias of key heads": ({"bias": np.zeros((2, 2, 9, 12), "float32")}, r"bias has shape \(2, 2, 9, 12\)"),
    "mask": ({"mask": np.zeros((2, 4, 12, 9), bool)}, r"mask has shape \(2, 4, 12, 9\).*\[2, 4, 9, 12\]"),
    "mask of floats": ({"mask": np.zeros((9, 12), "float32")}, "mask has dtype float32.*bool"),
    "mask object": (
        {"mask": Segments(np.zeros(9, int), np.zeros(11, int))},
        r"mask has.*\[1, 1, 9, 11\].*\[2, 4, 9, 12\]",
    ),
    "mask object of lengths": ({"mask": Lengths(None, np.zeros(3, int))}, r"mask has.*\[3, 1, 1, 12\]"),
    "mask object of an array": ({"mask": Causal() & np.zeros((3, 9, 12), bool)}, r"mask has.*3, 9, 12"),
    "lengths": ({"query_seq_lengths": np.zeros(3, int)}, r"query_seq_lengths has shape \(3,\).*\[2\]"),
    "lengths of floats": ({"key_value_seq_lengths": np.zeros(2)}, "key_value_seq_lengths has.*float"),
    "segments": (
        {"segment_ids": (np.zeros((2, 9), int), np.zeros((2, 9), int))},
        r"segment_ids has shape \(2, 9\).*\[2, 12\]",
    ),
    "segments for both": ({"segment_ids": np.zeros((2, 9), int)}, r"segment_ids has shape \(2, 9\).*\[2, 12\]"),
    "segments of floats": ({"segment_ids": (np.zeros((2, 9)), np.zeros((2, 12)))}, "segment_ids has.*float"),
    "three segments": ({"segment_ids": (1, 2, 3)}, "segment_ids has 3 parts"),
    "sinks": ({"sinks": np.zeros(2, "float32")}, r"sinks has shape \(2,\).*\[4\]"),
    "sinks of integers": ({"sinks": np.zeros(4, int)}, "sinks has.*int"),
    "score_mod": ({"score_mod": 3}, "score_mod=3 must be a function"),
    "score_mod of another shape": (
        {"score_mod": lambda score, *indices: score.sum(0)},
        r"score_mod changed the shape.*\(2, 4, 9, 12\) to \(4, 9, 12\)",
    ),
    "score_mod of another shape, in blocks": (
        {"score_mod": lambda score, *indices: score[0], "implementation": "blockwise"},
        r"score_mod changed the shape.*\(2, 4, 9, 12\) to \(4, 9, 12\)",
    ),
    "cap": ({"logits_soft_cap": 0.0}, "logits_soft_cap=0.0 must be positive"),
    "no key": ({"dropout_rate": 0.5, "dropout_key": 0}, "dropout_key=0 is no key"),
    "dropout of many": ({"dropout_rate": np.ones(2)}, "dropout_rate=.* must be a number that is known"),
    "scale of features": ({"scale": np.ones(8, "float32")}, r"scale has shape \(8,\)"),
    "scale of the query": ({"scale": np.ones((2, 9, 4, 8), "float32")}, r"scale has shape \(2, 9, 4, 8\)"),
    "dropout without key": ({"dropout_rate": 0.1}, "dropout_rate=0.1 needs dropout_key"),
    "dropout of all": ({"dropout_rate": 1.0, "dropout_key": 0}, "dropout_rate=1.0 must be.*less than 1"),
    "negative dropout": ({"dropout_rate": -0.1}, "dropout_rate=-0.1 must be at least 0"),
    "implementation": ({"implementation": "flash"}, "implementation='flash' is not known.*'blockwise'"),
    "block of nothing": ({"block_size": 0}, "block_size=0 must be a positive int"),
    "block of one part": ({"block_size": (4,)}, r"block_size=\(4,\) must be"),
    "block of three parts": ({"block_size": (4, 4, 4)}, r"block_size=\(4, 4, 4\) must be"),
    "block of a float": ({"block_size": 4.0}, "block_size=4.0 must be"),
    "window of three parts": ({"local_window_size": (1, 2, 3)}, r"local_window_size=\(1, 2, 3\)"),
    "negative window": ({"local_window_size": -1}, "local_window_size=-1"),
    "window of a float": ({"local_window_size": 4.0}, "local_window_size=4.0"),
}


@pytest.mark.usefixtures("unchecked")
def test_numbers_must_be_known_while_tracing():
    arrays = draw(1, 3, 3, 1, 1, 2, 2)
    for name in ("logits_soft_cap", "dropout_rate"):
        with pytest.raises(ValueError, match=f"{name}=.*known while tracing"):
            jax.jit(lambda x, name=name: dot_product_attention(*arrays, **{name: x}))(0.5)
    known = dot_product_attention(*arrays, logits_soft_cap=jnp.float32(0.5))
    assert_close(known, dot_product_attention(*arrays, logits_soft_cap=0.5), 0)


def test_a_list_of_ids_is_an_array_and_a_tuple_a_pair():
    arrays = draw(2, 3, 3, 1, 1, 2, 2)
    ids = [[0, 0, 1], [0, 1, 1]]
    wanted = dot_product_attention(*arrays, segment_ids=jnp.array(ids))
    assert_close(dot_product_attention(*arrays, segment_ids=ids), wanted, 0)
    assert_close(dot_product_attention(*arrays, segment_ids=(jnp.array(ids), jnp.array(ids))), wanted, 0)


def test_an_array_scale_is_as_exact_as_a_number():
    query, key, value = (x.astype("bfloat16") for x in draw(1, 20, 20, 1, 1, 96, 4))
    for implementation in IMPLEMENTATIONS:
        run = functools.partial(dot_product_attention, query, key, value, implementation=implementation)
        results = [run(scale=scale, return_residual=True) for scale in (96**-0.5, jnp.float32(96**-0.5))]
        assert_close(*(jax.tree.map(lambda x: x.astype("float32"), x) for x in results), 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_argument_and_its_value(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        call(**options)
    assert "\n" not in str(error.value)
