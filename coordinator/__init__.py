"""The coordinator: round engine, services, plan compiler and the operators' command."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("headwater")
    """The installed version of this program."""
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+source"
