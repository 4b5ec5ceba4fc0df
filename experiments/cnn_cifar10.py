"""A convolutional network that names what is in a picture: the article's classifier on CIFAR-10.

    python experiments/cnn_cifar10.py --data-dir DIR                   # preset article: 10 epochs
    python experiments/cnn_cifar10.py --preset debug                   # seconds, on embedded digits

DIR holds CIFAR-10 as official binary files or prepared; without it tensorflow-datasets' folder or the network is asked.
It is the article's program, step for step: ``preprocess``, ``build``, ``train``, ``test``; 122,570 parameters, Adam at
1e-3, batches of 64. Expected: 69.55 % of the test images (seed 0); the article's program in Keras gave 69.8 %.
The run's folder ends with summary.json (accuracy, precision, recall, F1, ROC AUC, confusion matrix) and pictures: ROC
curves, confusion matrix, the worst mistakes, the first layer's filters, and what the network looked at.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxai import cli, explain
from jaxai.data import Dataset, load
from jaxai.data.pipeline import batches
from jaxai.metrics import classification
from jaxai.nn.cnn import ArticleCNN
from jaxai.train.loop import Batches, Result, fit
from jaxai.train.optim import Adam, optimizer
from jaxai.train.run import Run, began_embedded, open_run
from jaxai.train.sharding import make_mesh, processes
from jaxai.train.state import TrainState
from jaxai.train.supervised import init_state, train_step
from jaxai.typing import Array

NAME = "cnn_cifar10"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Common):
    """Options of this experiment."""

    dataset: Literal["cifar10", "fashion_mnist", "mnist"] = "cifar10"
    """What to tell apart; of mnist some digits are embedded."""
    batch_size: int = 64
    optimizer: Adam = Adam()
    horizon: int = 7812
    """Steps over which the learning rate takes its course."""
    checkpoint_every: int = 782

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "batch_size", "horizon", "checkpoint_every")


PRESETS = {
    "article": Config(steps=7812),  # 10 epochs of 50,000 / 64
    "debug": Config(dataset="mnist", steps=40, checkpoint_every=20),
}


def main(config: Config) -> None:
    """Load, build, train, test, explain, report."""
    data = load(config.dataset, "train", data_dir=config.data_dir, embedded_only=began_embedded(NAME, config))
    scored = load(config.dataset, "test", data_dir=config.data_dir, embedded_only=data.embedded)
    network = build(data)
    input_batches = batches(data, config.batch_size, seed=config.seed, **processes())
    mesh = make_mesh(config.devices, batch_size=config.batch_size)
    run = open_run(NAME, config, data.identity())
    if summary := run.finished(config.steps):
        report(run, summary)
        return
    result = train(config, network, data, input_batches, run, mesh)
    params = jax.device_get(result.state.params)
    probabilities = test(network, params, scored)
    names = CIFAR10 if config.dataset == "cifar10" else [str(label) for label in range(data.num_classes)]
    figures = classification.scores(scored.labels, probabilities, names)
    draw(run, network, params, scored, probabilities, names)
    summary = {
        "steps": int(result.state.step),
        "data": data.source,
        "test_accuracy": figures["accuracy"],
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
        "test": figures,
    }
    run.write_summary(summary)
    report(run, summary)


def preprocess(images: Array | np.ndarray) -> Array:
    """uint8 [B, H, W, C] to float32 in [0, 1]."""
    return jnp.asarray(images).astype(jnp.float32) / 255


def build(data: Dataset) -> ArticleCNN:
    """The network for these classes. ValueError for images that its convolutions would eat up."""
    if min(data.images.shape[1:3]) < 18:
        raise ValueError(f"--dataset {data.name} has images of {data.images.shape[1:3]}, the network needs 18 x 18")
    return ArticleCNN(classes=data.num_classes)


def logits(network: ArticleCNN, params: dict, images: Array) -> Array:
    """[B, classes] of preprocessed images."""
    return cast(Array, network.apply({"params": params}, images))


def train(
    config: Config, network: ArticleCNN, data: Dataset, input_batches: Batches, run: Run, mesh: jax.sharding.Mesh
) -> Result:
    """Adam on the mean cross-entropy."""
    tx = optimizer(config.optimizer, config.horizon)

    def loss_fn(params: dict, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        z = logits(network, params, preprocess(batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"])
        return losses.mean(), {"accuracy": (z.argmax(-1) == batch["label"]).mean()}

    def init() -> TrainState:
        key_params, key = jax.random.split(jax.random.key(config.seed))
        return init_state(network.init(key_params, preprocess(data.images[:1]))["params"], tx, key)

    return fit(
        partial(train_step, loss_fn=loss_fn, tx=tx),
        init,
        input_batches,
        run=run,
        steps=config.steps,
        checkpoint_every=config.checkpoint_every,
        show=["loss", "accuracy"],
        mesh=mesh,
        shard_parameters=config.shard_parameters,
        tensorboard=config.tensorboard,
    )


def test(network: ArticleCNN, params: dict, scored: Dataset) -> np.ndarray:
    """The probability of each class for each image, [n, classes]; in batches of one size, so one program does."""
    size, count = 500, len(scored.images)
    probabilities = jax.jit(lambda images: jax.nn.softmax(logits(network, params, preprocess(images))))
    padded = np.concatenate([scored.images, np.zeros_like(scored.images[: -count % size])])
    return np.concatenate([probabilities(padded[i : i + size]) for i in range(0, count, size)])[:count]


def draw(
    run: Run, network: ArticleCNN, params: dict, scored: Dataset, probabilities: np.ndarray, names: Sequence[str]
) -> None:
    """ROC curves, confusion matrix, worst mistakes, filters, and what the network looked at in some test images."""
    labels = scored.labels
    classification.plot_roc(run.folder / "roc.png", labels, probabilities, names)
    confusion = classification.confusion_matrix(labels, probabilities.argmax(1), len(names))
    classification.plot_confusion(run.folder / "confusion.png", confusion, names)
    classification.plot_mistakes(run.folder / "mistakes.png", scored.images, labels, probabilities, names)
    classification.plot_filters(run.folder / "filters.png", params["conv_0"]["kernel"])
    images, targets = preprocess(scored.images[:6]), labels[:6]
    of_images = partial(logits, network, params)
    variables = {"params": params}
    maps = {
        "gradient x input": explain.gradient_times_input(of_images, images, targets),
        "integrated gradients": explain.integrated_gradients(of_images, images, targets, steps=32),
        "Grad-CAM": explain.grad_cam(
            lambda x: cast(Array, network.apply(variables, x, method="features")),
            lambda x: cast(Array, network.apply(variables, x, method="head")),
            images,
            targets,
        ),
        "occlusion": explain.occlusion(of_images, images, targets, 6, stride=3, fill=0.5),
    }
    explain.plot_explanations(run.folder / "explanations.png", scored.images[:6], jax.device_get(maps))


def report(run: Run, summary: dict[str, Any]) -> None:
    """Tell a person what came out."""
    figures = summary["test"]
    print(f"Test accuracy: {summary['test_accuracy']:.4f}")
    means = {name: figures[f"{name}_macro"] for name in ("precision", "recall", "f1", "auc")}
    print(", ".join(f"{name} {value:.4f}" for name, value in means.items() if value is not None), "(means of classes)")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")
    print(f"pictures: {run.folder}/roc.png, confusion.png, mistakes.png, filters.png, explanations.png")


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__)
