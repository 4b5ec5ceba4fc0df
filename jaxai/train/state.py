"""State of supervised training: a pytree of arrays that can be sharded, donated, saved and compared."""

from typing import Any

from flax import struct


@struct.dataclass
class TrainState:
    """State of supervised training.

    ``step`` int32 [], the number of updates; ``params`` and ``ema_params`` (their moving average, or None) float32
    pytrees; ``opt_state`` of optax; ``key`` a constant typed key: a step's randomness is ``fold_in(key, step)``;
    ``carry`` passed by the loss function from batch to batch, such as a recurrent network's state, or None.
    """

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    key: Any
    carry: Any = None
