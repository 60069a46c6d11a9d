"""The HTTP application: routers of every area, one form of error, a limit on request bodies."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cloud_sync.api import artifacts, devices, drift, enroll, health, releases, retrain, rollouts, tuf
from cloud_sync.base import Services
from cloud_sync.console import routes as console
from cloud_sync.errors import NotFoundError, TooLargeError, http_status
from cloud_sync.settings import LimitSettings
from edge_sdk import __version__
from edge_sdk.errors import EdgeError, UsageError

logger = logging.getLogger(__name__)

AREAS = (health, enroll, devices, tuf, artifacts, releases, rollouts, drift, retrain, console)
_DRAIN_BYTES = 64 * 1024 * 1024
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def create_app(services: Services) -> FastAPI:
    """Return the application over `services`; OpenAPI is at `/openapi.json`."""
    app = FastAPI(
        title="edge-sdk cloud service",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        description='Errors are `{"error": {exit, kind, message, hint}}`.',
    )
    app.state.services = services
    for area in AREAS:
        app.include_router(area.router(services))
    _add_error_handlers(app)
    app.add_middleware(BodyLimit, limits=services.settings.limits)
    return app


def error_response(error: EdgeError) -> JSONResponse:
    """Return the JSON form of an error with its HTTP status."""
    status = http_status(error)
    headers = {"WWW-Authenticate": 'Bearer realm="edge"'} if status == 401 else None
    return JSONResponse({"error": error.to_json()}, status_code=status, headers=headers)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(EdgeError)
    async def on_edge_error(_: Request, error: EdgeError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation(_: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{'.'.join(str(p) for p in e['loc'][1:]) or e['loc'][0]}: {e['msg']}" for e in error.errors()]
        return error_response(UsageError("the request is wrong: " + "; ".join(lines), hint="see /openapi.json"))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return error_response(NotFoundError(f"nothing at {request.url.path}", hint="see /openapi.json"))
        wrong = UsageError(f"{request.method} {request.url.path}: {error.detail}", hint="see /openapi.json")
        return JSONResponse({"error": wrong.to_json()}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        bug = EdgeError("the service failed on this request", hint="its log has the cause")
        return JSONResponse({"error": bug.to_json()}, status_code=500)


class BodyLimit:
    """Refuses a body above the limit: by its Content-Length before it is read, else as soon as it passes the limit."""

    def __init__(self, app: Any, limits: LimitSettings) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limits.artifact_bytes if scope["path"] == "/artifacts" else self.limits.request_bytes
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > limit:
            await _drain(receive)
            await self._refuse(scope, receive, send, limit)
            return
        seen = 0
        started = complete = False

        async def limited() -> MutableMapping[str, Any]:
            nonlocal seen, complete
            message = await receive()
            seen += len(message.get("body", b""))
            complete = not message.get("more_body")
            if seen > limit:
                raise _too_large(limit)
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if not started and not complete and message.get("status", 200) >= 400:
                await _drain(receive)
            started = True
            await send(message)

        try:
            await self.app(scope, limited, watched)
        except TooLargeError:
            if started:
                raise
            await self._refuse(scope, receive, send, limit)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        response = error_response(_too_large(limit))
        response.headers["connection"] = "close"
        await response(scope, receive, send)


async def _drain(receive: Receive) -> None:
    """Read a body that is refused, up to a bound, so that a client that still sends it gets to read the answer."""
    seen = 0
    while seen < _DRAIN_BYTES:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the request body is above {limit} bytes", hint="raise [limits] in serve.toml if it is right")
