"""A report's folder: what it writes and removes there, and how it reads what sweeps left."""

import json
import lzma
from pathlib import Path

import pytest

from tell_plugins import cli
from tell_plugins.experiments.outcome import Judge, Outcome
from tell_plugins.experiments.results import collect, load_studies
from tests.made_results import CARD, EVALUATION, MadeResults


def _made(root: Path) -> MadeResults:
    made = MadeResults(root, rows=20, general=6)
    made.base()
    made.run("TELL", adherent=0.5)
    made.index("made", "Made", [42])
    return made


def test_a_report_leaves_other_files_alone(tmp_path):
    root, out = tmp_path / "root", tmp_path / "paper"
    _made(root)
    mine = ["tables/mine.csv", "tables/made_notes.md", "pictures/photo.png", "tables/sub/a.csv"]
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    for _ in range(2):
        assert cli.main(["report", str(root), "--out", str(out)]) == 0
        assert [(out / name).read_text() for name in mine] == ["mine"] * len(mine)


def test_a_picture_that_is_no_longer_drawn_is_removed(tmp_path):
    made = _made(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "pictures" / "made_methods.png").is_file()
    made.index("made", "Made", [42], x="task_tokens")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert not (tmp_path / "pictures" / "made_methods.png").exists()
    assert (tmp_path / "pictures" / "made_curve.png").is_file()


def test_answers_and_logs_with_odd_line_ends_are_collected_and_reported(tmp_path):
    root, kept = tmp_path / "root", tmp_path / "kept"
    _made(root)
    answers = next((root / "runs" / "TELL--42").rglob("test-greedy/answers.jsonl"))
    text = answers.read_text().replace("I think so.", "I think\u2028so.\u0085")
    assert "\u2028" in text
    answers.write_text(text, encoding="utf-8")
    log = root / "runs" / "TELL--42" / "train" / "logging.jsonl"
    first, rest = log.read_text().split("\n", 1)
    record = json.dumps({**json.loads(first), "note": "a\u2028b"}, ensure_ascii=False)
    log.write_text(f"{record}\n{rest}", encoding="utf-8")
    collect(root, kept)
    saved = next((kept / "runs" / "TELL--42").rglob("logging.jsonl.xz"))
    assert lzma.decompress(saved.read_bytes()).decode() == log.read_text(encoding="utf-8")
    for folder in (root, kept):
        assert cli.main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0


def test_a_run_is_compared_with_the_model_that_it_was_trained_from(tmp_path):
    made = MadeResults(tmp_path, rows=20, general=6)
    for name, adherent in (("small", 0.0), ("large", 0.5)):
        made.base(adherent)
        made.bases[-1] |= {"run": f"base-{name}", "at": {"model": name}}
        (tmp_path / "runs" / "base-made").rename(tmp_path / "runs" / f"base-{name}")
        made.run("TELL", adherent=0.6, at={"model": name})
        made.entries[-1]["base"] = f"base-{name}"
    made.index("models", "Models", [42])
    (study,) = load_studies(tmp_path)
    compared = {
        entry.at["model"]: base.run
        for entry in study.done
        if not entry.is_base and (base := study.base_of(entry))
    }
    assert compared == {"small": "base-small", "large": "base-large"}
    groups = Outcome(study, Judge(tmp_path)).groups
    shares = {group.name: group.main.value for group in groups if group.is_base}  # type: ignore[union-attr]
    assert shares == {"base model (model=small)": 0.0, "base model (model=large)": 0.5}


def test_an_index_that_names_no_base_has_one_a_card(tmp_path):
    _made(tmp_path)
    (study,) = load_studies(tmp_path)
    base = study.base_of(study.entries[-1])
    assert base.name == "base model"


TELL = "runs/TELL--42"
TASK = f"{TELL}/eval/{EVALUATION}/checkpoint-1/test-greedy"
ANSWERS, SETTINGS = f"{TASK}/answers.jsonl", f"{TASK}/settings.json"
LOSSES = f"{TELL}/eval/{EVALUATION}/checkpoint-1/general/losses.jsonl"
NOT_OURS = "not what was written here"


def _without(text: str, lines: int) -> str:
    return "".join(text.splitlines(keepends=True)[:-lines])


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [  # what stands in the file in place of its text; None: the file is gone
        (ANSWERS, lambda text: text + text, "100 answers stand twice"),
        (ANSWERS, lambda text: _without(text, 50), "50 rows, but 100 were asked"),
        (ANSWERS, lambda text: text[:-9], "99 rows, but 100"),
        (ANSWERS, lambda text: f"[1]\n{text}", f"line 1: {NOT_OURS}: it is [1]"),
        (ANSWERS, None, "0 rows, but 100 were asked"),
        (SETTINGS, None, "answers to the task are"),
        (SETTINGS, lambda text: "[]", "here: it is []"),
        (LOSSES, lambda text: _without(text, 3), "27 rows, but 30 were asked"),
        (LOSSES, lambda text: f"null\n{text}", f"line 1: {NOT_OURS}"),
        (LOSSES, lambda text: '{"loss_sum": 1, "tokens": 0}\n' + text, "'tokens'"),
        (f"{TELL}/trained.json", None, "trained.json: the file is missing"),
        (
            f"{TELL}/trained.json",
            lambda text: '{"steps": "8", "checkpoint": "c"}',
            "'steps' is '8'",
        ),
        (f"{TELL}/run.json", lambda text: "[]", f"run.json: {NOT_OURS}: it is []"),
        ("sweeps/made.json", lambda text: "{}", f"made.json: {NOT_OURS}: key 'name' is"),
        (
            "sweeps/made.json",
            lambda text: text.replace('"TELL--42"', '"../../etc"'),
            "is '../../etc': not a plain name",
        ),
        (f"references/{CARD}-test.json", lambda text: '{"a": 1}', "here: key 'card' is missing"),
    ],
)
def test_damage_is_told_not_counted(name, damage, told, tmp_path, tell):
    made = MadeResults(tmp_path)
    made.base()
    made.run("TELL", adherent=0.6)
    made.index("made", "Made", [42])
    (tmp_path / "references").mkdir()
    file = tmp_path / name
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text() if file.exists() else ""))
    shown = tell("report", tmp_path, code=1)
    assert told in shown
    assert "remedy:" in shown
    assert not (tmp_path / "report.html").exists()


def test_a_file_is_no_folder_for_a_report(tmp_path, capsys):
    made = _made(tmp_path / "made")
    (tmp_path / "page.html").write_text("mine")
    for flag in ("--out", "--collect"):
        assert cli.main(["report", str(made.root), flag, str(tmp_path / "page.html")]) == 1
        assert f"{flag}: cannot write into the folder" in capsys.readouterr().err
    assert (tmp_path / "page.html").read_text() == "mine"
