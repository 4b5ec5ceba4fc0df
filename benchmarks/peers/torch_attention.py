"""PyTorch's attention on a CPU, a line of JSON asked and a line answered; the peer of `attention.py`.

    python torch_attention.py --threads 2

    {"ask": "time", "op": "sdpa", "kind": "forward", "tokens": 512, "causal": false, "repeats": 10}
    {"ask": "check", "op": "flex", "causal": true, "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "decode", "batch": 8, "capacity": 4096, "steps": 64}

    {"ask": "versions"}

`op` is "sdpa" (torch.nn.functional.scaled_dot_product_attention) or "flex" (FlexAttention, compiled, static shapes);
`kind` is "forward" or "gradient", that of q, k and v of sum(out * w). Everything is float32, 8 heads of 64, in the
layout [B, N, T, H] that PyTorch prefers. The first line, before any question, tells the versions; an answer that is
{"error": ...} tells why PyTorch refuses.
"""

import argparse
import functools
import json
import platform
import sys
import time

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

HEADS, HEAD_SIZE = 8, 64


@functools.cache
def compiled_flex():
    torch._dynamo.config.recompile_limit = 100  # one program for each shape; the default is to give up after 8
    return torch.compile(flex_attention, dynamic=False)


def attention(op, tokens, causal):
    if op == "sdpa":
        return functools.partial(scaled_dot_product_attention, is_causal=causal)
    mask = create_block_mask(lambda b, n, i, j: i >= j, None, None, tokens, tokens, "cpu") if causal else None
    return functools.partial(compiled_flex(), block_mask=mask)


def gradient(attend, q, k, v, w):
    return torch.autograd.grad((attend(q, k, v) * w).sum(), (q, k, v))


@functools.lru_cache(maxsize=2)  # sdpa and flex take turns at one shape
def prepared(op, kind, tokens, causal):
    """The warm call, and the seconds that its first run took."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, w = torch.randn(4, 1, HEADS, tokens, HEAD_SIZE, generator=generator).unbind()
    attend = attention(op, tokens, causal)
    if kind == "gradient":
        call = functools.partial(gradient, attend, *(x.requires_grad_() for x in (q, k, v)), w)
    else:
        call = torch.no_grad()(functools.partial(attend, q, k, v))
    return call, timed(call)


def timed(call):
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def answer_time(op, kind, tokens, causal, repeats):
    call, first = prepared(op, kind, tokens, causal)
    if repeats > 1:
        call()  # the caches held the other process's data
    return {"seconds": [timed(call) for _ in range(repeats)], "first_seconds": first}


def answer_check(op, causal, inputs, outputs):
    with np.load(inputs) as saved:  # BTNH
        q, k, v, w = (torch.from_numpy(saved[name]).transpose(1, 2).contiguous() for name in "qkvw")
    attend = attention(op, q.shape[2], causal)
    with torch.no_grad():
        arrays = {"out": attend(q, k, v)}
    if op == "sdpa":
        grads = gradient(attend, *(x.requires_grad_() for x in (q, k, v)), w)
        arrays |= dict(zip(("dq", "dk", "dv"), grads, strict=True))
    np.savez(outputs, **{name: x.transpose(1, 2).numpy() for name, x in arrays.items()})
    return {}


@torch.no_grad()
def answer_decode(batch, capacity, steps):
    """Writes the last tokens of a full cache one by one; each attends to all before it and to itself."""
    keys, values = torch.randn(2, batch, HEADS, capacity, HEAD_SIZE).unbind()
    q, k, v = torch.randn(3, batch, HEADS, 1, HEAD_SIZE).unbind()

    def step(position):
        keys[:, :, position : position + 1], values[:, :, position : position + 1] = k, v
        return scaled_dot_product_attention(q, keys[:, :, : position + 1], values[:, :, : position + 1])

    step(capacity - steps)
    return {"seconds": [timed(functools.partial(step, capacity - steps + i)) for i in range(steps)]}


def versions():
    return {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}


ANSWERS = {"time": answer_time, "check": answer_check, "decode": answer_decode, "versions": versions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    answers, sys.stdout = sys.stdout, sys.stderr  # a compiler's messages must not look like answers
    print(json.dumps(versions()), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = ANSWERS[request.pop("ask")](**request)
        except (RuntimeError, ImportError) as error:  # NotImplementedError and the compiler's errors are RuntimeErrors
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
