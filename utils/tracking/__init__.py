"""Tracking: a run's metrics to its folder, W&B, TensorBoard and other sinks."""
