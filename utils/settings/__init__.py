"""Settings: composed, checked, named by a digest, and built from."""
