"""The console: pages for people, under the same rules of access as the API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from cloud_sync.api.auth import COOKIE, Identity, operator
from cloud_sync.base import Services
from cloud_sync.console import views
from cloud_sync.errors import AuthError, NotFoundError
from cloud_sync.store.audit import audit
from cloud_sync.text import age, clock, number, size, slug
from edge_sdk import __version__
from edge_sdk.errors import EdgeError

_HERE = Path(views.__file__).parent
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TABS = (
    ("fleet", "/", "Fleet"),
    ("drift", "/drift", "Drift"),
    ("rollouts", "/rollouts", "Rollouts"),
    ("releases", "/releases", "Releases"),
    ("alarms", "/alarms", "Alarms"),
    ("audit", "/audit", "Audit"),
)


def signed_in(request: Request) -> Identity:
    """Dependency of pages: the operator, or the way to the login."""
    try:
        return operator(request)
    except AuthError:
        if request.method != "GET":
            raise
        target = "/login?next=" + quote(request.url.path)
        headers = {"HX-Redirect": target} if request.headers.get("hx-request") else {"Location": target}
        raise HTTPException(401 if "HX-Redirect" in headers else 303, headers=headers) from None


Operator = Annotated[Identity, Depends(signed_in)]


class Pages:
    """Renders templates with what every page has; a request of htmx gets the page's body only."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters.update(
            clock=clock, short=lambda digest: (digest or "")[:12], size=size, number=number, slug=slug
        )

    def render(self, request: Request, name: str, context: dict[str, Any], *, status: int = 200) -> HTMLResponse:
        now = time.time()
        partial = request.headers.get("hx-request") == "true"
        template = self._templates.get_template(f"{name}.html")
        html = template.render(
            **context,
            page=name,
            layout="partial.html" if partial else "layout.html",
            tabs=TABS,
            version=__version__,
            path=request.url.path,
            period=self._services.settings.console_period_s,
            now=now,
            ago=lambda t: age(t, now),
            server=str(request.base_url).rstrip("/"),
        )
        return HTMLResponse(html, status_code=status, headers=HEADERS)


def router(services: Services) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    pages = Pages(services)
    _login_routes(routes, services, pages)
    _page_routes(routes, services, pages)
    _action_routes(routes, services, pages)

    @routes.get("/static/{name}")
    def static(name: str) -> Response:
        path = _HERE / "static" / name
        if "/" in name or path.suffix not in _TYPES or not path.is_file():
            raise NotFoundError(f"nothing at /static/{name[:80]}")
        headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type=_TYPES[path.suffix], headers=headers)

    return routes


def _login_routes(routes: APIRouter, services: Services, pages: Pages) -> None:
    @routes.get("/login")
    def login_page(request: Request) -> Response:
        return pages.render(request, "login", {"wrong": False, "next": _next(request)})

    @routes.post("/login")
    async def login(request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"))
        if not services.keys.is_operator(form.get("token", [""])[0].strip()):
            context = {"wrong": True, "next": _next(request)}
            return pages.render(request, "login", context, status=401)
        now, lifetime_s = time.time(), services.settings.session_s
        audit(services.db, now=now, actor="console", action="console.login", subject=_peer(request))
        response = RedirectResponse(_next(request), status_code=303)
        response.set_cookie(
            COOKIE,
            services.keys.session(now, lifetime_s),
            max_age=int(lifetime_s),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @routes.post("/logout")
    def logout(_: Operator) -> Response:
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(COOKIE)
        return response


def _page_routes(routes: APIRouter, services: Services, pages: Pages) -> None:
    @routes.get("/")
    def fleet(request: Request, who: Operator) -> Response:
        return pages.render(request, "fleet", views.fleet(services, who.tenant, time.time()))

    @routes.get("/devices/{name}")
    def device(name: str, request: Request, who: Operator) -> Response:
        try:
            context = views.device(services, who.tenant, name, time.time())
        except NotFoundError as error:
            return pages.render(request, "message", {"title": "No such device", "error": error}, status=404)
        return pages.render(request, "device", context)

    @routes.get("/devices/{name}/series")
    def series(name: str, _: Operator) -> Response:
        return JSONResponse(views.series(services, name), headers=HEADERS)

    @routes.get("/drift")
    def drift(request: Request, who: Operator) -> Response:
        return pages.render(request, "drift", views.drift(services, who.tenant))

    @routes.get("/rollouts")
    def rollouts(request: Request, _: Operator) -> Response:
        return pages.render(request, "rollouts", views.rollouts(services))

    @routes.get("/rollouts/{rollout_id}")
    def rollout(rollout_id: str, request: Request, _: Operator) -> Response:
        try:
            context = views.rollout(services, rollout_id)
        except NotFoundError as error:
            return pages.render(request, "message", {"title": "No such rollout", "error": error}, status=404)
        return pages.render(request, "rollout", context)

    @routes.get("/releases")
    def releases(request: Request, who: Operator) -> Response:
        return pages.render(request, "releases", views.releases(services, who.tenant))

    @routes.get("/alarms")
    def alarms(request: Request, who: Operator) -> Response:
        return pages.render(request, "alarms", views.alarms(services, who.tenant))

    @routes.get("/audit")
    def audit_log(request: Request, _: Operator) -> Response:
        return pages.render(request, "audit", views.audit(services))


def _action_routes(routes: APIRouter, services: Services, pages: Pages) -> None:
    @routes.post("/rollouts/{rollout_id}/{action}")
    def steer(rollout_id: str, action: str, request: Request, who: Operator) -> Response:
        if action not in views.ACTIONS:
            raise NotFoundError(f"rollouts have no action `{action[:40]}`", hint=", ".join(views.ACTIONS))
        try:
            getattr(services.rollouts, action)(rollout_id, actor=who.actor)
        except EdgeError as error:
            return pages.render(request, "message", {"title": "That did not work", "error": error}, status=409)
        return RedirectResponse(f"/rollouts/{quote(rollout_id)}", status_code=303)


def _next(request: Request) -> str:
    """Return the page to go to after the login: a path of this site, nothing else."""
    wanted = request.query_params.get("next", "/")
    parts = urlsplit(wanted)
    safe = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and not parts.netloc and not parts.scheme
    return wanted if safe else "/"


def _peer(request: Request) -> str:
    return request.client.host if request.client else "unknown"
