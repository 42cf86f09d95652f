"""Errors that are the input's and not the program's: shown without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Input that cannot be used. The message says what was expected, what came, and a remedy."""


class ConfigError(UserError):
    """A config or command line that cannot be run."""


class DatasetError(UserError):
    """A data set that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing or does not fit the model."""


class NonFiniteLossError(UserError, FloatingPointError):
    """A loss, a proposal or a weight is infinite or no number; the message says what is saved."""


class FullMemoryError(UserError, RuntimeError):
    """A training step that found no memory."""


class ExportError(UserError):
    """A detector that cannot be exported as asked, or whose exported form differs from it."""


@contextlib.contextmanager
def about(file: str) -> Iterator[None]:
    """Begin the message of each UserError with this file, unless it names it already."""
    try:
        yield
    except UserError as error:
        if file in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error


def reason(error: Exception) -> str:
    """The first sentence of what a library says, and of which type it is where that is no text."""
    sentence = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    has_words = sum(map(str.isalpha, sentence)) > 3
    return sentence if has_words else " ".join(filter(None, (type(error).__name__, sentence)))
