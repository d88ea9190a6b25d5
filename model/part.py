"""What every part of the model that settings choose by name has in common."""

from typing import Any

from torch import nn


class Part(nn.Module):
    """A module that takes plain keyword arguments, and can say which of them don't go together."""

    @classmethod
    def check_arguments(cls, size: int, **arguments: Any) -> None:
        """Refuse arguments from which the part cannot be built, before anything is built.

        size: height and width of what the part works on: the image for the whole model and its
        decoders, the latent for a prior and its denoiser. arguments: those of the constructor that
        are known before building, by name; each class names those that it checks.

        Raises:
            ValueError: in one sentence that begins with an argument's name, so that the caller can
                prefix it with the key that the argument has in the settings.
        """

    @classmethod
    def fewest_parameters(cls, **arguments: Any) -> int:
        """A lower bound on the part's parameters, from the constructor's arguments alone.

        By it what cannot fit any memory is refused before it is built; 0 says nothing.
        """
        return 0
