"""What the coordinator and the clients share: plan format, tensor layout, update codecs, errors."""

import os

# From 1.29 on, onnxruntime reports its use to its maker, keeps an identifier of the device on disk
# for that, and reads these when it is first imported. A device that trains for us reports to its
# coordinator and to nobody else.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["ORT_TELEMETRY_DISABLED"] = "1"  # its name in some versions
