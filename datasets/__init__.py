"""Image data sets: each file reads one source, `store` keeps what was read one by one, `loaders`
makes batches on the device.
"""
