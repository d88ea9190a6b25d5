"""The ladder VAE with a context (Kuzina & Tomczak 2023, arXiv 2302.09976)."""

from model.ladder_vae import LadderOutput, LadderVAE

__all__ = ["LadderOutput", "LadderVAE"]
