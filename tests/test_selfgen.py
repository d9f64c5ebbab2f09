"""General data by the model itself: filters, reproducible batches, resuming, the card it leaves.

A small random Llama that draws whole words stands in for a chat model where only the machinery
matters; it is loaded and drawn from as any other.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from tell_plugins.bridge import embedded_model
from tell_plugins.bridge.embedded_model import prepare_model
from tell_plugins.core.cards import load_card
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.text import comparison_keys
from tell_plugins.preparation import selfgen
from tell_plugins.preparation.download import read_record
from tell_plugins.preparation.selfgen import (
    SelfWriter,
    answer_problem,
    instruction_problem,
    is_english,
    repeats_itself,
)
from tests.conftest import PROJECT

WORDS = [
    f"{a}{b}{c}" for a in ("ri", "mo", "ta", "lu") for b in ("ve", "no", "si") for c in "rnstk"
]


def word_model(folder: Path) -> Path:
    """A random 2-layer Llama that draws one of 60 words, or the end of turn once in 20.

    Dimension 0 of its residual stream is the same for every token, so the output head's first
    column is a bias: words and the end of turn are likely, single bytes are not.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*specials, *alphabet, *(f"\u0120{word}" for word in WORDS)]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 5.0
        model.lm_head.weight[:, 0] = -4.0
        model.lm_head.weight[3 + len(alphabet) :, 0] = 1.0
        model.lm_head.weight[2, 0] = 1.2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return word_model(tmp_path_factory.mktemp("word-model"))


def command(model: Path, out: Path, *flags: str) -> list[str]:
    common = ["--model-type", "llama", "--template", "chatml", "--language", "any"]
    common += ["--name", "by_model", "--max-new-tokens", "60"]
    return ["data", "selfgen", "--model", str(model), "--out", str(out), *common, *flags]


def rows_in(out: Path) -> list[dict[str, object]]:
    text = (out / "by_model" / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Name three rivers of France.", None),
        ("Go on", "instruction too short"),
        ("Name it", "instruction too short"),
        ("word " * 400, "instruction too long"),
        ("say it again and " * 8, "instruction repeats itself"),
        ("Nenne mir bitte drei gro\u00dfe Fl\u00fcsse, die durch Deutschland flie\u00dfen.",
         "instruction not English"),
        ("\u8bf7\u5199\u4e00\u9996 \u5173\u4e8e \u6625\u5929 \u7684 \u8bd7\u6b4c \u8c22\u8c22",
         "instruction not English"),
    ],
)  # fmt: skip
def test_instructions_that_are_kept(text, problem):
    assert instruction_problem(text, "en") == problem


def test_any_language_is_kept_where_asked():
    german = "Nenne mir bitte drei gro\u00dfe Fl\u00fcsse in Deutschland."
    chinese = "\u8bf7\u5199\u4e00\u9996\u5173\u4e8e\u6625\u5929\u7684\u8bd7\u6b4c"
    assert instruction_problem(german, "any") is instruction_problem(chinese, "any") is None
    assert instruction_problem(chinese[:2] * 20, "any") == "instruction repeats itself"
    russian = "\u041d\u0435\u0442, \u0441\u043f\u0430\u0441\u0438\u0431\u043e."
    assert answer_problem(russian, "q", "any", False) is None
    assert answer_problem(russian, "q", "en", False) == "answer not English"


@pytest.mark.parametrize(
    ("text", "drop_refusals", "problem"),
    [
        ("Paris.", True, None),
        ("def f(x):\n    return x + 1", True, None),
        ("", False, "answer too short"),
        ("x y " * 2000, False, "answer too long"),
        ("NAME a river. ", False, "answer repeats the instruction"),
        ("I'm sorry, but I can't help with that.", True, "refusal"),
        ("I'm sorry, but I can't help with that.", False, None),
        ("As an AI, I have no opinion.", True, "refusal"),
        ("- one more line\n" * 5, False, "answer repeats itself"),
    ],
)
def test_answers_that_are_kept(text, drop_refusals, problem):
    assert answer_problem(text, "name a river.", "en", drop_refusals) == problem


def test_prose_and_code_do_not_count_as_repetition():
    """The project's own sample, written by hand, passes as it stands."""
    path = PROJECT / "datasets" / "sample_general" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [row for row in rows if repeats_itself(row["output"])]
    english = [is_english(row["instruction"]) for row in rows]
    assert sum(english) > 0.9 * len(rows)


def test_a_run_leaves_a_card_that_a_mixture_takes(model, tmp_path, monkeypatch, tell):
    out = tmp_path / "mine"
    printed = tell(*command(model, out, "--rows", "20"))
    line = re.search(r"export TELL_CARDS=(\S+?)\$\{TELL_CARDS", printed)
    assert line[1] == str(out)
    monkeypatch.setenv("TELL_CARDS", str(out))

    rows = rows_in(out)
    assert len(rows) == 20
    assert len(set(comparison_keys([str(row["query"]) for row in rows]).tolist())) == 20
    for row in rows:
        assert instruction_problem(str(row["query"]), "any") is None
        assert answer_problem(str(row["response"]), str(row["query"]), "any", False) is None
    attempts = [int(str(row["attempt"])) for row in rows]
    assert attempts == sorted(set(attempts))

    card = load_card("by_model")
    assert card.kind == "general"
    assert len(build_mixture(parse_spec("tell/by_model"))) == 20
    task = "tell/sample_complaints:task=5rows/general=20rows/from=by_model"
    assert len(build_mixture(parse_spec(task))) == 25
    record = read_record(out / "by_model" / "train.jsonl")
    settings = record["from"]["model itself"]
    assert (settings["model"], settings["seed"]) == (model.name, 42)
    assert settings["answer"] == "temperature 0.7, top_p 0.9, 60 tokens"
    assert settings["model_files"] == selfgen.fingerprint(str(model))
    assert selfgen.fingerprint("org/name") is None


@pytest.mark.newest
@pytest.mark.slow
def test_a_killed_run_ends_with_the_file_of_one_that_was_not(model, tmp_path, monkeypatch, tell):
    """A kill leaves some batches, and no card."""
    tell(*command(model, tmp_path / "whole", "--rows", "60"))
    batches = tmp_path / "whole" / "by_model" / "batches"
    [done] = [path for path in batches.iterdir() if path.is_dir()]
    killed = tmp_path / "killed" / "by_model" / "batches" / done.name
    killed.mkdir(parents=True)
    shutil.copy(done / "0.json", killed)
    (killed / "1.json").write_text("[{")
    monkeypatch.setenv("TELL_CARDS", "")  # the whole one is known by now
    tell(*command(model, tmp_path / "killed", "--rows", "60"))
    assert (killed / "0.json").read_bytes() == (done / "0.json").read_bytes()
    assert rows_in(tmp_path / "killed") == rows_in(tmp_path / "whole")


def test_fewer_rows_are_the_first_of_more_and_more_go_on(model, tmp_path, monkeypatch, tell):
    tell(*command(model, tmp_path / "a", "--rows", "5"))
    few = rows_in(tmp_path / "a")
    tell(*command(model, tmp_path / "a", "--rows", "30"))
    assert rows_in(tmp_path / "a")[:5] == few

    assert "there is another card 'by_model'" in tell(
        *command(model, tmp_path / "b", "--rows", "5", "--seed", "7"), code=1
    )
    monkeypatch.delenv("TELL_CARDS")
    tell(*command(model, tmp_path / "b", "--rows", "5", "--seed", "7"))
    assert [row["query"] for row in rows_in(tmp_path / "b")] != [row["query"] for row in few]


def test_a_model_that_writes_nothing_usable_is_told_so(model, tmp_path, tell):
    message = tell(*command(model, tmp_path / "a", "--rows", "5", "--max-new-tokens", "1"), code=1)
    assert "only 0 of 160 attempts are usable" in message
    assert "answer cut off" in message
    assert "--template" in message


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--rows", "5"), "required: --model"),
        (("--model", "smollm2", "--rows", "0"), "argument --rows: 0 is too small"),
        (("--model", "smollm2", "--name", "a b"), "bad name 'a b'"),
        (("--model", "smollm2", "--name", ".."), "bad name '..'"),
        (("--model", "smollm2", "--name", "gsm8k"), "there is another card 'gsm8k'"),
        (("--model", "nowhere.yaml"), "no recipe 'nowhere.yaml'"),
        (("--model", "smolm2"), "did you mean 'smollm2'?"),
        (("--model", "x.yaml"), "the recipe names no model"),
    ],
)
def test_wrong_arguments(flags, problem, tell, tmp_path, monkeypatch):
    """No model is fetched before they are refused."""
    (tmp_path / "x.yaml").write_text("dataset: [tell/gsm8k]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded_model, "prepare_model", None)  # not to be called
    assert problem in tell("data", "selfgen", *flags, code=1)


def test_a_card_of_the_users_is_never_overwritten(tmp_path, make_card, tell):
    folder = make_card("own", train=[{"q": "a", "r": "b"}])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flags = ["--model", "smollm2", "--name", "own", "--out", str(folder.parent)]
    assert "train.jsonl would be overwritten" in tell("data", "selfgen", *flags, code=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_prompt_ends_where_the_users_words_begin(model):
    writer = SelfWriter({"model": str(model), "model_type": "llama", "template": "llama"}, 1)
    assert writer.tokenizer.decode(writer.opening).endswith("\n<</SYS>>\n\n")
    assert writer.turn_end == "[/INST]"
    text = "Name a river. [/INST] The Rhine."
    tokens = writer.tokenizer.encode(text, add_special_tokens=False)
    assert writer._read(tokens, []) == ("Name a river.", True)


@pytest.mark.slow
def test_the_embedded_model_writes_what_it_is_asked_and_does_so_again():
    """SmolLM2's own chat template, system prompt and all; one seed, one result."""
    folder = prepare_model()
    writer = SelfWriter({"model": str(folder), "model_type": "llama", "template": "chatml"}, 6)
    opening = writer.tokenizer.decode(writer.opening)
    assert opening.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert opening.endswith("<|im_end|>\n<|im_start|>user\n")
    written = writer.instructions(6, 3, 0, 40)
    assert writer.instructions(6, 3, 0, 40) == written
    assert writer.instructions(6, 3, 1, 40) != written
    good = [text for text, ended in written if ended and instruction_problem(text, "en") is None]
    assert len(good) >= 2
    assert all(text for text, _ in writer.answers(good[:2], 16, 3, 0))
