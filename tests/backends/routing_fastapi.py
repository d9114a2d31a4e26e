"""The routes of the differential test on FastAPI: bare, under a root_path, and mounted in another application.

Every answer names its kind of handler in X-Handler; the gated ones count how often they ran.
"""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles

FILES = Path(__file__).with_name("files")

runs = 0


def answer(handler: str) -> JSONResponse:
    global runs
    runs += handler == "gated"
    return JSONResponse({"handler": handler, "runs": runs}, headers={"X-Handler": handler})


def routes() -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.api_route("/crm", methods=["GET", "POST"])
    @router.api_route("/crm/items", methods=["GET", "POST"])
    @router.get("/crm/items/{item}")
    @router.get("/reports")
    @router.get("/accounts/{account}/export")
    async def gated():
        return answer("gated")

    @router.get("/crm/help/{page:path}")
    async def help_page():
        return answer("open")

    @router.get("/crm/files/{name:path}")
    async def gated_file():
        return answer("gated")

    @router.get("/network/{rest:path}")
    async def core():
        return answer("core")

    return router


def application(**options) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/-/runs")
    async def count():
        return answer("control")

    app.include_router(routes())
    app.mount("/static", StaticFiles(directory=FILES))
    return app


def with_catch_all(app: FastAPI) -> FastAPI:
    @app.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def other():
        return answer("other")

    return app


plain = with_catch_all(application())
rooted = with_catch_all(application(root_path="/svc"))
# No catch-all: where nothing matches, Starlette tries the path with and without the slash at its end.
mounted = application()
mounted.mount("/mnt", application())
