"""Keeping from the user what libraries say while a model loads; what is an error is raised."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from the libraries while a model loads, and nothing for them to ask."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns of every later fork
    from transformers.utils import logging as transformers_logging

    level = logging.root.manager.disable
    bars: Any = transformers_logging  # without annotations
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if shown:
            bars.enable_progress_bar()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing of what libraries in Rust write past Python, such as the trace of a panic."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    try:
        yield
    finally:
        for descriptor, own in zip((1, 2), kept, strict=True):
            os.dup2(own, descriptor)
            os.close(own)
        os.close(nothing)
