"""Image data sets: each file reads one source; `loaders` turns images into batches on the device."""
