"""A run's folder, its checkpoint files, and the signals that interrupt it."""
