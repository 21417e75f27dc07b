"""What a new version scores on the coordinator's own data. It blocks, on a worker thread."""

from coordinator.engine.fold import Folded
from coordinator.engine.live import JobRun
from coordinator.engine.world import World
from headwater.errors import UserError
from headwater.evaluation import evaluate
from headwater.layout import Weights
from headwater.sources import open_source
from storage.records import MetricScope, MetricValue

EVALUATION_BATCH = 256
"""Examples in a batch of held-out data."""


def held_out_metrics(world: World, run: JobRun, folded: Folded) -> tuple[list[MetricValue], str]:
    """What the new version scores on the coordinator's own data, if the job's policy asks now.

    Training does not depend on it: where it cannot be measured, the second value says why.
    """
    policy = run.spec.rounds.evaluate
    number = run.record.rounds_committed + 1
    due = number >= run.spec.rounds.count or number % policy.every == 0
    if "coordinator" not in policy.on or not due or folded.weights is None:
        return [], ""
    binding = world.held_out.get(run.spec.dataset)
    if binding is None:
        return [], f"no held-out data is bound: headwater serve --data {run.spec.dataset}=PATH"
    try:
        return _measured(world, run, binding, folded.weights), ""
    except UserError as error:
        return [], f"the held-out data cannot be used: {error}"


def _measured(world: World, run: JobRun, binding: str, weights: Weights) -> list[MetricValue]:
    if run.held_out is None:
        manifest = run.plan.manifest
        run.held_out = open_source(binding, manifest.inputs, manifest.targets)
    result = dict(evaluate(run.plan, weights, run.held_out, EVALUATION_BATCH, world.threads))
    examples = int(result.pop("examples"))
    return [
        MetricValue(MetricScope.COORDINATOR, name, value, examples)
        for name, value in result.items()
    ]
