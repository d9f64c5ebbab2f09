"""Downloads against a real server: resumed, retried, verified, never half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path

import pytest

from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.preparation import download, transfer
from tell_plugins.preparation.checksums import Checksum, checksum_of, matches
from tell_plugins.preparation.download import Places, ensure, fetch
from tell_plugins.preparation.transfer import Patience
from tests.file_server import (
    Answer,
    FileServer,
    cut_after,
    in_chunks,
    other,
    serving,
    slowly,
    stall_after,
    status,
    whole,
    without_length,
    without_range,
)

CONTENT = bytes(range(256)) * 4096  # 1 MiB
QUICK = Patience(timeout=0.5, tries=3, pause=0.01)
PLACES = Places(patience=QUICK)


def blob_of(content: bytes) -> Checksum:
    return Checksum("blob", sha1(b"blob %d\0" % len(content) + content).hexdigest())


BLOB = blob_of(CONTENT)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        running.files["/rows.jsonl"] = CONTENT
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "card" / "rows.jsonl"


def get(server: FileServer, target: Path, places: Places = PLACES) -> download.Ready:
    return fetch(f"{server.url}/rows.jsonl", BLOB, target, places)


def left_in(target: Path) -> list[str]:
    """The files beside the target, the lock not counted."""
    return sorted(p.name for p in target.parent.iterdir() if not p.name.endswith(".lock"))


def test_blob_id_is_gits(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True)
    assert checksum_of(path, "blob").hex == git.stdout.strip()


def test_plain_download_then_nothing_to_do(server: FileServer, target: Path) -> None:
    first = get(server, target)
    assert target.read_bytes() == CONTENT
    assert first.source == f"{server.url}/rows.jsonl"
    assert left_in(target) == ["rows.jsonl"]
    assert get(server, target).source is None
    assert len(server.requests) == 1


def test_cut_connections_are_resumed(server: FileServer, target: Path) -> None:
    server.script = [cut_after(300_000), cut_after(200_000)]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_tries_count_anew_after_progress(server: FileServer, target: Path) -> None:
    server.script = [cut_after(100_000)] * 8  # more than `tries`, each brings bytes
    get(server, target)
    assert target.read_bytes() == CONTENT


def test_what_came_is_kept_for_the_next_call(server: FileServer, target: Path) -> None:
    server.always = cut_after(0)
    server.script = [cut_after(400_000)]
    with pytest.raises(MachineError, match=r"(?s)broke off.*400,000 bytes are kept"):
        get(server, target)
    assert left_in(target) == ["rows.jsonl.part"]
    server.always, server.requests = None, []
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [("/rows.jsonl", "bytes=400000-")]


def test_server_without_range_support(server: FileServer, target: Path) -> None:
    server.script = [cut_after(300_000), without_range]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.requests[1][1] == "bytes=300000-"


@pytest.mark.parametrize("answer", [without_length, in_chunks])
def test_size_not_announced(server: FileServer, target: Path, answer: Answer) -> None:
    server.always = answer
    get(server, target)
    assert target.read_bytes() == CONTENT


def test_complete_part_needs_only_its_name(server: FileServer, target: Path) -> None:
    target.parent.mkdir(parents=True)
    (target.parent / "rows.jsonl.part").write_bytes(CONTENT)
    get(server, target)  # the server answers 416
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 5])
def test_broken_part_is_fetched_anew(server: FileServer, target: Path, size: int) -> None:
    target.parent.mkdir(parents=True)
    (target.parent / "rows.jsonl.part").write_bytes(b"\xff" * size)
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert left_in(target) == ["rows.jsonl"]


@pytest.mark.parametrize("place", [0, 500_000, len(CONTENT) - 1])
def test_one_wrong_byte_is_found(server: FileServer, target: Path, place: int) -> None:
    wrong = bytearray(CONTENT)
    wrong[place] ^= 1
    server.always = other(bytes(wrong))
    with pytest.raises(MachineError) as raised:
        get(server, target)
    text = str(raised.value)
    assert f"not the right file: a file of {len(CONTENT):,} bytes" in text
    assert blob_of(bytes(wrong)).hex in text
    assert BLOB.hex in text
    assert "--mirror" in text
    assert left_in(target) == []


def test_html_page_instead_of_the_file(server: FileServer, target: Path) -> None:
    server.always = other(b"<!DOCTYPE html><html>please log in</html>")
    with pytest.raises(MachineError, match="an HTML page"):
        get(server, target)
    assert left_in(target) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(404, "the file is not there"), (410, "not there"), (403, "the server refuses")],
)
def test_lasting_refusals_are_not_tried_again(
    server: FileServer, target: Path, code: int, words: str
) -> None:
    server.always = status(code)
    with pytest.raises(MachineError, match=f"HTTP {code}.*{words}"):
        get(server, target)
    assert len(server.requests) == 1
    assert left_in(target) == []


def test_unknown_path_is_404(server: FileServer, target: Path) -> None:
    with pytest.raises(MachineError, match="HTTP 404"):
        fetch(f"{server.url}/other.jsonl", BLOB, target, PLACES)


@pytest.mark.parametrize("code", [429, 500, 503, 408])
def test_passing_refusals_are_tried_again(server: FileServer, target: Path, code: int) -> None:
    server.script = [status(code, Retry_After="0"), status(code)]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_refusals_without_end(server: FileServer, target: Path) -> None:
    server.always = status(503)
    with pytest.raises(MachineError, match=r"HTTP 503 .*\(3 tries\)"):
        get(server, target)
    assert len(server.requests) == 3


def test_server_asks_for_a_pause(server: FileServer, target: Path) -> None:
    server.script = [status(429, Retry_After="1")]
    began = time.monotonic()
    get(server, target)
    assert 1 <= time.monotonic() - began < 5


@pytest.mark.parametrize("sent", [0, 1000])
def test_silent_server_times_out(server: FileServer, target: Path, sent: int) -> None:
    server.always = stall_after(sent, 3)
    impatient = Places(patience=Patience(timeout=0.2, tries=2, pause=0.01))
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"no byte from 127.0.0.1:\d+ for 0.2 s \(time-out\)"):
        get(server, target, impatient)
    assert time.monotonic() - began < 2
    assert not target.exists()


def test_nobody_listens(target: Path) -> None:
    url = "http://127.0.0.1:9/o/n/resolve/main/rows.jsonl"  # as the files of Hugging Face
    with pytest.raises(transfer.Unreachable, match=r"127\.0\.0\.1:9 refuses the connection"):
        fetch(url, BLOB, target, PLACES)


def test_unknown_host(target: Path) -> None:
    with pytest.raises(transfer.Unreachable, match=r"'no-such-host\.invalid' cannot be resolved"):
        fetch("http://no-such-host.invalid/rows.jsonl", BLOB, target, PLACES)


def test_a_server_without_encryption(server: FileServer, target: Path) -> None:
    url = f"{server.url}/o/n/resolve/main/rows.jsonl".replace("http:", "https:")
    with pytest.raises(MachineError, match="no safe connection") as raised:
        fetch(url, BLOB, target, PLACES)
    assert not isinstance(raised.value, transfer.Unreachable)


def test_a_server_that_answers_is_not_unreachable(server: FileServer, target: Path) -> None:
    server.always = cut_after(0)
    with pytest.raises(MachineError, match="broke off") as raised:
        get(server, target)
    assert not isinstance(raised.value, transfer.Unreachable)


def test_redirects_are_followed(server: FileServer, target: Path) -> None:
    server.script = [status(302, Location="/rows.jsonl"), status(301, Location=server.url + "/x")]
    server.files["/x"] = CONTENT
    get(server, target)
    assert [path for path, _ in server.requests] == ["/rows.jsonl", "/rows.jsonl", "/x"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "place", ["file:///etc/hostname", "ftp://127.0.0.1/rows.jsonl", "http://[::1", "//h:port/x"]
)
def test_redirects_to_other_schemes_are_refused(
    server: FileServer, target: Path, place: str
) -> None:
    server.always = status(302, Location=place)
    with pytest.raises(MachineError, match="which is not followed"):
        get(server, target)
    assert left_in(target) == []


def test_redirect_from_https_to_http_is_refused() -> None:
    assert transfer._redirected("http://a/x", "https://b/x") == "https://b/x"
    assert transfer._redirected("https://a/x", "/y") == "https://a/y"
    with pytest.raises(MachineError, match="redirected from https to 'http://b/x'"):
        transfer._redirected("https://a/x", "http://b/x?token=secret")


def test_redirects_without_end(server: FileServer, target: Path) -> None:
    server.always = status(302, Location="/rows.jsonl")
    with pytest.raises(MachineError, match="more than 10 redirects"):
        get(server, target)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "/etc/passwd",
        "http://",
        "http://[::1",
        "http://host:99999/x",
        "http://host:port/x",
    ],
)
def test_only_http_addresses(target: Path, url: str) -> None:
    with pytest.raises(UserError, match="no address to download from"):
        fetch(url, BLOB, target, PLACES)
    with pytest.raises(UserError, match="--mirror"):
        fetch("http://host/x", BLOB, target, Places(mirror=url))


@pytest.mark.parametrize("host", ["h..x", "*", "a" * 70])
def test_impossible_hosts(host: str, target: Path) -> None:
    with pytest.raises(UserError, match="no host can be called"):
        fetch(f"http://{host}/rows.jsonl", BLOB, target, PLACES)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://bob:secret@host:8443/a@b/c?token=t#x", "https://host:8443/a@b/c"),
        ("http://bob:secret@[::1", "http://[::1"),
        ("ftp://bob:secret@host", "ftp://host"),
        ("/data/a?b@c.jsonl", "/data/a?b@c.jsonl"),
    ],
)
def test_addresses_are_shown_without_passwords(url: str, shown: str) -> None:
    assert transfer.shown_url(url) == shown


@pytest.mark.parametrize("answer", [whole, status(404), status(503), other(b"x"), cut_after(0)])
def test_a_mirrors_password_is_told_nobody(
    server: FileServer, target: Path, answer: Answer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.always = answer
    mirror = server.url.replace("http://", "http://bob:secret@")
    said = ""
    try:
        said = str(fetch(None, BLOB, target, Places(mirror=mirror, patience=QUICK)).source)
    except MachineError as error:
        said = str(error)
    assert f"{server.url}/rows.jsonl" in said
    assert "secret" not in said + "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a\\b", " x"])
def test_only_plain_file_names(name: str) -> None:
    with pytest.raises(UserError, match="no plain file name"):
        download.plain_name(name, "card")


def test_an_endless_answer_is_stopped(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "MAX_BYTES", 100_000)
    server.always = without_length
    with pytest.raises(MachineError, match="more than 100,000 bytes"):
        get(server, target)
    assert not target.exists()


def test_mirror_serves_files_by_name(server: FileServer, target: Path) -> None:
    server.files = {"/some/where/rows.jsonl": CONTENT}
    places = Places(mirror=f"{server.url}/some/where/", patience=QUICK)
    ready = fetch("http://no-such-host.invalid/a/b/c", BLOB, target, places)
    assert ready.source == f"{server.url}/some/where/rows.jsonl"
    assert target.read_bytes() == CONTENT


def test_folder_is_searched_and_verified(tmp_path: Path, target: Path) -> None:
    (tmp_path / "usb" / "old").mkdir(parents=True)
    (tmp_path / "usb" / "rows.jsonl").write_bytes(b"another file")
    (tmp_path / "usb" / "old" / "rows.jsonl").write_bytes(CONTENT)
    ready = fetch(None, BLOB, target, Places(folder=tmp_path / "usb"))
    assert ready.source == str(tmp_path / "usb" / "old" / "rows.jsonl")
    assert target.read_bytes() == CONTENT
    assert left_in(target) == ["rows.jsonl"]


def test_folder_with_another_file_of_that_name(tmp_path: Path, target: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"another file")
    with pytest.raises(UserError, match="not the right file") as raised:
        fetch(None, BLOB, target, Places(folder=tmp_path))
    assert blob_of(b"another file").hex in str(raised.value)
    assert left_in(target) == []


def test_folder_without_the_file(tmp_path: Path, target: Path) -> None:
    with pytest.raises(UserError, match=r"no file 'rows\.jsonl' in the folder or below"):
        fetch(None, BLOB, target, Places(folder=tmp_path))
    with pytest.raises(UserError, match="no folder"):
        fetch(None, BLOB, target, Places(folder=tmp_path / "none"))


def test_wrong_file_under_the_name_is_put_aside(server: FileServer, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(b"my own rows")
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert (target.parent / "rows.jsonl.not-official").read_bytes() == b"my own rows"


def test_wrong_file_stays_where_the_right_one_cannot_be_had(
    server: FileServer, target: Path
) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(b"my own rows")
    server.always = status(404)
    with pytest.raises(MachineError):
        get(server, target)
    assert target.read_bytes() == b"my own rows"


def test_ensure_finds_the_file_in_any_data_home(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("TELL_DATA_HOME", f"{first}:{second}")
    url = f"{server.url}/rows.jsonl"
    path = ensure(url, BLOB.hex, "rows.jsonl", "halueval", PLACES)
    assert path == first / "halueval" / "rows.jsonl"
    (second / "elsewhere").mkdir(parents=True)
    path.rename(second / "elsewhere" / "rows.jsonl")
    assert ensure(url, BLOB.hex, "rows.jsonl", "halueval", PLACES).parent.name == "elsewhere"
    assert len(server.requests) == 1


def test_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MachineError, match="TELL_DATA_HOME"):
        get(server, tmp_path / "file" / "card" / "rows.jsonl")


# --- whole processes -----------------------------------------------------------------------------

FETCH = """
import resource, signal, sys
from pathlib import Path
from tell_plugins.core.errors import MachineError
from tell_plugins.preparation.checksums import Checksum
from tell_plugins.preparation.download import Places, fetch
from tell_plugins.preparation.transfer import Patience
if len(sys.argv) > 4:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    ready = fetch(sys.argv[1], Checksum("blob", sys.argv[2]), Path(sys.argv[3]),
                  Places(patience=Patience(10, 3, 0.01)))
    print("fetched" if ready.source else "was there")
except MachineError as error:
    print(error)
    sys.exit(2)
"""


def start(server: FileServer, target: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, f"{server.url}/rows.jsonl", BLOB.hex, str(target)]
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_fetch_one_file_once(server: FileServer, target: Path) -> None:
    server.always = slowly(2)
    first, second = start(server, target), start(server, target)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert sorted(out.strip() for out, _ in outputs) == ["fetched", "was there"]
    assert sum("another process is at it, waiting" in err for _, err in outputs) == 1
    assert server.requests == [("/rows.jsonl", None)]
    assert target.read_bytes() == CONTENT


def test_killed_download_goes_on_and_nothing_half_is_named(
    server: FileServer, target: Path
) -> None:
    server.script = [stall_after(600_000, 20)]
    process = start(server, target)
    part = target.parent / "rows.jsonl.part"
    deadline = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size == 600_000):
        assert time.monotonic() < deadline, "the download did not start"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert left_in(target) == ["rows.jsonl.part"]
    get(server, target)  # the lock died with its process
    assert server.requests[1] == ("/rows.jsonl", "bytes=600000-")
    assert target.read_bytes() == CONTENT


def test_the_name_is_given_last(server: FileServer, target: Path) -> None:
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if target.exists():
                seen.append(target.read_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    server.always = slowly(0.5)
    get(server, target)
    time.sleep(0.02)
    stop.set()
    watcher.join()
    assert seen
    assert all(content == CONTENT for content in seen)


@pytest.mark.parametrize("answer", [whole, without_length])
def test_size_limit_of_the_process(server: FileServer, target: Path, answer: Answer) -> None:
    server.always = answer
    process = start(server, target, "500000")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "the disk is full" in out
    assert left_in(target) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("answer", [whole, without_length], ids=["announced", "not announced"])
def test_full_disk(server: FileServer, small_disk: Path, answer: Answer) -> None:
    server.always = answer
    target = small_disk / "card" / "rows.jsonl"
    with pytest.raises(MachineError, match=r"the disk is full.*nothing was kept") as raised:
        get(server, target)
    assert "remedy" in str(raised.value)
    assert left_in(target) == []


def test_full_disk_while_copying(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(CONTENT)
    target = small_disk / "card" / "rows.jsonl"
    with pytest.raises(MachineError, match="the disk is full"):
        fetch(None, BLOB, target, Places(folder=tmp_path))
    assert left_in(target) == []


def test_room_made_then_fetched(server: FileServer, small_disk: Path) -> None:
    content = CONTENT[:300_000]
    server.files["/rows.jsonl"] = content
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 400_000)
    target = small_disk / "card" / "rows.jsonl"
    url = f"{server.url}/rows.jsonl"
    with pytest.raises(MachineError, match="the disk is full"):
        fetch(url, blob_of(content), target, PLACES)
    ballast.unlink()
    fetch(url, blob_of(content), target, PLACES)
    assert matches(target, blob_of(content))
