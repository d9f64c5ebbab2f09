"""GSM8K: which number an answer ends with, and how answers are counted."""

from fractions import Fraction
from pathlib import Path

import pytest

from tell_plugins.core.errors import UserError
from tell_plugins.core.numbers import final_number, shown_number, whole_number
from tell_plugins.evaluation import scoring
from tell_plugins.evaluation.judged import Judged
from tests.saved_answers import save_answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # after the marker
        ("He has 3 + 4 = 7.\n#### 7", 7),
        *((text, 18) for text in ("#### 18", "####18", "#### **18** dollars")),
        ("#### -5", -5),
        ("#### $1,234.50", "1234.5"),
        (r"#### \boxed{42}", 42),
        ("#### Answer: 12", 12),
        ("#### the final answer is unclear: 3 or 4", 4),  # no number right after the marker
        ("#### 3\nNo, wait.\n#### 4\nSince 2 + 2 = 4, and 9 is more.", 4),
        ("#### 1. First step\nadd 2\n#### 2. Second step\nso it is 7", 7),  # headings
        ("#### 3/4", "3/4"),
        # the last number
        *((text, 18) for text in ("The answer is 18.", "18.00")),
        ("It costs 5 dollars, so 4 cost 20 dollars in total!", 20),
        *((text, 3) for text in ("x = 10-3", "1, 2, 3")),
        ("10 - 3 = 7", 7),
        *((text, -7) for text in ("so it is -7 degrees", "(\u22127)")),
        ("- 5 apples", 5),  # a bullet, no minus
        # separators and currency
        ("1,234,567", 1234567),
        ("1,234,567.89 in all", "1234567.89"),
        *((text, 1234) for text in ("1\u202f234", "1\u00a0234", "1'234", r"1{,}234")),
        (r"12\,345", 12345),
        *((text, 5) for text in ("$5", r"\$5", "so it is...5")),
        *((text, -5) for text in ("-$5", "$-5")),
        ("€ 12", 12),
        ("£3.20", "3.2"),
        # no thousands separator; the whole number or none, nor the number before it
        *((text, None) for text in ("12,34", "12,5", "0,125", "1.234,56", "1,234,56", "12:30")),
        *((text, None) for text in ("03.03.2024", "2024-03-03", "on 2/3/2020", "5.4.2")),
        *((text, None) for text in ("at 192.168.0.1", "3 + 4 = 12,5", "3 + 4\n#### 12,5")),
        *((text, None) for text in ("#### 5.4.2.", "####", "no number at all", "")),
        # decimals, fractions, powers
        *((text, "1/2") for text in (".5", "½")),
        ("0.1", "1/10"),
        *((text, "3/4") for text in ("3/4", r"\frac{3}{4}", r"\dfrac{3}{4}")),
        ("-3/4", "-3/4"),
        ("1 1/2 hours", "3/2"),
        ("2½ cups", "5/2"),
        ("⅓", "1/3"),
        *((text, 1000) for text in ("1e3", "1e3.")),
        ("2.5e-1", "1/4"),
        ("50%", 50),
        # nonsense stays quiet
        *((text, None) for text in ("5/0", "9" * 400, "1e999999")),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4), (" -12.5\n", "-12.5"), ("$1,234.50", "1234.5"), ("50%", 50), ("12 €", 12),
        ("3/4", "3/4"), ("2 + 2 is 4.\n#### 4", 4), ("18.", 18), ("1.234", "1.234"),
        ("12,5", None), ("1.234,56", None), ("5.4.2", None), ("4 apples", None), ("1 2", None),
        ("3-4", None), ("#### 12,5", None), ("2024-03-03", None), ("", None), ("####", None),
    ],
)  # fmt: skip
def test_a_text_that_is_a_number(text, number):
    assert whole_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("number", "text"),
    [("18", "18"), ("-5/2", "-2.5"), ("1/3", "1/3"), ("123456789/100", "1234567.89"), ("0", "0")],
)
def test_numbers_as_shown(number, text):
    assert shown_number(Fraction(number)) == text


def counted(folder: Path) -> tuple[Judged, int]:
    """The reading of the numbers, and how many are right."""
    found = scoring.score(folder).readings["number"]
    exact = found.measures["exact_match"]
    assert sum(found.failures.values()) == exact.n - exact.k
    return found, exact.k


def test_exact_match_and_why_answers_fail(make_card, tmp_path):
    references = ["2 + 2 = 4\n#### 4", "#### 1,000", "#### 0.5", "#### 4", "#### 7", "#### 8"]
    make_card(
        "sums",
        train=[{"q": "1 + 1?", "r": "#### 2"}],
        test=[{"q": f"question {i}", "r": r} for i, r in enumerate(references)],
    )
    for name, texts, cut, right, failures, most in (
        (
            *("a", ["It is 4", "#### 1000.0", "1/2", "#### 5", "", "First we add 3 and"], [5], 3),
            *({"empty": 1, "truncated": 1, "wrong_number": 1}, ("4", 1)),
        ),
        ("b", ["none"] * 6, [], 0, {"no_number": 6}, ("", 0)),
        ("c", ["0"] * 6, [], 0, {"wrong_number": 6}, ("0", 6)),
        ("d", references, [], 6, {}, ("4", 2)),
    ):
        folder = save_answers(tmp_path / name, "sums", texts, cut=cut)
        found, k = counted(folder)
        assert (k, found.failures) == (right, failures), name
        assert (found.most_frequent.text, found.most_frequent.share.k) == most, name
    scores = scoring.score(tmp_path / "a")
    marked = scores.first.numbers["with_####"]
    always = scores.constant.judged.measures["exact_match"]
    assert (marked.k, scores.constant.text, always.k) == (2, "always 4", 2)
    assert scores.headline["exact match"] == scores.first.measures["exact_match"]


def test_a_reference_without_a_number_is_named(make_card, tmp_path):
    make_card(
        "odd",
        train=[{"q": "q", "r": "#### 2"}],
        test=[{"q": "a", "r": "#### 2"}, {"q": "b", "r": "none"}],
    )
    with pytest.raises(UserError, match="line 2: the response holds no number"):
        scoring.score(save_answers(tmp_path / "a", "odd", ["2", "2"]))
