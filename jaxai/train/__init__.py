"""Training: states, steps, optimisers, and the loop that runs them."""

from jaxai.train.ema import ema_decay as ema_decay
from jaxai.train.ema import update_ema as update_ema
from jaxai.train.feed import Batches as Batches
from jaxai.train.keys import Keys as Keys
from jaxai.train.loop import Every as Every
from jaxai.train.loop import Result as Result
from jaxai.train.loop import fit as fit
from jaxai.train.optim import Adam as Adam
from jaxai.train.optim import Airbench as Airbench
from jaxai.train.optim import airbench_optimizer as airbench_optimizer
from jaxai.train.optim import cosine as cosine
from jaxai.train.optim import optimizer as optimizer
from jaxai.train.optim import schedule as schedule
from jaxai.train.state import TrainState as TrainState
from jaxai.train.supervised import Supervised as Supervised
from jaxai.train.supervised import cross_entropy as cross_entropy
from jaxai.train.supervised import init_state as init_state
from jaxai.train.supervised import mean_gradient as mean_gradient
from jaxai.train.supervised import norms as norms
from jaxai.train.supervised import train_step as train_step
