"""nanoGPT's network and training in PyTorch, written anew after its description; the peer of `text_generation.py`.

    python torch_gpt.py --train FILE --seed 0     # the documented CPU command's run: prints losses as it goes
    python torch_gpt.py --threads 2               # a line of JSON asked and a line answered:

    {"ask": "check", "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "time", "steps": 20}

`check` sets the weights and gives the loss of each of some steps; `time` gives the seconds of so many steps over random
windows of text, with input and optimiser. Source: github.com/karpathy/nanoGPT: GPT-2's network without biases and with
exact GELU, AdamW on matrices, clipped gradients, warm-up and cosine; float32, no torch.compile, as its README says for
a CPU. Weights are named as in Flax, kernels [in, out].
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LENGTH, BATCH, LAYERS, HEADS, WIDTH = 64, 12, 4, 4, 128
STEPS, WARMUP, RATE, LAST_RATE = 2000, 100, 1e-3, 1e-4
EVAL_EVERY, EVAL_BATCHES = 250, 20


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH, bias=False)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm_mlp = nn.LayerNorm(WIDTH, bias=False)
        self.mlp_in = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.mlp_out = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, time_, _ = x.shape
        heads = self.query_key_value(self.norm_attention(x)).split(WIDTH, dim=2)
        heads = [part.view(batch, time_, HEADS, -1).transpose(1, 2) for part in heads]
        y = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.attention_out(y.transpose(1, 2).reshape(batch, time_, WIDTH))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.norm_mlp(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                writes = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if writes else 0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.tokens.weight.T
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    def parameters_by_our_names(self):
        """(name, parameter, whether it is transposed) of each."""
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
    """Network, optimiser and the number of steps taken."""

    def __init__(self, vocabulary):
        self.network, self.step_number = GPT(vocabulary), 0
        matrices = [p for p in self.network.parameters() if p.ndim > 1]
        vectors = [p for p in self.network.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def rate(self):
        if self.step_number < WARMUP:
            return RATE * self.step_number / WARMUP
        share = min(1.0, (self.step_number - WARMUP) / (STEPS - WARMUP))
        return LAST_RATE + 0.5 * (1 + math.cos(math.pi * share)) * (RATE - LAST_RATE)

    def step(self, ids, targets):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        loss = self.network(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        return loss.item()


def windows(ids):
    """A batch of windows at random places."""
    starts = torch.randint(len(ids) - LENGTH, (BATCH,))
    parts = torch.stack([torch.from_numpy(ids[start : start + LENGTH + 1].astype(np.int64)) for start in starts])
    return parts[:, :-1], parts[:, 1:]


@torch.no_grad()
def estimate(network, ids):
    return float(np.mean([network(*windows(ids)).item() for _ in range(EVAL_BATCHES)]))


def train(file, seed):
    """The whole run; a checkpoint whenever the validation loss is the least so far, a line for every step."""
    torch.manual_seed(seed)
    text = Path(file).read_text()
    vocabulary = sorted(set(text))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    ids = np.array([numbers[character] for character in text], np.uint16)
    training, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    state, least = Training(len(vocabulary)), math.inf
    with tempfile.TemporaryDirectory() as folder:
        for number in range(STEPS + 1):
            if number % EVAL_EVERY == 0:
                losses = estimate(state.network, training), estimate(state.network, validation)
                print(f"step {number}: train loss {losses[0]:.4f}, val loss {losses[1]:.4f}", flush=True)
                if number and losses[1] < least:
                    least = losses[1]
                    saved = {"model": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}
                    torch.save(saved, Path(folder) / "ckpt.pt")
            if number < STEPS:
                before = time.perf_counter()
                loss = state.step(*windows(training))
                print(f"iter {number}: loss {loss:.4f}, {1e3 * (time.perf_counter() - before):.1f} ms")
    print(f"validation loss {losses[1]:.4f}", flush=True)


def serve():
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # messages must not look like answers
    print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
    ids = np.random.default_rng(0).integers(0, 65, 1_000_000).astype(np.uint16)
    state = Training(65)
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        if request["ask"] == "check":
            with np.load(request["inputs"]) as saved:
                checked = Training(65)
                with torch.no_grad():
                    for name, parameter, transposed in checked.network.parameters_by_our_names():
                        x = torch.from_numpy(saved[name])
                        parameter.copy_(x.T if transposed else x)
                pairs = torch.from_numpy(saved["inputs"]).long(), torch.from_numpy(saved["targets"]).long()
            np.savez(request["outputs"], losses=[checked.step(*pair) for pair in zip(*pairs, strict=True)])
        else:
            before = time.perf_counter()
            for _ in range(request["steps"]):
                state.step(*windows(ids))
            answer = {"seconds": time.perf_counter() - before}
        print(json.dumps(answer), file=answers, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.train:
        train(arguments.train, arguments.seed)
    else:
        serve()


if __name__ == "__main__":
    main()
