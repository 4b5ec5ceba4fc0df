"""The GAN of gan_mnist.py's preset `default` or `article` and its training in PyTorch, the peer of `gan_step.py`.

    python torch_gan_step.py --threads 2                       # one line of JSON per request and per answer:
    python torch_gan_step.py --preset article --device cuda

    {"ask": "check", "form": "plain", "inputs": "inputs.npz", "outputs": "outputs.npz"}
    {"ask": "time", "form": "plain", "steps": 20}

`check` sets weights, moments, average and step number, takes steps on given images and noise, and returns losses,
penalties and images from the moving average; `time` continues this training on random images and fresh noise, and
returns the seconds of `steps` steps. Forms: `plain`; `channels_last`; `compiled`: channels last, the discriminator's
gradient by torch.func within torch.compile, which has no double backward of autograd ("torch.compile with aot_autograd
does not currently support double backward"). Compiling the generator and its update as well was slower.

The step: R3GAN's loss (arXiv 2501.05441), R1 and R2 on every step by torch.autograd.grad with create_graph, real and
generated images in one batch; both updates use the same generated images. The generator's update uses the new
discriminator, without gradients of its parameters and without a graph for its logits of real images. Adam is fused,
which was faster than foreach. Weights are named as in Flax: kernels HWIO, dense kernels [in, out], maps flattened HWC.
The preset `article` has cross-entropies without penalty or average; there `compiled` compiles both networks. On a GPU
images and noise are made on the device, and products may be TF32, JAX's default there.
"""

import argparse
import copy
import itertools
import json
import math
import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value
from torch.nn import functional

LATENT, WIDTHS, HIDDEN, SIDE = 64, (48, 24), 256, 7
PENALTY, LAST_PENALTY, HORIZON = 0.5, 0.5, 8000
HALF_LIFE, RAMP_UP = 10_000, 0.05  # of the moving average, in images
FORMS = ("plain", "channels_last", "compiled")


def activation(x):
    return functional.leaky_relu(x, 0.2)


class Generator(nn.Module):
    def __init__(self, channels_last):
        super().__init__()
        self.channels_last = channels_last
        self.dense = nn.ModuleList([nn.Linear(LATENT, HIDDEN), nn.Linear(HIDDEN, SIDE * SIDE * WIDTHS[0])])
        sizes = zip(WIDTHS, (*WIDTHS[1:], 1), strict=True)
        self.convolutions = nn.ModuleList(nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in sizes)

    def to_map(self, x, channels):
        if self.channels_last:
            return x.view(-1, SIDE, SIDE, channels).permute(0, 3, 1, 2)
        return x.view(-1, channels, SIDE, SIDE)

    def forward(self, x):
        x = self.to_map(self.dense[1](activation(self.dense[0](x))), WIDTHS[0])
        for convolution in self.convolutions:
            x = convolution(activation(x))
        return torch.tanh(x)

    def from_ours(self, arrays, prefix):
        """Yield our arrays in the order and layout of `parameters()`."""
        for number in range(len(self.dense)):
            weight, bias = (torch.from_numpy(arrays[f"{prefix}.Dense_{number}.{x}"]) for x in ("kernel", "bias"))
            to_map = number == len(self.dense) - 1 and not self.channels_last
            yield channels_first(weight.T, 0, SIDE) if to_map else weight.T
            yield channels_first(bias, 0, SIDE) if to_map else bias
        for number in range(len(self.convolutions)):
            kernel = torch.from_numpy(arrays[f"{prefix}.ConvTranspose_{number}.kernel"])
            yield kernel.flip(0, 1).permute(2, 3, 0, 1)  # the kernel of the transposed convolution's adjoint
            yield torch.from_numpy(arrays[f"{prefix}.ConvTranspose_{number}.bias"])


class Discriminator(nn.Module):
    side = SIDE
    """Height and width of the flattened map."""

    def __init__(self, channels_last):
        super().__init__()
        self.channels_last = channels_last
        widths = WIDTHS[::-1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 4, 2, 1) for i, o in zip((1, *widths[:-1]), widths, strict=True)
        )
        self.dense = nn.ModuleList([nn.Linear(SIDE * SIDE * widths[-1], HIDDEN), nn.Linear(HIDDEN, 1)])

    def flat(self, x):
        return (x.permute(0, 2, 3, 1) if self.channels_last else x).flatten(1)

    def forward(self, x):
        for convolution in self.convolutions:
            x = activation(convolution(x))
        x = self.flat(x)
        return self.dense[1](activation(self.dense[0](x)))[:, 0]

    def from_ours(self, arrays, prefix):
        """Yield our arrays in the order and layout of `parameters()`."""
        for number in range(len(self.convolutions)):
            yield torch.from_numpy(arrays[f"{prefix}.Conv_{number}.kernel"]).permute(3, 2, 0, 1)
            yield torch.from_numpy(arrays[f"{prefix}.Conv_{number}.bias"])
        for number in range(len(self.dense)):
            weight = torch.from_numpy(arrays[f"{prefix}.Dense_{number}.kernel"]).T
            yield weight if number or self.channels_last else channels_first(weight, 1, self.side)
            yield torch.from_numpy(arrays[f"{prefix}.Dense_{number}.bias"])


def channels_first(x, axis, side):
    """Reorder an axis from side * side * channels to channels * side * side."""
    return x.unflatten(axis, (side * side, -1)).transpose(axis, axis + 1).flatten(axis, axis + 1)


class ArticleGenerator(Generator):
    def __init__(self, channels_last):
        nn.Module.__init__(self)
        self.channels_last = channels_last
        sizes = (100, 128, 256, 512, SIDE * SIDE * 128)
        self.dense = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.convolutions = nn.ModuleList(nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in ((128, 128), (128, 64)))
        self.last = nn.Conv2d(64, 1, 3, 1, 1)

    def forward(self, x):
        for dense in self.dense[:-1]:
            x = functional.relu(dense(x))
        x = self.to_map(self.dense[-1](x), 128)
        for convolution in self.convolutions:
            x = convolution(x)
        return torch.tanh(self.last(x))

    def from_ours(self, arrays, prefix):
        yield from super().from_ours(arrays, prefix)
        yield torch.from_numpy(arrays[f"{prefix}.Conv_0.kernel"]).permute(3, 2, 0, 1)
        yield torch.from_numpy(arrays[f"{prefix}.Conv_0.bias"])


class ArticleDiscriminator(Discriminator):
    side = 28

    def __init__(self, channels_last):
        nn.Module.__init__(self)
        self.channels_last = channels_last
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, 1, 1) for i, o in ((1, 32), (32, 64)))
        self.dense = nn.ModuleList([nn.Linear(self.side * self.side * 64, 128), nn.Linear(128, 1)])

    def forward(self, x):
        for convolution in self.convolutions:
            x = functional.leaky_relu(convolution(x), 0.01)
        return self.dense[1](torch.sigmoid(self.dense[0](self.flat(x))))[:, 0]


class Preset(NamedTuple):
    networks: tuple
    batch: int
    latent: int
    rate: float
    last_rate: float
    betas: tuple
    relativistic: bool
    """R3GAN's loss with penalty and moving average; else cross-entropies."""


PRESETS = {
    "default": Preset((Generator, Discriminator), 32, LATENT, 2e-3, 2e-4, (0.0, 0.99), True),
    "article": Preset((ArticleGenerator, ArticleDiscriminator), 32, 100, 1e-4, 1e-4, (0.9, 0.999), False),
}


class Training:
    """Both networks, their optimisers, the moving average and the step number."""

    def __init__(self, form, preset, device):
        layout = torch.contiguous_format if form == "plain" else torch.channels_last
        networks = [make(form != "plain").to(device, memory_format=layout) for make in preset.networks]
        self.generator, self.discriminator = self.generate, self.discriminate = networks
        self.average = copy.deepcopy(self.generator).requires_grad_(False) if preset.relativistic else None
        self.layout, self.step_number, self.preset, self.device = layout, 0, preset, device
        self.optimizers = [torch.optim.Adam(x.parameters(), preset.rate, preset.betas, fused=True) for x in networks]
        self.compiled = None
        if form == "compiled" and preset.relativistic:
            self.compiled = torch.compile(grad_and_value(self.pure_loss, has_aux=True))
        elif form == "compiled":
            self.generate, self.discriminate = map(torch.compile, networks)

    @torch.no_grad()
    def load(self, arrays):
        """Load our training state."""
        self.step_number = int(arrays["step"])
        names = ("generator", "discriminator")
        for name, network, optimizer in zip(names, (self.generator, self.discriminator), self.optimizers, strict=True):
            columns = (network.from_ours(arrays, f"{name}{ending}") for ending in ("", "_mu", "_nu"))
            for parameter, value, mean, square in zip(network.parameters(), *columns, strict=True):
                parameter.copy_(value)
                moments = [torch.empty_like(parameter).copy_(x) for x in (mean, square)]
                step = torch.tensor(float(self.step_number), device=self.device)
                optimizer.state[parameter] = {"step": step, "exp_avg": moments[0], "exp_avg_sq": moments[1]}
        if self.average is not None:
            values = self.generator.from_ours(arrays, "average")
            for parameter, value in zip(self.average.parameters(), values, strict=True):
                parameter.copy_(value)

    def step(self, real, noise):
        """Update both networks; return the discriminator's loss, the generator's loss and the penalty."""
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step_number / HORIZON)))
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.preset.last_rate + share * (self.preset.rate - self.preset.last_rate)
        weight = LAST_PENALTY + share * (PENALTY - LAST_PENALTY)
        fake = self.generate(noise)
        both = torch.cat([real, fake.detach()])
        d_loss, penalty = (self.learn_compiled if self.compiled else self.learn)(both, weight)
        self.discriminator.requires_grad_(False)
        real_logits = 0.0
        if self.preset.relativistic:
            with torch.no_grad():
                real_logits = self.discriminator(real)
        g_loss = functional.softplus(real_logits - self.discriminate(fake)).mean()
        self.optimizers[0].zero_grad(set_to_none=True)
        g_loss.backward()
        self.optimizers[0].step()
        self.discriminator.requires_grad_(True)
        self.step_number += 1
        if self.average is not None:
            decay = 0.5 ** (self.preset.batch / min(HALF_LIFE, RAMP_UP * self.step_number * self.preset.batch))
            parameters = [x.detach() for x in self.generator.parameters()]
            torch._foreach_lerp_(list(self.average.parameters()), parameters, 1 - decay)
        return d_loss.detach(), g_loss.detach(), penalty.detach()

    def learn(self, both, weight):
        """Update the discriminator by autograd's double backward."""
        if self.preset.relativistic:
            both.requires_grad_()
            logits = self.discriminator(both)
            (gradient,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
            loss, penalty = weighted_loss(logits, gradient, weight)
        else:
            real, fake = self.discriminate(both).chunk(2)
            loss = (functional.softplus(-real) + functional.softplus(fake)).mean()
            penalty = torch.zeros(())
        self.optimizers[1].zero_grad(set_to_none=True)
        loss.backward(inputs=list(self.discriminator.parameters()))
        self.optimizers[1].step()
        return loss, penalty

    def learn_compiled(self, both, weight):
        """Update the discriminator by the compiled gradient."""
        parameters = dict(self.discriminator.named_parameters())
        values = {name: x.detach() for name, x in parameters.items()}
        gradients, (loss, penalty) = self.compiled(values, both, torch.full((), weight, device=self.device))
        for name, parameter in parameters.items():  # fused Adam needs a gradient in its parameter's layout
            four = parameter.ndim == 4
            parameter.grad = gradients[name].contiguous(memory_format=self.layout if four else torch.contiguous_format)
        self.optimizers[1].step()
        return loss, penalty

    def pure_loss(self, parameters, both, weight):
        def logits(x):
            values = functional_call(self.discriminator, parameters, (x,))
            return values.sum(), values

        gradient, values = grad(logits, has_aux=True)(both)
        return weighted_loss(values, gradient, weight)

    @torch.no_grad()
    def draw(self, noise):
        return (self.average or self.generator)(noise).permute(0, 2, 3, 1)


def weighted_loss(logits, gradient, weight):
    """The relativistic loss with its penalty, and the penalty: the mean of 1/2 (|grad D(x)|^2 + |grad D(G)|^2)."""
    real, fake = logits.chunk(2)
    penalty = gradient.square().sum() / (2 * len(real))
    return functional.softplus(fake - real).mean() + weight * penalty, penalty


class Peer:
    """Answers requests with a training per form and the images in its layout."""

    def __init__(self, preset, device):
        self.preset, self.device = PRESETS[preset], device
        self.trainings, self.pixels = {}, {}

    def check(self, form, inputs, outputs):
        with np.load(inputs) as saved:
            arrays = dict(saved)
        if form not in self.trainings:
            self.trainings[form] = Training(form, self.preset, self.device)
            images = torch.from_numpy(arrays["images"]).to(self.device).permute(0, 3, 1, 2)
            self.pixels[form] = images.contiguous(memory_format=self.trainings[form].layout)
        training = self.trainings[form]
        training.load(arrays)
        rows, noise = (torch.from_numpy(arrays[name]).to(self.device) for name in ("rows", "noise"))
        losses = [training.step(self.batch(form, one), z) for one, z in zip(rows.long(), noise, strict=True)]
        columns = np.array([[float(x) for x in row] for row in losses]).T
        names = ("discriminator_loss", "generator_loss", "penalty")
        np.savez(outputs, drawn=training.draw(noise[-1]).cpu().numpy(), **dict(zip(names, columns, strict=True)))
        return {}

    def time(self, form, steps):
        training = self.trainings[form]
        batch, latent, device = self.preset.batch, self.preset.latent, self.device
        self.wait()
        before = time.perf_counter()
        for rows in torch.randint(len(self.pixels[form]), (steps, batch), device=device):
            training.step(self.batch(form, rows), torch.randn(batch, latent, device=device))
        self.wait()
        return {"seconds": time.perf_counter() - before}

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def batch(self, form, rows):
        return self.pixels[form][rows].float() / 127.5 - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        torch.set_float32_matmul_precision("high")
    answers, sys.stdout = sys.stdout, sys.stderr  # keep messages out of the answers
    print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
    peer = Peer(arguments.preset, arguments.device)
    for line in sys.stdin:
        request = json.loads(line)
        ask = {"check": peer.check, "time": peer.time}[request.pop("ask")]
        try:
            answer = ask(**request)
        except RuntimeError as error:  # such as torch.compile without a C++ compiler
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
