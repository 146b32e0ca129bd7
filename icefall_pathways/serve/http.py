"""HTTP endpoints for clients of all kinds: health, models and metrics."""

from collections import Counter

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from icefall_pathways.serve.service import Service

UNIDENTIFIED = "und"
"""ISO 639 code of undetermined languages, for streams whose language is not identified yet, or not distinguished."""


async def health(request: Request) -> Response:
    """Report the load, and whether the server accepts streams (200) or is shutting down (503), for load balancers."""
    service: Service = request.app.state.service
    state = {
        "status": "draining" if service.draining else "ok",
        "open_streams": len(service.streams),
        "load": round(service.load, 3),
        "streams_by_language": Counter(stream.language or UNIDENTIFIED for stream in service.streams),
    }
    return JSONResponse(state, 503 if service.draining else 200)


async def models(request: Request) -> Response:
    """List the model, in the format of OpenAI's API, with its languages."""
    service: Service = request.app.state.service
    entry = {
        "id": service.model.name,
        "object": "model",
        "created": service.model.created,
        "owned_by": "icefall_pathways",
        "languages": service.model.languages,
        "identifies_language": service.model.identifier is not None,
    }
    return JSONResponse({"object": "list", "data": [entry]})


async def metrics(request: Request) -> Response:
    """Return the metrics in the text format of Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.format(), media_type="text/plain; version=0.0.4; charset=utf-8")
