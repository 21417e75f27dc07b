"""Errors across processes: ours become gRPC statuses, and themselves again on the other side.

The error's class travels in the trailing metadata; a status without it comes from gRPC itself (a
dead server, a deadline, a message that is too large) and is mapped by its code.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from headwater import errors
from headwater.errors import HeadwaterError

_KEY = "headwater-error"
_log = logging.getLogger("headwater.status")

_CODE_OF_ERROR: dict[type[HeadwaterError], grpc.StatusCode] = {
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.JobFileError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CompileError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PlanError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DataError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MissingExtraError: grpc.StatusCode.UNIMPLEMENTED,
    errors.UserError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.BlobError: grpc.StatusCode.DATA_LOSS,
    errors.DiskFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SchemaVersionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HeldError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StorageError: grpc.StatusCode.UNAVAILABLE,
    errors.DisplacedError: grpc.StatusCode.ALREADY_EXISTS,
    errors.WorldError: grpc.StatusCode.UNAVAILABLE,
    errors.HeadwaterError: grpc.StatusCode.INTERNAL,
}
_BY_NAME = {kind.__name__: kind for kind in _CODE_OF_ERROR}
_BARE: dict[grpc.StatusCode, type[HeadwaterError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.UsageError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UsageError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.UsageError,
}


def code_of(error: HeadwaterError) -> grpc.StatusCode:
    """The status code that stands for an error, by its nearest ancestor in the table."""
    return next(_CODE_OF_ERROR[kind] for kind in type(error).__mro__ if kind in _CODE_OF_ERROR)


def error_of(rpc_error: Any) -> HeadwaterError:
    """The error that a failed call (an `AioRpcError` or a `grpc.Call`) stands for."""
    code, details = rpc_error.code(), rpc_error.details() or ""
    for key, value in rpc_error.trailing_metadata() or ():
        if key == _KEY and value in _BY_NAME:
            return _BY_NAME[value](details)
    kind = _BARE.get(code, errors.UnavailableError)
    return kind(f"{details} ({code.name})" if details else code.name)


@contextmanager
def translated() -> Iterator[None]:
    """Turns failed calls in its body into our errors.

    Raises:
        HeadwaterError: whatever the other side said, or UnavailableError where it said nothing.
    """
    try:
        yield
    except (grpc.aio.AioRpcError, grpc.RpcError) as error:
        raise error_of(error) from error


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Turns our errors in handlers into statuses; anything else is logged and becomes INTERNAL."""

    async def intercept_service(  # type: ignore[override]
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any]"]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Wrap the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler  # type: ignore[return-value]
        method = handler_call_details.method
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behavior = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        wrap = _wrapped_stream if handler.response_streaming else _wrapped_unary
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            wrap(behavior, str(method)), handler.request_deserializer, handler.response_serializer
        )
        return wrapped


def _wrapped_unary(behavior: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Any]:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behavior(request, context)
        except Exception as error:
            await _abort(context, method, error)

    return handle


def _wrapped_stream(behavior: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., Any]:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            async for response in behavior(request, context):
                yield response
        except Exception as error:
            await _abort(context, method, error)

    return handle


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception
) -> None:
    if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError):
        raise error
    if not isinstance(error, HeadwaterError):
        _log.exception("a defect in %s", method, exc_info=error)
        error = HeadwaterError(f"the coordinator failed in {method}: see its log")
    metadata = ((_KEY, type(error).__name__),)
    await context.abort(code_of(error), str(error), metadata)
