"""A job on its way in: the job file checked again, the plan verified, the first weights made."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial

from sqlalchemy.orm import Session

from coordinator.engine.world import World
from coordinator.jobs.job_file import parse_job
from coordinator.jobs.job_spec import JobSpec, metric_name
from coordinator.services.checks import checked_digest
from headwater.batch import TensorSignature
from headwater.errors import ConflictError, HeadwaterError, JobFileError, PlanError
from headwater.layout import Layout, Weights
from headwater.manifest import Manifest
from headwater.plan import MANIFEST, WEIGHTS, Plan
from headwater.safetensors import read_weights, weights_chunks
from headwater.v1 import control_pb2
from storage import blobs as blob_repository
from storage import history
from storage import jobs as job_repository
from storage import plans as plan_repository
from storage.records import JobRecord, ModelRecord

PIN_HOLDER = "submission"
"""Who pins a plan's blobs between their arrival and the job that refers to them."""


async def submit_job(world: World, request: control_pb2.SubmitJobRequest) -> JobRecord:
    """Check a submission and write the job; when it is refused, its blobs are not kept for it.

    Raises:
        JobFileError: the job file is wrong, or does not belong to the plan.
        PlanError: the plan is damaged, or the weights to start from do not fit it.
        ConflictError: a blob of the plan was not sent.
        NotFoundError: the version to start from does not exist.
    """
    try:
        return await _submit(world, request)
    except HeadwaterError:
        await _unpin(world, request.plan_digest)
        raise


async def _submit(world: World, request: control_pb2.SubmitJobRequest) -> JobRecord:
    spec = parse_job(request.job_file, request.job_file_name or "job.toml")
    plan = await world.work(_plan, world, checked_digest(request.plan_digest))
    fault = mismatch(spec, plan.manifest)
    if fault:
        raise JobFileError(f"{fault}: compile the job file again")
    parent = await _parent(world, spec)
    weights = await world.work(_first_weights, world, plan, parent)
    chunks = weights_chunks(plan.manifest.layout, weights)
    temporary, digest = await world.work(world.blobs.prepare, chunks)
    await world.database.write(
        partial(blob_repository.pin, digest=digest, holder=PIN_HOLDER, now=world.clock.now())
    )
    await world.work(world.blobs.adopt, temporary, digest)
    members = _members(plan)
    return await world.database.write(
        partial(
            _write,
            sizes=await world.work(_sizes, world, [*members.values(), digest]),
            spec=spec,
            plan=plan,
            members=members,
            job_file=request.job_file,
            weights_digest=digest,
            parent=parent,
            now=world.clock.now(),
        )
    )


def _members(plan: Plan) -> dict[str, str]:
    """The digests of the plan's blobs by name."""
    members = plan.manifest.members.items()
    return {MANIFEST: plan.digest} | {name: member.digest for name, member in members}


def _sizes(world: World, digests: Iterable[str]) -> dict[str, int]:
    return {digest: world.blobs.size(digest) for digest in digests}


async def _unpin(world: World, plan_digest: str) -> None:
    """Let the blobs of a refused submission go; what cannot be found out expires."""
    with suppress(HeadwaterError):  # the refusal is what is told
        manifest = Manifest.from_bytes(await world.work(world.blobs.read, plan_digest))
        digests = [plan_digest, *(member.digest for member in manifest.members.values())]
        await world.database.write(partial(_write_unpinned, digests=digests))


def _write_unpinned(session: Session, *, digests: Iterable[str]) -> None:
    for digest in digests:
        blob_repository.unpin(session, digest=digest, holder=PIN_HOLDER)


def mismatch(spec: JobSpec, manifest: Manifest) -> str:
    """How a job file contradicts the plan that it is submitted with; empty where it does not."""
    metrics = tuple(metric_name(metric) for metric in spec.model.metrics)
    if set(metrics) != set(manifest.metrics):
        return f"the plan measures {', '.join(manifest.metrics) or 'no metrics'}"
    if _prepared(spec.model.input_signatures) != _prepared(manifest.inputs):
        return "the plan was compiled for other inputs"
    if _prepared(spec.model.target_signatures) != _prepared(manifest.targets):
        return "the plan was compiled for other targets"
    if spec.train.optimizer.name != manifest.optimizer.name:
        return f"the plan's optimizer is {manifest.optimizer.name}"
    train, step = spec.train, manifest.step
    for name in ("clip_norm", "clip_value", "micro_batch_size"):
        if getattr(train, name) != getattr(step, name):
            return f"the plan was compiled {_with(name, getattr(step, name))}"
    if (train.proximal is not None) != manifest.anchored:
        return (
            f"the plan was compiled {_with('proximal', manifest.hyperparameters.get('proximal'))}"
        )
    weight = manifest.targets[-1].name if manifest.weighted else None
    if spec.model.weight != weight:
        return f"the plan was compiled {_with('weight', weight)}"
    return ""


def _prepared(signatures: Sequence[TensorSignature]) -> list[TensorSignature]:
    """The signatures without the bounds, which the compiler finds out, and without weights."""
    return [replace(one, maximum=None) for one in signatures if not one.is_weight]


def _with(name: str, value: float | str | None) -> str:
    return f"without {name}" if value is None else f"with {name} = {value}"


def _plan(world: World, digest: str) -> Plan:
    if not world.blobs.exists(digest):
        raise ConflictError(f"plan {digest} was not sent: send its blobs first")
    plan = Plan.from_blobs(world.blobs.read(digest), world.blobs.read)
    missing = [
        name
        for name, member in plan.manifest.members.items()
        if not world.blobs.exists(member.digest)
    ]
    if missing:
        raise ConflictError(f"plan {digest} lacks {', '.join(missing)}: send them first")
    return plan


async def _parent(world: World, spec: JobSpec) -> ModelRecord | None:
    start = spec.model.start
    if start is None or start.endswith(".safetensors"):
        return None
    name = start.removesuffix("@latest")
    return await world.database.read(partial(history.model, name=name))


def _first_weights(world: World, plan: Plan, parent: ModelRecord | None) -> Weights:
    layout: Layout = plan.manifest.layout
    if parent is not None:
        return _fitting(world, parent.weights_digest, layout, f"version {parent.model}")
    return _fitting(world, plan.manifest.members[WEIGHTS].digest, layout, "the plan's weights")


def _fitting(world: World, digest: str, layout: Layout, what: str) -> Weights:
    if not world.blobs.exists(digest):
        raise ConflictError(f"{what} ({digest}) was not sent: send it first")
    try:
        with world.blobs.local(digest) as path:
            return read_weights(path, layout)
    except PlanError as error:
        raise PlanError(f"{what} cannot be started from: {error}") from error


def _write(
    session: Session,
    *,
    sizes: Mapping[str, int],
    spec: JobSpec,
    plan: Plan,
    members: Mapping[str, str],
    job_file: str,
    weights_digest: str,
    parent: ModelRecord | None,
    now: datetime,
) -> JobRecord:
    """One transaction: the plan's blobs, the plan, the job with its version 0."""
    for digest in members.values():
        blob_repository.register(
            session, digest=digest, size_bytes=sizes[digest], kind="plan", now=now
        )
    plan_repository.add(
        session,
        digest=plan.digest,
        name=plan.manifest.name,
        manifest=plan.manifest_bytes.decode(),
        members=members,
        now=now,
    )
    record = job_repository.submit(
        session,
        name=spec.name,
        job_file=job_file,
        spec=spec.to_dict(),
        plan_digest=plan.digest,
        dataset=spec.dataset,
        seed=spec.seed,
        weights_digest=weights_digest,
        weights_size_bytes=sizes[weights_digest],
        parent_version_id=parent.id if parent else None,
        now=now,
    )
    _write_unpinned(session, digests=[*members.values(), weights_digest])
    return record
