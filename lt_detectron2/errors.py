"""Errors that are the input's and not the program's: shown without a traceback."""


class UserError(ValueError):
    """Input that cannot be used. The message says what was expected, what came, and a remedy."""


class ConfigError(UserError):
    """A config or command line that cannot be run."""


class DatasetError(UserError):
    """A data set that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing or does not fit the model."""


class NonFiniteLossError(UserError, FloatingPointError):
    """A loss became infinite or no number; the step is saved for `lt-detectron2 replay`."""


class ExportError(UserError):
    """A detector that cannot be exported as asked, or whose exported form differs from it."""
