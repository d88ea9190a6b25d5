"""The log, which a run's folder takes over, is given back."""

import logging

import pytest


@pytest.fixture
def own_log():
    """Put the log's handlers back after each test."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    logging.captureWarnings(False)
    for handler in list(root.handlers):
        if handler not in handlers:
            handler.close()
    root.handlers = handlers
