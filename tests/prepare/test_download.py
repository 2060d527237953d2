"""Downloads from a local HTTP server that cuts connections, lies about checksums and changes."""

import hashlib
import os
import threading

import pytest
from spoilt_server import CONTENT, SHA256, Server

from esc_arch.errors import UserError
from esc_arch.prepare.download import Patience, download
from esc_arch.prepare.training_sets import download_div2k


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, path, retries=5, lowest_rate=1000, window=60, answer=120, **options):
    patience = Patience(retries, 0.01, lowest_rate, window, answer)
    return download(server.url, path, **{"progress": False, "patience": patience, **options})


def begin(server, folder):
    """Leave the tag of a download that was begun from this server."""
    (folder / "file.zip.partial.tag").write_text(f"{server.tag}\n{server.url}")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_checked_and_put_in_place(server, tmp_path):
    path = tmp_path / "below" / "file.zip"
    assert fetch(server, path, sha256=SHA256.upper()) == SHA256
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.zip"]


def test_a_file_that_is_there_is_only_checked(server, tmp_path):
    path = tmp_path / "file.zip"
    path.write_bytes(CONTENT)
    assert fetch(server, path, sha256=SHA256) == SHA256
    with pytest.raises(UserError, match="remove it to download it anew"):
        fetch(server, path, sha256="0" * 64)
    assert path.read_bytes() == CONTENT
    assert server.asked == []


def test_cut_connections_are_taken_up_where_they_stopped(server, tmp_path):
    server.cuts = [1_000_000, 700_000, 5]
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256
    starts = [int(asked[len("bytes=") : -1]) for asked in server.asked[1:]]
    # All but the last few bytes of each connection are kept.
    assert 1_000_000 - 65536 < starts[0] <= 1_000_000
    assert starts[0] + 700_000 - 65536 < starts[1] <= starts[0] + 700_000
    assert len(starts) == 3
    assert names(tmp_path) == ["file.zip"]


def test_a_later_run_goes_on_from_an_earlier_one(server, tmp_path):
    server.cuts = [2_000_000, 0]
    with pytest.raises(UserError, match="run the same command again to go on"):
        fetch(server, tmp_path / "file.zip", retries=1)
    assert not (tmp_path / "file.zip").exists()
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256
    assert int(server.asked[-1][len("bytes=") : -1]) > 2_000_000 - 65536


def test_a_run_killed_before_the_renaming_needs_no_second_download(server, tmp_path):
    (tmp_path / "file.zip.partial").write_bytes(CONTENT)
    begin(server, tmp_path)
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_what_another_address_began_is_not_gone_on_with(server, tmp_path):
    (tmp_path / "file.zip.partial").write_bytes(b"another" * 100)
    # A date, or a number that is counted from 1, may be that of another file.
    (tmp_path / "file.zip.partial.tag").write_text(f"{server.tag}\nhttp://elsewhere/file.zip")
    assert fetch(server, tmp_path / "file.zip") == SHA256
    assert server.asked == [None]


def test_a_part_with_a_number_beyond_all_files_is_not_taken(server, tmp_path):
    (tmp_path / "file.zip.partial").write_bytes(CONTENT[:500])
    begin(server, tmp_path)
    server.answer = 206, {"Content-Range": f"bytes 500-1499/{'9' * 5000}", "Content-Length": "1000"}
    with pytest.raises(UserError, match="sent another part than was asked for"):
        fetch(server, tmp_path / "file.zip", retries=0)


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.cuts = [1_500_000, 0]
    with pytest.raises(UserError):
        fetch(server, tmp_path / "file.zip", retries=1)
    server.tag, server.content = '"two"', CONTENT[::-1]
    digest = fetch(server, tmp_path / "file.zip")
    assert digest == hashlib.sha256(CONTENT[::-1]).hexdigest()


@pytest.mark.parametrize("missing", ["ranges", "tag"])
def test_servers_that_cannot_resume_are_asked_for_the_whole_again(server, tmp_path, missing):
    setattr(server, missing, None)
    server.cuts = [1_000_000]
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256


def test_a_partial_file_longer_than_the_servers_is_not_trusted(server, tmp_path):
    (tmp_path / "file.zip.partial").write_bytes(CONTENT + b"more")
    begin(server, tmp_path)
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256


def test_a_wrong_checksum_leaves_nothing_to_trust(server, tmp_path):
    with pytest.raises(UserError, match=f"has SHA-256 {SHA256}, not {'0' * 64}"):
        fetch(server, tmp_path / "file.zip", sha256="0" * 64)
    assert "file.zip" not in names(tmp_path)
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256


def test_a_refusal_is_an_error_of_one_line_at_once(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(UserError, match="the server says 404 Not Found"):
        fetch(server, tmp_path / "file.zip")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 500]
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256
    server.statuses = [503] * 3
    with pytest.raises(UserError, match="the server says 503"):
        fetch(server, tmp_path / "other.zip", retries=2)


def test_an_empty_file_is_an_error_of_one_line(server, tmp_path):
    server.content = b""
    with pytest.raises(UserError, match="the server sent an empty file"):
        fetch(server, tmp_path / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\r\n<!DOCTYPE html><title>Please log in</title>", "a web page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b'{"message": "rate limit exceeded"}', "something else"),
        (b"P", "something else"),
    ],
)
def test_a_page_in_place_of_an_archive_is_told_and_not_kept(server, tmp_path, content, told):
    server.content = content
    with pytest.raises(UserError, match=f"^{server.url}: the server sent {told} in place of"):
        fetch(server, tmp_path / "file.zip", begins=(b"PK",))
    assert names(tmp_path) == []
    with pytest.raises(UserError, match=f"sent {told} in place of the file"):
        download_div2k(tmp_path, server.url.removesuffix("/file.zip"), progress=False)
    assert names(tmp_path) == []


def test_no_server_is_an_error_of_one_line(server, tmp_path):
    with pytest.raises(UserError, match="cannot be reached: Connection refused; run the same"):
        download("http://127.0.0.1:1/file", tmp_path / "file", progress=False, patience=Patience(0))
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="exists|Not a directory"):
        fetch(server, tmp_path / "file" / "file.zip")


def test_progress_shows_bytes_rate_and_remaining_time(server, tmp_path, capsys):
    fetch(server, tmp_path / "file.zip", progress=True)
    bar = capsys.readouterr().err
    assert "file.zip: 100%" in bar
    assert "B/s" in bar


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (206, {"Content-Range": "bytes 0-999/5000"}, "sent another part than was asked for"),
        (206, {}, "sent another part than was asked for"),
        (302, {}, "the server says 302"),
        (302, {"Location": "gopher://nowhere/"}, "cannot be downloaded"),
        (600, {}, "the server says 600"),
        (302, {"Location": "file:///etc/passwd"}, "cannot be downloaded: No connection adapters"),
        (302, {"Location": "http://[::1/"}, "cannot be downloaded: Invalid IPv6 URL"),
        (302, {"Location": "http://a..b/"}, "cannot be downloaded: .*label empty or too long"),
        (302, {"Location": "http://\xff\xfe/"}, "cannot be downloaded: 'utf-8' codec can't decode"),
        (302, {"Location": "/file.zip"}, "cannot be downloaded: Exceeded 30 redirects"),
        (416, {"Content-Length": "0"}, "the server has another file now; run the same command"),
        (200, {"Content-Length": "9" * 5000}, "Content-Length is 9{20}, no number"),
        (200, {"Content-Length": "many"}, "Content-Length is many, no number"),
        (200, {"Content-Length": "-5"}, "Content-Length is -5, no number"),
        (200, {"Content-Length": str(1 << 50)}, "more than the"),
    ],
)
def test_what_is_no_answer_to_a_download_is_never_saved(server, tmp_path, status, headers, message):
    server.answer = status, headers
    with pytest.raises(UserError, match=message):
        fetch(server, tmp_path / "file.zip", retries=1)
    assert names(tmp_path) == []


def test_a_part_of_the_rest_is_not_taken_for_the_whole(server, tmp_path):
    (tmp_path / "file.zip.partial").write_bytes(CONTENT[:500])
    begin(server, tmp_path)
    headers = {"Content-Range": f"bytes 500-1499/{len(CONTENT)}", "Content-Length": "1000"}
    server.answer = 206, headers
    with pytest.raises(UserError, match="run the same command again"):
        fetch(server, tmp_path / "file.zip", retries=1)
    assert not (tmp_path / "file.zip").exists()


def test_a_body_without_end_is_cut_off(server, tmp_path):
    server.answer = 200, {}
    with pytest.raises(UserError, match="sends more than the 900 bytes"):
        fetch(server, tmp_path / "file.zip", largest=900)
    assert names(tmp_path) == []


def test_a_page_without_end_that_comes_with_a_new_address_is_left_unread(server, tmp_path):
    server.moves, server.pause = 2, 0.01
    server.content = CONTENT[:50]
    # A connection each, and as long as all of the answers may take.
    assert fetch(server, tmp_path / "file.zip", retries=0, answer=20)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT[:50]
    assert len(server.asked) == 3


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(server, tmp_path):
    server.pause = 0.01
    with pytest.raises(UserError, match=r"sends \d+ bytes a second, fewer than the 5000 .*go on"):
        fetch(server, tmp_path / "file.zip", retries=1, lowest_rate=5000, window=0.3)
    assert len(server.asked) == 2
    assert names(tmp_path) == ["file.zip.partial", "file.zip.partial.tag"]
    # What came is right, and is gone on with.
    come = (tmp_path / "file.zip.partial").stat().st_size
    assert server.asked[1] is not None and 0 < come < 1000
    server.pause = None
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256
    assert server.asked[2] == f"bytes={come}-"


def test_a_server_that_never_ends_its_headers_is_given_up(server, tmp_path):
    server.raw, server.pause = b"HTTP/1.1 200 OK\r\nX: aaaa", 0.02
    with pytest.raises(UserError, match="the server has not answered within 0.3 s; run the same"):
        fetch(server, tmp_path / "file.zip", retries=1, answer=0.3)
    assert len(server.asked) == 2
    assert names(tmp_path) == []
    server.raw = server.pause = None
    assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256


@pytest.mark.parametrize("status", [404, 503])
def test_control_characters_in_a_servers_reason_are_escaped(server, tmp_path, status):
    server.raw = b"HTTP/1.1 %d Gone\x1b[2J\rbasicsr: all is well\r\n\r\n" % status
    with pytest.raises(UserError) as error:
        fetch(server, tmp_path / "file.zip", retries=0)
    assert f"{status} Gone\\x1b[2J\\rbasicsr: all is well" in str(error.value)
    assert str(error.value).isprintable()


def test_connections_that_bring_next_to_nothing_are_not_tried_for_ever(server, tmp_path):
    server.cuts = [10] * 100
    with pytest.raises(UserError, match="run the same command again to go on"):
        fetch(server, tmp_path / "file.zip", retries=3)
    assert len(server.asked) == 4


@pytest.mark.parametrize("name", ["file.zip.partial", "file.zip.partial.tag"])
@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_link_planted_at_a_name_that_can_be_guessed_is_not_followed(
    server, tmp_path, name, plant
):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    plant(precious, tmp_path / name)
    if name.endswith(".tag"):
        (tmp_path / "file.zip.partial").write_bytes(CONTENT[:100])
        assert fetch(server, tmp_path / "file.zip", sha256=SHA256) == SHA256
        assert server.asked == [None]  # Not to be gone on with by what the link says.
    else:
        with pytest.raises(UserError, match="file.zip.partial: is .*; remove it"):
            fetch(server, tmp_path / "file.zip")
        assert server.asked == []
    assert precious.read_text() == "precious"


def test_the_bytes_are_saved_as_they_are_sent(server, tmp_path):
    headers = {"Content-Encoding": "gzip", "Content-Length": "1000"}
    server.answer = 200, headers
    assert fetch(server, tmp_path / "a.gz") == hashlib.sha256(CONTENT[:1000]).hexdigest()
