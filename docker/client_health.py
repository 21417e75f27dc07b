"""Health check of a client's container: exits 0 while the client attends its coordinator."""

import sys

from edge_client.state import StateDirectory, default_state_path, running_process
from edge_client.status_file import read_status
from headwater.errors import HeadwaterError


def main() -> int:
    """Print what was found. A client that waits for its coordinator to come back is unhealthy."""
    path = default_state_path()
    if running_process(path) is None:
        print("no client is running")
        return 1
    try:
        status = read_status(StateDirectory(path).status)
    except HeadwaterError as error:
        print(error)
        return 1
    if status is None or status["connected_since"] is None:
        print("not connected to the coordinator")
        return 1
    print(f"attends {status['coordinator']} since {status['connected_since']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
