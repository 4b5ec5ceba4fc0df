"""Exact attention in O(T) memory, differentiable to any order, on every backend; a drop-in for ``jax.nn``'s."""

from jaxai.attention.adapters import attention_fn as attention_fn
from jaxai.attention.adapters import create_block_mask as create_block_mask
from jaxai.attention.adapters import flex_attention as flex_attention
from jaxai.attention.api import dot_product_attention as dot_product_attention
from jaxai.attention.api import reference_attention as reference_attention
from jaxai.attention.cache import KVCache as KVCache
from jaxai.attention.masks import ArrayMask as ArrayMask
from jaxai.attention.masks import Causal as Causal
from jaxai.attention.masks import Chunked as Chunked
from jaxai.attention.masks import FunctionMask as FunctionMask
from jaxai.attention.masks import Lengths as Lengths
from jaxai.attention.masks import Mask as Mask
from jaxai.attention.masks import PrefixLM as PrefixLM
from jaxai.attention.masks import Segments as Segments
from jaxai.attention.masks import SlidingWindow as SlidingWindow
from jaxai.attention.parallel import merge_partials as merge_partials
from jaxai.attention.parallel import ring_attention as ring_attention
from jaxai.attention.position import alibi as alibi
from jaxai.attention.position import relative_bias as relative_bias
from jaxai.attention.position import rotary as rotary
from jaxai.attention.position import soft_cap as soft_cap
from jaxai.attention.stats import AttentionStats as AttentionStats
from jaxai.attention.stats import attention_stats as attention_stats
