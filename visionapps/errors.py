"""What a caller can do wrong, one class per place to look. Every message says what, where, expected, and what to do."""


class VisionAppsError(Exception):
    """Base of every error that a user can cause and mend; the command line prints it in one line and exits with 1."""


class ConfigError(VisionAppsError):
    """A setting, an argument or a combination of them cannot work."""


class DataError(VisionAppsError):
    """An image, mask, raster or annotation cannot be used as it is."""


class WeightsError(VisionAppsError):
    """Weights, a checkpoint or a bundle cannot be found, read or fitted to the model."""


class OutputError(VisionAppsError):
    """A result cannot be written: it exists already, or the disk refuses it."""
