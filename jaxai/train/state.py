"""State of supervised training: data only, so that it can be sharded, donated, saved and compared."""

from typing import Any

from flax import struct


@struct.dataclass
class TrainState:
    """State of supervised training.

    ``step`` int32 [], updates done; ``params`` and ``ema_params`` (their moving average, or None) float32 pytrees;
    ``opt_state`` of optax; ``key`` a typed key that never changes: a step's randomness is ``fold_in(key, step)``;
    ``carry`` what the loss function hands from a batch to the next, such as a recurrent network's state, or None.
    """

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    key: Any
    carry: Any = None
