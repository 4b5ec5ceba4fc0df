"""Recurrent networks with the weights of PyTorch's and Flax's, and the language model's state."""

import dataclasses
import inspect
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.decoding.generation import generate
from jaxai.nn.decoding.sampling import Sampling, sample
from jaxai.nn.rnn import Recurrent, RecurrentLanguageModel, RNNConfig, init_state, reset_state
from tests.helpers import normal
from tests.ops.oracle import compiled

CELLS = {"rnn": 1, "lstm": 4, "gru": 3}
TINY = RNNConfig(hidden_dim=5, num_layers=2)
TOLERANCE = 1e-5  # float32; values of size 1


def recorded(cell, directions):
    """What PyTorch made of packed sequences (benchmarks/peers/torch_rnn.py), and its weights by layer and direction."""
    with np.load(Path(__file__).parent / "recorded" / "torch_rnn.npz") as file:
        arrays = {name.split("/")[1]: file[name] for name in file.files if name.startswith(f"{cell}_{directions}/")}
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    suffixes = [[f"l{layer}", f"l{layer}_reverse"][:directions] for layer in range(2)]
    return arrays, [[[arrays[f"{kind}_{end}"] for kind in kinds] for end in layer] for layer in suffixes]


def carried_over(cell, layers):
    """Our parameters for PyTorch's weights."""
    params = {}
    for number, directions in enumerate(layers):
        for reverse, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(directions):
            one = {"kernel": weight_ih.T, "recurrent_kernel": weight_hh.T, "bias": bias_ih + bias_hh}
            if cell == "gru":
                width = len(weight_hh.T)
                one["bias"] = bias_ih + np.where(np.arange(3 * width) < 2 * width, bias_hh, 0)
                one["recurrent_bias"] = bias_hh[2 * width :]
            params[f"layer_{number}" + "_reverse" * reverse] = one
    return jax.tree.map(np.float32, params)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_states_are_those_of_pytorch_packed(cell, bidirectional):
    directions, lengths = 1 + bidirectional, np.array([6, 1, 4])
    theirs, layers = recorded(cell, directions)
    network = Recurrent(RNNConfig(cell, 4, 2), bidirectional)
    parts = range(1 + (cell == "lstm"))
    like = jax.tree.structure(init_state(network.config, 3, bidirectional=bidirectional))
    states = [theirs[f"state_{part}"][place] for place in range(2 * directions) for part in parts]
    outputs, after = compiled(network.apply)(
        {"params": carried_over(cell, layers)}, theirs["x"], lengths, jax.tree.unflatten(like, states)
    )
    np.testing.assert_allclose(outputs, theirs["outputs"], atol=TOLERANCE)
    last = [theirs[f"last_{part}"][place] for place in range(2 * directions) for part in parts]
    jax.tree.map(partial(np.testing.assert_allclose, atol=TOLERANCE), jax.tree.leaves(after), last)


def flax_cell(cell, params):
    """Flax's cell and its parameters for a layer of ours."""
    gates = {"rnn": "", "lstm": "ifgo", "gru": "rzn"}[cell]
    if cell == "rnn":
        h = {"kernel": params["recurrent_kernel"]}
        return nn.SimpleCell(5), {"i": {name: params[name] for name in ("kernel", "bias")}, "h": h}
    parts = {name: np.split(x, len(gates), -1) for name, x in params.items() if name != "recurrent_bias"}
    theirs = {}
    for gate, kernel, recurrent, bias in zip(
        gates, *(parts[n] for n in ("kernel", "recurrent_kernel", "bias")), strict=True
    ):
        theirs |= {f"i{gate}": {"kernel": kernel}, f"h{gate}": {"kernel": recurrent}}
        theirs[f"{'h' if cell == 'lstm' else 'i'}{gate}"]["bias"] = bias
    if cell == "lstm":
        return nn.OptimizedLSTMCell(5), theirs
    theirs["hn"]["bias"] = params["recurrent_bias"]
    return nn.GRUCell(5), theirs


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.grid(fast=1)
def test_a_layer_is_flax_s_cell(cell, key):
    shape, x = RNNConfig(cell, 5, 1), normal(2, 7, 3)
    network = Recurrent(shape)
    params = compiled(network.init)(key, x)["params"]
    flax, theirs = flax_cell(cell, params["layer_0"])

    @compiled
    def both(params, theirs, x):
        def value(params, x):
            outputs, state = network.apply({"params": params}, x)
            return (outputs**2).sum(), (outputs, state)

        def flax_value(theirs, x):
            state, outputs = nn.RNN(flax, return_carry=True).apply({"params": {"cell": theirs}}, x)
            return (outputs**2).sum(), (outputs, (state[::-1],) if cell == "lstm" else (state,))

        return tuple(
            jax.value_and_grad(f, (0, 1), has_aux=True)(p, x) for f, p in ((value, params), (flax_value, theirs))
        )

    ((_, ours), (dparams, dx)), ((_, desired), (dtheirs, dx_desired)) = both(params, theirs, x)
    jax.tree.map(partial(np.testing.assert_allclose, atol=TOLERANCE), (ours, dx), (desired, dx_desired))
    ours = flax_cell(cell, dparams["layer_0"])[1]
    jax.tree.map(partial(np.testing.assert_allclose, atol=TOLERANCE), ours, dtheirs)


@pytest.mark.parametrize("cell", CELLS)
def test_initial_parameters_are_pytorch_s_but_for_the_forget_gate(cell, key):
    params = compiled(Recurrent(RNNConfig(cell, 100, 1)).init)(key, np.zeros((1, 1, 50)))["params"]["layer_0"]
    forget = np.asarray(params["bias"][100:200]) if cell == "lstm" else np.ones(1)
    np.testing.assert_array_equal(forget, 1)
    for name, x in params.items():
        x = np.asarray(x) if name != "bias" or cell != "lstm" else np.delete(x, np.arange(100, 200))
        assert -0.1 <= x.min() < -0.09
        assert 0.09 < x.max() <= 0.1
        assert abs(x.mean()) < 0.02


def tokens(*shape):
    return np.random.default_rng(0).integers(0, 11, shape).astype(np.int32)


@pytest.mark.parametrize(
    "shape", [TINY, dataclasses.replace(TINY, embed_dim=3, cell="gru"), dataclasses.replace(TINY, cell="rnn")]
)
def test_the_state_is_all_of_the_text_before(shape, key):
    model, text = RecurrentLanguageModel(11, shape), tokens(2, 9)
    variables = compiled(model.init)(key, text)

    @compiled
    def both(variables):
        whole, out = model.apply(variables, text)
        state, parts = init_state(shape, 2), []
        for part in (text[:, :4], text[:, 4:5], text[:, 5:]):
            logits, after = model.apply(variables, part, cache=state)
            state = after["cache"]
            parts.append(logits)
        return (whole, out["cache"]), (jnp.concatenate(parts, 1), state)

    desired, found = both(variables)
    assert desired[0].shape == (2, 9, 11)
    assert desired[0].dtype == jnp.float32
    jax.tree.map(partial(np.testing.assert_allclose, atol=TOLERANCE), found, desired)


def test_one_hot_tokens_are_rows_of_the_first_kernel(key):
    model, text = RecurrentLanguageModel(11, TINY), tokens(2, 6)
    params = compiled(model.init)(key, text)["params"]
    hidden, _ = compiled(Recurrent(TINY).apply)({"params": params["layers"]}, np.eye(11)[text])
    head = jax.tree.map(np.asarray, params["logits"])
    logits = np.asarray(hidden) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(compiled(model.apply)({"params": params}, text)[0], logits, atol=TOLERANCE)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0)])
@pytest.mark.slow
def test_sampling_by_state_gives_the_tokens_of_reading_everything_again(sampling, key):
    model, prompt = RecurrentLanguageModel(11, TINY), tokens(2, 3)
    params = jax.tree.map(lambda x: 5 * x, compiled(model.init)(key, prompt)["params"])  # likelier tokens stand out

    def advance(params, state, tokens):
        logits, out = model.apply({"params": params}, tokens, cache=state)
        return logits[:, -1], out["cache"]

    pieces = generate(advance, params, init_state(TINY, 2), prompt, 8, jax.random.key(7), sampling, chunk=5)
    text = prompt
    for number in range(8):
        logits = model.apply({"params": params}, text)[0][:, -1]
        token = sample(logits, jax.random.fold_in(jax.random.key(7), number), sampling)
        text = np.concatenate([text, token[:, None]], 1)
    np.testing.assert_array_equal(np.concatenate(list(pieces), 1), text[:, 3:])


def test_dropout_is_between_layers_and_for_training_alone(key):
    shape, x = dataclasses.replace(TINY, dropout=0.5), normal(2, 4, 3)
    network = Recurrent(shape)
    variables = compiled(network.init)(key, x)
    still = compiled(network.apply)(variables, x)[0]
    np.testing.assert_array_equal(still, compiled(Recurrent(TINY).apply)(variables, x)[0])
    train = compiled(lambda key: network.apply(variables, x, train=True, rngs={"dropout": key}))
    (one, first), (two, second) = (train(jax.random.key(i)) for i in (1, 2))
    assert not np.allclose(one, two)
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])  # nothing is dropped before the first layer
    assert np.asarray(one).all()  # or behind the last


def test_reset_rows_begin_anew():
    state = jax.tree.map(jnp.ones_like, init_state(TINY, 3))
    found = reset_state(state, jnp.array([True, False, True]))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[:, 0], [0, 1, 0]), found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"embed_dim": -1}, "embed_dim must be at least 0, got -1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_shapes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RNNConfig(**options)


def test_a_misspelt_cell_is_named():
    shape = SimpleNamespace(**vars(TINY) | {"cell": "lstn"})
    with pytest.raises(ValueError, match="cell must be one of lstm, gru, rnn, got 'lstn'"):
        inspect.unwrap(RNNConfig.__post_init__)(shape)  # without the tests' own type checker
