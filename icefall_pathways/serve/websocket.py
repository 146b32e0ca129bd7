"""The websocket protocol at /v1/stream; `protocol` documents the messages."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from pydantic import BaseModel
from starlette.websockets import WebSocket, WebSocketDisconnect

from icefall_pathways.serve.connections import REFUSALS, bearer_token, check_token, has_allowed_origin, refusal
from icefall_pathways.serve.feeders import ContainerFeeder, Feeder, PcmFeeder
from icefall_pathways.serve.protocol import (
    ChangeLanguage,
    Ended,
    EndReason,
    ErrorMessage,
    LanguageDecision,
    ProtocolError,
    Ready,
    SegmentResult,
    Start,
    WordResult,
    parse_client_message,
)
from icefall_pathways.serve.service import Service
from icefall_pathways.serve.sessions import LanguageEvent, SpeechEvent
from icefall_pathways.serve.streams import ClientStream
from icefall_pathways.transcription.transcript import Word

_log = logging.getLogger(__name__)

_START_TIMEOUT = 10.0
_MAX_REASON_BYTES = 123  # of a close frame, in RFC 6455
_YIELD_SECONDS = 0.01  # after which a client that floods the server with messages waits for the others

# RFC 6455 and the registry of IANA.
NORMAL, GOING_AWAY, INVALID_DATA, VIOLATION, INTERNAL, TRY_AGAIN_LATER = 1000, 1001, 1007, 1008, 1011, 1013
CLOSE_CODES = {
    "busy": TRY_AGAIN_LATER,
    "internal": INTERNAL,
    "invalid_audio": INVALID_DATA,
    "invalid_message": INVALID_DATA,
}
"""Close code by the code of an error message; others: policy violation."""


async def serve_websocket(websocket: WebSocket) -> None:
    """Serve one connection."""
    await serve_connection(websocket, _serve, close_with_error)


async def serve_connection(
    websocket: WebSocket,
    serve: Callable[[WebSocket, Service], Awaitable[None]],
    close: Callable[[WebSocket, ErrorMessage], Awaitable[None]],
) -> None:
    """Accept a connection of an allowed origin and serve it in one of the protocols.

    Args:
      websocket: The connection.
      serve: Serves it until it ends.
      close: Closes it with the error that refuses it.
    """
    service: Service = websocket.app.state.service
    if not has_allowed_origin(service, websocket):
        await websocket.close(VIOLATION)  # before the handshake: HTTP 403
        return
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect, asyncio.CancelledError):
        try:
            await serve(websocket, service)
        except REFUSALS as error:
            await close(websocket, refusal(error))
        except asyncio.CancelledError as cancelled:
            for reason in cancelled.args:
                if isinstance(reason, ErrorMessage):  # of `ClientStream.abort`
                    await close_with_reason(websocket, reason)


async def close_with_reason(websocket: WebSocket, error: ErrorMessage) -> None:
    """Close the connection with an error in the close frame, which does not wait for a client that does not read."""
    reason = error.message.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
    await websocket.close(CLOSE_CODES.get(error.code, VIOLATION), reason)


async def close_with_error(websocket: WebSocket, error: ErrorMessage) -> None:
    """Send an error message and close the connection."""
    await _send(websocket, error)
    await websocket.close(CLOSE_CODES.get(error.code, VIOLATION), error.code)


async def _serve(websocket: WebSocket, service: Service) -> None:
    start = await _receive_start(websocket)
    check_token(service, bearer_token(websocket) or start.token)
    hotwords = [(hotword.text, hotword.score) for hotword in start.hotwords]
    stream = service.open_stream("websocket", start.language, hotwords, all_words=start.words == "all")
    try:
        feeder = _open_feeder(service, stream, start)
        await _send(websocket, Ready(languages=stream.model.languages, chunk_seconds=stream.model.chunk_seconds))
        receiver = asyncio.create_task(_receive(websocket, service, stream, feeder))
        try:
            await _send_events(websocket, stream, start)
        finally:
            feeder.close()
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
    finally:
        stream.close()


async def _receive_start(websocket: WebSocket) -> Start:
    try:
        message = await asyncio.wait_for(websocket.receive(), _START_TIMEOUT)
    except asyncio.TimeoutError as error:
        raise ProtocolError(f"no message for {_START_TIMEOUT:g} s: expected a message of type start") from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    if message.get("text") is None:
        raise ProtocolError("the first message is binary: expected a text message of type start")
    start = parse_client_message(message["text"])
    if not isinstance(start, Start):
        raise ProtocolError(f"the first message has type {start.type}: expected start")
    return start


def _open_feeder(service: Service, stream: ClientStream, start: Start) -> Feeder:
    if start.format != "container":
        return PcmFeeder(stream, start.format, start.sample_rate)
    return ContainerFeeder(stream, service.container_executor(stream))


async def _receive(websocket: WebSocket, service: Service, stream: ClientStream, feeder: Feeder) -> None:
    """Process the messages of the client until it closes the connection."""
    num_bytes, last_yield = 0, monotonic()
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if stream.input_ended:
            continue
        stream.touch()
        try:
            if (text := message.get("text")) is not None:
                await _process_text(text, stream, feeder)
            else:
                num_bytes += len(message["bytes"])
                if num_bytes > service.limits.max_stream_mb * 1e6:
                    stream.fail("limit", f"more than {service.limits.max_stream_mb:g} MB (--max-stream-mb)")
                await feeder.accept(message["bytes"])
        except REFUSALS as error:
            message_for_client = refusal(error)
            stream.fail(message_for_client.code, message_for_client.message)
        except Exception as error:
            _log.exception("a stream failed")
            stream.fail("internal", f"the server cannot process the message ({type(error).__name__})")
        if monotonic() - last_yield > _YIELD_SECONDS:
            await asyncio.sleep(0)
            last_yield = monotonic()
    stream.close()


async def _process_text(text: str, stream: ClientStream, feeder: Feeder) -> None:
    message = parse_client_message(text)
    if isinstance(message, Start):
        raise ProtocolError("a second message of type start: open another connection for another stream")
    if isinstance(message, ChangeLanguage):
        stream.set_language(stream.model.resolve_language(message.language))
    else:
        await feeder.finish()


async def _send_events(websocket: WebSocket, stream: ClientStream, start: Start) -> None:
    """Send the events of the stream, then the last message, and close the connection."""
    async for event in stream.events():
        message = to_message(event, start)
        if message is not None:
            await _send(websocket, message)
    if stream.closed:  # by the client
        return
    reason: EndReason = "error" if stream.error else "shutdown" if stream.shut_down else "end"
    if stream.error is not None:
        await _send(websocket, stream.error)
    await _send(websocket, Ended(reason=reason, duration=round(stream.decoded_seconds, 3), notes=stream.notes))
    if stream.error is not None:
        await websocket.close(CLOSE_CODES.get(stream.error.code, VIOLATION), stream.error.code)
    else:
        await websocket.close(GOING_AWAY if stream.shut_down else NORMAL)


def to_message(event: SpeechEvent, start: Start) -> LanguageDecision | SegmentResult | None:
    """Return the message of an event; None if the client did not request it."""
    if isinstance(event, LanguageEvent):
        return LanguageDecision(
            segment=event.segment,
            time=round(event.time, 3),
            language=event.language,
            confidence=round(event.probabilities[event.language], 4),
            probabilities={language: round(value, 4) for language, value in event.probabilities.items()},
        )
    segment = event.segment
    if not segment.is_final and not start.partial_results:
        return None
    has_words = start.words == "all" or (start.words == "final" and segment.is_final)
    confidence = event.language_confidence
    return SegmentResult(
        type="final" if segment.is_final else "partial",
        segment=event.index,
        start=segment.start,
        end=segment.end,
        language=segment.language,
        language_confidence=None if confidence is None else round(confidence, 4),
        text=segment.text,
        stable_text=segment.stable_text,
        words=[to_word(word) for word in segment.words] if has_words else None,
    )


def to_word(word: Word) -> WordResult:
    """Return a word as it is sent to clients."""
    return WordResult(text=word.text, start=word.start, end=word.end, confidence=word.confidence)


async def _send(websocket: WebSocket, message: BaseModel) -> None:
    await websocket.send_text(message.model_dump_json())
