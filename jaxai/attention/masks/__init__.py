"""A small algebra of attention masks: which keys each query sees, entry by entry and block by block."""

from jaxai.attention.masks.algebra import And as And
from jaxai.attention.masks.algebra import ArrayMask as ArrayMask
from jaxai.attention.masks.algebra import Mask as Mask
from jaxai.attention.masks.algebra import Not as Not
from jaxai.attention.masks.algebra import Or as Or
from jaxai.attention.masks.algebra import as_mask as as_mask
from jaxai.attention.masks.algebra import conjuncts as conjuncts
from jaxai.attention.masks.rules import Causal as Causal
from jaxai.attention.masks.rules import Chunked as Chunked
from jaxai.attention.masks.rules import FunctionMask as FunctionMask
from jaxai.attention.masks.rules import Lengths as Lengths
from jaxai.attention.masks.rules import PrefixLM as PrefixLM
from jaxai.attention.masks.rules import Segments as Segments
from jaxai.attention.masks.rules import SlidingWindow as SlidingWindow
from jaxai.attention.masks.rules import is_causal as is_causal
