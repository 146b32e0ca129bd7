"""The web page of the server: static files of the package."""

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FILES = ("index.html", "page.css", "page.js", "recorder.js", "srt.js")
_HEADERS = {
    # No external resource is loaded, and no other page can embed this one.
    "content-security-policy": "default-src 'self'; img-src data:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def page(request: Request) -> Response:
    """Return a file of the page; without a name, the page itself."""
    name = request.path_params.get("name", "index.html")
    if name not in _FILES:
        return Response("not found", 404)
    content = resources.files(__package__).joinpath("page").joinpath(name).read_bytes()
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=_HEADERS)
