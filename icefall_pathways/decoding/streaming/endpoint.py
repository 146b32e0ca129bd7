"""When a segment of speech is over: the three rules of Kaldi that icefall's and sherpa's users know."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EndpointConfig:
    """When a stream is cut into segments, in seconds; the first rule that is met cuts."""

    rule1_min_trailing_silence: float = 2.4
    """Cut after so much silence, whether anything was recognised before or not."""

    rule2_min_trailing_silence: float = 1.2
    """Cut after so much silence behind something that was recognised."""

    rule3_min_utterance_length: float = 20.0
    """Cut a segment of this length, wherever that is."""

    def __post_init__(self) -> None:
        for name in ("rule1_min_trailing_silence", "rule2_min_trailing_silence", "rule3_min_utterance_length"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected more than 0 seconds")

    def is_pause(self, nonsilence: bool, trailing_silence: float) -> bool:
        """Whether the speaker has paused (rules 1 and 2).

        Args:
          nonsilence: Something was recognised in the segment.
          trailing_silence: Seconds since its last token, or since its beginning.
        """
        if trailing_silence >= self.rule1_min_trailing_silence:
            return True
        return nonsilence and trailing_silence >= self.rule2_min_trailing_silence

    def is_too_long(self, length: float) -> bool:
        """Whether a segment of so many seconds must be cut in the middle of speech (rule 3)."""
        return length >= self.rule3_min_utterance_length
