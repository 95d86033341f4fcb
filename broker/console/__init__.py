"""The console: a web UI at `/` that uses only the public API. Static files, no build step.

index.html loads main.js; each module states its purpose at its top. `lastevent` is the JavaScript package as people
install it (clients/js/src): the page's own client. All text of models and users reaches the page as text: the policy
below blocks scripts from anywhere else, and Trusted Types block markup made of strings.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

CLIENT = "lastevent"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)


class _File(NamedTuple):
    body: bytes
    media_type: str
    etag: str


def install(app: FastAPI) -> None:
    """`GET /` and `GET /console/<file>`. They need no key: the page is the same for everyone and holds no data."""
    folder = Path(__file__).parent
    files = _read_files(folder, *MEDIA_TYPES)
    files |= {f"{CLIENT}/{name}": file for name, file in _read_files(folder / CLIENT, ".js").items()}

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(request, files["index.html"])

    @app.head("/console/{name:path}", include_in_schema=False)
    @app.get("/console/{name:path}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return _answer(request, files[name])


def _read_files(folder: Path, *suffixes: str) -> dict[str, _File]:
    """Read all files once. A requested name is looked up among them and never becomes a path."""
    return {path.name: _read(path) for path in folder.iterdir() if path.suffix in suffixes}


def _read(path: Path) -> _File:
    body = path.read_bytes()
    return _File(body, MEDIA_TYPES[path.suffix], f'"{sha256(body).hexdigest()[:32]}"')


def _answer(request: Request, file: _File) -> Response:
    # no-cache: cached, but revalidated each time. A page of one release never runs modules of another for long.
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)
