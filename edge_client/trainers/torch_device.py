"""Which kind of device torch would train on."""

import torch

from headwater.errors import UsageError


def torch_device_type(device: str) -> str:
    """`cpu` or `cuda`; `auto` is CUDA where torch sees a GPU.

    Raises:
        UsageError: CUDA was asked for and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if device.startswith("cuda") and not has_gpu:
        raise UsageError(
            f"--device {device} is not possible: torch sees no GPU here. Install torch with CUDA "
            "and the driver, or use --device cpu"
        )
    return "cuda" if device != "cpu" and has_gpu else "cpu"
