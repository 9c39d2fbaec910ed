"""What every part of a configuration refuses with."""

from collections.abc import Callable
from typing import TypeVar

Made = TypeVar("Made")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field."""


def checked(part: str, make: Callable[[], Made]) -> Made:
    """``make()``; what it refuses is a `ConfigError` of ``part``."""
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{part}: {error}") from error
