"""Image data sets: a file per source; `io` downloads, decodes, caches; `loaders` makes batches."""
