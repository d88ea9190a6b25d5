"""A run's folder, its checkpoint files, and being asked to stop."""
