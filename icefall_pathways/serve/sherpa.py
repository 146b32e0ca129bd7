"""The websocket protocol of sherpa-onnx's streaming server, at /, for its published clients.

The client sends binary messages with float32 samples at 16 kHz, then the text "Done". The server sends a JSON object
per result and, after the last one, the text "Done!". The query may have `language` and `sample_rate`.
"""

import asyncio
import json

from starlette.websockets import WebSocket

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.errors import quote
from icefall_pathways.serve.connections import bearer_token, check_token
from icefall_pathways.serve.feeders import PcmFeeder
from icefall_pathways.serve.protocol import ProtocolError
from icefall_pathways.serve.service import Service
from icefall_pathways.serve.sessions import SegmentEvent
from icefall_pathways.serve.streams import ClientStream
from icefall_pathways.serve.websocket import NORMAL, close_with_reason, serve_connection

_END_OF_AUDIO, _END_OF_RESULTS = "Done", "Done!"
_MAX_DIGITS = 9  # of a sample rate; Python refuses to convert thousands of digits


async def serve_sherpa(websocket: WebSocket) -> None:
    """Serve one connection."""
    await serve_connection(websocket, _serve, close_with_reason)  # the protocol has no message for errors


async def _serve(websocket: WebSocket, service: Service) -> None:
    check_token(service, bearer_token(websocket))
    sample_rate = websocket.query_params.get("sample_rate", str(SAMPLE_RATE))
    if not sample_rate.isdecimal() or len(sample_rate) > _MAX_DIGITS:
        raise ProtocolError(f"sample_rate={quote(sample_rate)}: expected a whole number of Hz")
    stream = service.open_stream("sherpa", websocket.query_params.get("language"))
    try:
        feeder = PcmFeeder(stream, "pcm_f32le", int(sample_rate))
        receiver = asyncio.create_task(_receive(websocket, stream, feeder))
        try:
            async for event in stream.events():
                if isinstance(event, SegmentEvent):
                    await websocket.send_text(_to_json(event, stream.model.tokenizer))
            if not stream.closed:
                await _end(websocket, stream)
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
    finally:
        stream.close()


async def _end(websocket: WebSocket, stream: ClientStream) -> None:
    if stream.error is not None:
        await close_with_reason(websocket, stream.error)
    else:
        await websocket.send_text(_END_OF_RESULTS)
        await websocket.close(NORMAL)


async def _receive(websocket: WebSocket, stream: ClientStream, feeder: PcmFeeder) -> None:
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        stream.touch()
        if stream.input_ended:
            continue
        if (text := message.get("text")) is None:
            await feeder.accept(message["bytes"])
        elif text == _END_OF_AUDIO:
            await feeder.finish()
        else:
            stream.fail("invalid_message", f"text {text[:20]!r}: expected binary samples, or the text {_END_OF_AUDIO}")
        await asyncio.sleep(0)  # also if the client floods the server with messages
    stream.close()


def _to_json(event: SegmentEvent, tokenizer: Tokenizer) -> str:
    """Return a result with the fields of sherpa-onnx."""
    symbols, segment = tokenizer.symbols, event.segment
    result = {
        "text": segment.text,
        "tokens": [symbols[token] for token in event.tokens],
        "timestamps": [round(time - segment.start, 2) for time in event.times],
        "segment": event.index,
        "start_time": round(segment.start, 2),
        "is_final": segment.is_final,
        "is_eof": segment.is_last,
        "language": segment.language,
    }
    return json.dumps(result, ensure_ascii=False)
