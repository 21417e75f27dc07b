"""Metrics: named numbers computed beside the loss, each a mean over the batch.

Where examples have weights, a metric takes them as its last argument and is the weighted mean.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from coordinator.compiler.losses import class_dimension, weighted_mean
from coordinator.compiler.suggestion import suggested
from headwater.errors import CompileError

Metric = Callable[..., Tensor]


def accuracy(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The share of targets whose class has the highest output.

    Classes lie where `cross_entropy` looks for them; in sequences every place counts alike.
    """
    if target.is_floating_point():
        raise CompileError("the metric accuracy takes class numbers: declare the target int64")
    predicted = output.argmax(class_dimension(output, target))
    hits = (predicted == target).float()
    return hits.mean() if weight is None else weighted_mean(hits, weight)


METRICS: dict[str, Metric] = {"accuracy": accuracy}


def metric_functions(metrics: Sequence[str] | Mapping[str, str | Metric]) -> dict[str, Metric]:
    """Metrics by name: known names, or a mapping that also takes `(output, *targets) -> scalar`.

    Raises:
        CompileError: an unknown name, or one that is taken.
    """
    named: Mapping[str, str | Metric] = (
        metrics if isinstance(metrics, Mapping) else {name: name for name in metrics}
    )
    if "loss" in named:
        raise CompileError("a metric cannot be named 'loss', which is the loss: rename it")
    return {name: _function(metric) for name, metric in named.items()}


def _function(metric: Any) -> Metric:
    if callable(metric):
        function: Metric = metric
        return function
    if metric not in METRICS:
        raise CompileError(
            f"metric {metric!r} is not known{suggested(metric, METRICS)}; use "
            f"{', '.join(METRICS)}, or a function (output, target) -> scalar tensor of your own"
        )
    return METRICS[metric]
