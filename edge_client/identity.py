"""Who a device is: an identity that stays, and an instance that is new at every start."""

import json
import re
import secrets
from dataclasses import dataclass

from edge_client.state import StateDirectory
from headwater import durable_files
from headwater.errors import StorageError

_CLIENT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Identity:
    """`client_id` outlives restarts; `instance_id` names one run of the program."""

    client_id: str
    instance_id: str


def load_identity(state: StateDirectory) -> Identity:
    """The identity in a held state directory, drawn and stored at its first use.

    Raises:
        StorageError: the identity file is damaged or cannot be read or written. It is never
            replaced silently: a new identity would be a new device to the coordinator.
    """
    with durable_files.disk_errors(state.identity):
        if not state.identity.exists():
            _create(state)
        text = state.identity.read_text()
    return Identity(_parse(text, state), secrets.token_hex(16))


def _create(state: StateDirectory) -> None:
    document = json.dumps({"client_id": secrets.token_hex(16)}) + "\n"
    durable_files.write(state.identity, [document.encode()])
    state.identity.chmod(0o600)


def _parse(text: str, state: StateDirectory) -> str:
    try:
        client_id = json.loads(text)["client_id"]
        if _CLIENT_ID.fullmatch(client_id):
            return str(client_id)
    except (ValueError, KeyError, TypeError):
        pass
    raise StorageError(
        f"{state.identity} is damaged: it should hold a client_id of 32 hexadecimal digits. "
        "Restore it from a backup, or delete it to enroll this device as a new client"
    )
