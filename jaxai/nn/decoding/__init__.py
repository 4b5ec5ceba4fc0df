"""Decoding: sampling, generation with a cache, beam search."""

from jaxai.nn.decoding.beam import beam_search as beam_search
from jaxai.nn.decoding.beam import translate as translate
from jaxai.nn.decoding.completion import Network as Network
from jaxai.nn.decoding.completion import advance as advance
from jaxai.nn.decoding.completion import complete as complete
from jaxai.nn.decoding.completion import empty_state as empty_state
from jaxai.nn.decoding.generation import Advance as Advance
from jaxai.nn.decoding.generation import generate as generate
from jaxai.nn.decoding.sampling import Sampling as Sampling
from jaxai.nn.decoding.sampling import sample as sample
from jaxai.nn.decoding.sampling import sampling_logits as sampling_logits
from jaxai.nn.decoding.translator import Translator as Translator
