"""Text: characters and bytes for language models, byte pair encoding and sentence pairs for translation."""

from jaxai.data.text.bpe import BOS as BOS
from jaxai.data.text.bpe import EOS as EOS
from jaxai.data.text.bpe import PAD as PAD
from jaxai.data.text.bpe import UNK as UNK
from jaxai.data.text.bpe import Bpe as Bpe
from jaxai.data.text.bpe import framed as framed
from jaxai.data.text.bpe import train_bpe as train_bpe
from jaxai.data.text.corpus import BYTES as BYTES
from jaxai.data.text.corpus import Text as Text
from jaxai.data.text.corpus import Vocabulary as Vocabulary
from jaxai.data.text.corpus import characters as characters
from jaxai.data.text.corpus import load_text as load_text
from jaxai.data.text.corpus import ordered as ordered
from jaxai.data.text.corpus import random_windows as random_windows
from jaxai.data.text.corpus import split as split
from jaxai.data.text.corpus import streams as streams
from jaxai.data.text.corpus import windows as windows
from jaxai.data.text.pairs import Pairs as Pairs
from jaxai.data.text.pairs import bucketed as bucketed
from jaxai.data.text.pairs import evaluation_batches as evaluation_batches
from jaxai.data.text.pairs import load_pairs as load_pairs
from jaxai.data.text.pairs import padded as padded
