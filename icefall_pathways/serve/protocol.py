"""Messages of the websocket protocol at /v1/stream, version 1.

The client sends a `Start` message, then binary messages with audio, `ChangeLanguage` messages at any time, and `End`.
The server answers with `Ready`, then sends `LanguageDecision`, `SegmentResult` and `ErrorMessage` messages, and ends
with `Ended`. Text messages are JSON objects; their `type` selects the message. docs/guide/serving.md has examples.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION: Literal[1] = 1

AudioFormat = Literal["pcm_s16le", "pcm_f32le", "container"]
"""Encoding of the audio: 16-bit or 32-bit float little-endian mono samples, or a container that states its format."""

ErrorCode = Literal["invalid_message", "invalid_audio", "invalid_request", "limit", "busy", "unauthorized", "internal"]
"""Kind of an error, for programs; the message is for people."""

EndReason = Literal["end", "error", "shutdown"]
"""Reason for the end of a stream: the client ended it, an error, or the server stops."""

WordTimes = Literal["none", "final", "all"]
"""Results with words and times: none, the final ones, or also the partial ones."""


class _FromClient(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hotword(_FromClient):
    """A word or phrase that becomes more likely; `score` is added to the log-probability of each of its tokens."""

    text: Annotated[str, Field(min_length=1, max_length=200)]
    score: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] = 2.0


class Start(_FromClient):
    """First message of the client.

    Attributes:
      version: Version of the protocol.
      format: Encoding of the audio in binary messages.
      sample_rate: Sample rate in Hz of PCM; a container states its own.
      language: Language code or name, or "auto"; None: the default of the server.
      hotwords: Hotwords of this stream; they require modified beam search.
      partial_results: Send results before the end of a segment.
      words: Results that list words with times.
      token: The server's secret, for clients that cannot send the header Authorization, such as browsers.
    """

    type: Literal["start"]
    version: Literal[1] = VERSION
    format: AudioFormat = "pcm_s16le"
    sample_rate: Annotated[int, Field(ge=1000, le=768_000)] = 16000
    language: Annotated[str, Field(max_length=100)] | None = None
    hotwords: Annotated[tuple[Hotword, ...], Field(max_length=10_000)] = ()
    partial_results: bool = True
    words: WordTimes = "final"
    token: Annotated[str, Field(max_length=1000)] | None = None


class ChangeLanguage(_FromClient):
    """Use another language from the next segment on: a code, a name or "auto"."""

    type: Literal["language"]
    language: Annotated[str, Field(max_length=100)]


class End(_FromClient):
    """The audio has ended: the server sends the final results, `Ended`, and closes the connection."""

    type: Literal["end"]


ClientMessage = Annotated[Start | ChangeLanguage | End, Field(discriminator="type")]
_CLIENT_MESSAGE: TypeAdapter[Start | ChangeLanguage | End] = TypeAdapter(ClientMessage)


class Ready(BaseModel):
    """The server accepted the stream.

    Attributes:
      languages: Codes of the languages that the model supports.
      chunk_seconds: The server decodes audio in chunks of this duration.
    """

    type: Literal["ready"] = "ready"
    version: int = VERSION
    languages: list[str]
    chunk_seconds: float


class LanguageDecision(BaseModel):
    """The language of a segment was identified.

    Attributes:
      segment: Index of the segment.
      time: Seconds of audio, from the start of the stream, after which it was decided.
      language: The language code.
      confidence: Its probability.
      probabilities: Probability of every candidate.
    """

    type: Literal["language"] = "language"
    segment: int
    time: float
    language: str
    confidence: float
    probabilities: dict[str, float]


class WordResult(BaseModel):
    """A word with its times in seconds from the start of the stream.

    `confidence` is the geometric mean of the probabilities of its tokens; None if the search does not offer it.
    """

    text: str
    start: float
    end: float
    confidence: float | None = None


class SegmentResult(BaseModel):
    """Partial or final result of a segment.

    Attributes:
      type: "partial" while the segment grows, "final" when it has ended.
      segment: Index of the segment, from 0; there is one final result per segment.
      start: Start of the segment, in seconds from the start of the stream.
      end: End of the decoded audio of the segment, in seconds.
      language: The language code; None if the model does not distinguish languages and none was requested, or if a
        segment without text gives nothing to identify.
      language_confidence: Probability of an identified language; None if there is none.
      text: The text of the segment.
      stable_text: Leading part of the text that later results of the segment do not change.
      words: Words of the text, if requested.
    """

    type: Literal["partial", "final"]
    segment: int
    start: float
    end: float
    language: str | None
    language_confidence: float | None
    text: str
    stable_text: str
    words: list[WordResult] | None = None


class ErrorMessage(BaseModel):
    """An error: what was found, what was expected, what to do. The stream ends after it, with the results so far."""

    type: Literal["error"] = "error"
    code: ErrorCode
    message: str


class Ended(BaseModel):
    """Last message of the server.

    Attributes:
      duration: Seconds of audio that were decoded.
      notes: Remarks about the audio, such as a low sample rate.
    """

    type: Literal["ended"] = "ended"
    reason: EndReason
    duration: float
    notes: list[str] = []


class ProtocolError(ValueError):
    """A message that is not part of the protocol."""


def parse_client_message(text: str) -> Start | ChangeLanguage | End:
    """Parse and validate a text message of the client.

    Raises:
      ProtocolError: It is not JSON or not a valid message; the error says which field is wrong.
    """
    try:
        return _CLIENT_MESSAGE.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "message"
        raise ProtocolError(
            f"{path}: {first['msg']}; expected a JSON message of type start, language or end (protocol version "
            f"{VERSION})"
        ) from error
