"""Pictures of a model: samples, reconstructions and traversals that show each layer's content."""

import io
from collections.abc import Sequence

import matplotlib
import matplotlib.image
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from model import LadderVAE
from model.latents import LatentAccess
from model.noise import Noise, NoisePurpose
from utils.evaluation.collapse import ACTIVE_THRESHOLD, LatentUnits
from utils.report.drawing import STYLE, Drawing, Strip, verbatim

COLUMNS = 10
MOST_ROWS = 9
PATHS = 3  # diffusion paths in each direction
TEMPERATURES = (0.25, 0.5, 0.75, 1.0)
TRAVERSED, PER_LAYER, STEPS, REACH = 8, 2, 9, 3.0  # units, units per layer, values, ±deviations
RMS = "root mean square, intensities 0 … 1"
VARIATION = "standard deviation between samples, intensities 0 … 1"


@torch.no_grad()
def draw_model(model: LadderVAE, x: Tensor, seed: int) -> list[Drawing]:
    """All pictures of a model; x (B, C, H, W): the images to reconstruct."""
    model.eval()
    temperatures = TEMPERATURES if model.any_temperature else (1.0,)
    drawings = [draw_samples(model, seed, temperatures=temperatures)]
    if model.any_temperature:
        drawings.append(draw_fixed_top(model, seed))
    drawings += draw_reconstructions(model, x, seed)
    if model.has_context and model.decoder.context_prior.uses_paths:
        drawings.append(draw_diffusion(model, x, seed))
    return drawings


@torch.no_grad()
def draw_samples(
    model: LadderVAE,
    seed: int,
    count: int = COLUMNS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Drawing:
    """E[x | latents] for latents from the prior, a block of rows per temperature."""
    rows, findings = [], []
    for temperature in temperatures:
        images = model.generate(count, temperature, _noise(model, count, seed)).mean
        findings.append(f"{_variation(images):.3f} at temperature {temperature:g}")
        for first, part in enumerate(images.split(COLUMNS)):
            rows.append((f"temperature {temperature:g}" if first == 0 else "", part))
    title = "Samples from the prior (mean of p(x | z))"
    if len(temperatures) > 1:
        title += "; all temperatures share their noise, column by column"
    text = f"The samples' pixels vary by {', '.join(findings)} ({VARIATION})."
    return image_rows("samples", title, rows, text)


@torch.no_grad()
def draw_fixed_top(model: LadderVAE, seed: int) -> Drawing:
    """Samples that share their top k latents, one row per k."""
    noise = _noise(model, 1, seed)
    one, _ = model.generate_latents(1, noise=noise)
    rows = []
    for k in spread(len(one)):
        given = [z.expand(COLUMNS, -1, -1, -1) for z in one[:k]]
        draws = model.generate(COLUMNS, noise=_noise(model, COLUMNS, seed + k), given=given)
        rows.append((f"top {k} fixed", draws.mean))
    title = f"Samples that share their top k of {len(one)} latents"
    first, last = (f"{_variation(images):.3f} with the {label}" for label, images in _ends(rows))
    text = f"The samples' pixels vary by {first} and by {last} ({VARIATION})."
    return image_rows("samples_fixed_top", title, rows, text)


@torch.no_grad()
def draw_reconstructions(model: LadderVAE, x: Tensor, seed: int) -> list[Drawing]:
    """Reconstructions from all latents, from the top k only, and the context as an image."""
    latents = model(x, noise=_noise(model, len(x), seed)).latents
    values = [latent.z for latent in latents]

    def reconstruct(keep: int) -> Tensor:
        return model.generate(
            len(x), noise=_noise(model, len(x), seed + 1), given=values[:keep]
        ).mean

    full = reconstruct(len(values))
    rows = [("x", x), ("reconstruction", full), ("difference", (full - x) / 2)]
    title = "Reconstructions: all latents from the posterior"
    text = f"Reconstructions of {len(x)} images differ from them by {_error(full, x):.3f} ({RMS})."
    drawings = [image_rows("reconstructions", title, rows, text)]
    rows = [(f"top {k} kept", reconstruct(k)) for k in spread(len(values))]
    title = f"Top k of {len(values)} latents from the posterior, the rest from the prior"
    first, last = (f"{_error(images, x):.3f} with the {label}" for label, images in _ends(rows))
    text = f"The images differ from x by {first}, by {last} ({RMS})."
    drawings.append(image_rows("reconstructions_top", title, [("x", x), *rows], text))
    if model.has_context:
        context = model.decoder.context.render(values[0])
        numbers = " × ".join(map(str, values[0].shape[1:]))
        title = f"The context in image space ({numbers} numbers)"
        text = f"The images differ from x by {_error(context, x):.3f} ({RMS})."
        drawings.append(image_rows("context", title, [("x", x), ("context", context)], text))
    return drawings


@torch.no_grad()
def draw_interpolation(
    model: LatentAccess, x: Tensor, layers: Sequence[int], steps: int
) -> Drawing:
    """A row for each pair of x (B, C, H, W), with B even: the first image, the way, the second.

    layers: whose latents move; the others stay the first image's.
    """
    a, b = x[0::2], x[1::2]
    way = model.interpolate(a, b, layers, steps)  # (steps, B/2, C, H, W)
    rows = [("", torch.cat([a[n : n + 1], way[:, n], b[n : n + 1]])) for n in range(len(a))]
    every = len(layers) == len(model.latent_shapes)
    named = "all latents" if every else f"latents {', '.join(map(str, layers))}"
    title = f"An image, {steps} steps of {named} to those of another, and that image"
    return image_rows("interpolation", title, rows)


@torch.no_grad()
def draw_diffusion(model: LadderVAE, x: Tensor, seed: int) -> Drawing:
    """Contexts of some images noised step by step, and sampled from noise to context."""
    prior, context = model.decoder.context_prior, model.decoder.context
    count = min(PATHS, len(x))
    noise = _noise(model, count, seed)
    u = model(x[:count], noise=_noise(model, count, seed)).latents[0].z
    steps = sorted({round(t) for t in torch.linspace(0, prior.steps - 1, COLUMNS - 1).tolist()})
    noised, eps = [u], noise.normal_like(u)
    for step in steps:
        q = prior.noised(u, torch.full((len(u),), step, device=u.device))
        noised.append(q.mean + q.stddev * eps)
    path = list(prior.sampling_path(count, context.active, noise))  # u_{T-1} … u_0, u
    sampled = [path[prior.steps - 1 - step] for step in reversed(steps)]
    sampled.append(model.decoder.to_levels(path[-1]))
    rows = []
    for title, states in (("noised", noised), ("sampled", sampled)):
        images = torch.stack([context.render(u_t) for u_t in states], 1)  # (count, steps, C, H, W)
        rows += [(title if first == 0 else "", row) for first, row in enumerate(images)]
    title = f"Contexts noised in {prior.steps} steps, and sampled back from noise"
    spreads = [context.render(ends[-1]).std().item() / 2 for ends in ([u], sampled)]
    text = (
        f"Sampled contexts have a standard deviation of {spreads[1]:.3f} over all pixels, those of "
        f"the images {spreads[0]:.3f} (intensities 0 … 1)."
    )
    return image_rows("diffusion", title, rows, text)


@torch.no_grad()
def draw_traversals(model: LadderVAE, x: Tensor, layers: Sequence[LatentUnits]) -> Drawing | None:
    """The most active units of the first image of x, moved over ±3 standard deviations.

    Layers above keep the image's posterior means, layers below take their priors' means. None if no
    unit is active.
    """
    values = [latent.z for latent in model(x[:1], temperature=0).latents]
    rows = []
    for layer, unit in most_active(layers):
        units = layers[layer]
        reach = torch.linspace(-REACH, REACH, STEPS).to(x) * units.variance[unit].sqrt().item()
        moved = values[layer].flatten(1).repeat(STEPS, 1)
        moved[:, unit] = units.mean[unit].item() + reach
        if layer < model.decoder.num_top:
            moved = moved.clamp(-1.0, 1.0)
        given = [z.expand(STEPS, -1, -1, -1) for z in values[:layer]]
        given.append(moved.view(STEPS, *units.shape))
        images = model.generate(STEPS, temperature=0, given=given).mean
        rows.append((f"layer {layer}, unit {unit}", images))
    if not rows:
        return None
    title = f"Most active units from −{REACH:g} to +{REACH:g} deviations, one image"
    change, label = max((_change(images), label) for label, images in rows)
    text = (
        f"The unit that changes the image most is {label}: by {change:.3f} from end to end (mean "
        "over pixels, intensities 0 … 1)."
    )
    return image_rows("traversals", title, rows, text)


def draw_ranked(labels: Sequence[str], images: Sequence[Tensor]) -> Drawing:
    """A row for each of some layers: the images of least KL, then those of most."""
    title = "Images by a layer's KL: the least on the left, the most on the right"
    rows = list(zip(labels, images, strict=True))
    return image_rows("images_by_kl", title, rows, f"An image's KL by {'; '.join(labels)}.")


def most_active(layers: Sequence[LatentUnits]) -> list[tuple[int, int]]:
    """(layer, unit) of the active units of largest Var_x(E[z | x]), a few per layer, sorted."""
    candidates = []
    for layer, units in enumerate(layers):
        largest = units.variance.topk(min(PER_LAYER, units.variance.numel()))
        candidates += [
            (variance, layer, unit)
            for variance, unit in zip(*(t.tolist() for t in largest), strict=True)
            if variance > ACTIVE_THRESHOLD
        ]
    chosen = sorted(candidates, reverse=True)[:TRAVERSED]
    return sorted((layer, unit) for _, layer, unit in chosen)


def image_rows(
    name: str, title: str, rows: Sequence[tuple[str, Tensor]], text: str = ""
) -> Drawing:
    """Labelled rows of images (N, C, H, W) in [−1, 1]; text: what they show."""
    most = max(len(images) for _, images in rows)
    size = (1.4 + 0.75 * most, 0.4 + 0.8 * len(rows))
    strips = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(len(rows), 1, squeeze=False)
        figure.suptitle(verbatim(title), fontsize=10)
        for axis, (label, images) in zip(axes[:, 0], rows, strict=True):
            pixels = _side_by_side(images)
            axis.imshow(pixels, interpolation="none", aspect="equal")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
            axis.spines[:].set_visible(False)
            strips.append(Strip(label, _png(pixels), len(images)))
    return Drawing(name, figure, f"{title}. {text}" if text else title, strips=strips)


def _side_by_side(images: Tensor) -> np.ndarray:
    """(N, C, H, W) in [−1, 1] -> (H, N·(W + 1), 4): RGB and opacity, 0 between the images."""
    colours = (0.5 * (images.float().cpu() + 1.0)).clamp(0.0, 1.0).expand(-1, 3, -1, -1)
    opaque = torch.cat([colours, torch.ones_like(colours[:, :1])], 1)
    strip = torch.nn.functional.pad(opaque, (0, 1))  # a transparent column after each image
    return strip.permute(2, 0, 3, 1).flatten(1, 2).numpy()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    matplotlib.image.imsave(file, pixels, format="png", metadata={"Software": None})
    return file.getvalue()


def _variation(images: Tensor) -> float:
    """Standard deviation between the images, on average over pixels, on 0 … 1."""
    return images.std(0).mean().item() / 2


def _change(images: Tensor) -> float:
    """Mean absolute difference between the first and the last image, on 0 … 1."""
    return (images[-1] - images[0]).abs().mean().item() / 2


def _error(images: Tensor, x: Tensor) -> float:
    """Root mean square difference from x, on 0 … 1."""
    return ((images - x) / 2).square().mean().sqrt().item()


def _ends(rows: Sequence[tuple[str, Tensor]]) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    return rows[0], rows[-1]


def spread(latents: int) -> list[int]:
    """1 … latents, thinned evenly to at most MOST_ROWS values, both ends included."""
    if latents <= MOST_ROWS:
        return list(range(1, latents + 1))
    return sorted({round(k) for k in torch.linspace(1, latents, MOST_ROWS).tolist()})


def _noise(model: LadderVAE, n: int, seed: int) -> Noise:
    return Noise.keyed(torch.arange(n, device=model.device), seed, NoisePurpose.PICTURES)
