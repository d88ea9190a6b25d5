"""Image data sets: each file reads one source; `loaders` makes batches on the device."""
