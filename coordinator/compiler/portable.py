"""Functions of torch spelled out in other functions of torch that have a portable backward."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from headwater.errors import CompileError

FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""Replacements by the function of torch."""
