"""The Keras baseline's classifier in Keras or PyTorch, the peer of `train_step.py`: one line of JSON per request.

    python cnn.py --library keras --threads 2

    {"ask": "check", "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "time", "batch": 64, "steps": 100}

`check` sets the weights, takes one step with Adam on one batch and returns loss and new weights; `time` returns the
seconds of `steps` steps on images in memory, with the library's idiom: `fit` in Keras, a loop over shuffled indices in
PyTorch (channels last, fused Adam; library `torch_compiled`: the same through torch.compile). The first line has the
versions. Weights are named as in Flax: kernels HWIO, dense kernels [in, out].
"""

import argparse
import json
import os
import platform
import sys
import time

import numpy as np

CHANNELS, HIDDEN, CLASSES = (32, 64, 64), 64, 10
IMAGES = 10_000
NAMES = [
    f"{layer}.{part}" for layer in ("conv_0", "conv_1", "conv_2", "dense_0", "dense_1") for part in ("kernel", "bias")
]


def random_data(count):
    rng = np.random.default_rng(0)
    return rng.random((count, 32, 32, 3), "float32"), rng.integers(0, CLASSES, count)


class Keras:
    def __init__(self, threads):
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
        import keras
        import tensorflow
        from keras import layers

        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        stack = [keras.Input((32, 32, 3))]
        for layer, channels in enumerate(CHANNELS):
            stack += [layers.MaxPooling2D()] if layer else []
            stack.append(layers.Conv2D(channels, 3, activation="relu"))
        stack += [layers.Flatten(), layers.Dense(HIDDEN, activation="relu"), layers.Dense(CLASSES)]
        self.model = keras.Sequential(stack)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
        self.versions = {"keras": keras.__version__, "tensorflow": tensorflow.__version__}

    def step(self, weights, images, labels):
        self.model.set_weights([weights[name] for name in NAMES])
        loss = self.model.train_on_batch(images, labels)
        return float(np.ravel(loss)[0]), dict(zip(NAMES, self.model.get_weights(), strict=True))

    def run(self, images, labels, batch):
        self.model.fit(images, labels, batch_size=batch, verbose=0)


class Torch:
    def __init__(self, threads, compiled=False):
        import torch
        from torch import nn

        torch.set_num_threads(threads)

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                sizes = zip((3, *CHANNELS), CHANNELS, strict=False)
                self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in sizes)
                self.dense = nn.ModuleList([nn.Linear(1024, HIDDEN), nn.Linear(HIDDEN, CLASSES)])

            def forward(self, x):
                for layer, convolution in enumerate(self.convolutions):
                    x = nn.functional.max_pool2d(x, 2) if layer else x
                    x = nn.functional.relu(convolution(x))
                x = x.permute(0, 2, 3, 1).flatten(1)  # as Keras and Flax flatten
                return self.dense[1](nn.functional.relu(self.dense[0](x)))

        self.torch = torch
        self.network = Network().to(memory_format=torch.channels_last)
        self.forward = torch.compile(self.network) if compiled else self.network
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-3, fused=True)
        self.versions = {"torch": torch.__version__}

    def tensors(self, images, labels):
        images = self.torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=self.torch.channels_last)
        return images, self.torch.from_numpy(labels)

    def train(self, images, labels):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.torch.nn.functional.cross_entropy(self.forward(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def step(self, weights, images, labels):
        layers = [*self.network.convolutions, *self.network.dense]
        parameters = [x for layer in layers for x in (layer.weight, layer.bias)]
        with self.torch.no_grad():
            for name, parameter in zip(NAMES, parameters, strict=True):
                x = self.torch.from_numpy(weights[name])
                parameter.copy_(x.permute(3, 2, 0, 1) if x.ndim == 4 else x.T if x.ndim == 2 else x)
        loss = self.train(*self.tensors(images, labels)).item()
        new = [x.detach() for x in parameters]
        new = [x.permute(2, 3, 1, 0) if x.ndim == 4 else x.T if x.ndim == 2 else x for x in new]
        return loss, {name: x.numpy() for name, x in zip(NAMES, new, strict=True)}

    def run(self, images, labels, batch):
        images, labels = self.tensors(images, labels)
        for rows in self.torch.randperm(len(images)).split(batch):
            self.train(images[rows], labels[rows])


LIBRARIES = {
    "keras": Keras,
    "torch": Torch,
    "torch_compiled": lambda threads: Torch(threads, compiled=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # keep messages out of the answers
    library = LIBRARIES[arguments.library](arguments.threads)
    print(json.dumps({**library.versions, "python": platform.python_version()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["ask"] == "check":
            with np.load(request["inputs"]) as saved:
                weights = {name: saved[name] for name in NAMES}
                loss, new = library.step(weights, saved["images"], saved["labels"])
            np.savez(request["outputs"], loss=loss, **new)
            answer = {}
        else:
            images, labels = random_data(request["batch"] * request["steps"])
            before = time.perf_counter()
            library.run(images, labels, request["batch"])
            answer = {"seconds": time.perf_counter() - before}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
