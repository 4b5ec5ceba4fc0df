"""Plots of attention: maps of weights, attention to the sentences of a story, statistics of heads."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxai.plots.images import save_figure
from jaxai.typing import Array

WRITTEN_OUT = 48  # tokens up to which attention is drawn as maps


def save_attention(path: str | os.PathLike[str], attention: Any, names: Sequence[str]) -> None:
    """Write a PNG of a text's self-attention: maps of all heads for up to 48 tokens, entropies and masses for more.

    ``attention`` are the `AttentionStats` of one sequence, arrays [layers, 1, ...]; ``names`` are the tokens' labels.
    """
    if len(names) <= WRITTEN_OUT:
        save_attention_maps(path, by_head(attention.weights), names, names)
    else:
        save_attention_statistics(path, attention.entropy[:, 0], attention.mass[:, 0])


def by_head(weights: Float[Array | np.ndarray, "layers 1 T N S"]) -> Float[np.ndarray, "layers N T S"]:
    """The weights of `AttentionStats` of one sequence, in the layout of `save_attention_maps`."""
    return np.swapaxes(np.asarray(weights)[:, 0], 1, 2)


def save_attention_maps(
    path: str | os.PathLike[str],
    weights: Float[Array | np.ndarray, "layers N T S"],
    queries: Sequence[str],
    keys: Sequence[str],
) -> None:
    """Write a PNG of attention maps for short texts: layers down, heads across.

    In each map a row is a query and sums to 1. ``queries`` [T] and ``keys`` [S] are the tokens' labels. ValueError for
    other shapes and non-finite weights.
    """
    weights = np.asarray(weights, np.float64)
    layers, heads, *sizes = weights.shape
    if sizes != [len(queries), len(keys)] or not np.isfinite(weights).all():
        raise ValueError(f"weights: {weights.shape} for {len(queries)} queries, {len(keys)} keys, all must be finite")
    side = [max(1.6, 0.16 * size) for size in sizes]
    figure = Figure(figsize=(heads * side[1] + 0.6, layers * side[0] + 0.6), layout="constrained")
    for layer, row in enumerate(np.asarray(figure.subplots(layers, heads, squeeze=False))):
        for head, ax in enumerate(row):
            ax.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
            ax.set_title(f"layer {layer}, head {head}", fontsize=7)
            ax.set_xticks(
                range(len(keys)), keys if layer == layers - 1 else [], rotation=90, fontsize=6, parse_math=False
            )
            ax.set_yticks(range(len(queries)), queries if head == 0 else [], fontsize=6, parse_math=False)
            ax.tick_params(length=0)
    save_figure(path, figure)


def save_reading(
    path: str | os.PathLike[str], weights: Float[Array | np.ndarray, "layers N S"], sentences: Sequence[str]
) -> None:
    """Write a PNG of how strongly each head of each layer attends to each sentence [S] of a story.

    Sentences are rows, heads columns; a column sums to 1. ValueError for other shapes and non-finite weights.
    """
    weights = np.asarray(weights, np.float64)
    layers, heads, count = weights.shape
    if count != len(sentences) or not np.isfinite(weights).all():
        raise ValueError(f"weights: {weights.shape} for {len(sentences)} sentences, all must be finite")
    figure = Figure(figsize=(4 + 0.12 * layers * (heads + 1), 0.8 + 0.24 * count), layout="constrained")
    for layer, ax in enumerate(np.asarray(figure.subplots(1, layers, squeeze=False))[0]):
        ax.imshow(weights[layer].T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_title(f"layer {layer}", fontsize=7)
        ax.set_xticks([])
        ax.set_yticks(range(count), sentences if layer == 0 else [], fontsize=7, parse_math=False)
        ax.tick_params(length=0)
    save_figure(path, figure)


def save_attention_statistics(
    path: str | os.PathLike[str],
    entropy: Float[Array | np.ndarray, "layers T N"],
    mass: Float[Array | np.ndarray, "layers S _"],
) -> None:
    """Write a PNG for texts too long for maps: the entropy of each head's weights, in nats, and their distribution.

    Top: entropy averaged over the queries; 0 means that every query attends to a single token. Below: the weights
    summed over all queries, by key position. ValueError for other shapes and non-finite values.
    """
    entropy, mass = np.asarray(entropy, np.float64), np.asarray(mass, np.float64)
    if entropy.ndim != 3 or mass.shape[::2] != entropy.shape[::2] or not np.isfinite([entropy.sum(), mass.sum()]).all():
        raise ValueError(f"entropy {entropy.shape}, mass {mass.shape}: give finite [layers, T, N] and [layers, S, N]")
    layers, _, heads = entropy.shape
    figure = Figure(figsize=(8, 2.4 + 1.2 * layers), layout="constrained")
    first, *others = np.asarray(figure.subplots(layers + 1, height_ratios=[2.0] + [1.0] * layers))
    for layer in range(layers):
        first.bar(np.arange(heads) + layer * (heads + 1), entropy[layer].mean(0), label=f"layer {layer}")
        others[layer].semilogy(np.maximum(mass[layer], 1e-6), linewidth=0.8)
        others[layer].set_ylabel(f"layer {layer}", fontsize="small")
    first.set_xticks([])
    first.set_ylabel("entropy of each head, nats", fontsize="small")
    first.legend(fontsize="small", ncols=min(layers, 6))
    others[0].set_title("total weight of each position, by head", fontsize="small")
    others[-1].set_xlabel("position")
    save_figure(path, figure)
