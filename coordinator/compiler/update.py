"""From gradients to new parameters: what the `apply` graph does.

It knows parameters by name and group only, so that the names may stand for tensors of the model or
for vectors of several. In this order:
    1. The proximal term's gradient `mu * (p - anchor)` is added: Li, Sahu, Zaheer, Sanjabi,
       Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020. It belongs
       to the objective, so clipping sees it.
    2. The gradient is clipped, by its norm over all parameters (Pascanu, Mikolov, Bengio, "On the
       difficulty of training recurrent neural networks", ICML 2013; as
       torch.nn.utils.clip_grad_norm_) or element by element.
    3. A correction is added: the control variates `c - c_i` of Karimireddy, Kale, Mohri, Reddi,
       Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020.
       It stands for the drift of the steps as they were taken, so it is not clipped.
    4. The optimizer steps, with its weight decay, by parameter group.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coordinator.compiler.optimizers.groups import ParameterGroup
from coordinator.compiler.options import StepOptions

LEARNING_RATE = "h.learning_rate"
PROXIMAL = "h.proximal"

_CLIP_EPSILON = 1e-6
"""torch's, in the denominator of the clip factor."""


def update(
    groups: Sequence[ParameterGroup], options: StepOptions, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`new.p.` and `new.o.` from `p.`, `o.`, `g.`, the hyperparameters, `a.` and `c.`."""
    gradients = directions([n for group in groups for n in group.names], options, tensors)
    optimizer = groups[0].optimizer  # all groups have one kind of optimizer, and share its scalars
    scalars, shared = optimizer.advance([tensors[f"o.{name}"] for name in optimizer.scalars])
    results = {f"new.o.{n}": s for n, s in zip(optimizer.scalars, scalars, strict=True)}
    for group in groups:
        rate = group.scaled(tensors[LEARNING_RATE])
        for name in group.names:
            results |= group.update(name, gradients[name], tensors, shared, rate)
    return results


def directions(
    names: Sequence[str], options: StepOptions, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the optimizer takes for the gradient of each parameter: steps 1 to 3."""
    gradients = {name: tensors[f"g.{name}"] for name in names}
    if options.proximal is not None:
        gradients = {
            name: gradient + tensors[PROXIMAL] * (tensors[f"p.{name}"] - tensors[f"a.{name}"])
            for name, gradient in gradients.items()
        }
    if options.clip_norm is not None:
        factor = _clip_factor(list(gradients.values()), options.clip_norm)
        gradients = {name: gradient * factor for name, gradient in gradients.items()}
    if options.clip_value is not None:
        limit = options.clip_value
        gradients = {name: g.clamp(-limit, limit) for name, g in gradients.items()}
    if options.corrections:
        gradients = {name: g + tensors[f"c.{name}"] for name, g in gradients.items()}
    return gradients


def _clip_factor(gradients: Sequence[Tensor], maximum: float) -> Tensor:
    squares = torch.stack([(gradient * gradient).sum() for gradient in gradients])
    return (maximum / (squares.sum().sqrt() + _CLIP_EPSILON)).clamp(max=1.0)
