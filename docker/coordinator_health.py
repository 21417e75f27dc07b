"""Health check of the coordinator's container: asks its gRPC health service, and exits 0 or 1."""

import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

ANSWER_SECONDS = 3.0


def main() -> int:
    """Print what was found. The data directory's file `address` says where the coordinator is."""
    try:
        address = Path(os.environ["HEADWATER_DATA_DIRECTORY"], "address").read_text()
        with grpc.insecure_channel(address) as channel:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=ANSWER_SECONDS)
    except OSError as error:
        print(f"the coordinator has not started yet: {error}")
        return 1
    except grpc.RpcError as error:
        print(f"the coordinator at {address} does not answer: {error.code().name}")
        return 1
    print(HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
