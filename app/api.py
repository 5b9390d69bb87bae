"""Every router of the API, one line each, and the documents that are made from them."""

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse

from app.accounts import router as accounts
from app.accounts.family import router as family
from app.booking.claims import router as claims
from app.booking.passes import router as passes
from app.booking.releases import router as releases
from app.core import health
from app.core.openapi import ERRORS_URL, every_problem
from app.core.web.errors_page import html_page, markdown_table
from app.programme import router as programme
from app.stations import router as stations

ROUTERS: Final = (
    health.router,
    accounts.router,
    family.router,
    stations.router,
    programme.router,
    releases.router,
    passes.router,
    claims.router,
)
ERRORS_FILE: Final = Path(__file__).parent.parent / "docs" / "errors.md"


def include_routers(api: FastAPI) -> None:
    """Add every router, and the page of error codes."""
    for router in ROUTERS:
        api.include_router(router)
    page = html_page(every_problem())

    async def errors_page(_request: Request) -> HTMLResponse:
        return HTMLResponse(page)

    api.add_route(ERRORS_URL, errors_page, include_in_schema=False)


if __name__ == "__main__":
    ERRORS_FILE.write_text(markdown_table(every_problem()), encoding="utf-8")
