"""Record outputs and weights of PyTorch's recurrent layers on packed sequences in tests/nn/recorded/torch_rnn.npz.

    PEERS/bin/python benchmarks/peers/torch_rnn.py       # the environment of benchmarks/peers.txt

Two layers of width 4, inputs [3, 6, 3] of lengths 6, 1, 4, nonzero initial states. For each cell and number of
directions, such as lstm_2: x, the state dict's arrays, states, outputs, and last states [2 directions, 3, 4].
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

torch.manual_seed(0)
LENGTHS = torch.tensor([6, 1, 4])
arrays = {}
for name, make in (("rnn", torch.nn.RNN), ("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)):
    for directions in (1, 2):
        network = make(3, 4, num_layers=2, batch_first=True, bidirectional=directions == 2)
        x, *states = torch.randn(3, 6, 3), *torch.randn(2 if name == "lstm" else 1, 2 * directions, 3, 4)
        packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
        outputs, last = network(packed, tuple(states) if name == "lstm" else states[0])
        found = {"x": x, "outputs": pad_packed_sequence(outputs, batch_first=True)[0], **network.state_dict()}
        last = last if name == "lstm" else [last]
        found |= {f"state_{i}": x for i, x in enumerate(states)} | {f"last_{i}": x for i, x in enumerate(last)}
        arrays |= {f"{name}_{directions}/{key}": value.detach().numpy() for key, value in found.items()}
np.savez_compressed(Path(__file__).parents[2] / "tests" / "nn" / "recorded" / "torch_rnn.npz", **arrays)
