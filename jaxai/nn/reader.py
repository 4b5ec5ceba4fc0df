"""A Transformer for question answering: each token is a sentence of the story, the answer is one word."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxai.errors import UserError
from jaxai.nn.layers import Dense
from jaxai.nn.transformer import Stack, TransformerConfig
from jaxai.typing import Array, PyTree

Integers = Int[Array | np.ndarray, "..."]


class Reader(nn.Module):
    """Facts int [B, S, width], of which ``fact_count`` [B] are real, and a question [B, width] to logits [B, labels].

    Word ids are below ``words``, 0 is padding. A sentence is the sum of its word embeddings, each multiplied by a
    learned mask 1 + ``places`` for its position in the sentence (Dehghani et al. 2018, arXiv:1807.03819, section 3.1);
    masks start near 1, so a word starts out similar at every position. Question and facts, latest first, pass through
    the blocks of ``config`` with full attention; the answer is read from the question's token. With
    ``config.share_layers`` this is the Universal Transformer without halting.

    Parameters: ``words`` [words, E], ``places`` [width, E], ``recency`` [max_length, E] for learned positions,
    ``blocks``, ``labels``. With ``statistics``, ``out["statistics"]`` holds the attention of each block. Raises
    UserError for more facts than learned positions.
    """

    words: int
    labels: int
    config: TransformerConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        facts: Integers,
        fact_count: Integers,
        question: Integers,
        *,
        train: bool = False,
        statistics: bool = False,
    ) -> tuple[Float[Array, "B labels"], dict[str, Any]]:
        config, (_, S, width) = self.config, facts.shape
        normal = nn.initializers.normal
        words = self.param("words", normal(1.0), (self.words, config.embed_dim))
        places = 1 + self.param("places", normal(0.5), (width, config.embed_dim))
        order = jnp.maximum(jnp.asarray(fact_count)[:, None] - 1 - jnp.arange(S)[None], 0)
        latest = jnp.take_along_axis(jnp.asarray(facts), order[:, :, None], 1)
        ids = jnp.concatenate([jnp.asarray(question)[:, None], latest], 1)
        mask = jnp.where(ids[..., None] == 0, 0, places[None, None])
        x = (jnp.take(words, ids, axis=0) * mask).sum(2)
        if config.position == "learned":
            if config.max_length <= S:
                raise UserError(f"{S} facts and a question, but max_length={config.max_length} positions were learned")
            x = x + self.param("recency", normal(0.3), (config.max_length, config.embed_dim))[None, : S + 1]
        blocks = Stack(config, causal=False, cross=False, dtype=self.dtype, name="blocks")
        x, _, found = blocks(x, jnp.asarray(fact_count) + 1, train=train, statistics=statistics)
        logits = Dense(self.labels, dtype=self.dtype, name="labels")(x[:, 0])
        return logits.astype(jnp.float32), {"statistics": found}


def init_reader(network: Reader, width: int, key: Array) -> PyTree:
    """The initial parameters, for sentences of at most ``width`` words."""
    facts, count = jnp.zeros((1, 1, width), jnp.int32), jnp.ones(1, jnp.int32)
    return network.init(key, facts, count, facts[:, 0])["params"]
