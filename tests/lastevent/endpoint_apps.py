"""python -m tests.lastevent.endpoint_apps WHICH URL KEY: an app's own endpoint in front of a server; it says its port.

fastapi, middleware (the same behind a BaseHTTPMiddleware), django, flask.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from lastevent import AsyncClient, Client, forward


def fastapi_app(url: str, key: str, *, middleware: bool) -> Any:
    app = FastAPI()
    client = AsyncClient(url, key)

    @app.post("/api/chat")
    async def start(request: Request) -> Response:
        asked = await request.json()
        return await forward(client, request, body={"prompt": asked["prompt"], "user_id": "ann"})

    @app.api_route("/api/chat/{id}", methods=["GET", "POST"])
    @app.api_route("/api/chat/{id}/{call:path}", methods=["GET", "POST", "DELETE"])
    async def chat(request: Request, id: str) -> Response:
        return await forward(client, request, id)

    @app.get("/api/latest")
    async def latest(request: Request, id: str) -> Response:
        return await forward(client, request, id, location=lambda sid: f"/api/chat/{sid}")

    if middleware:

        @app.middleware("http")
        async def passes(request: Request, call_next: Any) -> Response:
            answer: Response = await call_next(request)
            return answer

    return app


def flask_app(url: str, key: str) -> Any:
    import flask

    app = flask.Flask(__name__)
    client = Client(url, key)

    @app.get("/api/chat/<id>/events")
    def chat(id: str) -> Any:
        body = client.stream_bytes(id, flask.request.headers, flask.request.args)
        return flask.Response(body, body.status, body.headers)

    return app


def django_app(url: str, key: str) -> Any:
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, StreamingHttpResponse
    from django.urls import path

    client = Client(url, key)

    def chat(request: HttpRequest, id: str) -> StreamingHttpResponse:
        body = client.stream_bytes(id, request.headers, request.GET)
        return StreamingHttpResponse(body, status=body.status, headers=body.headers)

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of-a-test", USE_TZ=True)
    globals()["urlpatterns"] = [path("api/chat/<id>/events", chat)]
    django.setup(set_prefix=False)
    return WSGIHandler()


def serve_asgi(app: Any) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])


def serve_wsgi(app: Any) -> None:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # with chunks, so that a cut can be told from an end

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    which, url, key = sys.argv[1:]
    if which in ("flask", "django"):
        serve_wsgi(flask_app(url, key) if which == "flask" else django_app(url, key))
    else:
        serve_asgi(fastapi_app(url, key, middleware=which == "middleware"))
