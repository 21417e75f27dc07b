"""The device's side: attends a coordinator, trains on local data, and sends updates."""

import os

import headwater  # noqa: F401  (before anything imports onnxruntime: see there)

# gRPC's core writes to standard error by itself, and reads this when it is first imported. What
# matters of it comes as an error of a call, too.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
