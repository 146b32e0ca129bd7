"""JSON lines in gzip files of many members: equal to plain JSON lines, with random access."""

import gzip
import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.sharding import jsonl
from icefall_pathways.sharding.jsonl import (
    LargeMembersError,
    LineReader,
    lines_of,
    read_lines,
    read_members,
    write_jsonl,
    write_lines,
)

TEXT = st.text(max_size=30)


def located_lines(path):
    """Return the position (member, start, size) of each line, and the line with its end."""
    located = []
    for position, member in read_members(path):
        start = 0
        for line in lines_of(member):
            located.append(((position, start, len(line)), line))
            start += len(line)
    return located


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=40), member_lines=st.integers(1, 9), block=st.integers(1, 50))
def test_each_line_is_read_in_order_and_at_its_position(texts, member_lines, block, tmp_path_factory):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "MEMBER_LINES", member_lines)
        patch.setattr(jsonl, "_BLOCK", block)
        write_jsonl(path, ({"text": text} for text in texts))
        expected = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
        located = located_lines(path)
        assert [line.removesuffix(b"\n") for _, line in located] == list(read_lines(path)) == expected
        random.Random(0).shuffle(located)
        reader = pickle.loads(pickle.dumps(LineReader(path)))
        assert all(reader.read(*position) == line for position, line in located)


def test_gzip_reads_all_members_as_one_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write_jsonl(path, ({"count": index} for index in range(250)))
    with gzip.open(path, "rt") as file:
        assert [json.loads(line)["count"] for line in file] == list(range(250))
    assert len(list(read_members(path))) == 3


def test_files_of_other_writers_are_read(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"a\nbb\n") + gzip.compress(b"ccc"))
    (tmp_path / "a.jsonl").write_bytes(b"a\nbb\r\nccc")
    for path in tmp_path.iterdir():
        assert list(read_lines(path)) == [b"a", b"bb", b"ccc"]


@pytest.mark.parametrize(
    "members", [[b"half", b" line\n"], [b"x" * (jsonl.MAX_MEMBER_BYTES + 1)], [b"{}\n", b"x" * 2**24 + b"\n"], [b"end"]]
)
def test_files_without_random_access_are_detected(tmp_path, members):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(map(gzip.compress, members)))
    with pytest.raises(LargeMembersError):
        list(read_members(path))
    lines = list(read_lines(path))
    write_lines(path, lines)
    assert list(read_lines(path)) == lines


def test_bytes_depend_on_the_content_alone(tmp_path):
    for name in ("a.jsonl.gz", "another name.jsonl.gz"):
        write_jsonl(tmp_path / name, [{"text": "é"}])
    first, second = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second and first[4:8] == bytes(4)  # the time in the header


def test_a_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write_jsonl(path, ({"count": index} for index in range(1000)))
    position, _ = located_lines(path)[-1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EOFError):
        list(read_lines(path))
    with pytest.raises(EOFError, match=r"a\.jsonl\.gz ends inside a gzip member"):
        list(read_members(path))
    with pytest.raises(EOFError, match="has no line of"):
        LineReader(path).read(*position)
