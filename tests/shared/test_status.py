"""Every error of ours keeps its class and its message across a real gRPC call."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from headwater import errors
from headwater.errors import HeadwaterError
from headwater.status import StatusInterceptor, code_of, translated
from headwater.v1 import control_pb2, control_pb2_grpc


def every_error() -> list[type[HeadwaterError]]:
    found = [errors.HeadwaterError]
    for kind in found:
        found.extend(kind.__subclasses__())
    # kinds of one side's own, such as a client's ranks, never cross
    return [kind for kind in found if kind.__module__ == errors.__name__]


class Failing(control_pb2_grpc.ControlServicer):
    """Raises what it is told to, in a unary and in a streaming call."""

    error: Exception

    async def ListJobs(self, request, context):
        raise self.error

    async def Pull(self, request, context):
        yield control_pb2.PullResponse(data=b"first")
        raise self.error


@pytest.fixture
async def failing() -> AsyncIterator[tuple[Failing, control_pb2_grpc.ControlStub]]:
    server = grpc.aio.server(interceptors=[StatusInterceptor()])
    servicer = Failing()
    control_pb2_grpc.add_ControlServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, control_pb2_grpc.ControlStub(channel)
    await server.stop(None)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
async def test_an_error_arrives_as_itself(failing, kind):
    servicer, stub = failing
    servicer.error = kind("what was wrong, and where: “ünïcödé”")
    with pytest.raises(kind) as caught, translated():
        await stub.ListJobs(control_pb2.ListJobsRequest())
    assert type(caught.value) is kind
    assert str(caught.value) == "what was wrong, and where: “ünïcödé”"
    with pytest.raises(kind), translated():
        async for _ in stub.Pull(control_pb2.PullRequest()):
            pass


async def test_a_defect_is_logged_and_its_details_stay_here(failing, caplog):
    servicer, stub = failing
    servicer.error = ZeroDivisionError("secret detail")
    with pytest.raises(HeadwaterError) as caught, translated():
        await stub.ListJobs(control_pb2.ListJobsRequest())
    assert "secret" not in str(caught.value)
    assert "ZeroDivisionError: secret detail" in caplog.text


async def test_a_server_that_is_not_there_is_unavailable():
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(errors.UnavailableError), translated():
            await control_pb2_grpc.ControlStub(channel).ListJobs(control_pb2.ListJobsRequest())


def test_no_error_stands_for_success():
    assert all(code_of(kind("x")) is not grpc.StatusCode.OK for kind in every_error())


def test_an_extra_that_is_missing_is_named():
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'headwater\[quantum\]'"):
        errors.require("no_such_module", extra="quantum", purpose="entangle")
