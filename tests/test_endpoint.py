"""Asking an endpoint: checked answers, patience, what is kept; against a real server."""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.preparation.endpoint import (
    Endpoint,
    Messages,
    add_arguments,
    ask_all,
    need_consent,
    side_by_side,
)
from tests.chat_server import ChatServer, Reply, serving
from tests.conftest import message_of

GOOD = Reply("good")


def questions(count: int) -> dict[str, Messages]:
    return {f"q{n}": [{"role": "user", "content": f"q{n}"}] for n in range(count)}


def check(key: str, text: str) -> str | None:
    return None if text == "good" else f"'{text}' is not good"


class Outcome(NamedTuple):
    answers: dict[str, str]
    failures: dict[str, str]


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--model", "m", *flags])


def asked(
    server: ChatServer | None, folder: Path, count: int = 1, *flags: str, **more: object
) -> Outcome:
    url = server.url if server else "http://127.0.0.1:9/v1"
    endpoint = Endpoint(url, **{"tries": 2, "timeout": 5.0, **more})  # type: ignore[arg-type]
    return Outcome(*ask_all(questions(count), check, endpoint, arguments(*flags), folder, 130))


def test_a_right_answer_takes_one_request_and_a_wrong_one_is_asked_again_with_the_reason(tmp_path):
    with serving(lambda body, nth: GOOD) as server:
        assert asked(server, tmp_path / "a", 5).answers == {f"q{n}": "good" for n in range(5)}
        assert len(server.requests) == 5
        assert server.requests[0].items() >= {"temperature": 0.0, "max_tokens": 600}.items()
    with serving(lambda body, nth: GOOD if nth else Reply("bad")) as server:
        assert asked(server, tmp_path / "b").answers == {"q0": "good"}
        again = server.requests[1]["messages"]
        assert [message["role"] for message in again] == ["user", "assistant", "user"]
        assert again[1]["content"] == "bad"
        assert "'bad' is not good" in again[2]["content"]
    with serving(lambda body, nth: Reply(f"bad{nth}")) as server:
        assert asked(server, tmp_path / "c") == ({}, {"q0": "'bad2' is not good"})
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "first",
    [
        Reply("good", delay=1.5),
        Reply(status=500),
        Reply(status=408),
        Reply(status=429, headers={"Retry-After": "0.3"}),
    ],
)
def test_what_may_pass_is_sent_again(tmp_path, first):
    with serving(lambda body, nth: GOOD if nth else first) as server:
        outcome = asked(server, tmp_path, timeout=0.8)
    assert outcome.answers == {"q0": "good"}
    assert len(server.requests) == 2


def test_a_row_that_only_breaks_the_server_is_listed_and_the_rest_is_answered(tmp_path):
    def script(body: dict[str, Any], nth: int) -> Reply:
        return Reply(status=503) if body["messages"][0]["content"] == "q1" else GOOD

    with serving(script) as server:
        outcome = asked(server, tmp_path, 4)
        assert sorted(outcome.answers) == ["q0", "q2", "q3"]
        assert "HTTP 503" in outcome.failures["q1"]
        assert server.seen["q1"] == 2
        server.script = lambda body, nth: GOOD
        assert asked(server, tmp_path, 4).failures == {}


def test_an_endpoint_that_is_down_stops_the_run_and_keeps_the_answers(tmp_path, capsys):
    def script(body: dict[str, Any], nth: int) -> Reply:
        return GOOD if body["messages"][0]["content"] in ("q0", "q1") else Reply(status=500)

    with serving(script) as server:
        with pytest.raises(MachineError, match="HTTP 500"):
            asked(server, tmp_path, 9, "--concurrency", "2")
        assert "2 answers are kept in" in capsys.readouterr().out
        server.script = lambda body, nth: GOOD
        server.requests.clear()
        assert len(asked(server, tmp_path, 9).answers) == 9
        later = {body["messages"][0]["content"] for body in server.requests}
        assert later == {f"q{n}" for n in range(2, 9)}


def test_after_an_error_nobody_is_waited_for():
    def work(seconds: float) -> None:
        time.sleep(seconds)
        raise MachineError("down")

    began = time.monotonic()
    with pytest.raises(MachineError, match="down"):
        list(side_by_side(work, [0.1, 9, 9, 9], 2))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (None, r"http://127\.0\.0\.1:9/v1: no connection"),
        (Reply(status=429, error={"message": "You exceeded your quota"}), "exceeded your quota"),
    ],
)
def test_what_only_time_mends(reply, message, tmp_path):
    with serving(lambda body, nth: reply or GOOD) as server:
        with pytest.raises(MachineError, match=message):
            asked(server if reply else None, tmp_path)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, r"key in \$SOME_KEY"), (404, "ends in /v1"), (400, "--temperature")],
)
def test_refusals_name_the_remedy_and_never_the_key(status, remedy, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    error = {"message": "no such thing, you sent sk-very-secret"}
    with serving(lambda body, nth: Reply(status=status, error=error)) as server:
        with pytest.raises(UserError, match=rf"HTTP {status}: no such thing[\s\S]*{remedy}") as e:
            asked(server, tmp_path / "kept", key_env="SOME_KEY")
    assert server.keys == ["Bearer sk-very-secret"]
    assert "secret" not in str(e.value) + "".join(capfd.readouterr())
    assert not (tmp_path / "kept").exists()


def test_a_key_that_is_taken_no_longer_stops_the_run(tmp_path):
    def script(body: dict[str, Any], nth: int) -> Reply:
        return GOOD if body["messages"][0]["content"] in ("q0", "q1") else Reply(status=401)

    with serving(script) as server, pytest.raises(UserError, match="HTTP 401"):
        asked(server, tmp_path, 9, "--concurrency", "1")
    assert len(server.requests) <= 4


def test_one_refused_row_among_good_ones_is_that_rows_failure(tmp_path):
    def script(body: dict[str, Any], nth: int) -> Reply:
        refused = Reply(status=400, error={"message": "content filter"})
        return refused if body["messages"][0]["content"] == "q2" else GOOD

    with serving(script) as server:
        outcome = asked(server, tmp_path, 4, "--concurrency", "1", "--attempts", "2")
    assert len(outcome.answers) == 3
    assert "content filter" in outcome.failures["q2"]
    assert server.seen["q2"] == 1


def test_never_more_at_once_than_allowed(tmp_path):
    with serving(lambda body, nth: Reply("good", delay=0.03)) as server:
        asked(server, tmp_path, 20, "--concurrency", "3")
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("url", "yes", "goes"),
    [
        ("http://127.0.0.1:8000/v1", False, True),
        ("http://192.168.1.9/v1", False, True),
        ("http://gpu-box:8000/v1", False, True),
        ("https://api.example.com/v1", False, False),
        ("https://api.example.com/v1", True, True),
        ("https://8.8.8.8/v1", False, False),
    ],
)
def test_a_public_endpoint_needs_consent(url, yes, goes, capsys):
    args = arguments(*["--yes"] * yes)
    if goes:
        need_consent(questions(100).values(), Endpoint(url), args, 130)
        assert "100 rows to ask m" in capsys.readouterr().out
    else:
        with pytest.raises(UserError, match=r"13,000 answered[\s\S]*--yes"):
            need_consent(questions(100).values(), Endpoint(url), args, 130)


def test_what_is_no_address_or_needs_a_key_or_https_is_told(monkeypatch):
    def told(url: str) -> str:
        return message_of(Endpoint(url).need_key)

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Endpoint("http://127.0.0.1:1/v1").need_key()
    assert "no key in $OPENAI_API_KEY" in told("https://api.example.com/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    Endpoint("https://api.example.com/v1").need_key()
    assert "in the clear" in told("http://api.example.com/v1")
    for url in ("host/v1", "ftp://host/v1", "http://bob:secret@host:99999/v1"):
        assert "no address" in told(url)
        assert "secret" not in told(url)


# ---------------------------------------------------------------- what is kept


def test_a_damaged_answer_is_asked_for_again(tmp_path):
    with serving(lambda body, nth: GOOD) as server:
        asked(server, tmp_path, 5)
        (tmp_path / "q3.json").write_text('{"te')
        (tmp_path / "q4.json").write_text("{}")
        server.requests.clear()
        assert len(asked(server, tmp_path, 5).answers) == 5
        assert {body["messages"][0]["content"] for body in server.requests} == {"q3", "q4"}


def test_answers_that_no_longer_pass_the_check_are_open_again(tmp_path, monkeypatch):
    with serving(lambda body, nth: GOOD) as server:
        asked(server, tmp_path, 2)
        assert len(asked(server, tmp_path, 2).answers) == len(server.requests) == 2
        monkeypatch.setattr("tests.test_endpoint.check", lambda key, text: "no")
        asked(server, tmp_path, 2, "--attempts", "2")
        assert len(server.requests) == 2 + 4
