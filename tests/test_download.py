"""Downloads against a real server: asked for again, verified, never half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter

from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.preparation import download
from tell_plugins.preparation.download import Places, Unreachable, ensure, fetch, has_blob
from tests.conftest import message_of, wait_for
from tests.file_server import FileServer, blob_of, cut_after, other, slowly, status, whole

CONTENT = bytes(range(256)) * 4096  # 1 MiB
PLACES = Places(wait=0.3, tries=3, pause=0.01)
BLOB = has_blob(blob_of(CONTENT))


@pytest.fixture
def server(server) -> FileServer:
    server.files["/rows.jsonl"] = CONTENT
    return server


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "data" / "card" / "rows.jsonl"


def get(server: FileServer, target: Path, **places: Any) -> str | None:
    return fetch(f"{server.url}/rows.jsonl", BLOB, target, PLACES._replace(**places))


def left_in(target: Path) -> list[str]:
    """The files beside the target, the lock not counted."""
    return sorted(p.name for p in target.parent.iterdir() if not p.name.endswith(".lock"))


def test_plain_download_then_nothing_to_do(server, target):
    assert get(server, target) == f"{server.url}/rows.jsonl"
    assert target.read_bytes() == CONTENT
    assert left_in(target) == ["rows.jsonl"]
    assert get(server, target) is None
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "failing",
    [
        [cut_after(300_000), cut_after(0)],
        [status(429, Retry_After="0"), status(503)],
        [status(408), cut_after(1000, 1)],
    ],
)
def test_what_may_pass_is_asked_for_again(server, target, failing, capfd):
    server.script = list(failing)
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 3
    assert left_in(target) == ["rows.jsonl"]
    assert capfd.readouterr().err.count("trying again in") == 2
    target.unlink()
    server.script = [status(429, Retry_After="1")]
    began = time.monotonic()
    get(server, target)
    assert 1 <= time.monotonic() - began < 5, "the server asked for a pause"


def test_one_wrong_byte_is_found(server, target):
    wrong = bytearray(CONTENT)
    wrong[500_000] ^= 1
    target.parent.mkdir(parents=True)
    target.write_bytes(b"my own rows")  # which stays
    server.always = other(bytes(wrong))
    with pytest.raises(MachineError) as raised:
        get(server, target)
    for said in ("a file of 1,048,576 bytes", blob_of(bytes(wrong)), blob_of(CONTENT), "--mirror"):
        assert said in str(raised.value)
    assert left_in(target) == ["rows.jsonl"]
    assert target.read_bytes() == b"my own rows"


@pytest.mark.parametrize(
    ("answer", "words", "tries"),
    [
        (status(404), "HTTP 404 Not Found", 1),
        (status(503), "HTTP 503 Service Unavailable", 3),
        (cut_after(400_000), "Connection broken", 3),
        (cut_after(0, 2), "Read timed out", 3),
        (cut_after(1000, 2), "Read timed out", 3),
        (other(b"<!DOCTYPE html><html>please log in</html>"), "file: an HTML page of 41 bytes", 1),
        (status(302, Location="file:///etc/hostname"), "redirected to none", 1),
        (status(302, Location="http://[::1"), "redirected to none", 1),
        (status(302, Location="/rows.jsonl"), "redirected to none", 31),
    ],
)
def test_what_a_server_refuses(server, target, answer, words, tries):
    server.always = answer
    with pytest.raises((MachineError, UserError), match=words) as raised:
        get(server, target, wait=0.2)
    assert f"{server.url}/rows.jsonl" in str(raised.value)
    assert "--mirror" in str(raised.value)
    assert not isinstance(raised.value, Unreachable)
    assert len(server.requests) == tries
    assert left_in(target) == []


@pytest.mark.parametrize(
    ("url", "proxy", "words"),
    [
        ("http://127.0.0.1:9/rows.jsonl", "", "127.0.0.1:9/rows.jsonl: .*Connection refused"),
        ("http://no-such-host.invalid/x", "", "Failed to resolve 'no-such-host.invalid'"),
        ("http://host/x", "http://user:secret@127.0.0.1:9", "Unable to connect to proxy"),
    ],
)
def test_nobody_there(target, url, proxy, words, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(Unreachable, match=words) as raised:
        fetch(url, BLOB, target, PLACES)
    assert "secret" not in str(raised.value)


def test_the_proxy_of_the_environment_is_used(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    url = "http://no-such-host.invalid/rows.jsonl"
    assert fetch(url, BLOB, target, PLACES) == url
    assert server.requests == ["/rows.jsonl"]


def test_a_server_without_encryption(server, target):
    url = f"{server.url}/rows.jsonl".replace("http:", "https:")
    with pytest.raises(MachineError, match="SSL") as raised:
        fetch(url, BLOB, target, PLACES)
    assert not isinstance(raised.value, Unreachable)


def test_redirects_are_followed(server, target):
    server.script = [status(302, Location="/rows.jsonl"), status(301, Location=server.url + "/x")]
    server.files["/x"] = CONTENT
    get(server, target)
    assert server.requests == ["/rows.jsonl", "/rows.jsonl", "/x"]
    assert target.read_bytes() == CONTENT


def test_redirect_from_https_to_http_is_refused(server, target, monkeypatch):
    """The request itself goes to the plain server; what it answers is that of an encrypted one."""
    server.always = status(302, Location=f"{server.url}/x?token=secret")
    send = HTTPAdapter.send

    def unencrypted(self: HTTPAdapter, request: PreparedRequest, **values: Any) -> Response:
        plain = request.copy()
        plain.url = str(request.url).replace("https:", "http:")
        return send(self, plain, **values)

    monkeypatch.setattr(HTTPAdapter, "send", unencrypted)
    url = f"{server.url}/rows.jsonl".replace("http:", "https:")
    with pytest.raises(UserError, match="no redirect from https to http") as raised:
        fetch(url, BLOB, target, PLACES)
    assert "secret" not in str(raised.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "http://[::1", "http://"])
def test_only_http_addresses(target, url):
    assert "no address" in message_of(fetch, url, BLOB, target, PLACES)
    assert "--mirror" in message_of(fetch, "http://host/x", BLOB, target, Places(mirror=url))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://bob:secret@host:8443/a@b/c?token=t#x", "https://host:8443/a@b/c"),
        ("http://bob:secret@[::1", "http://[::1"),
        ("/data/a?b@c.jsonl", "/data/a?b@c.jsonl"),
    ],
)
def test_addresses_are_shown_without_passwords(url, shown):
    assert download.shown_url(url) == shown


@pytest.mark.parametrize("answer", [whole, status(404), status(503), other(b"x"), cut_after(0)])
def test_a_mirrors_password_is_told_nobody(server, target, answer, capfd):
    server.always = answer
    mirror = server.url.replace("http://", "http://bob:secret@")
    try:
        said = str(fetch(None, BLOB, target, PLACES._replace(mirror=mirror)))
    except MachineError as error:
        said = str(error)
    assert f"{server.url}/rows.jsonl" in said
    assert "secret" not in said + "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", " x"])
def test_only_plain_file_names(name):
    assert "no plain file name" in message_of(download.plain_name, name, "card")


def test_folder_is_searched_and_verified(tmp_path, target):
    right = tmp_path / "usb" / "old" / "rows.jsonl"
    right.parent.mkdir(parents=True)
    (tmp_path / "usb" / "rows.jsonl").write_bytes(b"another file")
    right.write_bytes(CONTENT)
    assert fetch(None, BLOB, target, Places(folder=tmp_path / "usb")) == str(right)
    assert target.read_bytes() == CONTENT
    right.unlink()
    target.unlink()
    said = message_of(fetch, None, BLOB, target, Places(folder=tmp_path / "usb"))
    assert "not the right file" in said
    assert blob_of(b"another file") in said
    assert left_in(target) == []


def test_ensure_finds_the_file_in_any_data_home(server, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("TELL_DATA_HOME", f"{first}:{second}")
    wanted = f"{server.url}/rows.jsonl", blob_of(CONTENT), "rows.jsonl", "halueval", PLACES
    path = ensure(*wanted)
    assert path == first / "halueval" / "rows.jsonl"
    (second / "elsewhere").mkdir(parents=True)
    path.rename(second / "elsewhere" / "rows.jsonl")
    assert ensure(*wanted).parent.name == "elsewhere"
    assert len(server.requests) == 1


FETCH = """
import sys
from pathlib import Path
from tell_plugins.preparation.download import Places, fetch, has_blob
source = fetch(sys.argv[1], has_blob(sys.argv[2]), Path(sys.argv[3]),
               Places(wait=10, tries=3, pause=0.01))
print("fetched" if source else "was there")
"""


def start(server: FileServer, target: Path) -> subprocess.Popen[str]:
    url = f"{server.url}/rows.jsonl"
    command = [sys.executable, "-c", FETCH, url, blob_of(CONTENT), str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_one_file_once(server, target):
    server.always = slowly(2)
    both = start(server, target), start(server, target)
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(out.strip() for out, _ in outputs) == ["fetched", "was there"]
    assert sum("another process is at it, waiting" in err for _, err in outputs) == 1
    assert server.requests == ["/rows.jsonl"]
    assert target.read_bytes() == CONTENT


def test_what_a_killed_download_left_is_never_taken(server, target):
    server.script = [cut_after(600_000, 20)]
    process = start(server, target)
    wait_for(
        lambda: any(f.stat().st_size > 100_000 for f in target.parent.glob(".rows*/unfinished"))
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert not target.exists()
    get(server, target)  # the lock died with its process
    assert [path.name for path in target.parent.glob("[!.]*")] == ["rows.jsonl"]
    assert target.read_bytes() == CONTENT
