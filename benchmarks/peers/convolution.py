"""Convolution and pooling in Keras or PyTorch, the peer of `convolution.py`: one line of JSON per request.

    python convolution.py --library keras --threads 2
    python convolution.py --library torch --device cuda

    {"ask": "check", "case": CASE, "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "time", "case": CASE, "repeats": 10}

CASE: {"op": "conv", "x": [16, 8, 8, 4], "kernel": [3, 3, 4, 6], "strides": 1, "padding": "SAME", "dilation": 1,
"groups": 1}; op is "conv", "conv_transpose", "max_pool" or "avg_pool" (then kernel is the window's size), padding
"SAME", "VALID" or the number of zeros on every side. Inputs are w and x (NHWC), and for convolutions kernel (HWIO);
outputs are y, and dx and dkernel of sum(y * w). Kernels are converted from jaxai's layout to the library's, gradients
back. `time` returns the seconds of computing y, dx and dkernel. The first line has the versions; {"error": ...} is the
answer if the library does not support a case.
"""

import argparse
import functools
import json
import os
import platform
import sys
import time

import numpy as np


class CannotDo(Exception):
    """The library has no such option."""


def depthwise(case):
    return case["groups"] > 1 and case["kernel"][2] == 1


class Keras:
    """`keras.ops` in a `tf.function`, as in a model's layers; CPU only."""

    device = "cpu"

    def __init__(self, threads, device):
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        import keras
        import tensorflow

        tensorflow.get_logger().setLevel("ERROR")  # no warnings about a tf.function per case
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        self.ops, self.tf = keras.ops, tensorflow
        self.versions = {"keras": keras.__version__, "tensorflow": tensorflow.__version__}

    def operation(self, case):
        op, padding = case["op"], case["padding"]
        if not isinstance(padding, str):
            raise CannotDo("Keras has named paddings only")
        if op == "avg_pool" and padding == "SAME":
            raise CannotDo("Keras divides by the number of pixels inside the image")
        options = {"strides": case["strides"], "padding": padding.lower()}
        if op in ("max_pool", "avg_pool"):
            pool = self.ops.max_pool if op == "max_pool" else self.ops.average_pool
            return functools.partial(pool, pool_size=case["kernel"], **options)
        if op == "conv_transpose":
            return functools.partial(self.ops.conv_transpose, **options)
        conv = self.ops.depthwise_conv if depthwise(case) else self.ops.conv
        return functools.partial(conv, dilation_rate=case["dilation"], **options)

    def turn(self, case, kernel):
        if case["op"] == "conv_transpose":  # the adjoint of a convolution with kernel [kh, kw, F, C]
            return kernel[::-1, ::-1].transpose(0, 1, 3, 2)
        return kernel.reshape(*kernel.shape[:2], case["groups"], -1) if depthwise(case) else kernel

    def turn_back(self, case, kernel):
        return self.turn(case, kernel) if case["op"] == "conv_transpose" else kernel.reshape(case["kernel"])

    def prepare(self, case, arrays, w):
        """A call without arguments that returns y, dx and dkernel."""
        operation, tf = self.operation(case), self.tf

        @tf.function
        def compute(arrays, w):
            with tf.GradientTape() as tape:
                tape.watch(arrays)
                y = operation(*arrays)
                total = tf.reduce_sum(y * w)
            return [y, *tape.gradient(total, arrays)]

        x, *kernels = arrays
        arrays = [tf.constant(x), *(tf.constant(self.turn(case, kernel)) for kernel in kernels)]
        return functools.partial(compute, arrays, tf.constant(w))

    def numpy(self, case, y, dx, *kernels):
        return [y.numpy(), dx.numpy(), *(self.turn_back(case, kernel.numpy()) for kernel in kernels)]


class Torch:
    """PyTorch, eager, channels last."""

    def __init__(self, threads, device):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.device = torch, device
        self.versions = {"torch": torch.__version__}

    def operation(self, case):
        op, functional = case["op"], self.torch.nn.functional
        options = {"stride": case["strides"], "padding": self.padding(case)}
        if op in ("max_pool", "avg_pool"):
            pool = functional.max_pool2d if op == "max_pool" else functional.avg_pool2d
            return functools.partial(pool, kernel_size=case["kernel"], **options)
        if op == "conv_transpose":
            return functools.partial(functional.conv_transpose2d, **options)
        return functools.partial(functional.conv2d, dilation=case["dilation"], groups=case["groups"], **options)

    def padding(self, case):
        """Zeros on every side; for a transposed convolution, those of its adjoint."""
        size, window, stride = case["x"][1], (case["kernel"][0] - 1) * case["dilation"] + 1, case["strides"]
        if case["padding"] != "SAME":
            return 0 if case["padding"] == "VALID" else case["padding"]
        pixels = size if case["op"] == "conv_transpose" else -(-size // stride)
        total = (pixels - 1) * stride + window - (size * stride if case["op"] == "conv_transpose" else size)
        if total < 0 or total % 2:
            raise CannotDo("PyTorch pads both sides equally")
        return total // 2

    def turn(self, case, kernel):
        if case["op"] == "conv_transpose":  # the adjoint of a convolution with kernel [C, F, kh, kw]
            return np.ascontiguousarray(kernel[::-1, ::-1]).transpose(2, 3, 0, 1)
        return kernel.transpose(3, 2, 0, 1)

    def turn_back(self, case, kernel):
        return (
            kernel.transpose(2, 3, 0, 1)[::-1, ::-1] if case["op"] == "conv_transpose" else kernel.transpose(2, 3, 1, 0)
        )

    def prepare(self, case, arrays, w):
        operation = self.operation(case)
        x, *kernels = arrays
        nchw = [x.transpose(0, 3, 1, 2), *(self.turn(case, kernel) for kernel in kernels), w.transpose(0, 3, 1, 2)]
        last = self.torch.channels_last
        *arrays, w = (self.torch.from_numpy(a).to(self.device, memory_format=last) for a in nchw)
        arrays = [a.requires_grad_() for a in arrays]

        def compute():
            y = operation(*arrays)
            return [y.detach(), *self.torch.autograd.grad((y * w).sum(), arrays)]

        return compute

    def numpy(self, case, y, dx, *kernels):
        y, dx, *kernels = (a.cpu().numpy() for a in (y, dx, *kernels))
        images = [a.transpose(0, 2, 3, 1) for a in (y, dx)]
        return [*images, *(self.turn_back(case, kernel) for kernel in kernels)]

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def answer_check(library, case, inputs, outputs):
    with np.load(inputs) as saved:
        names = [name for name in ("x", "kernel") if name in saved.files]
        results = library.prepare(case, [saved[name] for name in names], saved["w"])()
    results = library.numpy(case, *results)
    np.savez(outputs, **dict(zip(("y", "dx", "dkernel"), results, strict=False)))
    return {}


@functools.lru_cache(maxsize=1)
def warm(library, case):
    """A call on random numbers, after a first run."""
    case = json.loads(case)
    rng = np.random.default_rng(0)
    shapes = [case["x"]] if case["op"].endswith("pool") else [case["x"], case["kernel"]]
    arrays = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    w = rng.standard_normal(case["y"]).astype("float32")
    call = library.prepare(case, arrays, w)
    call()
    return call


def answer_time(library, case, repeats):
    call = warm(library, json.dumps(case))
    if repeats > 1:
        call()  # warm-up: the caches hold the other process's data
    if library.device == "cuda":  # calls are queued and timed together
        library.wait()
        before = time.perf_counter()
        for _ in range(repeats):
            call()
        library.wait()
        return {"seconds": [(time.perf_counter() - before) / repeats]}
    seconds = []
    for _ in range(repeats):
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
    return {"seconds": seconds}


ANSWERS = {"check": answer_check, "time": answer_time}
LIBRARIES = {"keras": Keras, "torch": Torch}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # keep messages out of the answers
    library = LIBRARIES[arguments.library](arguments.threads, arguments.device)
    print(json.dumps({**library.versions, "python": platform.python_version()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = ANSWERS[request.pop("ask")](library, **request)
        except CannotDo as reason:
            answer = {"error": str(reason)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
