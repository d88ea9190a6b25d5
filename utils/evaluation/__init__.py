"""Evaluation of trained models: bounds, likelihoods, posterior collapse, comparisons."""
