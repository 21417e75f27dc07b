"""The coordinator: round engine, services, plan compiler and the operators' command."""

import os
from importlib.metadata import PackageNotFoundError, version

import headwater  # noqa: F401  (before anything imports onnxruntime: see there)

# gRPC's core writes to standard error by itself, and reads this when it is first imported. What
# matters of it comes as an error of a call, too.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    VERSION = version("headwater")
    """The installed version of this program."""
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+source"
