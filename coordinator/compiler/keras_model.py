"""A Keras 3 model on the torch backend as a torch module that plans can be made of.

A Keras layer reads its variables from Keras' own objects and not from the module's parameters, and
knows nothing of `train()` and `eval()`. So the model is called statelessly: its trainable variables
become parameters, those that training updates become buffers, and `training` follows the module's.
Keras' Dropout draws from a seed kept as an integer variable; here it draws like torch's.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from headwater.errors import CompileError

_SEED = "seed_generator_state"
_BACKEND = (
    "the Keras model does not run on torch: set the environment variable KERAS_BACKEND=torch, or "
    'os.environ["KERAS_BACKEND"] = "torch" above the first import of keras'
)


def as_module(model: nn.Module) -> nn.Module:
    """The module itself, or one that calls it where it is a Keras model.

    Raises:
        CompileError: no module, or a wrapper around one; a Keras model of another backend, not
            built, or with random layers other than Dropout.
    """
    if not isinstance(model, nn.Module):
        raise CompileError(
            f"the model is {model!r}, not a torch.nn.Module: give an instance, as in Net()"
        )
    if isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):  # torch.compile's
        raise CompileError(
            f"the model is wrapped in {type(model).__name__}: give the module inside of it; a "
            "client chooses its devices and torch.compile itself"
        )
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(model, keras.Layer):
        return model
    if keras.backend.backend() != "torch":
        raise CompileError(_BACKEND)
    return KerasModule(model)


class KerasModule(nn.Module):
    """Calls a Keras model with the parameters and buffers of this module.

    They are named as Keras has them, with underscores for slashes: `sequential_dense_kernel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        unbuilt = [layer.name for layer in model._flatten_layers() if not layer.built]
        if unbuilt:
            raise CompileError(
                f"the Keras layer {unbuilt[0]!r} is not built and has no weights yet: begin the "
                "model with keras.Input(shape), or call it once on an example in the factory"
            )
        self._dropouts = list(_dropouts(model))
        self._model = [model]  # in a list, so that its variables are not found a second time
        for variable in model.trainable_variables:
            self.register_parameter(_name(variable), nn.Parameter(variable.value.detach().clone()))
        for variable in self._kept:
            self.register_buffer(_name(variable), variable.value.detach().clone())

    def forward(self, *inputs: Tensor) -> Any:
        """The model's output; what it updates is stored in the buffers."""
        (model,) = self._model
        trained = [getattr(self, _name(variable)) for variable in model.trainable_variables]
        others = [
            variable.value if variable.path.endswith(_SEED) else getattr(self, _name(variable))
            for variable in model.non_trainable_variables
        ]
        with _drawing_like_torch(self._dropouts):
            output, updated = model.stateless_call(trained, others, *inputs, training=self.training)
        new = dict(zip(map(_name, model.non_trainable_variables), updated, strict=True))
        for variable in self._kept if self.training else ():
            setattr(self, _name(variable), new[_name(variable)])
        return output

    @property
    def _kept(self) -> list[Any]:
        variables = self._model[0].non_trainable_variables
        return [variable for variable in variables if not variable.path.endswith(_SEED)]

    def __deepcopy__(self, known: dict[int, Any]) -> "KerasModule":
        copy = KerasModule(self._model[0])
        copy.load_state_dict(self.state_dict())
        return copy.train(self.training)


def _name(variable: Any) -> str:
    return str(variable.path).replace("/", "_").replace(".", "_")


def _dropouts(model: Any) -> Iterator[Any]:
    """Dropout layers, after refusing others that draw random numbers."""
    keras = sys.modules["keras"]
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.Dropout and layer.noise_shape is None:
            yield layer
        elif getattr(layer, "seed_generator", None) is not None:
            raise CompileError(
                f"the Keras layer {layer.path!r} ({type(layer).__name__}) draws random numbers: "
                "only Dropout without a noise_shape draws alike on every device; leave it out, or "
                "bring the noise as an input"
            )


@contextmanager
def _drawing_like_torch(layers: list[Any]) -> Iterator[None]:
    """Within it, these layers call torch's dropout, which plans know."""

    def call_of(layer: Any) -> Any:
        return lambda inputs, training=False: F.dropout(inputs, layer.rate, bool(training))

    for layer in layers:
        vars(layer)["call"] = call_of(layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]
