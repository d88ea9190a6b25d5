"""task=check_data: what a data set holds, before anything is trained on it."""

import hashlib
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from datasets.loaders import normalise
from datasets.splits import SPLITS, Images, ImageSplits
from model.context import CONTEXTS, quantise
from utils.files import write_json
from utils.report import pictures
from utils.report.drawing import Drawing, save
from utils.settings.build import load_images
from utils.terminal import Terminal
from utils.training.memory import estimate_memory, total_memory

CHUNK = 4096  # images at a time
ROWS = {"train": 6, "validation": 2, "test": 2}  # of the contact sheet
ACROSS = 6  # images in a row, each with its context
MOST_CLASSES = 30  # that the terminal shows; the JSON file has all


def check_data(settings: dict, device: torch.device, output: Path, terminal: Terminal) -> Path:
    """Tables on the terminal; check_data.json and contact_sheet.png in the folder output."""
    began = time.monotonic()
    splits = load_images(settings)
    seconds = time.monotonic() - began
    name, data = settings["dataset"]["name"], settings["dataset"]["data_module"]
    terminal.line(
        f"{name}: {splits.counts} images of {splits.image_shape}, ready in {seconds:.1f} s"
    )
    for note in splits.notes:
        terminal.line(f"{name}: {note}")
    passes = settings["train"]["acc_grad"]
    weights, activations = estimate_memory(settings, -(-data["batch_size"] // passes))
    pixels = sum(len(getattr(splits, s)) for s in SPLITS) * math.prod(splits.image_shape)
    on_disk = not isinstance(splits.train, Tensor)
    record = {
        "name": name,
        "config": settings["dataset"],
        "image_shape": splits.image_shape,
        "seconds": round(seconds, 2),
        "notes": splits.notes,
        "splits": contents(splits),
        "classes": balance(splits),
        "memory": {
            "images": 0 if on_disk else pixels,
            "on_disk": pixels if on_disk else 0,
            "weights": round(weights),
            "activations": round(activations),
            "there": total_memory(device),
        },
    }
    show(record, settings, device, terminal)
    path = write_json(output / "check_data.json", record)
    picture = save(contact_sheet(splits, settings), output)
    terminal.line(f"All figures are in {path}, some images with their contexts in {picture}")
    return path


def contents(splits: ImageSplits) -> dict[str, dict]:
    """Of each split: images, their levels, and how many of them are there more than once."""
    digests = {split: _digests(getattr(splits, split)) for split in SPLITS}
    found = {}
    for split in SPLITS:
        own = set(digests[split])
        found[split] = {
            "images": len(digests[split]),
            **_levels(getattr(splits, split), splits.max_value),
            "repeated": len(digests[split]) - len(own),
            "also_in": {
                other: sum(digest in own for digest in digests[other])
                for other in SPLITS[SPLITS.index(split) + 1 :]
            },
        }
    return found


def _digests(images: Images) -> list[bytes]:
    """Sixteen bytes that stand for each image's pixels."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for part in images.split(CHUNK)
        for image in part.numpy()
    ]


def _levels(images: Images, max_value: int) -> dict[str, float]:
    """Lowest and highest level; mean and deviation on the scale of dataset.standardisation."""
    low, high, first, second, count = 255, 0, 0.0, 0.0, 0
    for part in images.split(CHUNK):
        levels = part.double()
        low, high = min(low, int(part.min())), max(high, int(part.max()))
        first, second = first + float(levels.sum()), second + float(levels.square().sum())
        count += part.numel()
    mean, scale = first / count, 255.0 / max_value
    deviation = math.sqrt(max(second / count - mean**2, 0.0))
    return {"min": low, "max": high, "mean": scale * mean, "deviation": scale * deviation}


def balance(splits: ImageSplits) -> dict[str, list[int]]:
    """Of each class, how many images every split has; empty where there are no classes."""
    if splits.labels is None:
        return {}
    counts = [torch.bincount(labels, minlength=len(splits.classes)) for labels in splits.labels]
    return dict(zip(splits.classes, torch.stack(counts, 1).tolist(), strict=True))


def contact_sheet(splits: ImageSplits, settings: dict) -> Drawing:
    """Images of every split; where the model has a context, each with its own to its right."""
    model, rows = settings["model"], []
    context = None
    if "ctx_size" in model:
        decoder, (channels, size, _) = model["decoder"], splits.image_shape
        context = CONTEXTS[decoder["ctx_type"]](channels, size, model["ctx_size"])
        context.fit_scale(splits.train, splits.max_value)
    for split, most in ROWS.items():
        images = getattr(splits, split)
        count = min(len(images), most * ACROSS)
        places = torch.linspace(0, len(images) - 1, count).round().long()
        x = normalise(images[places], splits.max_value)
        if context is not None:
            seen = context.render(quantise(context.encode(x), decoder["z_L_bits"]))
            x = torch.stack([x, seen], 1).flatten(0, 1)
        parts = x.split(ACROSS * (1 if context is None else 2))
        rows += [(split if n == 0 else "", part) for n, part in enumerate(parts)]
    title = settings["dataset"]["name"]
    if context is not None:
        numbers = " × ".join(map(str, (channels, model["ctx_size"], model["ctx_size"])))
        title += f": each image, and its context ({numbers} numbers) to its right"
    return pictures.image_rows("contact_sheet", title, rows)


def show(record: dict, settings: dict, device: torch.device, terminal: Terminal) -> None:
    """The record as tables, and in words what should be looked into."""
    splits, memory = record["splits"], record["memory"]
    mean, deviation = settings["dataset"]["standardisation"]
    terminal.table(
        f"Levels of the images; mean and deviation on 0 … 255, where dataset.standardisation is "
        f"[{mean:g}, {deviation:g}]",
        ["split", "", "images", "min", "max", "mean", "deviation", "repeated"],
        [
            [
                split,
                "",
                f"{found['images']:,}",
                f"{found['min']:g}",
                f"{found['max']:g}",
                f"{found['mean']:.2f}",
                f"{found['deviation']:.2f}",
                f"{found['repeated']:,}",
            ]
            for split, found in splits.items()
        ],
    )
    if record["classes"]:
        shown = list(record["classes"].items())[:MOST_CLASSES]
        terminal.table(
            f"Images of {len(record['classes'])} classes"
            + ", the first" * (len(shown) < len(record["classes"])),
            ["class", "", *SPLITS],
            [[name, "", *(f"{count:,}" for count in counts)] for name, counts in shown],
        )
    for split, found in splits.items():
        for other, count in found["also_in"].items():
            if count:
                terminal.line(
                    f"Note: {count:,} image(s) of {other} are in {split} too, pixel for pixel."
                )
    passes = settings["train"]["acc_grad"]
    batch = settings["dataset"]["data_module"]["batch_size"] // passes
    needs = [memory[key] for key in ("weights", "activations", "images")]
    terminal.line(
        f"Training {settings['name']} takes {sum(needs) / 1e9:.2f} GB of {device}'s "
        f"{memory['there'] / 1e9:.1f}, beside PyTorch itself: weights, gradients and moments "
        f"{needs[0] / 1e9:.2f}, a pass over {batch} images {needs[1] / 1e9:.2f}, the images "
        f"{needs[2] / 1e9:.2f}"
        + (f" ({memory['on_disk'] / 1e9:.2f} stay in their file)." if memory["on_disk"] else ".")
    )
