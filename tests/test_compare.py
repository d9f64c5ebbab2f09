"""`compare` as its user calls it: which folders it takes, what it prints, writes and refuses."""

import csv
import gzip
import json
import lzma
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.cli import main
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import parse_spec
from tell_plugins.evaluation import paper_numbers
from tell_plugins.evaluation.answers import Settings, read_saved
from tell_plugins.evaluation.compare import compare, find_folders
from tell_plugins.evaluation.scorers.json_readings import READINGS
from tell_plugins.evaluation.scoring import load_scored, system_of
from tell_plugins.evaluation.system_names import short_names, trained_spec
from tell_plugins.evaluation.system_tables import elsewhere_table, print_verdict
from tests.conftest import Cli
from tests.saved_answers import HALU_PERFECT as GOOD
from tests.saved_answers import answer_line, halu_schema, save_answers, save_lines

YES = GOOD.replace('"no"', '"yes"')


@pytest.fixture
def card(make_card) -> str:
    """40 test rows, every fourth of them 'yes'; answers as those of Halu-CoT-JSON."""
    rows = [{"q": f"question {i}", "r": "yes" if i % 4 == 0 else "no"} for i in range(40)]
    for name in ("halu", "halu_too", "other"):
        tests = rows if name != "other" else rows[:39]
        make_card(name, train=[{"q": "q", "r": GOOD}], test=tests, **halu_schema())
    return "halu"


@pytest.fixture
def runs(card, tmp_path) -> Path:
    """A run folder with three sets of answers to the task and one to general questions."""
    right = [YES if i % 4 == 0 else GOOD for i in range(40)]
    root = tmp_path / "run" / "eval"
    save_answers(root / "none" / "test-greedy", card, ["Sure! " + GOOD] * 40)
    save_answers(root / "checkpoint-4" / "test-greedy", card, [GOOD] * 30 + ["Yes"] * 10)
    save_answers(root / "checkpoint-8" / "test-greedy", card, right)
    general = [answer_line(f"general-{i}", i, "Hello.") for i in range(3)]
    save_lines(root / "none" / "general", card, general, split="general", anchor="none")
    return tmp_path / "run"


@pytest.mark.parametrize(("pack", "ending"), [(lzma.compress, ".xz"), (gzip.compress, ".gz")])
def test_compressed_answers_are_the_same_answers(runs, pack, ending):
    plain = [load_scored(folder) for folder in find_folders([str(runs)])]
    for file in runs.rglob("answers.jsonl"):
        file.with_name(file.name + ending).write_bytes(pack(file.read_bytes()))
        file.unlink()
    packed = [load_scored(folder) for folder in find_folders([str(runs)])]
    assert [scored.sha256 for scored in packed] == [scored.sha256 for scored in plain]
    assert [scored.answers for scored in packed] == [scored.answers for scored in plain]
    damaged = packed[0].folder / f"answers.jsonl{ending}"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(UserError, match=f"answers.jsonl{ending}: not readable"):
        load_scored(packed[0].folder)


@pytest.fixture
def compared(runs, tmp_path, cli) -> Cli:
    """`compared(code, ...)`: what is said of the run folder, and of what else is named."""
    return lambda code, *more: cli(code, "compare", runs, "--out", tmp_path / "out", *more)


@pytest.mark.parametrize("columns", [60, 132])
def test_tables_fit_the_terminal_and_no_word_is_cut(columns, runs, monkeypatch, capsys):
    call = ["compare", str(runs), "--out", str(runs / "out"), "--resamples", "100"]
    assert main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith(" checkpoint-4    40")]
    assert lines[place].count("75.0") >= 2  # in a file all columns stand in one line,
    assert lines[place + 1].count("[59.8, 85.8]") >= 2  # and their intervals below them
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    assert main(call) == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    rows = [line for line in shown.splitlines() if line.startswith(" checkpoint-8 ")]
    assert rows
    assert max(map(len, rows)) <= columns
    for word in ("checkpoint-4", "75.0", "accuracy", "balanced", "difference", "prose"):
        assert word in shown, word


NUMBERS = ("value", "low", "high", "p")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return found


def test_a_run_folder_is_compared_under_every_scorer(compared, tmp_path):
    printed = compared(0, "--resamples", 500)
    for text in (
        "halu, test: adherence in %",
        "halu, test: strict, shares in %",
        "why answers fail",
        "difference to checkpoint-4",
        "always no",
        "[59.8, 85.8]",  # 30 of 40
        "none: 100 % of the answers are one and the same text",
        "it fails a perfect model too",
        "text around",
    ):
        assert text in printed, text
    names = [system["name"] for system in content(tmp_path / "out")["systems"]]
    assert names == ["checkpoint-4", "checkpoint-8", "none"]
    scores = read_csv(tmp_path / "out" / "scores.csv")
    adherence = {
        (row["system"], row["scorer"]): (row["k"], row["n"])
        for row in scores
        if row["measure"] == "adherence"
    }
    assert {scorer for _, scorer in adherence} == {reading.name for reading in READINGS}
    assert adherence["checkpoint-4", "strict"] == ("30", "40")
    assert adherence["none", "strict"] == ("0", "40")
    assert adherence["none", "lenient"] == ("40", "40")
    assert adherence["checkpoint-8", "official"] == ("0", "40")
    for row in scores:
        assert set(row) >= {"system", "scorer", "measure", "value", "low", "high", "k", "n"}


def test_differences_are_paired_and_to_the_named_baseline(compared, runs, tmp_path):
    names = ("scores.csv", "differences.csv", "comparison.json")
    each = []
    for _ in range(2):  # the numbers are the same each time
        compared(0, "--baseline", runs / "eval" / "none")
        each.append([(tmp_path / "out" / name).read_bytes() for name in names])
    assert each[0] == each[1]
    rows = read_csv(tmp_path / "out" / "differences.csv")
    assert {row["baseline"] for row in rows} == {"none"}
    assert {row["system"] for row in rows} == {"checkpoint-4", "checkpoint-8"}
    found = {(row["system"], row["scorer"], row["measure"]): row for row in rows}
    strict = found["checkpoint-4", "strict", "adherence"]
    assert float(strict["value"]) == 0.75
    assert 0.5 < float(strict["low"]) < 0.75 < float(strict["high"]) < 1
    lenient = found["checkpoint-8", "lenient", "balanced_accuracy"]
    assert float(lenient["value"]) == pytest.approx(0.5)  # from constant "no" to all right
    same = found["checkpoint-8", "lenient", "adherence"]
    assert (float(same["value"]), float(same["p"])) == (0, 1)
    assert content(tmp_path / "out")["differences"] == [
        {**row, **{key: pytest.approx(float(row[key]), abs=1e-6) for key in NUMBERS},
         **{key: int(row[key]) for key in ("n", "resamples", "seed")}}
        for row in rows
    ]  # fmt: skip


def test_systems_that_answered_other_rows_are_compared_on_the_shared_ones(card, tmp_path):
    first = save_answers(tmp_path / "x" / "first", card, dict.fromkeys(range(0, 30), GOOD))
    second = save_answers(tmp_path / "x" / "second", card, dict.fromkeys(range(20, 40), "Yes"))
    found = compare([first, second])
    assert {compared.difference.n for compared in found.differences} == {10}
    strict = next(c for c in found.differences if (c.scorer, c.measure) == ("strict", "adherence"))
    assert strict.difference.value == -1
    third = save_answers(tmp_path / "x" / "third", card, dict.fromkeys(range(30, 40), GOOD))
    assert compare([first, third]).differences == compare([first]).differences == []


def test_answers_to_different_tests_are_never_mixed(card, tmp_path, cli):
    out = ["--out", tmp_path / "out"]
    a = save_answers(tmp_path / "a", card, [GOOD] * 40)
    b = save_answers(tmp_path / "b", "other", [GOOD] * 39)
    c = save_answers(tmp_path / "c", card, [GOOD], split="train")
    for other, name in ((b, "card 'other', split 'test'"), (c, "card 'halu', split 'train'")):
        message = cli(1, "compare", a, other, *out)
        assert "answers to different tests" in message
        assert name in message
        assert "remedy" in message
    assert not (tmp_path / "out").exists()
    # another card with the very same test rows and schema is the same test
    d = save_answers(tmp_path / "d", "halu_too", [YES] * 40)
    cli(0, "compare", a, d, *out)
    schema = load_card("halu_too").folder / "schema.json"
    schema.write_text(schema.read_text().replace('"no"', '"not"'))
    cli(1, "compare", a, d, *out)


def test_splits_of_a_run_are_picked(card, runs, compared):
    save_answers(runs / "eval" / "none" / "train-greedy", card, [GOOD], split="train")
    compared(0)  # the test is meant
    named = [str(runs / "eval" / "none" / "test-greedy"), str(runs)]
    found = [folder.parent.name for folder in find_folders(named)]
    assert found == ["none", "checkpoint-4", "checkpoint-8"]  # each once, in order
    compared(0, "--split", "test")
    assert len(find_folders([str(runs)], "train")) == 1


def test_systems_are_named_by_method_and_seed_or_by_their_folders(card, make_card, tmp_path):
    make_card("plain", train=[{"q": "q", "r": "r"}], kind="general")

    def answered(name: str, spec: str | None, adapter: str = "none") -> Path:
        if spec is not None:
            folder = tmp_path / name / "v0-20261101-120000" / "checkpoint-4"
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(json.dumps({"spec": spec, "sources": []}))
            adapter = str(folder)
        out = tmp_path / name / "eval" / Path(adapter).name / "test-greedy"
        return save_answers(out, card, [GOOD] * 40, adapter=adapter)

    sft, tell = f"tell/{card}:general=0", f"tell/{card}:general=80rows"
    folders = [
        answered("a", None),
        answered("b", sft),
        answered("c", f"{sft}/seed=43"),
        answered("d", tell),
        answered("e", f"{tell}/order=even"),
        answered("f", None, "words"),
        answered("g", f"tell/{card}:task=0/general=80rows"),
        answered("i", f"{tell}/kl=3"),
    ]
    swept = tmp_path / "runs" / "x-9219d509ae38"
    answers = swept / "eval" / "t" / "c" / "test-greedy"
    save_answers(answers, card, [GOOD] * 40, adapter="gone")
    (swept / "run.json").write_text(json.dumps({"spec": sft, "seed": 7}))
    names = [s.name for s in compare([*folders, answers, answered("h", sft)]).systems]
    apart = ["general rows, seed 42", "TELL, held, seed 42", "SFT, seed 7"]
    assert names == ["base", "b", "SFT, seed 43", "d", "e", "words", *apart, "h"]


def test_the_papers_columns_stand_beside_the_papers_task_alone(make_card, tmp_path, cli):
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]}
    rows = [{"q": f"q {n}", "r": '{"x": "a"}'} for n in range(4)]
    make_card("own", train=rows, test=rows, schema=schema, label="x")
    saved = save_answers(tmp_path / "a", "own", ['{"x": "a"}'] * 4)
    printed = cli(0, "compare", saved, "--out", tmp_path / "out")
    assert "strict" in printed
    assert "official" not in printed
    assert "official" not in (tmp_path / "out" / "scores.csv").read_text()


@pytest.mark.parametrize(
    ("named", "flags", "message"),
    [
        ("", ["--learned", "bleurt"], "score translations"),
        ("", ["--learned", "blert"], "did you mean 'bleurt'"),
        ("", ["--resamples", "5"], "--resamples: 5 is too small; allowed: 100 and more"),
        ("", ["--baseline", "nowhere"], "no saved answers in 'nowhere'"),
        ("", ["--baseline", "{runs}"], "holds 3 sets of answers"),
        ("../cards", [], "no saved answers"),
        # the general questions alone have nothing to be scored against
        ("eval/none/general", [], "split 'general'"),
    ],
)
def test_what_cannot_be_compared(named, flags, message, runs, tmp_path, cli):
    more = [flag.format(runs=runs) for flag in flags]
    assert message in cli(1, "compare", runs / named, *more, "--out", tmp_path / "out")


def test_cards_with_other_labels_are_other_tests(make_card, tmp_path, cli):
    """The labels of a card that does not list them are those of its training rows."""
    tests = [{"q": f"q{n}", "r": "xy"[n % 2]} for n in range(8)]
    for name, labels in (("two", "xy"), ("three", "xyz")):
        train = [{"q": label, "r": label} for label in labels]
        make_card(name, train=train, test=tests, metric="label")
    folders = [save_answers(tmp_path / name, name, ["x"] * 8) for name in ("two", "three")]
    assert "answers to different tests" in cli(1, "compare", *folders, "--out", tmp_path / "out")


def test_more_failures_are_worse_not_better(make_card, tmp_path, capsys):
    rows = [{"q": f"One {n}\nTwo", "r": f"Eitt {n} hús\nTvö"} for n in range(8)]
    make_card("lines", train=rows[:1], test=rows, metric="translation")
    bad = save_answers(tmp_path / "bad", "lines", ["Eitt hús"] * 8, adapter="x")
    good = save_answers(tmp_path / "good", "lines", [row["r"] for row in rows], adapter="x")
    print_verdict(compare([good, bad]))
    worse = capsys.readouterr().out.partition("bad is worse than good: ")[2]
    assert "chrF++" in worse.partition("\n")[0]
    assert "alignment failures" in worse.partition("\n")[0]
    assert "better" not in worse


def test_a_run_that_diverged_is_said_not_compared(card, tmp_path, capsys):
    folders = []
    for name, loss in (("tell", math.nan), ("sft", 20.0)):
        answers = tmp_path / name / "test-greedy"
        folders.append(save_answers(answers, card, [GOOD] * 40, adapter=name))
        asked = [answer_line("general-0", 0, "Hello.")]
        general = save_lines(tmp_path / name / "general", card, asked, split="general")
        lines = [{"loss_sum": loss, "tokens": 10, "rows": 6} for _ in range(6)]
        (general / "prose.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print_verdict(compare(folders[::-1]))
    said = capsys.readouterr().out
    assert "tell is not measured against sft: loss on prose (no number: a run diverged)" in said
    assert "nan" not in said
    systems = [system_of(name, tmp_path / name / "test-greedy", folders[1].parent / "general")
               for name in ("tell", "sft")]  # fmt: skip
    found = elsewhere_table([replace(systems[1], general=systems[0].general), systems[0]])
    assert "nan" not in found.notes[-1]


def test_names_are_what_tells_folders_apart():
    def names(*paths: str) -> list[str]:
        return short_names([Path(path) for path in paths])

    assert names("/x/run/none/test", "/x/run/tell/test") == ["none", "tell"]
    assert names("/x/a", "/x/b/c") == ["a", "b/c"]
    assert names("/x/a/test", "/y/a/test") == ["x", "y"]
    assert names("/x/a", "/x/a/b") == ["a", "a/b"]
    assert names("/run/one/test-greedy") == ["one/test-greedy"]


def test_translations_and_numbers_have_their_tables(make_card, tmp_path, cli):
    lines = [{"q": f"One {n}\nTwo", "r": f"Sure: x.\nEitt {n} hús\nTvö"} for n in range(4)]
    make_card("lines", train=lines[:1], test=lines, metric="translation")
    sums = [{"q": f"{n} + 1?", "r": f"#### {n + 1}"} for n in range(8)]
    make_card("sums", train=[{"q": "1 and 1?", "r": "#### 2"}], test=sums)
    whole = {n: f"Eitt {n} hús\nTvö" for n in range(4)}
    for card, first, asked, second, told in (
        ("lines", whole, 5, ["Eitt hús"] * 4, "chrF++|source copied|raw document|in points|"
         "version:2.6.0|fewer|4 of 5"),
        ("sums", [row["r"] for row in sums], 8, ["5"] * 8, "exact match|wrong number|-87.50"),
    ):  # fmt: skip
        a = save_answers(tmp_path / card / "a", card, first, rows=asked)
        b = save_answers(tmp_path / card / "b", card, second)
        printed = cli(0, "compare", a, b, "--out", tmp_path / "out")
        assert [text for text in told.split("|") if text not in printed] == []


# --- the paper's figures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "asked", "value"),
    [
        ("task=15rows", {}, 0.3954),
        ("task=115rows/from=alpaca_en/general=4e6tok", {}, 0.99),
        ("task=115rows/general=0", {}, 0.42),
        ("task=883rows/general=0", {}, 0.99),
        ("task=1e4tok", {}, 0.94),
        ("task=115rows/from=open_platypus/general=3999800tok", {}, 0.921),
        *((keys, {}, None) for keys in ("task=0", "task=115rows/general=0/repeat=8")),
        # other or less general data, another order, or no anchor is no setting of the paper
        *((f"task=15rows/general={amount}", {}, None) for amount in ("0", "6000tok", "400rows")),
        *((f"task=15rows/{key}", {}, None) for key in ("order=task_last", "anchor=none")),
        ("task=15rows/from=sample_general", {}, None),
        ("task=15rows/from=alpaca_en+open_platypus", {}, None),
        *(("task=15rows", {k: v}, None) for k, v in (("anchor", "none"), ("shots", 2))),
        ("task=15rows", {"model": "llama"}, None),
        ("task=15rows", {"adapter": "none"}, 0.01),
    ],
)
def test_the_papers_figure_is_found_by_what_was_trained_on(keys, asked, value):
    spec = parse_spec(f"tell/halu_cot_json:{keys}")
    known = {"model": "Qwen/Qwen-7B-Chat", "adapter": "x", "anchor": "card", "shots": 0} | asked
    settings = Settings(card="halu_cot_json", split="test", **known)
    found = paper_numbers.paper_number(settings, spec)
    assert (None if found is None else found.value) == value
    for card, expected in (("halu_cot_json_spans", found), ("en_is_news", None)):
        other = settings.model_copy(update={"card": card})
        assert paper_numbers.paper_number(other, spec) == expected


def test_the_base_models_figure_stands_beside_its_answers(real_home, tmp_path, cli):
    said = dict.fromkeys(range(50), "Yes")
    folder = save_answers(tmp_path / "a", "halu_cot_json", said, model="Qwen-7B-Chat")
    printed = cli(0, "compare", folder, "--out", tmp_path / "out")
    assert "paper" in printed
    assert "Section 4.2.3" in printed
    rows = read_csv(tmp_path / "out" / "scores.csv")
    strict = next(r for r in rows if (r["scorer"], r["measure"]) == ("strict", "adherence"))
    assert (strict["paper"], strict["paper_source"]) == ("0.01", "Section 4.2.3")


def test_what_was_trained_on_is_read_from_the_manifest_else_from_the_recipe(real_home, tmp_path):
    run = tmp_path / "run" / "checkpoint-9"
    run.mkdir(parents=True)
    spec = "tell/halu_cot_json:task=115rows/general=0"
    (run.parent / "manifest.json").write_text(json.dumps({"spec": spec, "sources": []}))
    for adapter, recipe, task in (
        (str(run), "qwen_json", "115rows"),
        ("gone", "qwen_json", "1e6tok"),
        ("gone", "nowhere", None),
    ):
        folder = tmp_path / f"{recipe}-{Path(adapter).name}"
        save_answers(folder, "halu_cot_json", {0: GOOD}, adapter=adapter, recipe=recipe)
        found = trained_spec(read_saved(folder))
        assert (None if found is None else str(found.task)) == task
