"""Recurrent cells (Elman, LSTM, GRU): one step, and the scan over time with a fast backward pass.

Scanned arrays have time first: x [T, B, G], where G is the total width of a cell's gates: H for the Elman cell, 4 H for
the LSTM (input, forget, candidate, output), 3 H for the GRU (reset, update, candidate), as in PyTorch. x is the product
of the inputs with their kernel, for all steps at once (`project`); only the product of the hidden state h [B, H] with
the recurrent kernel [H, G] depends on the previous step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from jaxai.typing import Array

Hidden = Float[Array, "B H"]
Gates = Float[Array, "B G"]
Sequence = Float[Array, "T B G"]
Kernel = Float[Array, "H G"]
Bias = Float[Array, " G"] | None
Lengths = Int[Array | np.ndarray, " B"] | None
States = tuple[Any, ...]
"""A cell's states, the hidden one first."""


class Cell(NamedTuple):
    """A cell's equations, given the recurrent product: ``states' = update(activate(mix(x, h kernel)), states)``.

    ``mix`` is linear; ``activate`` is elementwise, with its derivative ``slope`` as a function of its output;
    ``update`` is elementwise across the gates. All of them accept a single step or all steps at once.
    """

    gates: int
    mix: Callable[[Array, Array], Any]
    activate: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    update: Callable[[Any, States], States]


RNN = Cell(1, jnp.add, jnp.tanh, lambda y: 1 - y**2, lambda y, _: (y,))


def _lstm_rows(gates: Array) -> tuple[Any, Any]:
    """Rows a and b such that ``a tanh(a x) + b`` is tanh(x) for the candidate and sigmoid(x) for the other gates."""
    leading, size = (1,) * (gates.ndim - 1), gates.shape[-1] // 4
    rows = np.repeat(np.array([[0.5, 0.5, 1, 0.5], [0.5, 0.5, 0, 0.5]], gates.dtype), size, axis=1)
    return rows[0].reshape(*leading, -1), rows[1].reshape(*leading, -1)


def _lstm_activate(gates: Array) -> Array:
    a, b = _lstm_rows(gates)  # one tanh: XLA recomputes sigmoids for each use, 6.3 ms on a CPU instead of 3.4
    return a * jnp.tanh(a * gates) + b


def _lstm_slope(y: Array) -> Array:
    a, b = _lstm_rows(y)
    return a**2 - (y - b) ** 2


def _lstm_update(y: Array, states: States) -> States:
    i, f, g, o = jnp.split(y, 4, -1)
    c = f * states[1] + i * g
    return o * jnp.tanh(c), c


LSTM = Cell(4, jnp.add, _lstm_activate, _lstm_slope, _lstm_update)


def _gru_mix(x: Array, g: Array) -> tuple[Array, Array, Array]:
    size = x.shape[-1] // 3
    return x[..., : 2 * size] + g[..., : 2 * size], x[..., 2 * size :], g[..., 2 * size :]


def _gru_activate(gates: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    return jax.nn.sigmoid(gates[0]), gates[1], gates[2]


def _gru_slope(y: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    return y[0] * (1 - y[0]), jnp.ones_like(y[1]), jnp.ones_like(y[2])


def _gru_update(y: tuple[Array, Array, Array], states: States) -> States:
    reset, update = jnp.split(y[0], 2, -1)
    candidate = jnp.tanh(y[1] + reset * y[2])
    return ((1 - update) * candidate + update * states[0],)


GRU = Cell(3, _gru_mix, _gru_activate, _gru_slope, _gru_update)


def project(x: Float[Array, "T B I"], kernel: Float[Array, "I G"]) -> Sequence:
    """``x kernel`` for all steps, the scans' input [T, B, G]. Raises ValueError for incompatible shapes."""
    if kernel.shape[0] != x.shape[-1]:
        raise ValueError(f"kernel {kernel.shape} for x {x.shape}: give [{x.shape[-1]}, G]")
    return _project(x, kernel)


def rnn_step(x: Gates, h: Hidden, kernel: Kernel, bias: Bias = None) -> Hidden:
    """The Elman cell (Elman 1990, doi 10.1207/s15516709cog1402_1): ``h' = tanh(x + h kernel + bias)``; kernel [H, H].

    ``bias`` is `torch.nn.RNNCell`'s bias_hh. Raises ValueError for incompatible shapes or dtypes.
    """
    return _step(RNN, x, (h,), kernel, bias)[0]


def lstm_step(x: Gates, state: tuple[Hidden, Hidden], kernel: Kernel, bias: Bias = None) -> tuple[Hidden, Hidden]:
    """The LSTM cell (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000): (h, c) to (h', c').

    ``i, f, g, o = split(x + h kernel + bias)``; ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``;
    ``h' = sigmoid(o) tanh(c')``; kernel [H, 4 H]. ``bias`` is `torch.nn.LSTMCell`'s bias_hh. Raises ValueError for
    incompatible shapes or dtypes.
    """
    h, c = _step(LSTM, x, state, kernel, bias)
    return h, c


def gru_step(x: Gates, h: Hidden, kernel: Kernel, bias: Bias = None) -> Hidden:
    """The GRU cell (Cho et al. 2014, arXiv:1406.1078, with the reset gate applied after the product): h to h'.

    ``g = h kernel + bias``; x and g are split in thirds: ``r, z = sigmoid(x_r + g_r), sigmoid(x_z + g_z)``;
    ``n = tanh(x_n + r g_n)``; ``h' = (1 - z) n + z h``; kernel [H, 3 H]. ``bias`` is
    `torch.nn.GRUCell`'s bias_hh. Raises ValueError for incompatible shapes or dtypes.
    """
    return _step(GRU, x, (h,), kernel, bias)[0]


def rnn(
    x: Sequence, h: Hidden, kernel: Kernel, bias: Bias = None, *, lengths: Lengths = None, reverse: bool = False
) -> tuple[Float[Array, "T B H"], Hidden]:
    """Scan `rnn_step` over x [T, B, H] from state h: outputs [T, B, H] and the last state; options as in `lstm`."""
    outputs, states = _scan(RNN, x, (h,), kernel, bias, lengths, reverse)
    return outputs, states[0]


def lstm(
    x: Sequence,
    state: tuple[Hidden, Hidden],
    kernel: Kernel,
    bias: Bias = None,
    *,
    lengths: Lengths = None,
    reverse: bool = False,
) -> tuple[Float[Array, "T B H"], tuple[Hidden, Hidden]]:
    """Scan `lstm_step` over x [T, B, 4 H] from state (h, c): outputs [T, B, H] and the last state.

    Steps past a row's length, from ``lengths`` int [B], keep its state and output 0, as PyTorch's packed sequences do.
    ``reverse`` scans each row from its end to its beginning; output t still belongs to input t.

    Differentiable in forward and reverse mode to any order. The kernel's gradient is one product after the loop, not a
    sum inside (Appleyard et al. 2016, arXiv:1604.01946). Raises ValueError for incompatible shapes or dtypes.

    >>> x, zeros, kernel = jnp.ones((5, 2, 12)), jnp.zeros((2, 3)), jnp.ones((3, 12))
    >>> outputs, (h, c) = lstm(x, (zeros, zeros), kernel, lengths=jnp.array([5, 3]))
    >>> outputs.shape, bool((outputs[2, 1] == h[1]).all()), outputs[3:, 1].tolist()
    ((5, 2, 3), True, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """
    outputs, (h, c) = _scan(LSTM, x, state, kernel, bias, lengths, reverse)
    return outputs, (h, c)


def gru(
    x: Sequence, h: Hidden, kernel: Kernel, bias: Bias = None, *, lengths: Lengths = None, reverse: bool = False
) -> tuple[Float[Array, "T B H"], Hidden]:
    """Scan `gru_step` over x [T, B, 3 H] from state h: outputs [T, B, H] and the last state; options as in `lstm`."""
    outputs, states = _scan(GRU, x, (h,), kernel, bias, lengths, reverse)
    return outputs, states[0]


def _step(cell: Cell, x: Array, states: States, kernel: Array, bias: Array | None) -> States:
    _check(cell, x, states, kernel, bias)
    return cell.update(cell.activate(cell.mix(x, _recur(states[0], kernel, bias))), states)


def _scan(
    cell: Cell,
    x: Array,
    states: States,
    kernel: Array,
    bias: Array | None,
    lengths: Lengths,
    reverse: bool,
) -> tuple[Array, States]:
    _check(cell, x, states, kernel, bias)
    real = None if lengths is None else (jnp.arange(len(x))[:, None] < jnp.asarray(lengths)[None])[..., None]
    before, last, _ = _states(cell, reverse, x, states, kernel, bias, real)
    h, end = before[0], last[0][None]
    outputs = jnp.concatenate([end, h])[:-1] if reverse else jnp.concatenate([h, end])[1:]
    return outputs if real is None else jnp.where(real, outputs, 0), last


@jax.custom_jvp
def _project(x: Array, kernel: Array) -> Array:
    return lax.dot_general(x, kernel, (((2,), (0,)), ((), ())))


@_project.defjvp
def _project_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return _project(x, kernel), _project(dx, kernel) + _times(x, dkernel)


def _times(x: Array, dkernel: Array) -> Array:
    """x [T, B, I] times the tangent of a kernel [I, G], written so that its transpose, the kernel's gradient, is fast.

    The axes T and B are not merged: a batch sharded over devices would have to be gathered for that. The barrier keeps
    XLA from transposing the gradient's product, with which char-rnn's step on two CPU devices takes a sixth longer.
    """
    return lax.dot_general(x, _as_it_lies(dkernel.T), (((2,), (1,)), ((), ())))


def _as_it_lies(x: Array) -> Array:
    """On CPU, materialise x, so that a transpose is not fused into its consumer."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def _recur(h: Array, kernel: Array, bias: Array | None) -> Array:
    g = h @ kernel
    return g if bias is None else g + bias[None]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _states(
    cell: Cell, reverse: bool, x: Array, states: States, kernel: Array, bias: Array | None, real: Array | None
) -> tuple[States, States, Any]:
    """The states before each step [T, B, H], the last states [B, H], and each step's activated gates."""

    def body(states: States, inputs: tuple[Array, Array | None]) -> tuple[States, tuple[States, Any]]:
        x, real = inputs
        y = cell.activate(cell.mix(x, _recur(states[0], kernel, bias)))
        return _where(real, cell.update(y, states), states), (states, y)

    last, (before, y) = lax.scan(body, states, (x, real), reverse=reverse)
    return before, last, y


@_states.defjvp
def _states_jvp(cell: Cell, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Compute tangents by a separate scan over the known states; non-recurrent terms are one product outside of it.

    In the backward pass, its transpose, the kernel's gradient is then one product over all steps; the transpose of the
    plain scan would add a small product at each step. Inside the loop `jax.checkpoint` recomputes the derivatives of
    ``update``, which is cheaper than storing and loading them.
    """
    (_, _, kernel, _, real), (dx, dstates, dkernel, dbias, _) = primals, tangents
    before, last, y = _states(cell, reverse, *primals)
    # Materialised once, the transposed kernel makes the backward loop's product 1.5 to 2 times as fast on a CPU.
    transposed = _as_it_lies(kernel.T)

    def activated(y: Any, dh: Array, dgates: Any) -> Any:
        g = lax.dot_general(dh, transposed, (((dh.ndim - 1,), (1,)), ((), ())))
        return jax.tree.map(lambda a, b, c: a * (b + c), cell.slope(y), dgates, cell.mix(jnp.zeros_like(g), g))

    @partial(jax.checkpoint, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]
    def move(y: Any, states: States, dgates: Any, dstates: States) -> States:
        # Without this, XLA on CPU reads the gates from the stacked array element by element: loops a quarter longer.
        y, states = jax.tree.map(_as_it_lies, (y, states))
        dy = activated(y, dstates[0], dgates)
        return jax.jvp(cell.update, (y, states), (dy, dstates))[1]

    def body(dstates: States, inputs: Any) -> tuple[States, States]:
        y, states, dgates, real = inputs
        return _where(real, move(y, states, dgates, dstates), dstates), dstates

    dg = _times(before[0], dkernel)
    dgates = cell.mix(dx, dg if dbias is None else dg + dbias[None, None])
    dlast, dbefore = lax.scan(body, dstates, (y, before, dgates, real), reverse=reverse)
    return (before, last, y), (dbefore, dlast, activated(y, dbefore[0], dgates))


def _where(real: Array | None, new: States, old: States) -> States:
    return new if real is None else jax.tree.map(lambda a, b: jnp.where(real, a, b), new, old)


def _check(cell: Cell, x: Array, states: States, kernel: Array, bias: Array | None) -> None:
    batch, size = states[0].shape
    wanted = {"x": (batch, cell.gates * size), "kernel": (size, cell.gates * size)}
    found = {"x": x.shape[-2:], "kernel": kernel.shape}
    if found != wanted or any(state.shape != (batch, size) for state in states):
        raise ValueError(f"x {x.shape}, kernel {kernel.shape} for states {[s.shape for s in states]}: give {wanted}")
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias {bias.shape} for kernel {kernel.shape}: give {kernel.shape[1:]}")
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((x, states, kernel, bias))}
    if len(dtypes) > 1:
        raise ValueError(f"x, state and kernel are {', '.join(sorted(dtypes))}: cast them to one dtype with .astype")
