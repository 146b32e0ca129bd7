"""Normalization of transcripts."""

import unicodedata


def normalize_text(text: str) -> str:
    """Return a transcript in Unicode normalization form C, as alphabets are, with single spaces between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())
