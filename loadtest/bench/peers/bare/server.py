"""Answers every request alike, as fast as uvicorn lets it: `python -m loadtest.bench.peers.bare.server`."""

from typing import Final

from starlette.types import Receive, Scope, Send

from loadtest.bench.peers.serving import own_surroundings, serve

_BODY: Final = b'{"ok":true}'
_START: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))],
}
_END: Final = {"type": "http.response.body", "body": _BODY}


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, whatever was asked."""
    if scope["type"] == "http":
        await send(_START)
        await send(_END)
        return
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    serve(application, own_surroundings().port)
