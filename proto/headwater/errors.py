"""Every error that Headwater raises on purpose.

    HeadwaterError
    ├── UserError                    your mistake: the message says what to change
    │   ├── UsageError                 a wrong option or argument
    │   ├── JobFileError               a job file with a wrong key, type or value
    │   ├── CompileError               a model, loss or optimizer that cannot become a plan
    │   ├── PlanError                  a plan that is damaged, too new or does not fit this device
    │   ├── DataError                  a data set with wrong columns, shapes, types or values
    │   ├── UpdateError                an update of the wrong size, digest or content
    │   ├── NotFoundError              a job, round, client or version that does not exist
    │   ├── ConflictError              something that exists already, or whose state forbids this
    │   └── MissingExtraError          an optional package that is not installed
    └── WorldError                   the world: trying again later can help
        ├── UnavailableError           the other side cannot be reached or is stopping
        ├── StorageError               the database, the disk or the object store failed
        │   ├── BlobError                a blob is missing or damaged
        │   ├── DiskFullError            no space is left
        │   ├── SchemaVersionError       the database is of another schema version
        │   └── HeldError                another process holds this database or directory
        └── DisplacedError             another device runs under this client's identity

A message says what is wrong, where, and what to do about it. Only these cross a process as
themselves (`headwater.status` maps them to gRPC statuses and back); anything else is a defect of
ours.
"""

import importlib
from types import ModuleType


class HeadwaterError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what a command ends with."""

    exit_code = 1


class UserError(HeadwaterError):
    """The caller asked for something that cannot be: repeating it unchanged will not help."""

    exit_code = 2


class UsageError(UserError):
    """A wrong option, argument or setting."""


class JobFileError(UserError):
    """A job file with an unknown key, a wrong type or a value out of range."""


class CompileError(UserError):
    """A model, loss, metric or optimizer that cannot be compiled to a plan."""


class PlanError(UserError):
    """A plan that is damaged, of a newer schema, or not runnable on this device."""


class DataError(UserError):
    """A data set that is missing or has wrong columns, shapes, types or values."""


class UpdateError(UserError):
    """An update of the wrong size, layout or digest, or with values that are not finite."""


class NotFoundError(UserError):
    """A job, round, client, model version or blob that does not exist."""


class ConflictError(UserError):
    """Something that exists already, or whose state forbids what was asked."""


class MissingExtraError(UserError):
    """An optional package is needed and not installed."""


class WorldError(HeadwaterError):
    """Something outside failed: the same request may succeed later."""

    exit_code = 3


class UnavailableError(WorldError):
    """The other side cannot be reached, or is stopping."""


class StorageError(WorldError):
    """The database, the disk or the object store failed."""


class BlobError(StorageError):
    """A blob is missing from its store, or its bytes are of another digest."""


class DiskFullError(StorageError):
    """No space is left on the device that holds the data."""


class SchemaVersionError(StorageError):
    """The database has another schema version than this program."""


class HeldError(StorageError):
    """Another process holds this database, data directory or state directory."""


class DisplacedError(WorldError):
    """Two devices use one client identity; this one lost."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say in one line which extra brings it.

    Raises:
        MissingExtraError: the module, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module.split('.')[0]} is needed to {purpose} and is not installed ({error}): "
            f"pip install 'headwater[{extra}]'"
        ) from error
