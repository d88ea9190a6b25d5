"""Image data sets: each file reads one source, `store` keeps what was read image by image, `loaders`
makes batches on the device.
"""
