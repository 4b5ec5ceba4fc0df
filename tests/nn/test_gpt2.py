"""Arrays under Hugging Face's names against GPT-2 written out in NumPy with these names."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxai.nn.gpt2 import from_gpt2
from jaxai.nn.transformer_models import LanguageModel

WIDTH, LENGTH, VOCABULARY, LAYERS, HEADS = 16, 12, 19, 2, 4


@pytest.fixture
def arrays(tmp_path):
    """A small random GPT-2, through a file."""
    rng = np.random.default_rng(0)
    layers = {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16)}
    sizes = {"wte.weight": (19, 16), "wpe.weight": (12, 16), "ln_f.weight": (16,), "ln_f.bias": (16,)}
    for number in range(LAYERS):
        sizes |= {f"h.{number}.{name}.weight": size for name, size in layers.items()}
        sizes |= {f"h.{number}.{name}.bias": size[1:] for name, size in layers.items()}
        sizes |= {f"h.{number}.ln_{i}.{part}": (16,) for i in (1, 2) for part in ("weight", "bias")}
    made = {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}
    save_file(made, tmp_path / "model.safetensors")
    return load_file(tmp_path / "model.safetensors")


def gpt2(ids, w):
    """The logits [T, V]; after Radford et al.'s published TensorFlow code, in float64."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    w = {name: array.astype(np.float64) for name, array in w.items()}
    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for number in range(LAYERS):
        h = f"h.{number}"
        query, key, value = np.split(linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn"), 3, -1)
        out = []
        for head in range(HEADS):
            part = slice(head * 4, head * 4 + 4)
            score = query[:, part] @ key[:, part].T / 2
            score = np.where(np.tri(len(ids), dtype=bool), score, -1e10)
            weights = np.exp(score - score.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
        x = x + linear(np.concatenate(out, -1), f"{h}.attn.c_proj")
        y = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, f"{h}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_logits(arrays, prefix):
    extra = {f"{prefix}h.0.attn.bias": np.ones((1, 1, 12, 12)), "lm_head.weight": arrays["wte.weight"]}
    vocabulary, shape, params = from_gpt2({prefix + name: a for name, a in arrays.items()} | extra, heads=HEADS)
    assert (vocabulary, shape.embed_dim, shape.num_layers, shape.num_heads, shape.max_length) == (19, 16, 2, 4, 12)
    network = LanguageModel(vocabulary, shape)
    ids = np.random.default_rng(1).integers(0, 19, (1, 9)).astype(np.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), ids)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    logits, _ = jax.jit(network.apply)({"params": params}, ids)
    np.testing.assert_allclose(logits[0], gpt2(ids[0], arrays), atol=1e-4)  # logits of about 5


def test_bad_arrays(arrays):
    for change, message in [
        ({"wte.weight": None}, "wte.weight is no matrix or missing"),
        ({"h.1.mlp.c_fc.bias": None}, "h.1.mlp.c_fc.bias is absent"),
        ({"h.0.attn.c_attn.weight": np.ones((48, 16))}, r"c_attn.weight is \(48, 16\), not \(16, 48\)"),
        ({"h.0.ln_3.weight": np.ones(16)}, "h.0.ln_3.weight is not an array of GPT-2's"),
    ]:
        changed = {name: array for name, array in (arrays | change).items() if array is not None}
        with pytest.raises(ValueError, match=message):
            from_gpt2(changed, heads=HEADS)
    with pytest.raises(ValueError, match="width of 16 does not divide into heads of 64"):
        from_gpt2(arrays)
