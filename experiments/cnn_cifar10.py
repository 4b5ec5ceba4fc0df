"""A convolutional network that names what is in a picture: the article's classifier on CIFAR-10, and better ones.

    python experiments/cnn_cifar10.py --data-dir DIR                   # preset article: 10 epochs
    python experiments/cnn_cifar10.py --preset fast --data-dir DIR     # airbench94 made small: 2 epochs
    python experiments/cnn_cifar10.py --preset airbench --data-dir DIR # for a GPU; a CPU takes --dtype float32
    python experiments/cnn_cifar10.py --preset debug                   # seconds, on embedded digits

DIR holds CIFAR-10 as official binary files or prepared; without it tensorflow-datasets' folder or the network is asked.
It is the article's program, step for step: ``preprocess``, ``build``, ``train``, ``test``; 122,570 parameters, Adam at
1e-3, batches of 64. Expected on 2 CPU cores: 68.8 % of the test images (67.8 to 69.7, three seeds) in 143 s; in Keras
the article's program gave 67.2 % in 135 s. ``fast`` and ``airbench`` take the same steps by the recipe of airbench94
(Jordan 2024, arXiv 2404.00498): whitening, batch normalisation, Muon, alternating flip, the mean over six views.
Expected: 80.5 % in 136 s, and 90.6 % in 51 minutes (all on a copy of CIFAR-10 that went through JPEG).
``--held-out 5000`` leaves so many training images out and tests on them instead, to choose hyper-parameters.
The run's folder ends with summary.json (accuracy, precision, recall, F1, ROC AUC, confusion matrix) and pictures: ROC
curves, confusion matrix, the worst mistakes, the first layer's filters, and what the network looked at.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxai import attribution, cli, plots
from jaxai.config import Training, resumable
from jaxai.data import ImageDataset, load
from jaxai.data.images import augmentation as augment
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.metrics import classification
from jaxai.nn.cnn import AirbenchCNN, ArticleCNN, population_statistics, standardise, whitening_kernel
from jaxai.run.folder import Run, began_embedded, open_run
from jaxai.run.weights import parameter_count
from jaxai.train.feed import Batches
from jaxai.train.loop import Result, fit
from jaxai.train.optim import Adam, Airbench, airbench_optimizer, optimizer, schedule
from jaxai.train.state import TrainState
from jaxai.train.supervised import cross_entropy, init_state, train_step
from jaxai.typing import Array

NAME = "cnn_cifar10"
Network = ArticleCNN | AirbenchCNN
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    dataset: Literal["cifar10", "fashion_mnist", "mnist"] = "cifar10"
    """What to tell apart; of mnist some digits are embedded."""
    recipe: Literal["article", "airbench"] = "article"
    """Which network, augmentation, loss, optimiser and test: the article's or airbench94's."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Of the article's three convolutions, or of airbench's three groups of two."""
    batch_size: int = 64
    optimizer: Adam = Adam()
    """The article's."""
    airbench: Airbench = Airbench()
    """airbench's optimiser."""
    decay_steps: int = 7812
    """Steps over which the learning rate takes its course."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters are float32. airbench alone."""
    held_out: int = 0
    """So many of the training images are left out and tested on instead of the test set."""
    steps_per_call: int | None = resumable(None)
    """Steps that the device takes without the host in between; by default 1 on a CPU, elsewhere some 30 ms of them.
    A number above 1 for the article's network alone."""
    accumulation_steps: int = resumable(1)
    """Of a batch, whose gradients are computed one after the other: less memory; the article's network alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "batch_size", "decay_steps", "accumulation_steps")
        if self.steps_per_call is not None:
            self.check_at_least(1, "steps_per_call")
        self.check_at_least(0, "held_out")
        if len(self.channels) != 3 or min(self.channels) < 1:
            raise ValueError(f"--channels takes three numbers of at least 1, got {self.channels}")
        if self.recipe == "article" and self.dtype != "float32":
            raise ValueError(f"--dtype {self.dtype} needs --recipe airbench")
        schedule(self.optimizer, self.decay_steps)
        other, untouched = ("airbench", Airbench()) if self.recipe == "article" else ("optimizer", Adam())
        if getattr(self, other) != untouched:
            raise ValueError(f"--{other}.* does nothing with --recipe {self.recipe}: leave it out")
        if self.recipe == "airbench" and self.accumulation_steps > 1:
            raise ValueError(
                f"--accumulation-steps {self.accumulation_steps} needs --recipe article: airbench normalises over the "
                "whole batch"
            )
        articles = (self.recipe, self.channels) == ("article", (32, 64, 64))
        for option, value in (
            ("steps-per-call", self.steps_per_call or 1),
            ("accumulation_steps", self.accumulation_steps),
        ):
            if value > 1 and not articles:
                raise ValueError(
                    f"--{option} {value} needs the article's network: others hold convolutions that are slow inside a "
                    f"loop on a CPU; give --{option} 1"
                )
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"--accumulation-steps must divide --batch-size {self.batch_size}, got {self.accumulation_steps}"
            )


PRESETS = {
    "article": Config(steps=7812, steps_per_call=8),  # 10 epochs of 50,000 / 64
    "fast": Config(  # 2 epochs of 50,000 / 500
        recipe="airbench", channels=(16, 64, 64), batch_size=500, steps=200, decay_steps=200
    ),
    "airbench": Config(  # 8 epochs of 50,000 / 2000
        recipe="airbench", channels=(64, 256, 256), dtype="bfloat16", batch_size=2000, steps=200, decay_steps=200
    ),
    "debug": Config(dataset="mnist", steps=40),
}


def main(config: Config) -> None:
    """Load, build, train, test, explain, report."""
    data, scored = datasets(config)
    network = build(config, data)
    mesh = make_mesh(config.devices, batch_size=config.batch_size, shape=config.mesh)
    input_batches = batches(data, config.batch_size, seed=config.seed, **processes(mesh))
    run = open_run(NAME, config, data.identity())
    if summary := run.finished(config.steps):
        announce(summary["test_accuracy"])
        report(run, summary)
        return
    result = train(config, network, data, input_batches, run, mesh)
    variables = trained_variables(network, jax.device_get(result.state.params), data)
    probabilities = test(network, variables, scored)
    names = CIFAR10 if config.dataset == "cifar10" else [str(label) for label in range(data.num_classes)]
    figures = classification.scores(scored.labels, probabilities, names)
    announce(figures["accuracy"])
    draw(run, network, variables, scored, probabilities, names)
    summary = {
        "steps": int(result.state.step),
        "data": data.source,
        "test_accuracy": figures["accuracy"],
        "parameters": parameter_count(variables["params"]),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
        "test": figures,
    }
    run.write_summary(summary)
    report(run, summary)


def datasets(config: Config) -> tuple[ImageDataset, ImageDataset]:
    """What to train on and what to test on: the official splits, or two parts of the training set."""
    data = load(config.dataset, "train", data_dir=config.data_dir, embedded_only=began_embedded(NAME, config))
    if not config.held_out:
        return data, load(config.dataset, "test", data_dir=config.data_dir, embedded_only=data.embedded)
    kept = len(data.labels) - config.held_out
    if kept < 1:
        raise ValueError(f"--held-out must be less than {len(data.labels):,}, got {config.held_out}")
    first = dataclasses.replace(data, images=data.images[:kept], labels=data.labels[:kept])
    return first, dataclasses.replace(data, images=data.images[kept:], labels=data.labels[kept:])


def preprocess(images: Array | np.ndarray) -> Array:
    """uint8 [B, H, W, C] to float32 in [0, 1]."""
    return jnp.asarray(images).astype(jnp.float32) / 255


def build(config: Config, data: ImageDataset) -> Network:
    """The network for these classes. ValueError for images that its convolutions would eat up."""
    side = 18 if config.recipe == "article" else 25
    if min(data.images.shape[1:3]) < side:
        shape = data.images.shape[1:3]
        raise ValueError(f"--dataset {data.name} has images of {shape}, the network needs {side} x {side}")
    if config.recipe == "article":
        return ArticleCNN(config.channels, classes=data.num_classes)
    first = preprocess(data.images[:5000])
    mean, std = (tuple(values.tolist()) for values in (first.mean((0, 1, 2)), first.std((0, 1, 2))))
    return AirbenchCNN(mean, std, config.channels, data.num_classes, jnp.dtype(config.dtype))


def logits(network: Network, variables: dict, images: Array) -> Array:
    """[B, classes] of preprocessed images."""
    return cast(Array, network.apply(variables, images))


def train(
    config: Config, network: Network, data: ImageDataset, input_batches: Batches, run: Run, mesh: jax.sharding.Mesh
) -> Result:
    """Adam on the mean cross-entropy; for airbench Muon, labels smoothed by 0.2, images flipped and moved."""
    if airbench := isinstance(network, AirbenchCNN):
        tx = airbench_optimizer(config.airbench, config.decay_steps, config.batch_size)
        whitening = whitening_kernel(standardise(preprocess(data.images[:5000]), network.mean, network.std))
    else:
        tx, whitening = optimizer(config.optimizer, config.decay_steps), None
    key_flip = jax.random.fold_in(jax.random.key(config.seed), 2)  # one for the run: odd epochs mirror the even ones

    def loss_fn(params: dict, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        images = batch["image"]
        if airbench:
            images = augment.alternating_flip(key_flip, images, batch["id"], batch["epoch"])
            images = augment.random_translate(key, images, 2)
        z = logits(network, {"params": params}, preprocess(images))
        loss, metrics = cross_entropy(z, batch["label"])
        if airbench:
            targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], z.shape[1]), 0.2)
            loss = optax.softmax_cross_entropy(z, targets).mean()
        return loss, metrics

    def init() -> TrainState:
        key_params, key = jax.random.split(jax.random.key(config.seed))
        params = network.init(key_params, preprocess(data.images[:1]))["params"]
        if whitening is not None:
            params["whiten"]["kernel"] = whitening
        return init_state(params, tx, key)

    return fit(
        partial(train_step, loss_fn=loss_fn, tx=tx, accumulation_steps=config.accumulation_steps),
        init,
        input_batches,
        config,
        run=run,
        mesh=mesh,
        show=["loss", "accuracy"],
        steps_per_call=config.steps_per_call,
    )


def trained_variables(network: Network, params: dict, data: ImageDataset) -> dict:
    """What the trained network is applied with: for airbench also the statistics of its batch normalisation."""
    if isinstance(network, ArticleCNN):
        return {"params": params}
    images, size = data.images[:5000], min(500, len(data.images))
    accumulation_steps = (preprocess(images[i : i + size]) for i in range(0, len(images) - size + 1, size))
    return {"params": params, "batch_stats": population_statistics(network, params, accumulation_steps)}


def test(network: Network, variables: dict, scored: ImageDataset) -> np.ndarray:
    """The probability of each class for each image, [n, classes]; in batches of one size, so one program does.

    airbench's are those of the mean logits of six views.
    """
    size, count = 500, len(scored.images)
    of_images = jax.jit(lambda variables, images: logits(network, variables, preprocess(images)))

    def probabilities(images: np.ndarray) -> Array:
        views = [(1.0, images)] if isinstance(network, ArticleCNN) else six_views(images)
        return jax.nn.softmax(sum(weight * of_images(variables, view) for weight, view in views))

    padded = np.concatenate([scored.images, np.zeros_like(scored.images[: -count % size])])
    return np.concatenate([probabilities(padded[i : i + size]) for i in range(0, count, size)])[:count]


def six_views(images: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Weights and views of images (Jordan 2024, section 3.5): as they are and moved by a pixel, each also mirrored."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    for weight, view in [(0.25, images), (0.125, padded[:, :-2, :-2]), (0.125, padded[:, 2:, 2:])]:
        yield weight, view
        yield weight, view[:, :, ::-1]


def draw(
    run: Run, network: Network, variables: dict, scored: ImageDataset, probabilities: np.ndarray, names: Sequence[str]
) -> None:
    """ROC curves, confusion matrix, worst mistakes, filters, and what the network looked at in some test images."""
    labels = scored.labels
    plots.plot_roc(run.folder / "roc.png", labels, probabilities, names)
    confusion = classification.confusion_matrix(labels, probabilities.argmax(1), len(names))
    plots.plot_confusion(run.folder / "confusion.png", confusion, names)
    plots.plot_mistakes(run.folder / "mistakes.png", scored.images, labels, probabilities, names)
    first = "conv_0" if isinstance(network, ArticleCNN) else "whiten"
    plots.plot_filters(run.folder / "filters.png", variables["params"][first]["kernel"])
    images, targets = preprocess(scored.images[:6]), labels[:6]
    of_images = partial(logits, network, variables)
    maps = {
        "gradient x input": attribution.gradient_times_input(of_images, images, targets),
        "integrated gradients": attribution.integrated_gradients(of_images, images, targets, steps=32),
        "Grad-CAM": attribution.grad_cam(
            lambda x: cast(Array, network.apply(variables, x, method="features")),
            lambda x: cast(Array, network.apply(variables, x, method="head")),
            images,
            targets,
        ),
        "occlusion": attribution.occlusion(of_images, images, targets, 6, stride=3, fill=0.5),
    }
    plots.plot_explanations(run.folder / "explanations.png", scored.images[:6], jax.device_get(maps))


def announce(accuracy: float) -> None:
    """Tell the result as soon as it is there, before pictures are drawn."""
    print(f"Test accuracy: {accuracy:.4f}", flush=True)


def report(run: Run, summary: dict[str, Any]) -> None:
    """Tell a person what else came out."""
    figures = summary["test"]
    means = {name: figures[f"{name}_macro"] for name in ("precision", "recall", "f1", "auc")}
    print(", ".join(f"{name} {value:.4f}" for name, value in means.items() if value is not None), "(means of classes)")
    if missing := figures["missing_classes"]:
        print(f"no test images of: {', '.join(missing)}")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")
    print(f"pictures: {run.folder}/roc.png, confusion.png, mistakes.png, filters.png, explanations.png")


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__)
