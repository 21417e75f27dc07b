"""The author's side in Python: from a job file, or a JobSpec, to a plan.

    from coordinator.author import compile_job

    plan = compile_job("examples/digits/job.toml", output="digits.plan")
    print(plan.digest)

It needs the `author` extra. `coordinator.control_client` sends the job to a coordinator.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.compiler.plan_cache import PlanCache, opened_files, plan_key
from coordinator.jobs.factory import JobCode
from coordinator.jobs.job_file import read_job
from coordinator.jobs.job_spec import JobSpec, metric_name
from coordinator.jobs.train_spec import Optimizer
from headwater.errors import CompileError, require
from headwater.safetensors import read_tensors

if TYPE_CHECKING:
    from coordinator.compiler.options import StepOptions

Progress = Callable[[str], None]


def compile_job(
    job: str | Path | JobSpec,
    output: str | Path | None = None,
    progress: Progress | None = None,
    *,
    folder: str | Path = ".",
    cache: PlanCache | None = None,
) -> CompiledPlan:
    """Compile a job's model, loss and optimizer to a plan.

    The plan is also written where `output` names a path. `job` is the path of a job file, or a
    JobSpec whose code lies in `folder`. The factory is called with torch's generator seeded by the
    job's seed, so that the same job with the same code gives the same plan, byte for byte.
    `progress` is told in words what is being done. With a `cache` a job whose code, model and
    environment it knows is not compiled again.

    Raises:
        JobFileError: the job file cannot be read, or something in it is wrong.
        CompileError: the author's code, or what it returns, cannot become a plan.
        MissingExtraError: the `author` extra is not installed.
    """
    if isinstance(job, JobSpec):
        spec, place = JobSpec.from_dict(job.to_dict()), Path(folder)
    else:
        spec, place = read_job(Path(job)), Path(job).parent
    plan = _compiled(spec, place, progress, cache)
    if output is not None:
        plan.write(Path(output))
    return plan


def _compiled(
    spec: JobSpec, folder: Path, progress: Progress | None, cache: PlanCache | None
) -> CompiledPlan:
    require("onnx", extra="author", purpose="compile a model")
    torch = require("torch", extra="author", purpose="compile a model")

    with JobCode(folder) as code, torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        with opened_files() as files:
            model = code.model(spec.model.factory)
            start = spec.model.start
            if start is not None and start.endswith(".safetensors"):
                _start_from(model, folder / start)
            loss = code.function(spec.model.loss, "loss")
            metrics = {metric_name(one): code.function(one, "metric") for one in spec.model.metrics}
        key = plan_key(spec, model, files, folder) if cache is not None else ""
        known = cache.read(key) if cache is not None else None
        if known is not None:
            if progress is not None:
                progress("the plan of this job is in the cache")
            return CompiledPlan(*known)
        from coordinator.compiler.compile import compile_plan  # seconds to import

        plan = compile_plan(
            model,
            loss,
            metrics,
            optimizer_settings(spec.train.optimizer),
            spec.model.input_signatures,
            spec.model.target_signatures,
            name=spec.name,
            batch_size=spec.train.batch_size,
            seed=spec.seed,
            loss_settings=spec.model.loss_settings.given,
            options=step_options(spec),
            progress=progress,
        )
    if cache is not None:
        cache.write(key, plan.manifest, plan.members)
    return plan


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer as the compiler takes it: one flat mapping, `betas` as `beta1` and `beta2`."""
    settings: dict[str, Any] = dict(optimizer.settings)
    if "betas" in settings:
        settings["beta1"], settings["beta2"] = settings.pop("betas")
    return {"name": optimizer.name, "learning_rate": optimizer.learning_rate, **settings}


def step_options(spec: JobSpec) -> "StepOptions":
    """What else a job asks of its training step."""
    from coordinator.compiler.optimizers.groups import GroupRule
    from coordinator.compiler.options import StepOptions

    train = spec.train
    return StepOptions(
        call=spec.model.call,
        weight=spec.model.weight,
        proximal=train.proximal,
        clip_norm=train.clip_norm,
        clip_value=train.clip_value,
        groups=tuple(
            GroupRule(one.parameters, one.weight_decay, one.learning_rate_scale)
            for one in train.groups
        ),
        micro_batch_size=train.micro_batch_size,
    )


def _start_from(model: Any, path: Path) -> None:
    """Replace the model's tensors by those of a file; only trainable ones must all be there.

    Raises:
        CompileError: the file is missing or holds other tensors.
    """
    if not path.is_file():
        raise CompileError(f"[model] start: there is no file {path}")
    torch = require("torch", extra="author", purpose="compile a model")
    ours, stored = model.state_dict(), read_tensors(path)
    trainable = {name for name, one in model.named_parameters() if one.requires_grad}
    problems = [f"{name} is missing" for name in sorted(trainable - set(stored))]
    problems += [f"{name} is not of this model" for name in sorted(set(stored) - set(ours))]
    problems += [
        f"{name} has shape {list(array.shape)}, the model {list(ours[name].shape)}"
        for name, array in stored.items()
        if name in ours and tuple(array.shape) != tuple(ours[name].shape)
    ]
    if problems:
        raise CompileError(f"[model] start: {path} does not fit the model: {'; '.join(problems)}")
    tensors = {name: torch.tensor(array) for name, array in stored.items()}
    model.load_state_dict(tensors, strict=False)
