"""What an author may ask of a training step beyond model, loss and optimizer."""

from dataclasses import dataclass

from coordinator.compiler.optimizers.groups import GroupRule
from headwater.errors import CompileError

CALLS = ("positional", "keywords", "dictionary")
"""How the model takes its inputs: `forward(x, y)`, `forward(x=x, y=y)` or `forward({"x": x})`."""


@dataclass(frozen=True)
class StepOptions:
    """Options of the step, in the order in which they act on it.

    `weight` names a float32 number an example, of shape [batch], by which the loss and the metrics
    are weighted. `proximal` adds a term that holds the weights near those of the round's start; its
    value is the default of a hyperparameter. `clip_norm` and `clip_value` bound the gradient,
    `corrections` adds an input to it, `groups` treats parameters differently. `micro_batch_size` is
    the most examples that are computed at once; larger batches are accumulated.

    Raises:
        CompileError: a value is out of range, or both ways of clipping are asked for.
    """

    call: str = "positional"
    weight: str | None = None
    proximal: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    corrections: bool = False
    groups: tuple[GroupRule, ...] = ()
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise CompileError(f"call is {self.call!r}; expected one of {', '.join(CALLS)}")
        for name in ("proximal", "clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise CompileError(f"{name} is {value}; expected a number above 0")
        if self.clip_norm is not None and self.clip_value is not None:
            raise CompileError("clip_norm and clip_value are both set: choose one")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise CompileError(f"micro_batch_size is {self.micro_batch_size}; expected at least 1")


PLAIN = StepOptions()
"""Forward, backward and the optimizer, no more."""
