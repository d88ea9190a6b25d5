"""Image files: downloading, decoding, caching, and reading from disk."""
