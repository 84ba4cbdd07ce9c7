"""What a command finds around it, made fit to work in: streams, signals, the home, and what libraries say."""

import io
import logging
import os
import signal
import sys
import warnings
from typing import Any

from mechrl.errors import UsageError
from mechrl.process import keep_freed_memory


def prepare(debug: bool) -> None:
    """Makes the process one in which nothing but the command itself can fail.

    :param debug: let libraries say what they say to developers.
    :raises UsageError: the folder that it runs in is gone.
    """
    _open_streams()
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP, and so it stays
            signal.signal(number, _interrupt)
    if os.path.expanduser("~") == "~":  # no HOME, and the user is in no list: libraries would make a folder called ~
        os.environ["HOME"] = "/nonexistent"
    if not debug:
        logging.disable(logging.WARNING)
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
    try:
        os.getcwd()
    except FileNotFoundError as error:  # MKL ends the process for it, and a default file name would lead nowhere
        raise UsageError("the folder that this runs in has been removed; change to one that is there") from error


def _open_streams() -> None:
    """Opens the streams that were closed on nothing, or the next file would get their number and the output with it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115  (it stays open as long as the process)
            os.set_inheritable(stream.fileno(), True)  # by the processes that this one starts
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no × shows a question mark


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
