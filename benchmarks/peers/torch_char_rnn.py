"""char-rnn's LSTM and training in PyTorch, the peer of `char_rnn.py`.

    python torch_char_rnn.py --threads 2          # or --device cuda; one line of JSON per request and per answer:

    {"ask": "check", "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "time", "steps": 20}

`check` sets the weights and returns the loss of each step on the given batches; `time` returns the seconds of `steps`
steps over consecutive parts of a text, with input and optimiser; the state is carried from step to step. Source:
github.com/karpathy/char-rnn (2015): two LSTM layers of 128 over one-hot characters, RMSprop, gradients clipped
elementwise; nn.LSTM uses oneDNN on a CPU. Weights are named as in Flax, kernels [in, out].
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

VOCABULARY, WIDTH, LAYERS, BATCH, LENGTH = 68, 128, 2, 50, 50
RATE, DECAY, CLIP = 2e-3, 0.95, 5.0


class CharRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(VOCABULARY, WIDTH, LAYERS, batch_first=True)
        self.logits = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids, targets, state):
        x, state = self.lstm(functional.one_hot(ids, VOCABULARY).float(), state)
        logits = self.logits(x)
        return functional.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1)), state

    def load(self, arrays):
        """Load our weights; the second of PyTorch's two biases is set to 0."""
        for layer in range(LAYERS):
            kernels = {"weight_ih": "kernel", "weight_hh": "recurrent_kernel", "bias_ih": "bias"}
            for name, ours in kernels.items():
                array = torch.from_numpy(arrays[f"layers.layer_{layer}.{ours}"])
                getattr(self.lstm, f"{name}_l{layer}").data.copy_(array.T if array.ndim == 2 else array)
            getattr(self.lstm, f"bias_hh_l{layer}").data.zero_()
        self.logits.weight.data.copy_(torch.from_numpy(arrays["logits.kernel"]).T)
        self.logits.bias.data.copy_(torch.from_numpy(arrays["logits.bias"]))


class Training:
    """Network, optimiser and the carried recurrent state."""

    def __init__(self, device):
        self.network, self.device = CharRNN().to(device), device
        # Train one of PyTorch's two biases only: both together would learn twice as fast as our single one.
        learned = [p for name, p in self.network.named_parameters() if "bias_hh" not in name]
        self.optimizer = torch.optim.RMSprop(learned, lr=RATE, alpha=DECAY)
        self.state = tuple(torch.zeros(LAYERS, BATCH, WIDTH, device=device) for _ in range(2))

    def step(self, ids, targets):
        loss, state = self.network(ids.to(self.device), targets.to(self.device), self.state)
        self.state = tuple(part.detach() for part in state)
        loss.backward()
        nn.utils.clip_grad_value_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.network.zero_grad(set_to_none=True)
        return loss.item() if self.device == "cpu" else loss.detach()  # a GPU's steps are queued


def batches(ids):
    """Yield batches in which each row continues that of the previous batch."""
    count = (len(ids) - 1) // (BATCH * LENGTH)
    starts = np.arange(BATCH) * count * LENGTH
    while True:
        for column in range(count):
            rows = np.stack([ids[start + column * LENGTH :][: LENGTH + 1] for start in starts]).astype(np.int64)
            yield torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answers, sys.stdout = sys.stdout, sys.stderr  # keep messages out of the answers
    print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
    stream = batches(np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000).astype(np.uint16))
    training = Training(arguments.device)
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        if request["ask"] == "check":
            checked = Training(arguments.device)
            with np.load(request["inputs"]) as saved:
                checked.network.load(saved)
                pairs = torch.from_numpy(saved["inputs"]).long(), torch.from_numpy(saved["targets"]).long()
            np.savez(request["outputs"], losses=[float(checked.step(*pair)) for pair in zip(*pairs, strict=True)])
        else:
            before = time.perf_counter()
            losses = [training.step(*next(stream)) for _ in range(request["steps"])]
            float(losses[-1])
            answer = {"seconds": time.perf_counter() - before}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
