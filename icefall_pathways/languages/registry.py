"""Languages by code: name, alphabet, script and writing direction."""

from dataclasses import dataclass, field
from functools import cache

from icefall_pathways.languages.cldr import expand, table
from icefall_pathways.languages.tags import LanguageCode, canonical_language, maximize, name_key, parse_tag

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_WORD_PUNCTUATION = "'-"
_COMMON_PUNCTUATION = '.,?!:;"'


@dataclass(frozen=True)
class Language:
    """Properties of a language.

    Attributes:
      code: BCP 47 code, such as "fr" or "zh-TW"; the `language` of every supervision.
      name: English name in ASCII without spaces and hyphens, such as "french" or "norwegian_bokmal"; part of the names
        of manifests and of MLS folders.
      alphabet: Characters of normalized transcripts in lower case and without punctuation, including the space, the
        apostrophe and the hyphen; None if it is not known.
      script: ISO 15924 code, such as "Latn"; "" if it is not known.
      punctuation: The punctuation of sentences.
    """

    code: LanguageCode
    name: str
    alphabet: frozenset[str] | None = field(repr=False)
    script: str = ""
    punctuation: frozenset[str] = field(default=frozenset(_COMMON_PUNCTUATION), repr=False)

    @property
    def right_to_left(self) -> bool:
        """True if it is written from right to left."""
        return self.script in table()["right_to_left_scripts"]

    @property
    def scored_by_characters(self) -> bool:
        """True if its script has no spaces between words, so that error rates count characters instead of words.

        These are Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and others; not Korean and Vietnamese.
        """
        return self.script in table()["scripts_without_spaces"]


def _mls_language(code: str, accented: str) -> Language:
    language = LanguageCode(code)
    alphabet = frozenset(_LATIN + accented + _WORD_PUNCTUATION + " ")
    return Language(language, _name(language), alphabet, "Latn", _punctuation_of(code))


def _name(code: LanguageCode) -> str:
    """Return the name in CLDR, or that of the base language with the other subtags, or the code.

    The code also replaces a name that is another language's code, such as Ga.
    """
    names = table()["names"]
    base, *others = code.split("-")
    name = names[code][0] if code in names else " ".join([names.get(base, [base])[0], *others])
    return name_key(name if canonical_language(name_key(name)) == code else code)


def _letters_of(key: str) -> frozenset[str] | None:
    letters = table()["letters"].get(key)
    return None if letters is None else frozenset(expand(letters) + _WORD_PUNCTUATION + " ")


def _punctuation_of(key: str) -> frozenset[str]:
    return frozenset(_COMMON_PUNCTUATION + table()["punctuation"].get(key, ""))


#: The languages of Multilingual LibriSpeech. Their alphabets are the letters of their orthography, including those of
#: loan words.
MLS_LANGUAGES: dict[LanguageCode, Language] = {
    language.code: language
    for language in (
        _mls_language("en", "éèêçñïö"),
        _mls_language("fr", "àâæçéèêëîïôœùûüÿ"),
        _mls_language("it", "àèéìíîòóùú"),
        _mls_language("nl", "áàâäçéèêëíïóôöúûü"),
        _mls_language("de", "äöüßéèêàâç"),
        _mls_language("es", "áéíñóúüï"),
        _mls_language("pt", "àáâãçéêíòóôõúü"),
        _mls_language("pl", "ąćęłńóśźż"),
    )
}


def get_language(tag: str) -> Language:
    """Return the language with the given code ("fr", "pt_BR") or English name ("french"); see `canonical_language`.

    Raises:
      UnknownLanguageError: It is neither.
    """
    return _language(canonical_language(tag))


@cache
def _language(code: LanguageCode) -> Language:
    """Return a language by its canonical code."""
    if code in MLS_LANGUAGES:
        return MLS_LANGUAGES[code]
    tag = parse_tag(code)
    if tag is None:
        return Language(code, _name(code), None)
    script, usual_script = maximize(tag).script, maximize(tag._replace(script="", region="")).script
    key = tag.language if script == usual_script else f"{tag.language}-{script}"
    base = MLS_LANGUAGES.get(LanguageCode(key))
    alphabet = base.alphabet if base else _letters_of(key)
    return Language(code, _name(code), alphabet, script, _punctuation_of(key))


def built_in_languages() -> list[Language]:
    """Return the languages whose alphabet is known, by code."""
    codes = {canonical_language(key) for key in table()["letters"]}
    return [_language(code) for code in sorted(codes)]


def is_language(text: str) -> bool:
    """Return True if a text is a code or a name of a language, see `canonical_language`."""
    try:
        canonical_language(text)
    except ValueError:
        return False
    return True


def is_language_code(text: str) -> bool:
    """Return True if a text is a canonical code."""
    return is_language(text) and canonical_language(text) == text


def language_name(code: str) -> str:
    """Return the name of a language, see `Language.name`."""
    return get_language(code).name


def alphabet(code: str) -> frozenset[str] | None:
    """Return the alphabet of a language, see `Language.alphabet`."""
    return get_language(code).alphabet


def is_right_to_left(code: str) -> bool:
    """Return True if a language is written from right to left."""
    return get_language(code).right_to_left


def scored_by_characters(code: str) -> bool:
    """Return True if error rates of a language count characters, see `Language.scored_by_characters`."""
    return get_language(code).scored_by_characters
