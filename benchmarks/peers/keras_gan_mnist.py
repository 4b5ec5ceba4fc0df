"""The MNIST GAN of the Keras baseline, repaired where it doesn't run; the peer of `gan_mnist.py`.

Repairs: a reshape between the generator's dense layers and its transposed convolutions, with a Dense of 7*7*128 before
it, and one logit after the discriminator's 128 sigmoids. Keras 3 reads `trainable` when a model first trains, not when
it is compiled, so the flag is set before each call; set once, as in the original, the discriminator never learns. The
rest is unchanged: four calls per step (`predict`, `train_on_batch` of the discriminator on real and on generated
images, and of the combined model with the discriminator frozen), Adam 1e-4, batch 32.

    python keras_gan_mnist.py --data-dir FOLDER --steps 100         # prints one line of JSON
    python keras_gan_mnist.py --data-dir FOLDER --turns 20          # takes 20 steps per line on stdin
    python keras_gan_mnist.py --data-dir FOLDER --seconds 300 --samples 10000 --out keras.npz
"""

import argparse
import gzip
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers

BATCH, NOISE = 32, 100


def load_images(path):
    """Images [N, 28, 28, 1] in [-1, 1] from an .npz (its first array) or a folder with the official idx.gz file."""
    path = Path(path)
    if path.suffix == ".npz":
        archive = np.load(path)
        images = archive["images" if "images" in archive.files else archive.files[0]]
    else:
        file = path / "train-images-idx3-ubyte.gz"
        images = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16)
    return images.reshape(-1, 28, 28, 1).astype("float32") / 127.5 - 1


def build_generator():
    return keras.Sequential(
        [
            keras.Input((NOISE,)),
            layers.Dense(128, activation="relu"),
            layers.Dense(256, activation="relu"),
            layers.Dense(512, activation="relu"),
            layers.Dense(7 * 7 * 128),
            layers.Reshape((7, 7, 128)),
            layers.Conv2DTranspose(128, 4, strides=2, padding="same"),
            layers.Conv2DTranspose(64, 4, strides=2, padding="same"),
            layers.Conv2D(1, 3, padding="same", activation="tanh"),
        ]
    )


def build_discriminator():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same"),
            layers.LeakyReLU(negative_slope=0.01),
            layers.Conv2D(64, 3, padding="same"),
            layers.LeakyReLU(negative_slope=0.01),
            layers.Flatten(),
            layers.Dense(128, activation="sigmoid"),
            layers.Dense(1),
        ]
    )


def build():
    """Generator, discriminator, and the combined model with a frozen discriminator."""
    generator, discriminator = build_generator(), build_discriminator()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    discriminator.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss)
    gan = keras.Sequential([keras.Input((NOISE,)), generator, discriminator])
    gan.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss)
    return generator, discriminator, gan


def train_step(models, images, rng):
    generator, discriminator, gan = models
    ones, zeros = np.ones((BATCH, 1), "float32"), np.zeros((BATCH, 1), "float32")
    real = images[rng.integers(0, len(images), BATCH)]
    generated = generator.predict(rng.standard_normal((BATCH, NOISE), "float32"), verbose=0)
    discriminator.trainable = True
    d_loss = discriminator.train_on_batch(real, ones) + discriminator.train_on_batch(generated, zeros)
    discriminator.trainable = False
    g_loss = gan.train_on_batch(rng.standard_normal((BATCH, NOISE), "float32"), ones)
    return float(d_loss), float(g_loss)


def timed_steps(models, images, rng, steps, seconds=None):
    """Seconds of each step; stops after `steps` steps, or after `seconds` if given."""
    times, losses, start = [], (0.0, 0.0), time.perf_counter()
    while len(times) < steps if seconds is None else time.perf_counter() - start < seconds:
        before = time.perf_counter()
        losses = train_step(models, images, rng)
        times.append(time.perf_counter() - before)
    return times, losses


def report(times, losses):
    low, middle, high = np.percentile(times, [10, 50, 90]) * 1e3
    line = {
        "examples_per_second": BATCH * len(times) / sum(times),
        "step_ms": {"median": middle, "p10": low, "p90": high},
        "steps": len(times),
        "discriminator_loss": losses[0],
        "generator_loss": losses[1],
        "keras": keras.__version__,
        "tensorflow": version("tensorflow-cpu"),
        "python": sys.version.split()[0],
    }
    print(json.dumps(line), flush=True)


def save_samples(generator, rng, count, out):
    noise = rng.standard_normal((count, NOISE), "float32")
    images = generator.predict(noise, batch_size=250, verbose=0)
    pixels = np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
    np.savez_compressed(out, images=pixels)


def save_initial(models, rng, out):
    generator, discriminator, _ = models
    noise = rng.standard_normal((BATCH, NOISE), "float32")
    images = generator.predict(noise, verbose=0)
    arrays = {"noise": noise, "images": images, "logits": discriminator.predict(images, verbose=0)}
    for name, model in {"generator": generator, "discriminator": discriminator}.items():
        arrays |= {f"{name}_{i}": weight for i, weight in enumerate(model.get_weights())}
    np.savez(out, **arrays)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", required=True, help="folder with train-images-idx3-ubyte.gz, or an .npz of images"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, help="train for this long instead of --steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--turns", type=int, help="run this many steps for each line on stdin, until it closes")
    parser.add_argument("--samples", type=int, default=0, help="generated images to save at the end")
    parser.add_argument("--out", default="keras_gan_mnist.npz")
    parser.add_argument("--initial", help="an .npz for the initial weights, some noise and its outputs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    images, models = load_images(arguments.data_dir), build()
    if arguments.initial:
        save_initial(models, rng, arguments.initial)
    timed_steps(models, images, rng, arguments.warmup)
    if arguments.turns:
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            report(*timed_steps(models, images, rng, arguments.turns))
    else:
        report(*timed_steps(models, images, rng, arguments.steps, arguments.seconds))
    if arguments.samples:
        save_samples(models[0], rng, arguments.samples, arguments.out)


if __name__ == "__main__":
    main()
