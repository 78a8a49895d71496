"""The errors a user can mend. Every command prints their message on one line and exits with 2."""


class StripsegError(Exception):
    """Something the user can mend: the message names file, key or value, and the cure."""


class ConfigError(StripsegError):
    """An option is unknown, has the wrong type or cannot work."""


class DataError(StripsegError):
    """A list, an image or a label cannot be used."""


class CheckpointError(StripsegError):
    """A weights file is missing, damaged, or belongs to another network."""


class DeviceError(StripsegError):
    """The hardware that was asked for is not there."""


class TrainingError(StripsegError):
    """A training run cannot start or cannot go on."""
