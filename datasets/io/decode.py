"""Decoding image files to arrays of one shape."""

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none whose decoder runs programs
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SUFFIXES += (".pgm", ".ppm", ".pnm")
MAX_PIXELS = 80_000_000  # a small file can decompress to more than the memory holds
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"


class Unusable(Exception):
    """A file that cannot be used; the message says why in a few words."""


@dataclass(frozen=True)
class Decoder:
    """Decodes to (channels, size, size) uint8: the centred square, scaled (bilinear, antialiased).

    One channel is grey by ITU-R 601. 16-bit grey keeps its upper byte; of an animation the first
    frame is used; transparency is composited on white; EXIF's orientation is applied. crop: (left,
    upper, right, lower) instead of the centred square.
    """

    channels: int
    size: int
    crop: tuple[int, int, int, int] | None = None

    def __call__(self, file: "str | os.PathLike | BinaryIO") -> np.ndarray:
        """Decode the image in a file.

        Raises:
            Unusable: if it holds no image that can be read.
            ValueError: if the disk or its network fails, which may pass: no image is left out.
        """
        try:
            with Image.open(file, formats=FORMATS) as image:
                return self.fit(image)
        except (Unusable, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise Unusable(TOO_LARGE) from None
        except UnidentifiedImageError:
            raise Unusable("no image, whatever the name says") from None
        except PermissionError:
            raise Unusable("no permission to read") from None
        except Exception as error:  # a damaged file can make a decoder raise anything
            gone = isinstance(error, FileNotFoundError)
            if isinstance(error, OSError) and error.errno and not gone:  # of the disk or network
                raise ValueError(
                    f"An image could not be read ({error}): repeat the command when it can be."
                ) from error
            raise Unusable(f"damaged: {' '.join(str(error).split())[:80]}") from error

    def fit(self, image: Image.Image) -> np.ndarray:
        """Crop, scale and convert an image in memory."""
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Unusable(TOO_LARGE)
        image = opaque(ImageOps.exif_transpose(image)).convert("L" if self.channels == 1 else "RGB")
        if self.crop:
            image = image.crop(self.crop)
        if image.size != (self.size, self.size):
            width, height = image.size
            side = min(width, height)
            left, upper = (width - side) // 2, (height - side) // 2
            # Cropped first: resize(box=…) would also read pixels outside the box.
            image = image.crop((left, upper, left + side, upper + side))
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        array = np.asarray(image)
        return array[None] if self.channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def opaque(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel and without transparency."""
    if image.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise Unusable("grey levels of more than 16 bits")
        return Image.fromarray((levels >> 8).astype(np.uint8))
    if image.mode == "F":
        raise Unusable("grey levels that are floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white
    return image
