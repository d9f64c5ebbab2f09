"""Cards, texts and names from strangers, secrets, and terminals that are not UTF-8 or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tell_plugins.cli import main
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError
from tell_plugins.core.shown import (
    csv_cell,
    hide_secrets,
    is_secret,
    markdown_cell,
    secret_keys,
)
from tell_plugins.evaluation.grids import grid_of, to_csv, to_markdown
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import PROJECT, change, write_rows
from tests.test_crash_points import recipe

ROWS = [{"q": f"sum {n}", "r": f"#### {n}"} for n in range(6)]
GENERAL = [{"q": f"g {n}", "r": "x"} for n in range(40)]


@pytest.fixture
def toy(make_card) -> Path:
    make_card("plain", train=GENERAL, kind="general")
    return make_card("toy", train=ROWS, test=[{"q": "x", "r": "#### 1"}])


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.txt", "link.txt", "below/../../secret.txt"]
)
def test_a_card_reads_files_of_its_own_folder_only(toy, tmp_path, name, capsys):
    (toy.parent / "secret.txt").write_text("SECRET")
    (toy / "below").mkdir()
    (toy / "link.txt").symlink_to(toy.parent / "secret.txt")
    change(toy, anchor=name)
    out = tmp_path / "mix"
    assert main(["mix", str(recipe(tmp_path)), "--out", str(out)]) == 1
    assert f"file '{name}' is outside the card's folder" in capsys.readouterr().err
    assert not (out / "train.jsonl").exists()


def test_a_card_runs_no_command_of_its_own(toy, tell):
    """Of its build commands those run that the project knows word for word; all others are told."""
    for command in ("rm -rf x", "./run.sh data toy", "./run.sh data halu_cot_json --rebuild --yes"):
        change(toy, splits={"train": {"file": "gone.jsonl", "build": command}})
        assert f"train: is built by  {command}" in tell("data", "toy", code=1)


EVIL = "\x1b]0;title\x07 \x1b[2J\x9b31m\x07\x08 \u202egnp"


def test_control_characters_of_files_do_not_reach_the_terminal(toy, tmp_path, capsys, tell):
    change(toy, summary=f"short {EVIL}", licence=EVIL)
    write_rows(toy / "train.jsonl", [{"q": EVIL, "r": EVIL}, *ROWS])
    shown = ""
    for argv in (["data", "list"], ["data", "list", "toy"], ["data", "show", "toy"]):
        main(argv)
        said = capsys.readouterr()
        shown += said.out + said.err
    assert "\\x1b[2J" in shown
    assert not [sign for sign in EVIL.replace(" ", "") if sign in shown and not sign.isprintable()]
    assert "\x1b" not in tell("data", EVIL, code=1)


def test_a_broken_card_hides_no_other(toy, capsys):
    for number, text in enumerate(("[", "- 1", "name: x", "\x00", "&a [*a]")):
        (toy.parent / f"broken{number}").mkdir()
        (toy.parent / f"broken{number}" / "card.yaml").write_text(text)
    (toy.parent / "no_file" / "card.yaml").mkdir(parents=True)
    (toy.parent / ".toy.x1y2").mkdir()
    (toy.parent / ".toy.x1y2" / "card.yaml").write_text("[")
    assert main(["data", "list"]) == 1
    said = capsys.readouterr()
    assert "toy" in said.out
    assert "plain" in said.out
    assert all(f"broken{number}" in said.out for number in range(5))
    assert "key 'summary' is missing" in said.out + said.err
    assert ".toy" not in said.out + said.err
    assert "fault in this program" not in said.err


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("hub_token", "swanlab_secret", "swanlab_webhook_url", "api_key")
        ),
        *((name, True) for name in ("HF_TOKEN", "password", "MY-PASSWORD", "wandb_api_key")),
        *((name, False) for name in ("max_new_tokens", "tokenizer", "reft_layer_key", "keys")),
        *((name, False) for name in ("include_tokens_per_second", "monkey", "lazy_tokenize")),
    ],
)
def test_a_secret_is_told_by_its_name(name, secret):
    assert is_secret(name) == secret


def test_secrets_at_every_depth():
    values = {"a": 1, "hub_token": "x", "swanlab_token": None, "ENV": {"HF_TOKEN": "y", "N": 1}}
    assert list(secret_keys(values)) == ["hub_token", "ENV.HF_TOKEN"]


def test_the_command_is_logged_without_secrets(tmp_path):
    argv = ["sft", "--hub_token", "hf_abc", "--swanlab_webhook_url=https://x/y", "--seed", "1"]
    said = hide_secrets(f"run sh: `{' '.join(argv)}`", argv)
    assert said == "run sh: `sft --hub_token *** --swanlab_webhook_url=*** --seed 1`"


def test_secrets_of_a_recipe_are_told(toy, tmp_path, capsys):
    file = recipe(tmp_path, swanlab_webhook_url="https://hooks/secret-part")
    main(["check", str(file)])
    said = capsys.readouterr()
    assert "'swanlab_webhook_url' in a recipe is read by everyone" in said.out + said.err
    assert load_recipe(file).get("swanlab_webhook_url")
    sweep = tmp_path / "s.yaml"
    sweep.write_text(yaml.safe_dump({"base": str(file), "methods": {"TELL": {}}, "title": "s"}))
    assert main(["sweep", str(sweep), "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "swanlab_webhook_url" in said.err
    assert "secret-part" not in said.out + said.err


def test_cells_are_no_formulas_and_no_scripts():
    assert [csv_cell(cell) for cell in ("=1+1", "+a", "-b", "@c", "\td")] == [
        *("'=1+1", "'+a", "'-b", "'@c", "'\td")
    ]
    assert csv_cell("+1, =2") == "'+1, =2"
    same = ["-0.5", "+1e3", "+18.5, -10.5", "-", "a=b", 5, None, 0.1]
    assert [csv_cell(cell) for cell in same] == same
    assert markdown_cell("<script>a|b</script>\n2 < 3") == "&lt;script>a\\|b&lt;/script> 2 < 3"
    records = [{"method": "=HYPERLINK(1)", "rate": -0.5}, {"method": "<img src=x>", "rate": 1.0}]
    assert to_csv(records) == "method,rate\n'=HYPERLINK(1),-0.5\n<img src=x>,1.0\n"
    assert "<img" not in to_markdown(grid_of(records))
    assert to_csv([{"method": "@x", "n": -1}]) == "method,n\n'@x,-1\n"


def run(*argv: str, **more: str) -> subprocess.CompletedProcess[str]:
    ascii_locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}
    command = [sys.executable, "-m", "tell_plugins", *argv]
    shell = more.pop("shell", "")
    return subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", *command],
        cwd=PROJECT,
        env={**os.environ, **ascii_locale, **more},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize("shell", ["", "2>&-", ">&- 2>&-"], ids=["both", "no stderr", "none"])
def test_an_ascii_locale_and_closed_streams(toy, shell):
    change(toy, summary="þorn 😀")
    done = run("data", "list", "toy", shell=shell)
    assert done.returncode == 0, done.stderr
    assert ("þorn 😀" in done.stdout) == (">&- 2" not in shell)
    assert done.stderr == ""


def _all_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_warm_cache_is_only_read(toy, tmp_path, monkeypatch):
    """So that it may lie where nothing can be written, not even a lock."""
    monkeypatch.setenv("TELL_TOKENIZER", str(PROJECT / "tests/golden/word_tokenizer.json"))
    argv = ["mix", str(recipe(tmp_path)), "--out", str(tmp_path / "mix")]
    assert main(argv) == 0
    before = _all_of(tmp_path / "cache")
    assert main(argv) == 0
    assert main(["data", "list"]) == 0
    assert _all_of(tmp_path / "cache") == before


def test_a_full_disk_names_the_path(tmp_path):
    def fill(target: Path) -> None:
        with paths.atomic_path(target):
            Path("/dev/full").write_bytes(b"x" * 100_000)

    with pytest.raises(MachineError, match=r"out\.txt: No space left") as caught:
        fill(tmp_path / "out.txt")
    assert "make room" in str(caught.value)
    assert list(tmp_path.glob("*.txt")) == []
