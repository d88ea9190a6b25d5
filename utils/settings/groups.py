"""TEMP"""

DATASET = (  # the keys that every data set has, beside its source's own
    "name",
    "image_size",
    "channels",
    "levels",
    "standardisation",
    "horizontal_flip",
    "data_module",
)
STORED = ("validation_share", "test_share", "memory_limit", "cache")  # of images read one by one
NOT_THE_SOURCE = (*DATASET, *STORED, "likelihood", "test_arguments")
