"""JSON lines in gzip files of many members: equal to plain JSON lines, with random access."""

import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.sharding import jsonl
from icefall_pathways.sharding.jsonl import locate_lines, read_line, read_lines, write_jsonl

TEXT = st.text(max_size=30)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=40), member_lines=st.integers(1, 9), block=st.integers(1, 50))
def test_each_line_is_read_in_order_and_at_its_location(texts, member_lines, block, tmp_path_factory):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "MEMBER_LINES", member_lines)
        patch.setattr(jsonl, "_BLOCK", block)
        write_jsonl(path, ({"text": text} for text in texts))
        expected = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
        located = list(locate_lines(path))
        assert [line for _, line in located] == list(read_lines(path)) == expected
        random.Random(0).shuffle(located)
        with path.open("rb") as file:
            assert all(read_line(file, location) == line for location, line in located)


def test_gzip_reads_all_members_as_one_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write_jsonl(path, ({"count": index} for index in range(250)))
    with gzip.open(path, "rt") as file:
        assert [json.loads(line)["count"] for line in file] == list(range(250))
    assert len({location.member for location, _ in locate_lines(path)}) == 3


def test_files_of_other_writers_are_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"a\nbb\n") + gzip.compress(b"ccc"))
    located = list(locate_lines(path))
    assert [line for _, line in located] == [b"a", b"bb", b"ccc"]
    with path.open("rb") as file:
        assert [read_line(file, location) for location, _ in located] == [b"a", b"bb", b"ccc"]


def test_bytes_depend_on_the_content_alone(tmp_path):
    for name in ("a.jsonl.gz", "another name.jsonl.gz"):
        write_jsonl(tmp_path / name, [{"text": "é"}])
    first, second = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second and first[4:8] == bytes(4)  # the time in the header


def test_a_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write_jsonl(path, ({"count": index} for index in range(1000)))
    located = list(locate_lines(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EOFError, match=r"a\.jsonl\.gz ends inside a gzip member"):
        list(read_lines(path))
    with path.open("rb") as file, pytest.raises(EOFError, match="has no line of"):
        read_line(file, located[-1][0])
