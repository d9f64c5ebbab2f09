"""The dataset string: every key, every mistake, and the round trip through text."""

import pytest

from tell_plugins.core.errors import UserError, UserErrors
from tell_plugins.core.spec import (
    ALL,
    KEYS,
    NONE,
    Amount,
    Spec,
    is_tell,
    parse_amount,
    parse_spec,
)
from tests.conftest import error_of, message_of


def test_a_card_alone_takes_every_default():
    assert parse_spec("tell/gsm8k") == parse_spec("tell/gsm8k:") == Spec("gsm8k")
    spec = Spec("gsm8k")
    assert (spec.split, spec.task, spec.general, spec.sources) == ("train", ALL, None, None)
    assert (spec.anchor, spec.order, spec.repeat) == ("card", "shuffle", 1)
    assert (spec.overlap, spec.kl, spec.seed) == ("drop", 0, 42)


def test_every_key_is_read():
    values = {
        "split": "validation",
        "task": "1e4tok",
        "general": "40x",
        "from": "alpaca_en+open_platypus",
        "anchor": "none",
        "order": "even",
        "repeat": "7",
        "overlap": "keep",
        "kl": "0.3",
        "seed": "0",
    }
    assert set(values) == set(KEYS)
    spec = parse_spec("tell/a:" + "/".join(f"{key}={value}" for key, value in values.items()))
    assert spec == Spec(
        "a",
        split="validation",
        task=Amount("tok", 10_000),
        general=Amount("x", 40),
        sources=("alpaca_en", "open_platypus"),
        anchor="none",
        order="even",
        repeat=7,
        overlap="keep",
        kl=0.3,
        seed=0,
    )
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "amount", "shown"),
    [
        ("all", ALL, "all"),
        ("15rows", Amount("rows", 15), "15rows"),
        ("2000rows", Amount("rows", 2000), "2000rows"),
        ("1e4tok", Amount("tok", 10_000), "1e4tok"),
        ("10000tok", Amount("tok", 10_000), "1e4tok"),
        ("1E+4tok", Amount("tok", 10_000), "1e4tok"),
        ("1.5e4tok", Amount("tok", 15_000), "15000tok"),
        ("1234567tok", Amount("tok", 1_234_567), "1234567tok"),
        ("999999999999tok", Amount("tok", 999_999_999_999), "999999999999tok"),
        ("1e15tok", Amount("tok", 1e15), "1e15tok"),
        ("40x", Amount("x", 40), "40x"),
        ("2.5x", Amount("x", 2.5), "2.5x"),
        ("0.0000001x", Amount("x", 1e-7), "0.0000001x"),
        *((zero, NONE, "0") for zero in ("0", "0rows", "0tok", "0e3tok", "0x", "0.0x")),
    ],
)
def test_amounts(text, amount, shown):
    """Times the task rows is an amount of general data alone."""
    for task in (False,) if text.endswith("x") else (True, False):
        assert parse_amount(text, task=task, where="here") == amount
    assert str(amount) == shown


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("15", "say the unit: 15rows or 15tok"),
        ("1e4", "say the unit: 1e4rows or 1e4tok"),
        *((text, "did you mean '15rows'?") for text in ("15row", "15 rows", "15ROWS")),
        *((text, "did you mean '1e4tok'?") for text in ("1e4tokens", "1e4tk")),
        ("al", "did you mean 'all'?"),
        ("-5rows", "without a space"),
        *((text, "without a space") for text in ("1_000rows", "1,000rows", "everything")),
        ("１５rows", "without a space"),  # digits of another script
        ("1.5rows", "whole number"),
        ("1.000rows", "whole number"),  # may mean one or a thousand
        ("15.0tok", "whole number"),
        ("1.23e1tok", "whole number"),
        ("1e16tok", "up to 1e15"),
        ("1e400tok", "up to 1e15"),
    ],
)
@pytest.mark.parametrize("task", [True, False])
def test_bad_amounts_say_what_was_meant(text, remedy, task):
    caught = error_of(parse_amount, text, task=task, where="here")
    assert caught.where == "here"
    assert f"'{text}'" in caught.found
    assert remedy in str(caught.remedy)
    assert "15rows" in str(caught.allowed) or "40x" in str(caught.allowed)


def test_amounts_only_general_data_has():
    assert "repeat=N" in message_of(parse_amount, "40x", task=True, where="here")
    assert "up to 1e15" in message_of(parse_amount, "1e40x", task=False, where="here")


def test_all_problems_of_a_string_are_raised_together():
    text = (
        "tell/a b:tsk=15rows/general=4e6tokens/order=evn/overlap=dorp/repeat=0/seed=-1/"
        "from=x+x/anchor=a b/split=/task=1rows/task=2rows/junk#20"
    )
    with pytest.raises(UserErrors) as caught:
        parse_spec(text, where="recipe.yaml, line 3")
    found = str(caught.value)
    for expected in (
        "unknown key 'tsk'",
        "did you mean 'task'?",
        "did you mean '4e6tok'?",
        "did you mean 'even'?",
        "did you mean 'drop'?",
        "bad number '0'",
        "bad number '-1'",
        "'x' is named twice",
        "bad name 'a b'",
        "'split=' is no key=value pair",
        "key 'task' is given twice",
        "'junk' is no key=value pair",
        "'#' takes no sample of a mixture",
        "bad card name 'a b'",
    ):
        assert expected in found
    assert len(caught.value.problems) == 13
    for problem in caught.value.problems:
        assert "recipe.yaml, line 3" in str(problem.where)
        assert problem.remedy


@pytest.mark.parametrize("text", ["alpaca", "tel/a:task=1rows", "swift/a", "", "TELL/a"])
def test_other_data_sets_are_not_ours(text):
    assert not is_tell(text)
    assert "no TELL dataset string" in message_of(parse_spec, text)


@pytest.mark.parametrize("prefix", ["ms::", "HF::", ""])
def test_a_hub_prefix_changes_nothing(prefix):
    assert is_tell(f"{prefix}tell/a:seed=1")
    assert parse_spec(f"{prefix}tell/a:seed=1") == Spec("a", seed=1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        *((text, "bad card name") for text in ("tell/", "tell/:seed=1", "tell/a/b", "tell/../x")),
        *(
            (f"tell/a:{pairs}", "no key=value pair")
            for pairs in ("seed=1/", "/seed=1", "seed", "=1")
        ),
        ("tell/a:seed=1//order=even", "no key=value pair"),
        *((f"tell/a:repeat={n}", "repeat") for n in ("1.0", "0x10", "", "100001", "9" * 5000, "١")),
        ("tell/a:split=train+test", "split 'test' is held out"),
        ("tell/a:split=tm+tm", "'tm' is named twice"),
        ("tell/a:split=train+", "bad name ''"),
    ],
)
def test_strings_that_are_none(text, told):
    assert told in message_of(parse_spec, text)


@pytest.mark.parametrize(
    ("text", "weight", "shown"),
    [
        ("0", 0, ""),
        ("0.0", 0, ""),
        ("1", 1, ":kl=1"),
        ("1.50", 1.5, ":kl=1.5"),
        ("3e-1", 0.3, ":kl=0.3"),
        ("1e-5", 1e-5, ":kl=0.00001"),
        ("1e2", 100, ":kl=100"),
    ],
)
def test_the_weight_of_the_divergence(text, weight, shown):
    spec = parse_spec(f"tell/a:kl={text}")
    assert spec.kl == weight
    assert str(spec) == f"tell/a{shown}"


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e9", "1001", "0,5", "1.", ".5", "١", "x"])
def test_a_bad_weight_says_what_is_allowed(value):
    with pytest.raises(UserError, match=f"bad number '{value}'") as caught:
        parse_spec(f"tell/a:kl={value}")
    assert "from 0 to 1000" in str(caught.value.allowed)
    assert "key 'kl'" in str(caught.value.where)
