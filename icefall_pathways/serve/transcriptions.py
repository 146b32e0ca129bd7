"""OpenAI's transcription API: /v1/audio/transcriptions for files, with results as a whole or as server-sent events."""

import asyncio
import io
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from starlette.datastructures import FormData, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Message

from icefall_pathways.languages import get_language
from icefall_pathways.serve.feeders import audio_options, feed_blocks
from icefall_pathways.serve.service import FILE_PROTOCOL, Service
from icefall_pathways.serve.sessions import SegmentEvent
from icefall_pathways.serve.streams import ClientStream
from icefall_pathways.transcription.audio import read_file
from icefall_pathways.transcription.transcript import Transcript, Word, mean_log_prob
from icefall_pathways.transcription.writers import WRITERS

_log = logging.getLogger(__name__)

_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_GRANULARITIES = ("segment", "word")
_MAX_FIELDS = 50


@dataclass(frozen=True)
class TranscriptionRequest:
    """The fields of a request; OpenAI's prompt, temperature and others are accepted and have no effect.

    Attributes:
      file: The uploaded file.
      language: Code, name or "auto"; None: the default of the server.
      response_format: One of json, text, srt, vtt and verbose_json.
      words: verbose_json lists words.
      segments: verbose_json lists segments.
      stream: Send server-sent events.
    """

    file: UploadFile
    language: str | None
    response_format: str
    words: bool
    segments: bool
    stream: bool

    @classmethod
    def parse(cls, form: FormData) -> "TranscriptionRequest":
        """Read the fields of a form.

        Raises:
          HTTPException: A field is missing or invalid.
        """
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise HTTPException(
                400,
                "no complete file in the field file: expected a multipart form with an audio file, up to its closing "
                "boundary; was the upload cut off?",
            )
        response_format = str(form.get("response_format") or "json")
        if response_format not in _FORMATS:
            raise HTTPException(400, f"response_format {response_format!r}: expected one of {', '.join(_FORMATS)}")
        granularities = (
            form.getlist("timestamp_granularities[]") or form.getlist("timestamp_granularities") or ["segment"]
        )
        if unknown := [str(item) for item in granularities if item not in _GRANULARITIES]:
            raise HTTPException(400, f"timestamp_granularities {unknown[0]!r}: expected segment or word")
        return cls(
            file=file,
            language=str(form["language"]) if form.get("language") else None,
            response_format=response_format,
            words="word" in granularities,
            segments="segment" in granularities,
            stream=str(form.get("stream", "")).lower() in ("true", "1"),
        )


async def transcriptions(request: Request) -> Response:
    """Transcribe an uploaded file."""
    service: Service = request.app.state.service
    service.check_busy()  # before the upload
    fields = TranscriptionRequest.parse(await _read_form(request, service.limits.max_upload_mb))
    stream = service.open_stream(FILE_PROTOCOL, fields.language)
    try:
        executor = service.container_executor(stream)
        file = await _store_upload(stream, fields.file, executor)
        events = _decode(stream, file, executor)
        if fields.stream:
            return StreamingResponse(_server_sent_events(events, stream), media_type="text/event-stream")
        results = [event async for event in _while_connected(request, events) if event.segment.is_final]
    except BaseException:
        stream.close()
        raise
    if (incomplete := _error(stream)) is not None:
        raise incomplete
    return _response(fields, results, stream.notes)


async def _while_connected(request: Request, events: AsyncIterator[SegmentEvent]) -> AsyncIterator[SegmentEvent]:
    """Yield the events while the client waits for them.

    Raises:
      HTTPException: The client has closed the connection.
    """
    async for event in events:
        if await request.is_disconnected():
            raise HTTPException(400, "the connection ended before the end of the transcription")
        yield event


async def _read_form(request: Request, max_mb: float) -> FormData:
    """Read the form of a request.

    Raises:
      HTTPException: It is not a valid form, incomplete or too large, or cannot be stored.
    """
    content_type = request.headers.get("content-type", "")
    media_type, *parameters = content_type.split(";")
    media_type = media_type.strip().lower()
    if media_type != "multipart/form-data":
        expected = "expected multipart/form-data, with an audio file in the field file"
        raise HTTPException(400, f"content type {content_type!r}: {expected}")
    headers = MutableHeaders(request.headers)
    headers["content-type"] = ";".join([media_type, *parameters])  # parsers expect it in lower case
    scope = {**request.scope, "headers": headers.raw}
    try:
        return await Request(scope, _limit_body(request, max_mb)).form(max_files=1, max_fields=_MAX_FIELDS)
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the end of the upload: send it again") from error
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise HTTPException(400, f"not a valid multipart form ({error.detail})") from error
    except OSError as error:
        raise _storage_error(error) from error


def _storage_error(error: OSError) -> HTTPException:
    """Log that an upload cannot be stored, and return the error for its client."""
    _log.error("cannot store an upload (%s): free space in the temporary folder, or set TMPDIR to another one", error)
    reason = error.strerror or str(error)
    return HTTPException(507, f"the server cannot store the upload ({reason}): try again later, or split the file")


def _error(stream: ClientStream) -> HTTPException | None:
    """Return the error of a stream that ended before the end of its file."""
    if stream.error is not None:
        upload = "the uploaded file: " if stream.error.code == "invalid_audio" else ""
        return HTTPException(400 if stream.error.code != "internal" else 500, upload + stream.error.message)
    return None if stream.completed else HTTPException(503, "the server is shutting down: use another one")


def _limit_body(request: Request, max_mb: float) -> Any:
    """Return the `receive` of a request that rejects a body of more than `max_mb` megabytes while it arrives."""
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_mb * 1e6:
            raise HTTPException(413, f"the request exceeds {max_mb:g} MB (--max-upload-mb): split the file")
        return message

    return receive


async def _store_upload(stream: ClientStream, upload: UploadFile, executor: Executor) -> IO[bytes]:
    """Return the upload of a stream as a temporary file.

    Raises:
      HTTPException: It cannot be stored.
    """
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, _store, upload.file)
    except OSError as error:
        refusal = _storage_error(error)
        stream.fail("internal", refusal.detail)
        raise refusal from error


async def _decode(stream: ClientStream, file: IO[bytes], executor: Executor) -> AsyncIterator[SegmentEvent]:
    """Decode a temporary file and yield the results, then close the stream and delete the file."""
    with file:
        blocks = read_file(Path(file.name), audio_options(stream))
        feeding = asyncio.ensure_future(feed_blocks(stream, blocks, executor))
        try:
            async for event in stream.events():
                if isinstance(event, SegmentEvent):
                    yield event
        finally:
            stream.close()
            await feeding


def _store(upload: IO[bytes]) -> IO[bytes]:
    """Move an upload to a temporary file whose name does not depend on the client, and return the file.

    Raises:
      OSError: The temporary folder is full or not writable.
    """
    with ExitStack() as on_error:
        file = on_error.enter_context(tempfile.NamedTemporaryFile())
        with upload:
            upload.seek(0)
            shutil.copyfileobj(upload, file)
        file.flush()
        on_error.pop_all()
    return file


async def _server_sent_events(events: AsyncIterator[SegmentEvent], stream: ClientStream) -> AsyncIterator[str]:
    """Yield text that later results do not change, as OpenAI's events; together the deltas are the whole text."""
    text = segment_text = ""
    async for event in events:
        stable = event.segment.text if event.segment.is_final else event.segment.stable_text
        delta = stable[len(segment_text) :]
        if delta:
            delta = " " + delta if text and not segment_text else delta
            text += delta
            yield _server_sent_event({"type": "transcript.text.delta", "delta": delta})
        segment_text = "" if event.segment.is_final else max(segment_text, stable, key=len)
    if (error := _error(stream)) is not None:
        yield _server_sent_event({"error": {"message": error.detail, "type": "invalid_request_error"}})
    else:
        yield _server_sent_event({"type": "transcript.text.done", "text": text})
    yield "data: [DONE]\n\n"


def _server_sent_event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _response(fields: TranscriptionRequest, results: list[SegmentEvent], notes: list[str]) -> Response:
    transcript = Transcript.from_results(event.segment for event in results)
    if fields.response_format == "json":
        usage = {"type": "duration", "seconds": transcript.duration}
        return JSONResponse({"text": transcript.text, "usage": usage, "notes": notes})
    if fields.response_format == "verbose_json":
        return JSONResponse({**_verbose(fields, results, transcript), "notes": notes})
    if fields.response_format == "text":
        return PlainTextResponse(transcript.text + "\n")
    out = io.StringIO()
    writer = WRITERS[fields.response_format](out, "upload")
    for event in results:
        writer.add(event.segment)
    writer.close(None)
    return PlainTextResponse(out.getvalue(), media_type="text/vtt" if fields.response_format == "vtt" else "text/plain")


def _verbose(fields: TranscriptionRequest, results: list[SegmentEvent], transcript: Transcript) -> dict[str, Any]:
    content: dict[str, Any] = {
        "task": "transcribe",
        "language": _language_name(transcript),
        "duration": transcript.duration,
        "text": transcript.text,
        "usage": {"type": "duration", "seconds": transcript.duration},
    }
    if fields.words:
        content["words"] = [_verbose_word(word) for word in transcript.words]
    if fields.segments:
        content["segments"] = [_verbose_segment(event) for event in results if event.segment.text]
    return content


def _language_name(transcript: Transcript) -> str:
    codes = [segment.language for segment in transcript.segments if segment.language is not None]
    code = codes[0] if codes else transcript.language
    return "unknown" if code is None else get_language(code).name


def _verbose_word(word: Word) -> dict[str, Any]:
    times = {"start": word.start, "end": word.end}
    return {"word": word.text, **times, "confidence": word.confidence}


def _verbose_segment(event: SegmentEvent) -> dict[str, Any]:
    """Return a segment with all fields of OpenAI's; those that this model does not have are 0."""
    segment, data = event.segment, event.segment.text.encode()
    log_prob = mean_log_prob(event.log_probs)
    return {
        "id": event.index,
        "seek": 0,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": event.tokens,
        "language": segment.language,
        "language_confidence": event.language_confidence,
        "temperature": 0.0,
        "avg_logprob": 0.0 if log_prob is None else round(log_prob, 3),
        "compression_ratio": round(len(data) / len(zlib.compress(data)), 3),
        "no_speech_prob": 0.0,
    }
