"""Networks as thin Linen modules over `jaxai.attention` and `jaxai.ops`."""

from jaxai.nn.cnn import AirbenchCNN as AirbenchCNN
from jaxai.nn.cnn import ArticleCNN as ArticleCNN
from jaxai.nn.layers import Conv as Conv
from jaxai.nn.layers import ConvTranspose as ConvTranspose
from jaxai.nn.layers import Dense as Dense
from jaxai.nn.layers import Dropout as Dropout
from jaxai.nn.mlp import MLP as MLP
from jaxai.nn.reader import Reader as Reader
from jaxai.nn.rnn import Recurrent as Recurrent
from jaxai.nn.rnn import RecurrentLanguageModel as RecurrentLanguageModel
from jaxai.nn.rnn import RNNConfig as RNNConfig
from jaxai.nn.transformer import Stack as Stack
from jaxai.nn.transformer import TransformerConfig as TransformerConfig
from jaxai.nn.transformer import init_cache as init_cache
from jaxai.nn.transformer_models import Encoder as Encoder
from jaxai.nn.transformer_models import EncoderDecoder as EncoderDecoder
from jaxai.nn.transformer_models import LanguageModel as LanguageModel
