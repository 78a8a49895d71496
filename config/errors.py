"""The errors that a user can fix: commands print the message and exit with the error's code."""


class StripsegError(Exception):
    """Something the user can fix: the message names the file, key or value, and how to fix it."""

    exit_code = 2


class ConfigError(StripsegError):
    """An option is unknown, has the wrong type or cannot work."""


class DataError(StripsegError):
    """A list, an image or a label cannot be used."""


class CheckpointError(StripsegError):
    """A weights file is missing, damaged, or belongs to another network."""


class DeviceError(StripsegError):
    """The hardware that was asked for is not there."""


class TrainingError(StripsegError):
    """A training run cannot start or continue."""


class OutOfMemoryError(TrainingError):
    """A training step, a validation or a test does not fit the memory of its device."""

    exit_code = 71  # EX_OSERR: for scripts that try again with a smaller batch


class ExportError(StripsegError):
    """A network cannot be exported, or its export does not compute the same."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
