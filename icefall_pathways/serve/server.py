"""The application and its process: routes, TLS and signals."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from icefall_pathways.serve import http
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.connections import bearer_token, check_token, error_response
from icefall_pathways.serve.http_connections import RequestTimeoutProtocol
from icefall_pathways.serve.recognizers import RequestError, SpeechModel
from icefall_pathways.serve.service import BusyError, Service
from icefall_pathways.serve.sherpa import serve_sherpa
from icefall_pathways.serve.transcriptions import transcriptions
from icefall_pathways.serve.web_page import page
from icefall_pathways.serve.websocket import serve_websocket

_SHUTDOWN_TIMEOUT = 5  # seconds for connections to close after the streams have ended
_KEEPALIVE_SECONDS, _KEEPALIVE_TIMEOUT = 20.0, 60.0  # of websockets, to detect clients that are gone


def serve(config: ServeConfig) -> None:
    """Load the model and serve it until SIGTERM or SIGINT; SIGHUP loads it again.

    Raises:
      ValueError: A file of the model is missing or damaged, or an option does not fit the model.
      OSError: The address is in use or not available.
    """
    config.read_token()
    config.check_tls()
    early: list[int] = []  # signals before the model is loaded, whose default action would end the process
    signal.signal(signal.SIGHUP, lambda signum, _frame: early.append(signum))
    asyncio.run(_serve(SpeechModel.load(config), config, early))


async def _serve(model: SpeechModel, config: ServeConfig, early: Sequence[int]) -> None:
    with _listen(config) as listener:
        scheme = "http" if config.tls_key is None else "https"
        host, port = listener.getsockname()[:2]
        service = Service(model, config)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reload)
        print(f"serving {model.description} on {scheme}://{host}:{port}/", flush=True)
        del model  # it is released when another one has been loaded
        if early:  # files may have changed after they were read
            service.reload()
        await Server(config, service).run(listener)


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(
            f"cannot listen on {config.host}:{config.port} ({error.strerror}): choose another --port or --host"
        ) from error


@asynccontextmanager
async def _serve_wyoming(service: Service) -> AsyncIterator[None]:
    """Serve the Wyoming protocol until the end of the block, if there is a port for it."""
    port = service.config.wyoming_port
    if port is None:
        yield
        return
    from icefall_pathways.serve.wyoming import start_wyoming  # few servers need it

    server = await start_wyoming(service, service.config.host, port)
    try:
        yield
    finally:
        await server.stop()


class Server(uvicorn.Server):
    """An HTTP server that drains the service at the first signal, and stops at the second one.

    Args:
      config: The options.
      service: The service.
    """

    def __init__(self, config: ServeConfig, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(service),
                http=partial(RequestTimeoutProtocol, limits=config.limits),  # type: ignore[arg-type]
                ws="icefall_pathways.serve.keepalive:KeepaliveProtocol",  # a name, as websockets is optional
                ws_max_size=config.limits.max_message_bytes,
                ws_ping_interval=_KEEPALIVE_SECONDS,
                ws_ping_timeout=_KEEPALIVE_TIMEOUT,
                ws_per_message_deflate=False,  # audio does not compress, and small messages could expand to large ones
                ssl_certfile=config.tls_certificate,
                ssl_keyfile=config.tls_key,
                lifespan="off",
                log_level="warning",
                timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT,
            )
        )
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    async def run(self, listener: socket.socket) -> None:  # type: ignore[override]
        """Serve on a listening socket until a signal, or a call of `stop`."""
        self._service.start()
        try:
            async with _serve_wyoming(self._service):
                await self.serve([listener])
        finally:
            await self._service.stop()

    def stop(self) -> None:
        """End the streams with their final results, then stop; a second call stops at once."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self.should_exit = True

    async def _drain(self) -> None:
        await self._service.drain()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT; the base class would close the connections at once."""
        self._loop.call_soon_threadsafe(self.stop)


def make_app(service: Service) -> Starlette:
    """Return the ASGI application of a service."""
    routes = [
        Route("/", page),
        Route("/page/{name}", page),
        Route("/health", http.health),
        Route("/metrics", http.metrics),
        Route("/v1/models", http.models),
        Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
        WebSocketRoute("/v1/stream", serve_websocket),
        WebSocketRoute("/", serve_sherpa),
    ]
    middleware = [Middleware(_RequireToken, service=service)]
    if origins := service.config.origins:
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        middleware.insert(0, cors)  # answers preflight requests, which have no token
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=_EXCEPTION_HANDLERS)
    app.state.service = service
    return app


class _RequireToken:
    """Middleware that checks the token of HTTP requests; websockets check their own, and the page has no secrets."""

    _PUBLIC = ("/", "/health")

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in self._PUBLIC and not scope["path"].startswith("/page/"):
            try:
                check_token(self._service, bearer_token(Request(scope)))
            except PermissionError as error:
                app = error_response(str(error), 401)
        await app(scope, receive, send)


def _handle_http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.detail, error.status_code)


def _handle_busy(_request: Request, error: Exception) -> Response:
    response = error_response(str(error), 503)
    response.headers["retry-after"] = "5"
    return response


def _handle_request_error(_request: Request, error: Exception) -> Response:
    return error_response(str(error), 400)


_EXCEPTION_HANDLERS = {
    HTTPException: _handle_http_error,
    BusyError: _handle_busy,
    RequestError: _handle_request_error,
}
