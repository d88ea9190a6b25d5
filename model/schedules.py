"""Noise schedules of the diffusion, and the constants that follow from them, in float64."""

import math

import numpy as np


def linear_betas(steps: int) -> np.ndarray:
    """β_0 … β_{T−1}, evenly from a scale's smallest to its largest value, in float64."""
    scale, smallest = (100.0 / steps, 0.01) if steps < 21 else (1000.0 / steps, 0.001)
    return np.linspace(scale * smallest, scale * 0.02, steps, dtype=np.float64)


def cosine_betas(steps: int) -> np.ndarray:
    """β_0 … β_{T−1} of Nichol & Dhariwal 2021, eq. 17, at most 0.999, in float64."""
    times = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def diffusion_constants(beta: np.ndarray) -> dict[str, np.ndarray]:
    """β, ᾱ and the posterior's coefficients, (T,) float64, from β_0 … β_{T−1}.

    The posterior's variance at t = 0, where it is 0, is replaced by its value at t = 1.
    """
    alpha_bar = np.cumprod(1.0 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    variance = beta * (1.0 - before) / (1.0 - alpha_bar)
    return {
        "beta": beta,
        "alphas_cumprod": alpha_bar,
        "one_minus_alphas_cumprod": 1.0 - alpha_bar,
        "posterior_mean_coef1": beta * np.sqrt(before) / (1.0 - alpha_bar),
        "posterior_mean_coef2": (1.0 - before) * np.sqrt(1.0 - beta) / (1.0 - alpha_bar),
        "posterior_log_variance": np.log(np.append(variance[1], variance[1:])),
    }
