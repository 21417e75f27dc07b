"""The Enrollment service: the place where devices will prove themselves."""

from typing import Any

import grpc.aio

from headwater.v1 import enrollment_pb2, enrollment_pb2_grpc


class EnrollmentService(enrollment_pb2_grpc.EnrollmentServicer):
    """Says that this coordinator takes devices without enrollment."""

    async def Describe(  # noqa: N802
        self,
        request: enrollment_pb2.DescribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> enrollment_pb2.DescribeResponse:
        """The coordinator's terms."""
        return enrollment_pb2.DescribeResponse(
            open=True, instructions="run headwater-client run: no enrollment is needed"
        )
