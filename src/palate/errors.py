"""The errors that callers catch. Each message is one line: what was seen, where, what was expected, what to do."""


class PalateError(Exception):
    """Base of every error that Palate raises on purpose; the command line turns it into one line and exit code 2."""


class DataError(PalateError):
    """The input data is not usable: names the file, the row and the column."""


class ConfigError(PalateError):
    """A setting is unknown, of the wrong type or out of range: names the setting."""


class ModelError(PalateError):
    """A saved model cannot be read, or does not fit what is asked of it: names the folder or file."""


class NumericalError(PalateError):
    """A NaN or infinity appeared in training or in weights: names the stage and the step."""


class StoreError(PalateError):
    """The store cannot be read or written: names the store and what to do; nothing acknowledged is lost."""
