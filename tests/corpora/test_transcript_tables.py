"""Tables of transcripts in the layouts of LJSpeech, Hugging Face's audiofolder and Common Voice."""

import pytest

from icefall_pathways.corpora.transcript_tables import Row, read_table
from icefall_pathways.corpora.validation import CorpusError


def rows(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return list(read_table(path))


def test_rows_of_ljspeech_have_the_normalized_text_if_there_is_one(tmp_path):
    text = 'LJ001-0001|In "1455", he|In fourteen fifty-five, he\nLJ001-0002|as it is|\nLJ001-0003|two columns\n'
    assert rows(tmp_path, "metadata.csv", text) == [
        Row("LJ001-0001", "In fourteen fifty-five, he"),
        Row("LJ001-0002", "as it is"),
        Row("LJ001-0003", "two columns"),
    ]


@pytest.mark.parametrize("column", ["transcription", "text", "sentence"])
def test_columns_of_audiofolder_are_found_by_their_names(tmp_path, column):
    text = f'\ufefffile_name,Speaker_ID,{column},split\na.wav,s1,"one, ""two""",train\n\nb/c.mp3,s2,three,test\n'
    assert rows(tmp_path, "metadata.csv", text) == [
        Row("a.wav", 'one, "two"', "s1", "train"),
        Row("b/c.mp3", "three", "s2", "test"),
    ]


def test_tables_with_tabs_keep_quotation_marks(tmp_path):
    header = "client_id\tpath\tsentence\n"
    assert rows(tmp_path, "transcripts.tsv", header + 's\ta.mp3\t"one\nt\tb.mp3\n') == [
        Row("a.mp3", '"one', "s"),
        Row("b.mp3", "", "t"),
    ]
    assert rows(tmp_path, "transcripts.tsv", "a.wav\tone two\n") == [Row("a.wav", "one two")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,words\na.wav,one\n", r"metadata.csv has the columns file_name, words: expected the transcripts in"),
        ('a.wav,"one\nb.wav,two\nc.wav,he said "three"\n', "metadata.csv is damaged at or before line 3 .*double"),
        ('a.wav,"one\nb.wav,two\n', "metadata.csv is damaged at or before line 2 .*close quotation marks"),
        (f"a.wav,{'one ' * 50_000}\n", "metadata.csv is damaged at or before line 1 .*field limit"),
        ("a.wav\n", r"metadata.csv has the line 'a.wav' without a transcript: expected FILE and TEXT"),
    ],
)
def test_a_table_without_transcripts_is_an_error(tmp_path, text, message):
    with pytest.raises(CorpusError, match=message):
        rows(tmp_path, "metadata.csv", text)
