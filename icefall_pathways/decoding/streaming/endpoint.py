"""Endpoint detection by the three rules of Kaldi, as in icefall and sherpa."""

from dataclasses import dataclass

from icefall_pathways.ranges import Options, PositiveFloat


@dataclass(frozen=True)
class EndpointConfig(Options):
    """Options of endpoint detection, in seconds; a segment ends when the first rule applies."""

    rule1_min_trailing_silence: PositiveFloat = 2.4
    """End the segment after this much trailing silence, even if nothing was decoded."""

    rule2_min_trailing_silence: PositiveFloat = 1.2
    """End the segment after this much trailing silence if something was decoded."""

    rule3_min_utterance_length: PositiveFloat = 20.0
    """End the segment at this length, even in the middle of speech."""

    def is_pause(self, nonsilence: bool, trailing_silence: float) -> bool:
        """Return whether the speaker pauses (rules 1 and 2).

        Args:
          nonsilence: Whether tokens were decoded in the segment.
          trailing_silence: Seconds since the last token, or since the start of the segment.
        """
        if trailing_silence >= self.rule1_min_trailing_silence:
            return True
        return nonsilence and trailing_silence >= self.rule2_min_trailing_silence

    def is_too_long(self, length: float) -> bool:
        """Return whether a segment of `length` seconds must end in the middle of speech (rule 3)."""
        return length >= self.rule3_min_utterance_length
