"""The Keras baseline's CIFAR-10 classifier, from files to test accuracy; the peer of `cnn_cifar10.py`.

    python keras_cnn_cifar10.py --data-dir FOLDER --seed 0

FOLDER holds the official binary files, data_batch_1.bin ... data_batch_5.bin and test_batch.bin. Pixels / 255, three
convolutions with max pooling between them, two dense layers, Adam, 10 epochs of `fit` in batches of 64, `evaluate`.
`--epochs` below 1 trains once on that fraction of the images. Prints "Test accuracy: 0.7", then versions as JSON.
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow
from keras import layers

TRAIN, TEST = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]


def load(folder, files):
    """Images float32 [N, 32, 32, 3] in [0, 1] and labels [N]: a record is a label byte and three colour planes."""
    records = np.concatenate([np.fromfile(folder / file, np.uint8).reshape(-1, 3073) for file in files])
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images.astype("float32") / 255, records[:, 0]


def build():
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    images, labels = load(arguments.data_dir, TRAIN)
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    count = round(len(images) * min(1.0, arguments.epochs))
    model.fit(images[:count], labels[:count], epochs=max(1, round(arguments.epochs)), batch_size=64, verbose=2)
    _, accuracy = model.evaluate(*load(arguments.data_dir, TEST), verbose=0)
    print(f"Test accuracy: {accuracy:.4f}", flush=True)
    versions = {"keras": keras.__version__, "tensorflow": tensorflow.__version__, "python": platform.python_version()}
    print(json.dumps(versions), flush=True)


if __name__ == "__main__":
    main()
