"""Sampling rules against their definitions written out for one row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.nn.decoding.sampling import Sampling, sample, sampling_logits


def by_hand(logits, sampling):
    """The distribution, by the definitions, in float64."""
    p = np.exp((logits - logits.max()) / sampling.temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda token: (-logits[token], token))
    kept = order[: sampling.top_k or len(p)]
    share, nucleus = p[kept] / p[kept].sum(), []
    for number, token in enumerate(kept):
        if number and share[:number].sum() >= sampling.top_p:
            break
        nucleus.append(token)
    chosen = [token for token in nucleus if p[token] >= sampling.min_p * p.max()]
    result = np.zeros(len(p))
    result[chosen] = p[chosen] / p[chosen].sum()
    return result


@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=9),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.5, 1.0, 2.0]),
        top_k=st.integers(0, 12),
        top_p=st.sampled_from([0.1, 0.37, 0.71, 0.93, 1.0]),
        min_p=st.sampled_from([0.0, 0.013, 0.3, 1.0]),
    ),
)
def test_distribution_is_that_of_the_definitions(logits, sampling):
    logits = np.array(logits, np.float64) / 2  # with ties
    actual = jax.nn.softmax(sampling_logits(jnp.asarray(logits, jnp.float32), sampling))
    np.testing.assert_allclose(actual, by_hand(logits, sampling), atol=1e-5)


def test_temperature_0_takes_the_likeliest_first_of_several(key):
    logits = jnp.array([[0.0, 2.0, 2.0], [3.0, -1.0, 1.0]])
    assert sample(logits, key, Sampling(temperature=0)).tolist() == [1, 0]


def test_frequencies(key):
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32))[None], (20_000, 4))
    drawn = np.bincount(sample(logits, key, Sampling(top_k=3)), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=0.015)  # 4 standard deviations


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
    ],
)
def test_bad_rules(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
