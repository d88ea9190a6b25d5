"""Digests that stand for a set of images."""

import hashlib

import torch

from datasets.splits import Images

FINGERPRINTED = 1_000  # images, evenly spread
DIGESTED = 10_000  # images at a time


def images_digest(images: Images) -> str:
    """Sixteen hex digits that stand for these images in this order."""
    sha256 = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in images.split(DIGESTED):
        sha256.update(part.contiguous().cpu().numpy())
    return sha256.hexdigest()[:16]


def fingerprint(images: Images) -> str:
    """Of how many they are and what some of them show, which tells one set from another."""
    places = torch.linspace(0, len(images) - 1, FINGERPRINTED).round().long()
    return f"{len(images)}-{images_digest(images[places.unique()])}"
