"""Pictures of a model, as PNG files: what a person looks at to see what each layer carries."""

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from model import LadderVAE
from model.noise import Noise

COLUMNS = 10
MOST_ROWS = 9
TEMPERATURES = (0.25, 0.5, 0.75, 1.0)
PICTURES = 104  # keys the noise of pictures


@torch.no_grad()
def draw_model(model: LadderVAE, x: Tensor, folder: Path, seed: int) -> list[Path]:
    """All pictures of a model; x (B, C, H, W): the images to look at."""
    model.eval()
    return [
        draw_samples(model, folder, seed),
        draw_fixed_top(model, folder, seed),
        *draw_reconstructions(model, x, folder, seed),
    ]


def draw_samples(
    model: LadderVAE,
    folder: Path,
    seed: int,
    count: int = COLUMNS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Path:
    """E[x | latents] for latents from the prior, a block of rows per temperature."""
    rows = []
    for temperature in temperatures:
        images = model.generate(count, temperature, _noise(model, count, seed)).mean
        for first, part in enumerate(images.split(COLUMNS)):
            rows.append((f"temperature {temperature:g}" if first == 0 else "", part))
    return image_rows(folder / "samples.png", "Samples from the prior (mean of p(x | z))", rows)


def draw_fixed_top(model: LadderVAE, folder: Path, seed: int) -> Path:
    """Samples that share their top k latents, one row per k."""
    noise = _noise(model, 1, seed)
    one, _ = model.generate_latents(1, noise=noise)
    rows = []
    for k in spread(len(one)):
        given = [z.expand(COLUMNS, -1, -1, -1) for z in one[:k]]
        draws = model.generate(COLUMNS, noise=_noise(model, COLUMNS, seed + k), given=given)
        rows.append((f"top {k} fixed", draws.mean))
    title = f"Samples that share their top k of {len(one)} latents"
    return image_rows(folder / "samples_fixed_top.png", title, rows)


@torch.no_grad()
def draw_reconstructions(model: LadderVAE, x: Tensor, folder: Path, seed: int) -> list[Path]:
    """Reconstructions; those that keep the top k latents only; the context as an image."""
    latents = model(x, noise=_noise(model, len(x), seed)).latents
    values = [latent.z for latent in latents]

    def rebuilt(keep: int) -> Tensor:
        return model.generate(
            len(x), noise=_noise(model, len(x), seed + 1), given=values[:keep]
        ).mean

    full = rebuilt(len(values))
    rows = [("x", x), ("reconstruction", full), ("difference", (full - x) / 2)]
    paths = [image_rows(folder / "reconstructions.png", "All latents from the posterior", rows)]
    rows = [("x", x)] + [(f"top {k} kept", rebuilt(k)) for k in spread(len(values))]
    title = f"Top k of {len(values)} latents from the posterior, the rest from the prior"
    paths.append(image_rows(folder / "reconstructions_top.png", title, rows))
    if model.decoder.num_top:
        rows = [("x", x), ("context", model.decoder.context.render(values[0]))]
        title = f"The context in image space ({tuple(values[0].shape[1:])} numbers)"
        paths.append(image_rows(folder / "context.png", title, rows))
    return paths


def draw_kl(rows: Sequence[dict], folder: Path) -> Path:
    """KL per layer over the epochs in metrics.jsonl's rows."""
    keys = sorted((k for k in rows[-1] if k.startswith("collapse/kl_")), key=_layer)
    figure, axes = plt.subplots(figsize=(8, 4.5))
    colours = plt.get_cmap("viridis")(torch.linspace(0, 0.95, len(keys)).tolist())
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(epochs) < 3 else None
    for key, colour in zip(keys, colours, strict=True):
        values = [row[key] for row in rows]
        axes.plot(epochs, values, color=colour, marker=marker, label=f"layer {_layer(key)}")
    axes.set(xlabel="epoch", ylabel="KL (nats per image)", title="KL per layer, validation set")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(
        title="0 = top",
        ncols=1 + len(keys) // 9,
        fontsize="small",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    return _save(figure, folder / "kl_per_layer.png")


def image_rows(path: Path, title: str, rows: Sequence[tuple[str, Tensor]]) -> Path:
    """Labelled rows of images (N, C, H, W) in [−1, 1]."""
    most = max(len(images) for _, images in rows)
    width = 1.4 + 0.75 * most
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(width, 0.4 + 0.8 * len(rows)), squeeze=False, layout="constrained"
    )
    figure.suptitle(title, fontsize=10)
    for axis, (label, images) in zip(axes[:, 0], rows, strict=True):
        strip = torch.nn.functional.pad(images.float().cpu(), (0, 1, 0, 1), value=1.0)
        strip = strip.permute(2, 0, 3, 1).flatten(1, 2)  # (H, N·W, C)
        strip = (0.5 * (strip + 1.0)).clamp(0.0, 1.0).expand(-1, -1, 3)
        axis.imshow(strip.numpy(), interpolation="nearest", aspect="equal")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for side in axis.spines.values():
            side.set_visible(False)
    return _save(figure, path)


def spread(latents: int) -> list[int]:
    """1 … latents, thinned evenly to what fits one picture, both ends kept."""
    if latents <= MOST_ROWS:
        return list(range(1, latents + 1))
    return sorted({round(k) for k in torch.linspace(1, latents, MOST_ROWS).tolist()})


def _noise(model: LadderVAE, n: int, seed: int) -> Noise:
    return Noise.keyed(torch.arange(n, device=model.device), seed, PICTURES)


def _layer(key: str) -> int:
    return int(key.rpartition("_")[2])


def _save(figure: plt.Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path
