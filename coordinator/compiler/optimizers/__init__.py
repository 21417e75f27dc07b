"""Local optimizers as pure functions of tensors, so that one trace serves every runtime.

Each follows its torch.optim namesake, step for step.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from coordinator.compiler.optimizers.adagrad import Adagrad
from coordinator.compiler.optimizers.adam import Adam, AdamW
from coordinator.compiler.optimizers.optimizer import Optimizer
from coordinator.compiler.optimizers.rmsprop import RmsProp
from coordinator.compiler.optimizers.sgd import Sgd
from headwater.errors import CompileError

__all__ = ["OPTIMIZERS", "Optimizer", "optimizer_from"]

OPTIMIZERS: dict[str, type[Sgd | Adam | Adagrad | RmsProp]] = {
    kind.name: kind for kind in (Sgd, Adam, AdamW, Adagrad, RmsProp)
}
"""By the name in a job file."""


def optimizer_from(settings: Mapping[str, Any]) -> tuple[Optimizer, float]:
    """An optimizer and its default learning rate from a job's `[train] optimizer` table.

    Raises:
        CompileError: an unknown name or setting, or a value of the wrong type or out of range.
    """
    kind = OPTIMIZERS.get(str(settings.get("name")))
    if kind is None:
        raise CompileError(
            f"optimizer {settings.get('name')!r} is not known; known: {', '.join(OPTIMIZERS)}"
        )
    chosen = {key: value for key, value in settings.items() if key not in ("name", "learning_rate")}
    defaults = asdict(kind())
    for key, value in chosen.items():
        if key not in defaults:
            allowed = ", ".join(["learning_rate", *defaults])
            raise CompileError(
                f"optimizer {kind.name}: unknown setting {key!r}; allowed: {allowed}"
            )
        wanted: tuple[type, ...] = (bool,) if isinstance(defaults[key], bool) else (int, float)
        if type(value) not in wanted:
            raise CompileError(
                f"optimizer {kind.name}: {key} is {value!r}; "
                f"expected {'true or false' if wanted == (bool,) else 'a number'}"
            )
    rate = settings.get("learning_rate")
    if type(rate) not in (int, float) or not 0 < float(str(rate)) < float("inf"):
        raise CompileError(
            f"optimizer {kind.name}: learning_rate is {rate!r}; expected a number above 0"
        )
    return kind(**chosen), float(str(rate))
