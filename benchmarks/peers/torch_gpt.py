"""nanoGPT's network and training reimplemented in PyTorch, the peer of `text_generation.py`.

    python torch_gpt.py --train FILE --seed 0     # the run of the documented CPU command; prints losses
    python torch_gpt.py --threads 2               # one line of JSON per request and per answer:
    python torch_gpt.py --preset nanogpt --device cuda

    {"ask": "check", "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "time", "steps": 20}

`check` sets the weights and returns the loss of each step on the given batches; `time` returns the seconds of `steps`
steps on random windows of text, with input and optimiser; with `"compiled": true` the network is compiled, and the
first answer's `first_seconds` are those of an additional step, which compiles. Source: github.com/karpathy/nanoGPT:
GPT-2's network without biases and with exact GELU, AdamW on matrices, clipped gradients, warm-up and cosine; float32
without torch.compile, as its README has it for a CPU. `--preset nanogpt` is its configuration for a GPU, in bfloat16 by
autocast; `check` omits its dropout. Weights are named as in Flax, kernels [in, out].
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Sizes(NamedTuple):
    length: int
    batch: int
    layers: int
    heads: int
    width: int
    dropout: float = 0.0
    half: bool = False
    """Compute products in bfloat16."""


PRESETS = {
    "nanogpt_cpu": Sizes(64, 12, 4, 4, 128),
    "nanogpt": Sizes(256, 64, 6, 6, 384, 0.2, True),
    "debug": Sizes(32, 4, 2, 2, 32, 0.2, True),
}
STEPS, WARMUP, RATE, LAST_RATE = 2000, 100, 1e-3, 1e-4
EVAL_EVERY, EVAL_BATCHES = 250, 20


class Block(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        width = sizes.width
        self.heads, self.dropout = sizes.heads, nn.Dropout(sizes.dropout)
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        batch, time_, width = x.shape
        heads = self.query_key_value(self.norm_attention(x)).split(width, dim=2)
        heads = [part.view(batch, time_, self.heads, -1).transpose(1, 2) for part in heads]
        rate = self.dropout.p if self.training else 0.0
        y = functional.scaled_dot_product_attention(*heads, dropout_p=rate, is_causal=True)
        x = x + self.dropout(self.attention_out(y.transpose(1, 2).reshape(batch, time_, width)))
        return x + self.dropout(self.mlp_out(functional.gelu(self.mlp_in(self.norm_mlp(x)))))


class GPT(nn.Module):
    def __init__(self, vocabulary, sizes):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.length, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                writes = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * sizes.layers) if writes else 0.02)

    def forward(self, ids, targets):
        x = self.dropout(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.tokens.weight.T
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    def parameters_by_our_names(self):
        """Yield (our name, parameter, whether it is transposed) of each parameter."""
        yield "embedding.tokens", self.tokens.weight, False
        yield "embedding.positions", self.positions.weight, False
        yield "decoder.norm.scale", self.norm.weight, False
        for number, block in enumerate(self.blocks):
            prefix = f"decoder.block_{number}"
            yield f"{prefix}.norm_attention.scale", block.norm_attention.weight, False
            yield f"{prefix}.norm_mlp.scale", block.norm_mlp.weight, False
            yield f"{prefix}.attention.query_key_value.kernel", block.query_key_value.weight, True
            yield f"{prefix}.attention.out.kernel", block.attention_out.weight, True
            yield f"{prefix}.mlp.in.kernel", block.mlp_in.weight, True
            yield f"{prefix}.mlp.out.kernel", block.mlp_out.weight, True


class Training:
    """Network, optimiser and step number."""

    def __init__(self, vocabulary, sizes, device="cpu", compiled=False):
        self.network, self.step_number = GPT(vocabulary, sizes).to(device), 0
        self.sizes, self.device = sizes, device
        self.loss = torch.compile(self.network) if compiled else self.network
        matrices = [p for p in self.network.parameters() if p.ndim > 1]
        vectors = [p for p in self.network.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=device == "cuda")

    def rate(self):
        if self.step_number < WARMUP:
            return RATE * self.step_number / WARMUP
        share = min(1.0, (self.step_number - WARMUP) / (STEPS - WARMUP))
        return LAST_RATE + 0.5 * (1 + math.cos(math.pi * share)) * (RATE - LAST_RATE)

    def step(self, ids, targets):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.sizes.half):
            loss = self.loss(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        return loss.detach()


def windows(ids, sizes):
    """A batch of windows at random offsets."""
    starts = torch.randint(len(ids) - sizes.length, (sizes.batch,))
    parts = torch.stack([torch.from_numpy(ids[start : start + sizes.length + 1].astype(np.int64)) for start in starts])
    return parts[:, :-1], parts[:, 1:]


@torch.no_grad()
def estimate(network, ids, sizes):
    return float(np.mean([network(*windows(ids, sizes)).item() for _ in range(EVAL_BATCHES)]))


def train(file, seed):
    """The whole run: a checkpoint at each new lowest validation loss, a printed line per step."""
    torch.manual_seed(seed)
    text = Path(file).read_text()
    vocabulary = sorted(set(text))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    ids = np.array([numbers[character] for character in text], np.uint16)
    training, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    sizes = PRESETS["nanogpt_cpu"]
    state, least = Training(len(vocabulary), sizes), math.inf
    with tempfile.TemporaryDirectory() as folder:
        for number in range(STEPS + 1):
            if number % EVAL_EVERY == 0:
                losses = list(estimate(state.network, part, sizes) for part in (training, validation))
                print(f"step {number}: train loss {losses[0]:.4f}, val loss {losses[1]:.4f}", flush=True)
                if number and losses[1] < least:
                    least = losses[1]
                    saved = {"model": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}
                    torch.save(saved, Path(folder) / "ckpt.pt")
            if number < STEPS:
                before = time.perf_counter()
                loss = state.step(*windows(training, sizes)).item()
                print(f"iter {number}: loss {loss:.4f}, {1e3 * (time.perf_counter() - before):.1f} ms")
    print(f"validation loss {losses[1]:.4f}", flush=True)


class Peer:
    """Answers requests with an eager and a compiled training on random text."""

    def __init__(self, sizes, device):
        self.sizes, self.device, self.trainings = sizes, device, {}
        self.ids = np.random.default_rng(0).integers(0, 65, 1_000_000).astype(np.uint16)
        self.resident = torch.from_numpy(self.ids.astype(np.int64)).to(device)

    def batch(self):
        """A random batch: gathered from text on a GPU, or copied window by window on a CPU, as in nanoGPT."""
        if self.device == "cpu":
            return windows(self.ids, self.sizes)
        starts = torch.randint(len(self.ids) - self.sizes.length, (self.sizes.batch, 1), device=self.device)
        parts = self.resident[starts + torch.arange(self.sizes.length + 1, device=self.device)]
        return parts[:, :-1], parts[:, 1:]

    def check(self, inputs, outputs):
        checked = Training(65, self.sizes._replace(dropout=0.0), self.device)
        with np.load(inputs) as saved:
            with torch.no_grad():
                for name, parameter, transposed in checked.network.parameters_by_our_names():
                    x = torch.from_numpy(saved[name])
                    parameter.copy_(x.T if transposed else x)
            pairs = [torch.from_numpy(saved[name]).long().to(self.device) for name in ("inputs", "targets")]
        np.savez(outputs, losses=[checked.step(*pair).item() for pair in zip(*pairs, strict=True)])
        return {}

    def time(self, steps, compiled=False):
        answer = {}
        if compiled not in self.trainings:
            self.trainings[compiled] = Training(65, self.sizes, self.device, compiled)
            answer["first_seconds"] = self.seconds(self.trainings[compiled], 1)
        return {"seconds": self.seconds(self.trainings[compiled], steps), **answer}

    def seconds(self, training, steps):
        """Time ``steps`` steps. The loss is fetched at each step on a CPU, and once at the end on a GPU."""
        loss, before = None, time.perf_counter()
        for _ in range(steps):
            loss = training.step(*self.batch())
            if self.device == "cpu":
                loss.item()
        loss.item()
        return time.perf_counter() - before


def serve(preset, device):
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # keep messages out of the answers
    print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
    peer = Peer(PRESETS[preset], device)
    asks = {"check": peer.check, "time": peer.time}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = asks[request.pop("ask")](**request)
        except (RuntimeError, ImportError) as error:  # such as torch.compile without a compiler
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=PRESETS, default="nanogpt_cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        torch.set_float32_matmul_precision("high")  # as nanoGPT does
    if arguments.train:
        train(arguments.train, arguments.seed)
    else:
        serve(arguments.preset, arguments.device)


if __name__ == "__main__":
    main()
