import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from icefall_pathways.corpora import archives
from icefall_pathways.corpora.download import DownloadConfig, download_mls
from icefall_pathways.corpora.validation import CorpusError

NAME = "mls_polish_opus.tar.gz"


def archive_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Server:
    """A local mirror that supports ranges, records requests, and can interrupt transfers."""

    def __init__(self, files):
        self.files, self.ranges, self.break_after = files, [], None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                content = outer.files.get(self.path.rsplit("/", 1)[-1])
                if content is None:
                    self.send_error(404)
                    return
                start = 0
                if requested := self.headers.get("Range"):
                    outer.ranges.append(requested)
                    start = int(requested.removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if body and self.path.endswith(".gz") and outer.break_after is not None:
                    self.wfile.write(content[start : start + outer.break_after])
                elif body:
                    self.wfile.write(content[start:])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/mls"


@pytest.fixture
def serve():
    servers = []

    def start(members, md5=None):
        data = archive_of(members)
        sums = f"{md5 or hashlib.md5(data).hexdigest()}  {NAME}\n".encode()
        servers.append(Server({NAME: data, "md5sum.txt": sums}))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()


def config(server, folder):
    return DownloadConfig(corpus_dir=folder, languages="pl", base_url=server.url)


GOOD = {"mls_polish_opus/train/transcripts.txt": b"1_2_3\ttak\n" * 5000}


def test_an_archive_is_downloaded_verified_and_unpacked_once(serve, tmp_path):
    server = serve(GOOD)
    download_mls(config(server, tmp_path))
    name, content = next(iter(GOOD.items()))
    assert (tmp_path / name).read_bytes() == content
    server.files.clear()
    download_mls(config(server, tmp_path))


def test_a_broken_transfer_is_resumed(serve, tmp_path):
    server = serve(GOOD)
    server.break_after = 100
    with pytest.raises(CorpusError, match="run the same command to resume"):
        download_mls(config(server, tmp_path))
    assert (tmp_path / f"{NAME}.part").stat().st_size == 100
    server.break_after = None
    download_mls(config(server, tmp_path))
    assert server.ranges == ["bytes=100-"]
    assert (tmp_path / next(iter(GOOD))).exists()


def test_a_wrong_checksum_removes_the_archive(serve, tmp_path):
    with pytest.raises(CorpusError, match=f"{NAME} has MD5 .*, expected 00ff: it was damaged"):
        download_mls(config(serve(GOOD, md5="00ff"), tmp_path))
    assert not list(tmp_path.glob("mls_*"))


@pytest.mark.parametrize(
    "members", [{"../outside.txt": b"x"}, {"/tmp/outside.txt": b"x"}, {"mls_polish_opus/link": None}]
)
def test_members_outside_the_folder_are_rejected(serve, tmp_path, members):
    with pytest.raises(CorpusError, match="not a regular file inside its folder"):
        download_mls(config(serve(members), tmp_path / "corpus"))
    assert not (tmp_path / "outside.txt").exists()


def test_an_archive_that_expands_too_much_is_rejected(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_UNPACKED_BYTES", 1 << 20)
    with pytest.raises(CorpusError, match="unpacks to more than 10 times its size"):
        download_mls(config(serve(GOOD | {"mls_polish_opus/zeros.flac": bytes(2 << 20)}), tmp_path))
    assert not (tmp_path / "mls_polish_opus" / "zeros.flac").exists()


def test_a_missing_file_or_server_is_an_error(serve, tmp_path):
    server = serve(GOOD)
    del server.files[NAME]
    with pytest.raises(CorpusError, match=rf"{NAME}: 404"):
        download_mls(config(server, tmp_path))
    with pytest.raises(CorpusError, match=r"cannot reach .*: check the network"):
        download_mls(DownloadConfig(tmp_path, "pl", base_url="http://127.0.0.1:1/mls"))
