"""``/v1/hybrid/``: what the engines are doing, why a request waits, and settings that change while they run.

Every answer is asked of the engines, between two of their steps, so it is the same whichever API server gives it. It
shows all clients, so it is for keys with ``admin: true`` (or for everybody, with ``status.open``); changes always need
the key.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field, WithJsonSchema

from vllm_hybrid.config.live import patch_schema
from vllm_hybrid.serving.door import error_body
from vllm_hybrid.serving.identity import CALL

_ANSWER_WITHIN_S = 30.0  # a question waits for the step under way
_MOST_VERSION = 2**31
PAGE = "/hybrid"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


class Engines(BaseModel):
    """One answer per engine (there are several under data parallelism)."""

    engines: list[dict[str, Any]]


class Settings(BaseModel):
    """The settings in force. `live` names the sections that PATCH may change."""

    version: int
    versions: list[int]
    live: list[str]
    config: dict[str, Any]


class Revert(BaseModel):
    """Which version to go back to."""

    model_config = {"extra": "forbid"}
    version: Annotated[int, Field(ge=1, le=_MOST_VERSION)]


class Status:
    """Asks the engines behind one engine client."""

    def __init__(self, engine_core: Any) -> None:
        self._core = engine_core

    async def ask(self, method: str, *arguments: Any) -> list[tuple[int, Any]]:
        """(rank, answer) of every engine."""
        try:
            answers = await asyncio.wait_for(self._core.call_utility_all_async(method, *arguments), _ANSWER_WITHIN_S)
        except TimeoutError:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "the engine is in a long step: ask again") from None
        return list(zip(self._core.engine_ranks_managed, answers, strict=True))

    async def engines(self, method: str, *arguments: Any) -> Engines:
        """Their answers under their ranks."""
        return Engines(engines=[{"engine": rank, **answer} for rank, answer in await self.ask(method, *arguments)])

    async def settings(self, method: str, *arguments: Any) -> Settings:
        """The settings after a question or a change; all engines have the same."""
        answers = [answer for _, answer in await self.ask(method, *arguments)]
        for answer in answers:
            if "refused" in answer:
                status = HTTPStatus.CONFLICT if answer["conflict"] else HTTPStatus.BAD_REQUEST
                raise HTTPException(status, answer["refused"])
        return Settings(**answers[0])


def _admin(request: Request) -> None:
    call = CALL.get()
    if call is not None and call.caller.is_admin:
        return
    if request.method == "GET" and request.app.state.hybrid_status_open:
        return
    raise HTTPException(
        HTTPStatus.FORBIDDEN,
        "needs a key with `admin: true` (identity.keys_file); status.open opens what only reads to everybody",
    )


def _errors(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    return {status.value: {"description": status.phrase} for status in (*statuses, HTTPStatus.SERVICE_UNAVAILABLE)}


_COMMON = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_Patch = Annotated[dict[str, Any], Body(), WithJsonSchema(patch_schema())]
_Version = Annotated[int | None, Query(ge=1, le=_MOST_VERSION, description="Refuse unless this version is in force.")]


def attach(app: FastAPI, engine_core: Any, is_open: bool) -> None:
    """Add the routes to a server whose application is built already."""
    app.state.hybrid_status_open = is_open
    app.include_router(_router(Status(engine_core)))
    app.openapi_schema = None  # the schema is made again, with these routes


def _router(status: Status) -> APIRouter:
    router = APIRouter(
        prefix="/v1/hybrid", tags=["hybrid"], dependencies=[Depends(_admin)], responses=_errors(*_COMMON)
    )

    @router.get("/status")
    async def show_status() -> Engines:
        """Lanes, reasons for waiting, room and predictor of every engine."""
        return await status.engines("hybrid_status")

    @router.get("/clients")
    async def show_clients(most: Annotated[int, Query(ge=1, le=1000)] = 100) -> Engines:
        """The clients with requests, then those served most."""
        return await status.engines("hybrid_clients", most)

    @router.get("/requests/{request_id}", responses=_errors(HTTPStatus.NOT_FOUND))
    async def show_request(request_id: Annotated[str, Path(max_length=256)]) -> dict[str, Any]:
        """Where a request stands, why it waits, what would change that. By the id of its answer or its X-Request-Id."""
        for rank, answer in await status.ask("hybrid_request", request_id):
            if answer is not None:
                return {"engine": rank, **answer}
        raise HTTPException(HTTPStatus.NOT_FOUND, "no such request is waiting or running")

    @router.get("/config")
    async def show_config() -> Settings:
        """The settings in force."""
        return await status.settings("hybrid_config")

    @router.patch("/config", responses=_errors(HTTPStatus.CONFLICT))
    async def change_config(patch: _Patch, version: _Version = None) -> Settings:
        """Change settings from the next step on, by a JSON merge patch; all of it or nothing."""
        return await status.settings("hybrid_configure", json.dumps(patch), version)

    @router.api_route("/config", methods=["OPTIONS", "POST", "PUT", "DELETE", "TRACE"], include_in_schema=False)
    async def other_methods() -> JSONResponse:
        """Two routes share this path, and the framework's own answer would name the first one's method only."""
        status = HTTPStatus.METHOD_NOT_ALLOWED
        return JSONResponse(error_body(status, status.phrase), status, {"allow": "GET, PATCH"})

    @router.post("/config/revert", responses=_errors(HTTPStatus.CONFLICT))
    async def revert_config(to: Revert, version: _Version = None) -> Settings:
        """Go back to the settings of an earlier version, as a new version."""
        return await status.settings("hybrid_revert", to.version, version)

    outer = APIRouter()
    outer.include_router(router)

    @outer.get(PAGE, include_in_schema=False)
    async def page() -> HTMLResponse:
        text = files("vllm_hybrid.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    return outer
