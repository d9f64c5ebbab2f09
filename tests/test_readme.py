"""Every command, flag, path, recipe, card and variable that README and docs name exists."""

import contextlib
import csv
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from tell_plugins import cli
from tell_plugins.core.cards import card_names
from tell_plugins.core.spec import parse_spec
from tests.conftest import PROJECT, printed_by

README = PROJECT / "README.md"
CHINESE = PROJECT / "README_CN.md"
PAGES = [README, PROJECT / "AGENTS.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
INLINE = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", TEXT)
MADE_BY_NEW = "smollm2_tickets"  # a recipe that the README lets the user make
SWIFT_VERBS = {"sft", "infer", "deploy", "app", "eval", "export"}
SWIFT_FLAGS = {"--adapters", "--merge_lora", "--served_model_name", "--external_plugins"}
RUN_SH = set(cli._RUN_SH)


def _commands() -> list[list[str]]:
    """Every command line of the code blocks and of inline code, as words."""
    lines: list[str] = []
    for language, block in BLOCKS:
        if language == "bash":
            lines += block.replace("\\\n", " ").splitlines()
    lines += [text for text in INLINE if text.startswith(("./run.sh", "swift "))]
    parsed = [shlex.split(line, comments=True) for line in lines]
    found = []
    for words in parsed:
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words and words[0] in {"./run.sh", "swift"} and words not in found:
            found.append(words)
    return found


COMMANDS = _commands()
IDS = [" ".join(words)[:70] for words in COMMANDS]


def _help(*words: str) -> str:
    out = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
        cli.main([*words, "--help"])
    return out.getvalue()


def test_the_readme_shows_its_commands():
    assert len(COMMANDS) > 25
    assert COMMANDS[0] == ["./run.sh"]
    verbs = {words[1] for words in COMMANDS if words[0] == "./run.sh" and len(words) > 1}
    assert verbs - {"--help"} >= set(cli.VERBS) - {"demo"}, "every verb is shown"
    assert TEXT.index("./run.sh\n") < len("\n".join(TEXT.splitlines()[:40])), "on the first screen"


@pytest.mark.parametrize("words", COMMANDS, ids=IDS)
def test_verbs_and_flags_exist(words):
    if words[0] == "swift":
        assert words[1] in SWIFT_VERBS
        return
    if len(words) == 1 or words[1] in {"--help", *RUN_SH}:
        return
    verb, rest = words[1], words[2:]
    assert verb in cli.VERBS
    arguments = [verb]
    if verb == "data" and rest and rest[0] != "NAME":
        arguments.append(rest[0])
    text = _help(*arguments)
    assert text.startswith("usage: ./run.sh " + " ".join(arguments))
    keys = _swift_keys()
    for word in rest:
        if word.startswith("--") and word != "--swift":  # run.sh's own
            taken_by_swift = verb == "train" and word[2:] in keys
            assert re.search(rf"{word}\b", text) or taken_by_swift, f"{verb} has no {word}"


def _swift_keys() -> set[str]:
    recipes = (yaml.safe_load(p.read_text()) for p in (PROJECT / "recipes").glob("*.yaml"))
    return {key for values in recipes for key in values}


def test_inline_flags_exist():
    text = "".join(
        _help(*words)
        for words in (
            *([verb] for verb in cli.VERBS),
            *(["data", name] for name in ("halu_cot_json", "is_en_news", "selfgen")),
        )
    )
    for flag in {flag for code in INLINE for flag in re.findall(r"(?<!\w)--[a-z][\w-]*", code)}:
        assert re.search(rf"{flag}\b", text) or flag in SWIFT_FLAGS, flag


def test_paths_exist():
    code = "\n".join([*(block for _, block in BLOCKS), *INLINE])
    paths = set(re.findall(r"(?:recipes|datasets|tell_plugins|results|tests)/[\w./-]*", code))
    assert any(path.endswith(".yaml") for path in paths)
    for path in paths:
        if MADE_BY_NEW not in path:
            assert (PROJECT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert page in PAGES[:2] or f"](docs/{page.name})" in README.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        titles = re.findall(r"(?m)^#+ (.+)$", target.read_text(encoding="utf-8")) if heading else []
        assert not heading or heading in {t.lower().replace(" ", "-") for t in titles}, link


def _shape(page: Path) -> list[str]:
    """What both languages share: headings' levels, code without its comments, links, names."""
    text = page.read_text(encoding="utf-8")
    code = [
        [line.partition(" # ")[0].rstrip() for line in block.splitlines()]
        for _, block in re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
    ]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    return [
        *map(str, code),
        *re.findall(r"(?m)^#+", text),
        *re.findall(r"\]\(([^)]+)\)", text),
        *(row for row in rows if "`" in row or "]" in row),
        *sorted(re.findall(r"`([^`\n]+)`", text)),
        *sorted(re.findall(r"\*\*([A-Z][\w, ]+)\*\*", text)),
    ]


def test_both_languages_say_the_same():
    assert _shape(CHINESE) == _shape(README)


def test_recipes_and_cards_of_the_tables_exist():
    tables = [line for line in TEXT.splitlines() if line.startswith("| `")]
    names = {
        name for line in tables for name in re.findall(r"`([a-z0-9_]+)`", line.split("|")[1])
    } - {"split", "task", "general", "from", "anchor", "order", "repeat", "overlap", "kl", "seed"}
    recipes = {path.stem for path in (PROJECT / "recipes").glob("*.yaml")}
    assert len(names) > 12
    assert names <= recipes | set(card_names())


def test_dataset_strings_parse():
    strings = re.findall(r"tell/[a-z0-9_]+(?::[\w=./+]+)?", TEXT)
    assert len(strings) >= 2
    for text in strings:
        parse_spec(text)


def test_variables_are_read_somewhere():
    files = [*(PROJECT / "tell_plugins").rglob("*.py"), *(PROJECT / "tests").glob("*_texts.py")]
    code = "".join(path.read_text() for path in [PROJECT / "run.sh", *files])
    for name in set(re.findall(r"TELL_[A-Z_]+", TEXT)):
        assert name in code, name


def test_an_own_task_in_the_readmes_words(tmp_path, monkeypatch):
    """The `new` of the README makes the recipe that its next line trains, and `check` passes."""
    command = next(words for words in COMMANDS if words[1:2] == ["new"])
    monkeypatch.setenv("TELL_CALLER_DIR", str(tmp_path))
    with (tmp_path / "tickets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "verdict"])
        for i in range(40):
            writer.writerow([f"Ticket {i}: the lift in house {i} stands still.", "yes"])
            writer.writerow([f"Ticket {i}: please send the plan of floor {i}.", "no"])
    own = ["--dir", str(tmp_path / "cards"), "--recipes", str(tmp_path / "recipes")]
    assert cli.main([*command[1:], *own]) == 0
    recipe = tmp_path / "recipes" / f"{MADE_BY_NEW}.yaml"
    assert recipe.is_file()
    printed_by(sys.executable, "-m", "tell_plugins", "check", recipe)
