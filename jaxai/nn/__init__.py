"""Networks as thin Linen modules over `jaxai.attention` and `jaxai.ops`."""

from jaxai.nn.cnn import AirbenchCNN as AirbenchCNN
from jaxai.nn.cnn import ArticleCNN as ArticleCNN
from jaxai.nn.cnn import population_statistics as population_statistics
from jaxai.nn.cnn import standardise as standardise
from jaxai.nn.cnn import whitening_kernel as whitening_kernel
from jaxai.nn.gpt2 import from_gpt2 as from_gpt2
from jaxai.nn.layers import Conv as Conv
from jaxai.nn.layers import ConvTranspose as ConvTranspose
from jaxai.nn.layers import Dense as Dense
from jaxai.nn.layers import Dropout as Dropout
from jaxai.nn.mlp import MLP as MLP
from jaxai.nn.reader import Reader as Reader
from jaxai.nn.rnn import Recurrent as Recurrent
from jaxai.nn.rnn import RecurrentLanguageModel as RecurrentLanguageModel
from jaxai.nn.rnn import RNNConfig as RNNConfig
from jaxai.nn.rnn import init_state as init_state
from jaxai.nn.rnn import reset_state as reset_state
from jaxai.nn.transformer import Stack as Stack
from jaxai.nn.transformer import TransformerConfig as TransformerConfig
from jaxai.nn.transformer import apply_with_statistics as apply_with_statistics
from jaxai.nn.transformer import init_cache as init_cache
from jaxai.nn.transformer import stack_statistics as stack_statistics
from jaxai.nn.transformer_models import Encoder as Encoder
from jaxai.nn.transformer_models import EncoderDecoder as EncoderDecoder
from jaxai.nn.transformer_models import LanguageModel as LanguageModel
