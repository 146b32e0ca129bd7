"""Access control of all connections, and the error messages of refused ones."""

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.serve.protocol import ErrorCode, ErrorMessage, ProtocolError
from icefall_pathways.serve.recognizers import RequestError
from icefall_pathways.serve.service import BusyError, Service

_CODES: dict[type[Exception], ErrorCode] = {
    BusyError: "busy",
    RequestError: "invalid_request",
    ProtocolError: "invalid_message",
    AudioError: "invalid_audio",
    PermissionError: "unauthorized",
}
REFUSALS = tuple(_CODES)
"""Exceptions with a message for the client."""


def refusal(error: Exception) -> ErrorMessage:
    """Return the message for one of `REFUSALS`."""
    return ErrorMessage(code=next(code for kind, code in _CODES.items() if isinstance(error, kind)), message=str(error))


def error_response(message: str, status: int) -> Response:
    """Return an error in the format of OpenAI's API."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


def bearer_token(connection: HTTPConnection) -> str | None:
    """Return the secret of the header Authorization."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def check_token(service: Service, token: str | None) -> None:
    """Check the secret of a client.

    Raises:
      PermissionError: It is missing or wrong.
    """
    if not service.is_authorized(token):
        problem = "no token" if token is None else "a wrong token"
        raise PermissionError(f"{problem}: send the server's secret in the header Authorization: Bearer SECRET")


def has_allowed_origin(service: Service, connection: HTTPConnection) -> bool:
    """Return whether a web page may use the server: its own page, and those of --allow-origins.

    Browsers apply no CORS to websockets; other clients send no origin.
    """
    origin = connection.headers.get("origin")
    if origin is None or {"*", origin} & set(service.config.origins):
        return True
    return origin.partition("://")[2] == connection.headers.get("host")
