"""Where a run's record goes: its folder, W&B, TensorBoard."""
