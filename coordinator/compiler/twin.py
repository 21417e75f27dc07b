"""Eager torch's own update of parameters, the yardstick for the `apply` half of a step."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from coordinator.compiler.step import Recipe
from headwater.batch import Array

Arrays = dict[str, Array]


class Twin:
    """torch.optim and torch's clipping in one dtype, over the parameters of a trajectory.

    `state` holds the parameters by `p.` name and `added` the anchors and corrections by theirs.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: Mapping[str, Tensor],
        added: Mapping[str, Tensor],
        hyperparameters: Mapping[str, float],
        dtype: torch.dtype,
    ) -> None:
        self._options = recipe.options
        self._proximal = hyperparameters.get("proximal", 0.0)
        self._added = {name: value.to(dtype) for name, value in added.items()}
        self._parameters = {
            n: nn.Parameter(state[f"p.{n}"].to(dtype, copy=True)) for n in recipe.parameters
        }
        rate = hyperparameters["learning_rate"]
        groups = [group.eager(self._parameters, rate) for group in recipe.groups]
        self._optimizer = recipe.optimizer.eager(groups, rate)

    def step(self, gradients: Mapping[str, Array]) -> Arrays:
        """The parameters, as `new.p.`, after a step with these gradients, given as `g.`."""
        for name, parameter in self._parameters.items():
            # a copy, since what follows writes it in place
            parameter.grad = torch.tensor(gradients[f"g.{name}"], dtype=parameter.dtype)
        self._finish_gradients()
        self._optimizer.step()
        return {f"new.p.{n}": p.detach().numpy().copy() for n, p in self._parameters.items()}

    def after(self, gradients: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        """What `step` would return, without taking the step; and what torch.optim would take for
        the gradients, named like the parameters."""
        twin = copy.deepcopy(self)
        parameters = twin.step(gradients)
        return parameters, {f"new.p.{n}": np.asarray(p.grad) for n, p in twin._parameters.items()}

    def _finish_gradients(self) -> None:
        """The proximal term through autograd, then clipping, then the correction."""
        parameters, options = self._parameters, self._options
        if options.proximal is not None:
            terms = [(p - self._added[f"a.{n}"]).square().sum() for n, p in parameters.items()]
            torch.autograd.backward(self._proximal / 2 * torch.stack(terms).sum())
        if options.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters.values(), options.clip_norm)
        if options.clip_value is not None:
            nn.utils.clip_grad_value_(parameters.values(), options.clip_value)
        if options.corrections:
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                parameter.grad += self._added[f"c.{name}"]
