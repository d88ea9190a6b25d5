"""Digests that identify a set of images."""

import hashlib

import torch

from datasets.splits import Images

SAMPLED = 1_000  # images that a fingerprint hashes, evenly spaced
CHUNK = 10_000  # images hashed at a time


def images_digest(images: Images) -> str:
    """The first 16 hex digits of the SHA-256 of the shape and all images, in order."""
    sha256 = hashlib.sha256(repr(tuple(images.shape)).encode())
    for chunk in images.split(CHUNK):
        sha256.update(chunk.contiguous().cpu().numpy())
    return sha256.hexdigest()[:16]


def fingerprint(images: Images) -> str:
    """Fingerprint: the count and a hash of up to 1,000 evenly spaced images."""
    indices = torch.linspace(0, len(images) - 1, SAMPLED).round().long()
    return f"{len(images)}-{images_digest(images[indices.unique()])}"
