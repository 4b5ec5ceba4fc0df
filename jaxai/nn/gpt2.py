"""Conversion of GPT-2 weights from Hugging Face's files to parameters of `jaxai.nn.transformer_models.LanguageModel`.

vocabulary, config, params = from_gpt2(jaxai.run.weights.load_weights(Path("model.safetensors")))
logits, _ = LanguageModel(vocabulary, config).apply({"params": params}, tokens)     # ids from GPT-2's tokenizer
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxai.errors import UserError
from jaxai.nn.transformer import TransformerConfig
from jaxai.typing import PyTree

LAYERS = {
    "ln_1": "norm_attention",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.out",
    "ln_2": "norm_mlp",
    "mlp.c_fc": "mlp.in",
    "mlp.c_proj": "mlp.out",
}
MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias$")


def from_gpt2(arrays: Mapping[str, np.ndarray], *, heads: int = 0) -> tuple[int, TransformerConfig, PyTree]:
    """Vocabulary size, config and parameters of a GPT-2 (Radford et al. 2019) from the arrays of its safetensors file.

    Names are ``wte.weight``, ``wpe.weight``, ``h.0.ln_1.weight``, ..., optionally prefixed with ``transformer.``; a
    dense layer's weight is [in, out]. The file does not contain the number of ``heads``; 0 means heads of size 64, as
    in all of OpenAI's models. Masks and a tied ``lm_head.weight`` are ignored. Raises UserError naming the first array
    that is missing, unknown or of an unexpected shape.
    """
    arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    arrays = {name: array for name, array in arrays.items() if not MASKS.match(name)}
    if "lm_head.weight" in arrays and np.array_equal(arrays["lm_head.weight"], arrays.get("wte.weight", ())):
        del arrays["lm_head.weight"]
    for name in ("wte.weight", "wpe.weight"):
        if getattr(arrays.get(name), "ndim", 0) != 2:
            raise UserError(f"{name} is no matrix or missing: give the arrays of a GPT-2 file")
    (vocabulary, width), length = arrays["wte.weight"].shape, len(arrays["wpe.weight"])
    layers = 1 + max((int(name.split(".")[1]) for name in arrays if re.match(r"h\.\d+\.", name)), default=-1)
    if not heads and width % 64:
        raise UserError(f"heads: a width of {width} does not divide into heads of 64, give their number")
    config = TransformerConfig(
        width, layers, heads or width // 64, activation="gelu_tanh", position="learned", max_length=length
    )
    hidden = 4 * width
    sizes = {"ln_1": (width,), "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width), "ln_2": (width,)}
    sizes |= {"mlp.c_fc": (width, hidden), "mlp.c_proj": (hidden, width)}

    def take(name: str, size: tuple[int, ...]) -> np.ndarray:
        found = arrays.pop(name).shape if (array := arrays.get(name)) is not None else "absent"
        if array is None or found != size:
            raise UserError(f"{name} is {found}, not {size}: give the arrays of a GPT-2 file")
        return np.asarray(array, np.float32)

    def layer(name: str, size: tuple[int, ...]) -> dict[str, np.ndarray]:
        weight = "scale" if len(size) == 1 else "kernel"
        return {weight: take(f"{name}.weight", size), "bias": take(f"{name}.bias", size[-1:])}

    decoder: dict[str, PyTree] = {"norm": layer("ln_f", (width,))}
    for number in range(layers):
        block: dict[str, PyTree] = {}
        for theirs, ours in LAYERS.items():
            *part, name = ours.split(".")
            (block.setdefault(part[0], {}) if part else block)[name] = layer(f"h.{number}.{theirs}", sizes[theirs])
        decoder[f"block_{number}"] = block
    embedding = {"tokens": take("wte.weight", (vocabulary, width)), "positions": take("wpe.weight", (length, width))}
    if arrays:
        raise UserError(f"{next(iter(arrays))} is not an array of GPT-2's")
    return vocabulary, config, {"embedding": embedding, "decoder": decoder}
