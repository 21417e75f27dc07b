"""What a step takes beside weights and data: the optimizer's state and the hyperparameters."""

from coordinator.compiler.options import StepOptions
from coordinator.compiler.step import Recipe
from headwater.manifest import OptimizerSpec, ParameterGroup, Slot


def hyperparameters_of(options: StepOptions, learning_rate: float) -> dict[str, float]:
    """Defaults of the values that a job may change without compiling again."""
    values = {"learning_rate": learning_rate}
    return values if options.proximal is None else {**values, "proximal": options.proximal}


def optimizer_spec(recipe: Recipe) -> OptimizerSpec:
    """The optimizer's groups with their settings, and its state for each parameter."""
    optimizer = recipe.optimizer
    slots = [Slot(name, None, ()) for name in optimizer.scalars]
    slots += [
        Slot(slot, name, tuple(parameter.shape), initial)
        for slot, initial in optimizer.slots.items()
        for name, parameter in recipe.parameters.items()
    ]
    groups = tuple(
        ParameterGroup(group.optimizer.settings, group.learning_rate_scale, group.names)
        for group in recipe.groups
    )
    return OptimizerSpec(optimizer.name, groups, tuple(slots))
