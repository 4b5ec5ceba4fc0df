"""PyTorch's attention, the peer of `attention.py` and `gpu.py`: one line of JSON per request and per answer.

    python torch_attention.py --threads 2
    python torch_attention.py --device cuda

    {"ask": "time", "op": "sdpa", "kind": "forward", "tokens": 512, "causal": false, "repeats": 10}
    {"ask": "check", "op": "flex", "causal": true, "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "decode", "batch": 8, "capacity": 4096, "steps": 64}

    {"ask": "versions"}

`op` is "sdpa" (torch.nn.functional.scaled_dot_product_attention, the backend of PyTorch's choice), "sdpa_flash",
"sdpa_cudnn" or "sdpa_efficient" (that backend only) or "flex" (FlexAttention, compiled, static shapes); `kind` is
"forward" or "gradient", the gradient of sum(out * w) in q, k and v. The default is float32, one sequence, 8 heads of
64, in the layout [B, N, T, H] that PyTorch prefers; `batch`, `heads`, `head_size` and `dtype` change that. For flex
`pattern` adds a mask or score function to `causal`, as a list of a name and numbers: see PATTERNS. The first line,
before any request, has the versions; {"error": ...} is the answer if PyTorch does not support a request.
"""

import argparse
import functools
import json
import platform
import sys
import time

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

HEADS, HEAD_SIZE = 8, 64
BACKENDS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@functools.cache
def compiled_flex():
    torch._dynamo.config.recompile_limit = 100  # one program per shape; by default it stops compiling after 8
    return torch.compile(flex_attention, dynamic=False)


def window(left, right):
    return lambda b, n, i, j: (i - j <= left) & (j - i <= right)


def segments(size):
    return lambda b, n, i, j: i // size == j // size


def prefix(count):
    return lambda b, n, i, j: (j < count) | (j <= i)


def soft_cap(cap):
    return lambda score, b, n, i, j: cap * torch.tanh(score / cap)


def alibi(heads, device):
    """ALiBi with slopes 2^(-8 i / N), i = 1 ... N, for N heads, a power of two; inputs may have fewer heads."""
    slopes = 2.0 ** (-8 / heads * torch.arange(1, heads + 1, device=device))
    return lambda score, b, n, i, j: score - slopes[n] * (i - j).abs()


PATTERNS = {"window": window, "segments": segments, "prefix": prefix}
"""Functions of numbers that make masks, by name; "soft_cap" and "alibi" modify scores instead."""


def flex(tokens, causal, pattern, device):
    """FlexAttention with a causal mask, a pattern's mask or both, and a pattern's score function."""
    name, *numbers = pattern or [None]
    masks = [lambda b, n, i, j: i >= j] if causal else []
    masks += [PATTERNS[name](*numbers)] if name in PATTERNS else []
    mods = {"soft_cap": soft_cap, "alibi": functools.partial(alibi, device=device)}
    score_mod = mods[name](*numbers) if name in mods else None
    mask = create_block_mask(and_masks(*masks), None, None, tokens, tokens, device) if masks else None
    return functools.partial(compiled_flex(), block_mask=mask, score_mod=score_mod)


def by_backend(backend, causal):
    def attend(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal)

    return attend


def attention(op, tokens, causal, pattern, device):
    if op == "flex":
        return flex(tokens, causal, pattern, device)
    if op in BACKENDS:
        return by_backend(BACKENDS[op], causal)
    return functools.partial(scaled_dot_product_attention, is_causal=causal)


def gradient(attend, q, k, v, w):
    return torch.autograd.grad((attend(q, k, v) * w).sum(), (q, k, v))


class Peer:
    """Answers requests on one device."""

    def __init__(self, device):
        self.device = device
        self.prepared = functools.lru_cache(maxsize=4)(self.prepare)  # as many as take turns at one shape

    def prepare(self, op, kind, tokens, causal, pattern, batch, heads, head_size, dtype):
        """Build a call and run it once; return it and the seconds of that run."""
        torch.manual_seed(0)
        shape = (4, batch, heads, tokens, head_size)
        q, k, v, w = torch.randn(shape, device=self.device, dtype=getattr(torch, dtype)).unbind()
        attend = attention(op, tokens, causal, json.loads(pattern), self.device)
        if kind == "gradient":
            call = functools.partial(gradient, attend, *(x.requires_grad_() for x in (q, k, v)), w)
        else:
            call = torch.no_grad()(functools.partial(attend, q, k, v))
        return call, self.seconds(call, 1)[0]

    def seconds(self, call, repeats):
        """The seconds of each call; on a GPU calls are queued and timed together."""
        if self.device == "cpu":
            return [timed(call) for _ in range(repeats)]
        torch.cuda.synchronize()
        before = time.perf_counter()
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
        return [(time.perf_counter() - before) / repeats]

    def time(
        self,
        op,
        kind,
        tokens,
        causal,
        repeats,
        pattern=None,
        batch=1,
        heads=HEADS,
        head_size=HEAD_SIZE,
        dtype="float32",
    ):
        sizes = (batch, heads, head_size, dtype)
        call, first = self.prepared(op, kind, tokens, causal, json.dumps(pattern), *sizes)
        if repeats > 1:
            call()  # warm-up: the caches hold the other process's data
        return {"seconds": self.seconds(call, repeats), "first_seconds": first}

    def check(self, op, causal, inputs, outputs, pattern=None, dtype="float32", grads=None):
        """Write the output and, if ``grads`` (default: for op sdpa only), the gradients as float32."""
        with np.load(inputs) as saved:  # BTNH
            arrays = [torch.from_numpy(saved[name]).transpose(1, 2).contiguous() for name in "qkvw"]
        q, k, v, w = (x.to(self.device, getattr(torch, dtype)) for x in arrays)
        attend = attention(op, q.shape[2], causal, pattern, self.device)
        with torch.no_grad():
            found = {"out": attend(q, k, v)}
        if op == "sdpa" if grads is None else grads:
            gradients = gradient(attend, *(x.requires_grad_() for x in (q, k, v)), w)
            found |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
        np.savez(outputs, **{name: x.detach().transpose(1, 2).float().cpu().numpy() for name, x in found.items()})
        return {}

    @torch.no_grad()
    def decode(self, batch, capacity, steps, heads=HEADS, head_size=HEAD_SIZE, dtype="float32"):
        """Append the last ``steps`` tokens to a cache one by one; each attends to all tokens up to itself."""
        options = {"device": self.device, "dtype": getattr(torch, dtype)}
        keys, values = torch.randn(2, batch, heads, capacity, head_size, **options).unbind()
        q, k, v = torch.randn(3, batch, heads, 1, head_size, **options).unbind()
        position = capacity - steps - 1

        def step():
            nonlocal position
            position += 1
            keys[:, :, position : position + 1], values[:, :, position : position + 1] = k, v
            return scaled_dot_product_attention(q, keys[:, :, : position + 1], values[:, :, : position + 1])

        step()
        position -= 1
        return {"seconds": self.seconds(step, steps)}

    def versions(self):
        return versions()


def timed(call):
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def versions():
    return {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answers, sys.stdout = sys.stdout, sys.stderr  # keep a compiler's messages out of the answers
    print(json.dumps(versions()), file=answers, flush=True)
    peer = Peer(arguments.device)
    asks = {"time": peer.time, "check": peer.check, "decode": peer.decode, "versions": peer.versions}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = asks[request.pop("ask")](**request)
        except (RuntimeError, ImportError) as error:  # NotImplementedError and the compiler's errors are RuntimeErrors
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
