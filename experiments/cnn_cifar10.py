"""Convolutional networks on CIFAR-10: the Keras baseline (preset ``article``), and airbench94.

    python experiments/cnn_cifar10.py --data-dir DIR                   # preset article: 10 epochs
    python experiments/cnn_cifar10.py --preset fast --data-dir DIR     # a smaller airbench94: 2 epochs
    python experiments/cnn_cifar10.py --preset airbench --data-dir DIR # for a GPU; on a CPU add --dtype float32
    python experiments/cnn_cifar10.py --preset debug                   # seconds, on embedded digits

DIR holds CIFAR-10's official binary files or a prepared folder; the default is tensorflow-datasets' folder or network.
``article``: 122,570 parameters, Adam at 1e-3, batches of 64. Expected on 2 CPU cores: 68.8 % of the test images (67.8
to 69.7, three seeds) in 143 s; the same program in Keras: 67.2 % in 135 s. ``fast`` and ``airbench`` follow airbench94
(Jordan 2024, arXiv 2404.00498): whitening, batch normalisation, Muon, alternating flip, the mean over six views.
Expected: 80.5 % in 136 s, and 90.6 % in 51 minutes (all on a JPEG-compressed copy of CIFAR-10).
``--held-out 5000`` holds out that many training images and tests on them, to choose hyper-parameters.
"""

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxai import attribution, experiment, metrics, plots, train
from jaxai.config import Training, resumable
from jaxai.data import ImageDataset, alternating_flip, batches, random_translate
from jaxai.errors import UserError
from jaxai.nn import AirbenchCNN, ArticleCNN, cnn
from jaxai.ops import to_unit
from jaxai.run import Run
from jaxai.typing import Array

NAME = "cnn_cifar10"
Network = ArticleCNN | AirbenchCNN
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
logger = logging.getLogger("jaxai.cnn_cifar10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    dataset: Literal["cifar10", "fashion_mnist", "mnist"] = "cifar10"
    """Images to classify; a part of mnist is embedded."""
    recipe: Literal["article", "airbench"] = "article"
    """Network, augmentation, loss, optimiser and evaluation: those of the Keras baseline or of airbench94."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Channels of article's three convolutions, or of airbench's three groups of two."""
    batch_size: int = 64
    optimizer: train.Adam = train.Adam()
    """Optimiser of recipe article."""
    airbench: train.Airbench = train.Airbench()
    """Optimiser of recipe airbench."""
    decay_steps: int = 7812
    """Steps over which the learning rate schedule runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations; parameters are float32. bfloat16 with recipe airbench only."""
    held_out: int = 0
    """Number of training images to hold out and test on instead of the test set."""
    steps_per_call: int | None = resumable(None)
    """Steps per call of the compiled program; by default 1 on a CPU, elsewhere as many as take about 30 ms.
    Values above 1 with the default article network only."""
    accumulation_steps: int = resumable(1)
    """Parts of a batch whose gradients are computed in turn, to save memory; default article network only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "batch_size", "decay_steps", "accumulation_steps")
        if self.steps_per_call is not None:
            self.check_at_least(1, "steps_per_call")
        self.check_at_least(0, "held_out")
        if len(self.channels) != 3 or min(self.channels) < 1:
            raise UserError(f"--channels takes three numbers of at least 1, got {self.channels}")
        if self.recipe == "article" and self.dtype != "float32":
            raise UserError(f"--dtype {self.dtype} needs --recipe airbench")
        train.schedule(self.optimizer, self.decay_steps)
        other, untouched = ("airbench", train.Airbench()) if self.recipe == "article" else ("optimizer", train.Adam())
        if getattr(self, other) != untouched:
            raise UserError(f"--{other}.* does nothing with --recipe {self.recipe}: leave it out")
        steps_per_call = self.steps_per_call or 1
        for option, value in (("steps-per-call", steps_per_call), ("accumulation-steps", self.accumulation_steps)):
            if value > 1 and (self.recipe, self.channels) != ("article", (32, 64, 64)):
                reason = "others are slow inside a loop on a CPU or normalise over the whole batch"
                raise UserError(f"--{option} {value} needs the default article network, {reason}: give 1")
        if self.batch_size % (steps := self.accumulation_steps):
            raise UserError(f"--accumulation-steps must divide --batch-size {self.batch_size}, got {steps}")


PRESETS = {
    "article": Config(steps=7812, steps_per_call=8),  # 10 epochs of 50,000 / 64
    # 2 epochs of 50,000 / 500
    "fast": Config(recipe="airbench", channels=(16, 64, 64), batch_size=500, steps=200, decay_steps=200),
    "airbench": Config(  # 8 epochs of 50,000 / 2000
        recipe="airbench", channels=(64, 256, 256), dtype="bfloat16", batch_size=2000, steps=200, decay_steps=200
    ),
    "debug": Config(dataset="mnist", steps=40),
}


def build(config: Config) -> experiment.Task:
    """The training of the network on the images, with test scores and attribution maps at the end."""
    data, scored = experiment.splits(NAME, config, config.dataset, held_out=config.held_out)
    network = make_network(config, data)
    names = CIFAR10 if config.dataset == "cifar10" else [str(label) for label in range(data.num_classes)]

    def finish(run: Run, result: train.Result) -> dict[str, Any]:
        variables = cnn.testing_variables(network, jax.device_get(result.state.params), data.images[:5000])
        probabilities = cnn.class_probabilities(network, variables, scored.images)
        figures = metrics.scores(scored.labels, probabilities, names)
        logger.info("Test accuracy: %.4f", figures["accuracy"])
        draw(run, network, variables, scored, probabilities, names)
        return {"test_accuracy": figures["accuracy"], "test": figures}

    return experiment.Task(
        identity=data.identity(),
        source=data.source,
        batches=partial(batches, data, config.batch_size, seed=config.seed),
        batch_size=config.batch_size,
        trainer=trainer(config, network, data),
        finish=finish,
        report=report,
        show=["loss", "accuracy"],
        steps_per_call=config.steps_per_call,
    )


def make_network(config: Config, data: ImageDataset) -> Network:
    """Create the network for the data set. ValueError for images that are too small for its convolutions."""
    side, shape = 18 if config.recipe == "article" else 25, data.images.shape[1:3]
    if min(shape) < side:
        raise UserError(f"--dataset {data.name} has images of {shape}, the network needs {side} x {side}")
    if config.recipe == "article":
        return ArticleCNN(config.channels, classes=data.num_classes)
    first = to_unit(data.images[:5000])
    mean, std = (tuple(values.tolist()) for values in (first.mean((0, 1, 2)), first.std((0, 1, 2))))
    return AirbenchCNN(mean, std, config.channels, data.num_classes, jnp.dtype(config.dtype))


def trainer(config: Config, network: Network, data: ImageDataset) -> train.Supervised:
    """Adam on the mean cross-entropy; for airbench Muon, label smoothing of 0.2, random flips and translations."""
    if airbench := isinstance(network, AirbenchCNN):
        tx = train.airbench_optimizer(config.airbench, config.decay_steps, config.batch_size)
        whitening = cnn.whitening_kernel(cnn.standardise(to_unit(data.images[:5000]), network.mean, network.std))
    else:
        tx, whitening = train.optimizer(config.optimizer, config.decay_steps), None
    key_flip = train.Keys(config.seed).data  # one key for the whole run: odd epochs mirror the even ones

    def loss_fn(params: dict, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        images = batch["image"]
        if airbench:
            images = alternating_flip(key_flip, images, batch["id"], batch["epoch"])
            images = random_translate(key, images, 2)
        z = cnn.apply(network, {"params": params}, to_unit(images))
        loss, found = train.cross_entropy(z, batch["label"])
        if airbench:
            targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], z.shape[1]), 0.2)
            loss = optax.softmax_cross_entropy(z, targets).mean()
        return loss, found

    def init_params(key: Array) -> Any:
        params: Any = network.init(key, to_unit(data.images[:1]))["params"]
        if whitening is not None:
            params["whiten"]["kernel"] = whitening
        return params

    gradient = partial(train.mean_gradient, accumulation_steps=config.accumulation_steps)
    return train.Supervised(init_params=init_params, loss_fn=loss_fn, tx=tx, gradient=gradient)


def draw(
    run: Run, network: Network, variables: dict, scored: ImageDataset, probabilities: np.ndarray, names: Sequence[str]
) -> None:
    """Plot the scores, the filters of the first layer, and attribution maps of six test images."""
    plots.save_classifier_scores(run.folder, scored.images, scored.labels, probabilities, names)
    first = "conv_0" if isinstance(network, ArticleCNN) else "whiten"
    plots.plot_filters(run.folder / "filters.png", variables["params"][first]["kernel"])
    layer: Any = partial(partial, network.apply, variables)
    logits, features, head = layer(), layer(method="features"), layer(method="head")
    images, labels = to_unit(scored.images[:6]), scored.labels[:6]
    maps = attribution.explain(logits, features, head, images, labels, window=6, fill=0.5)
    plots.plot_explanations(run.folder / "explanations.png", scored.images[:6], maps)


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print the scores and the paths of the pictures."""
    figures = summary["test"]
    print(f"Test accuracy: {summary['test_accuracy']:.4f}")
    means = {name: figures[f"{name}_macro"] for name in ("precision", "recall", "f1", "auc")}
    print(", ".join(f"{name} {value:.4f}" for name, value in means.items() if value is not None), "(means of classes)")
    if missing := figures["missing_classes"]:
        print(f"no test images of: {', '.join(missing)}")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")
    print(f"pictures: {run.folder}/roc.png, confusion.png, mistakes.png, filters.png, explanations.png")


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__)
