"""Normalization of transcripts in many languages, with and without case and punctuation."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.languages import (
    MLS_LANGUAGES,
    TextOptions,
    accepted_characters,
    built_in_languages,
    foreign_characters,
    get_language,
    normalize_text,
    normalize_transcript,
)

PLAIN, WRITTEN = TextOptions(), TextOptions(keep_case=True, keep_punctuation=True)
OPTIONS = st.builds(TextOptions, st.booleans(), st.booleans())
LANGUAGES = st.sampled_from([*built_in_languages(), *map(get_language, ("zh", "ja", "xyz"))])


@st.composite
def texts(draw):
    """Return a language, and a text of its letters in both cases, punctuation and any other characters."""
    language = draw(LANGUAGES)
    letters = sorted(accepted_characters(language, WRITTEN) or "你好かな")
    special = st.sampled_from("'’-–\" «»“,.!?…İIŞΣσß\u0301\u00ad\u200d ")
    characters = st.sampled_from(letters) | special | st.characters()
    return language, draw(st.text(characters, max_size=30))


@settings(deadline=None)
@given(texts(), OPTIONS)
def test_normalization_is_idempotent_and_normalized_text_has_single_spaces(case, options):
    language, text = case
    normalized = normalize_transcript(text, language, options)
    assert normalize_transcript(normalized, language, options) == normalized
    assert normalized == normalize_text(normalized) and unicodedata.is_normalized("NFC", normalized)


@settings(deadline=None)
@given(texts(), OPTIONS)
def test_accepted_text_consists_of_the_alphabet(case, options):
    language, text = case
    normalized = normalize_transcript(text, language, options)
    foreign, accepted = foreign_characters(normalized, language, options), accepted_characters(language, options)
    if accepted is not None:
        assert set(normalized) - set(foreign) <= accepted and not set(foreign) & accepted
    if not options.keep_case:
        assert not any(character.isupper() for character in normalized if character.lower() != character)
    if not options.keep_punctuation:
        assert not set(normalized) & set('.,?!:;"«»…')


@settings(deadline=None)
@given(st.data(), st.sampled_from(built_in_languages()))
def test_words_of_the_alphabet_are_accepted_in_both_cases(data, language):
    """Combining marks may compose letters that the language does not have."""
    letters = sorted(c for c in language.alphabet - set(" '-·״") if unicodedata.category(c)[0] == "L")
    word = unicodedata.normalize("NFC", data.draw(st.text(st.sampled_from(letters), min_size=1, max_size=8)))
    lowered = normalize_transcript(word, language, PLAIN)
    assert not foreign_characters(lowered, language, PLAIN)
    capitals = [c.upper() if c not in "iı" and c.upper().lower() == c else c for c in word]
    assert not foreign_characters(normalize_transcript("".join(capitals), language, WRITTEN), language, WRITTEN)


@pytest.mark.parametrize(
    ("code", "text", "plain", "written"),
    [
        ("fr", "« L’Été »,  dit-elle…", "l'été dit-elle", '" L\'Été ", dit-elle...'),
        ("tr", "İSTANBUL, IŞIK", "istanbul ışık", "İSTANBUL, IŞIK"),
        ("az", "İKİ QIZ", "iki qız", "İKİ QIZ"),
        ("en", "IŞI İ", "işi i", "IŞI İ"),
        ("de", "STRAẞE, „Straße“", "straße straße", 'STRAẞE, "Straße"'),
        ("el", "Ο ΟΔΥΣΣΕΥΣ, ΣΑΣ!", "ο οδυσσευς σας", "Ο ΟΔΥΣΣΕΥΣ, ΣΑΣ!"),
        ("ru", "Ёлка — это е\u0301ль", "ёлка это е\u0301ль", "Ёлка это е\u0301ль"),
        ("uk", "П'ЯТЬ п’ять", "пʼять пʼять", "ПʼЯТЬ пʼять"),
        ("ca", "Col·legi · L'avi", "col·legi l'avi", "Col·legi L'avi"),
        ("he", 'צה"ל אמר: "שלום"', "צה״ל אמר שלום", 'צה״ל אמר: "שלום"'),
        ("ar", "مـرحبا ، كيف؟", "مرحبا كيف", "مرحبا، كيف؟"),
        ("fa", "می\u200cخواهم\u200f؟", "می\u200cخواهم", "می\u200cخواهم؟"),
        ("hi", "नमस्ते।", "नमस्ते", "नमस्ते।"),
        ("zh", "你好，世界！「嗨」", "你好 世界 嗨", '你好，世界！"嗨"'),
        ("es", "¿Qué tal , José?", "qué tal josé", "¿Qué tal, José?"),
        ("it", "Un po’ d'acqua - 'sì", "un po d'acqua sì", "Un po d'acqua sì"),
        ("it", "Un po’ d'acqua", "un po' d'acqua", "Un po' d'acqua"),
        ("nl", "'s Ochtends: auto’s", "'s ochtends auto's", "'s Ochtends: auto's"),
        ("en", "\u2018No way\u2019, e-mail -- co\u00adop\u200b", "no way e-mail coop", "No way, e-mail coop"),
        ("xyz", "Foo,\tBar's!", "foo bar's", "Foo, Bar's!"),
    ],
)
def test_transcripts_of_many_languages(code, text, plain, written):
    language = get_language(code)
    assert normalize_transcript(text, language, PLAIN) == plain
    assert normalize_transcript(text, language, WRITTEN) == written


@pytest.mark.parametrize(
    ("code", "text", "foreign"),
    [
        ("en", "20 % of a@b & c", "%&02@"),
        ("en", "5 €", "5€"),
        ("ru", "Windows и Мир", "dinosw"),
        ("en", "мир", "имр"),
        ("xyz", "foo 1 €", "1€"),
        ("zh", "第1", "1"),
    ],
)
def test_what_is_read_aloud_in_an_unknown_way_is_foreign(code, text, foreign):
    language = get_language(code)
    assert foreign_characters(normalize_transcript(text, language, PLAIN), language) == foreign


@settings(deadline=None)
@given(st.sampled_from(list(MLS_LANGUAGES.values())), st.data())
def test_transcripts_of_mls_are_used_as_they_are(language, data):
    text = data.draw(st.text(st.sampled_from(sorted(language.alphabet))))
    assert not foreign_characters(normalize_text(text), language)
