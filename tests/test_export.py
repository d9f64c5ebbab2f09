"""An exported folder gives the token ids of training and the answers of `eval`, to bare queries."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tokenizers.processors import TemplateProcessing

from tell_plugins.bridge.templates import Front
from tell_plugins.cli import main
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.text import KNOWN
from tell_plugins.evaluation.answers import read_saved
from tests.conftest import PROJECT, Cli, in_fresh_process
from tests.tiny import make_tiny_cards, make_tiny_model, tiny_recipe
from tests.tiny_adapters import make_adapter

if TYPE_CHECKING:
    from tell_plugins.bridge.chat_templates import Case

SPEC = "tell/tiny_task:task=all/general=10rows"
ANCHOR = 'Say "yes" or END \\ no.\nFRONT {{ x }} %} é😀'
FRONT = Front(ANCHOR + "\n\n")
_CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\\n"
    "You are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' "
    "+ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{% for m in messages %}{{ ('<|begin_of_text|>' if loop.first else '') + '<|start_header_id|>' "
    "+ m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
# ms-swift's template, and a chat template as the family's own has it
FAMILIES = {
    "chatml": ("SmolLM2, Yi", _CHATML),
    "qwen": ("Qwen", None),
    "qwen2_5": (
        "Qwen2.5",
        _CHATML.replace("a helpful", "Qwen, created by Alibaba Cloud. You are a helpful"),
    ),
    "qwen3": ("Qwen3", None),
    "qwen3_nothinking": ("Qwen3-Instruct-2507", None),
    "llama": ("Llama 2", None),
    "llama3": ("Llama 3", _LLAMA3),
    "llama3_2": ("Llama 3.1, 3.2", _LLAMA3.replace("m['content']", "m['content']|trim")),
    "gemma": ("Gemma", None),
    "gemma3_text": ("Gemma 3", None),
    "phi4": ("Phi-4", None),
    "deepseek_r1": ("DeepSeek-R1", None),
    "glm4": ("GLM-4", None),
    "internlm2": ("InternLM 2", None),
}

# where ms-swift asks otherwise than it trained: a begun thought, a line break left out
ASKED_OTHERWISE = {"deepseek_r1", "glm4"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads only wait for each other on so small a model."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    more = [token for token in KNOWN if not token.startswith(("<|im_", "<|endoftext"))]
    more += ["[gMASK]", "<sop>", "<|im_sep|>", "<bos>", "<eos>", "<think>", "</think>"]
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), special=more)


@pytest.fixture
def trained(make_card, model, tmp_path) -> Path:
    """A checkpoint as a training leaves it, of random weights."""
    make_tiny_cards(make_card)
    (tmp_path / "cards" / "tiny_task" / "anchor.txt").write_text(ANCHOR)
    folder = make_adapter(tmp_path / "run" / "checkpoint-4", model, seed=3)
    (folder / "anchor.txt").write_text(ANCHOR)
    (folder / "manifest.json").write_text(json.dumps(manifest_of(build_mixture(parse_spec(SPEC)))))
    saved = {"model": str(model), "model_type": "llama", "template": "chatml", "system": "Be good."}
    saved |= {"torch_dtype": "float32", "swift_version": "4.0.4", "task_type": "causal_lm"}
    (folder / "args.json").write_text(json.dumps({**saved, "tuner_type": "lora", "lora_rank": 4}))
    return folder


@pytest.fixture
def evaluated(trained, model, tmp_path, cli) -> Path:
    """The recipe of that checkpoint, whose answers lie beside it."""
    recipe = tiny_recipe(tmp_path / "tiny.yaml", model, SPEC, system="Be good.")
    cli(0, "eval", recipe, *ASK)
    return recipe


ASK = ("--max-new-tokens", 8, "--batch-size", 2, "--general-rows", 0)


def answers(tmp_path: Path, label: str = "checkpoint-4") -> str:
    return str(tmp_path / "run" / "eval" / label / "test-greedy")


@pytest.fixture
def export(cli) -> Cli:
    """`export(code, run, out, ...)`: what the verb says."""
    return lambda code, run, out, *flags: cli(code, "export", run, "--out", out, *flags)


def _template_of(tiny: Path, kind: str, **more: Any) -> Any:
    from tell_plugins.bridge.chat_templates import training_template

    return training_template({"model": str(tiny), "model_type": "llama", "template": kind, **more})


def _proof(tiny: Path, kind: str, own: str | None) -> list[str]:
    """A row of the table in the docs: which template, and where its token ids are equal."""
    from tell_plugins.bridge.chat_templates import (
        differences,
        find_template,
        made_cases,
        trained_ids,
    )
    from tell_plugins.evaluation.export import QUERIES, conversations

    template = _template_of(tiny, kind)
    template.tokenizer.chat_template = own
    told = list(conversations({"spec": SPEC}))
    cases = made_cases(template, FRONT, told)
    chat = find_template(template.tokenizer, template, FRONT, cases)
    for query in ("Fox?", "  Fox?\n") if kind not in ASKED_OTHERWISE else ():
        messages = [{"role": "user", "content": query}]
        (case,) = made_cases(template, FRONT, [("", messages)])
        assert trained_ids(template, query) == case.ids, kind
        assert not differences(template.tokenizer, chat.text, [case]), kind
    names = list(dict.fromkeys(case.name for case in cases))
    said = {name: "differs" if name in chat.differences else "equal" for name in names}
    singles = {said[name] for name in (QUERIES, "white space", "Unicode")}
    return [
        FAMILIES[kind][0],
        f"`{kind}`",
        "the model's own" if chat.own else "written",
        "equal" if singles == {"equal"} else "differ",
        said.get("system message", "not taken"),
        said["two turns"],
    ]


def test_the_table_of_the_docs(make_card, tiny):
    """Token ids of fourteen families, on a tokenizer that knows the tokens of all of them."""
    make_tiny_cards(make_card)
    rows = [_proof(tiny, kind, own) for kind, (_, own) in FAMILIES.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    assert all(row[3] == "equal" for row in rows)
    assert table in (PROJECT / "docs" / "serving.md").read_text(), (
        f"docs/serving.md lacks:\n{table}"
    )


def _by_ollama(template: Any, cases: Sequence[Case]) -> list[str]:
    from tell_plugins.bridge.chat_templates import modelfile

    described = modelfile(template, FRONT, ".")
    asked = [{"Modelfile": described, "Messages": case.messages} for case in cases]
    command = ["go", "run", str(PROJECT / "tests" / "ollama_template.go")]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.skipif(not shutil.which("go"), reason="no Go, whose templates Ollama reads")
@pytest.mark.parametrize("kind", FAMILIES)
def test_ollamas_prompts_have_the_token_ids_too(make_card, tiny, kind):
    from tell_plugins.bridge.chat_templates import made_cases
    from tell_plugins.evaluation.export import conversations

    make_tiny_cards(make_card)
    template = _template_of(tiny, kind)
    cases = made_cases(template, FRONT, conversations({"spec": SPEC}))
    for case, text in zip(cases, _by_ollama(template, cases), strict=True):
        assert template.tokenizer(text, add_special_tokens=False)["input_ids"] == case.ids


def test_what_ollama_adds_to_a_prompt_is_left_out_of_it(tiny):
    """Its tokenizer puts the first token there, where that of the model does."""
    from tell_plugins.bridge.chat_templates import modelfile

    template = _template_of(tiny, "llama3")
    tokenizer, begin = template.tokenizer, "<|begin_of_text|>"
    assert begin in str(modelfile(template, FRONT, "."))
    tokenizer.bos_token = begin
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    assert begin not in str(modelfile(template, FRONT, "."))


def _rendered(tiny: Path, front: Front, content: Any, *turns: str) -> str:
    from tell_plugins.bridge.chat_templates import anchored

    body = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    messages = [{"role": "user", "content": content}]
    messages += [
        {"role": ("assistant", "user")[place % 2], "content": text}
        for place, text in enumerate(turns)
    ]
    return str(
        _template_of(tiny, "chatml").tokenizer.apply_chat_template(
            messages, chat_template=anchored(body, front), tokenize=False
        )
    )


def test_the_anchor_stands_before_each_turn_once(tiny):
    assert _rendered(tiny, FRONT, "Fox", "no", "Dog") == f"[{FRONT.text}Fox][no][{FRONT.text}Dog]"
    assert _rendered(tiny, FRONT, f"\n{ANCHOR} Fox") == f"[\n{ANCHOR} Fox]"
    first = Front("Say.\n\n", first_alone=True)
    assert _rendered(tiny, first, "Fox", "no", "Dog") == "[Say.\n\nFox][no][Dog]"
    parts = _rendered(tiny, Front("Say. "), [{"type": "text", "text": "Fox"}])
    assert parts.index("Say. ") < parts.index("Fox")


def test_a_template_that_takes_no_system_message_says_so(tiny):
    from jinja2.exceptions import TemplateError

    from tell_plugins.bridge.chat_templates import generated

    template = _template_of(tiny, "chatml")
    template.template_meta.support_system = False
    text = generated(template)
    messages = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "Fox"}]
    with pytest.raises(TemplateError, match="takes no system message"):
        template.tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False)


def test_the_merged_model_answers_bare_queries_as_eval_did(evaluated, tmp_path, export, cli):
    out = tmp_path / "own"
    assert "written from ms-swift's, with the anchor put in" in export(0, tmp_path / "run", out)
    said = cli(0, "verify", out, answers(tmp_path))
    assert "6 of 6 answers are equal, word for word" in said
    assert "6 of 6 prompts have as many tokens as then" in said
    assert (out / "anchor.txt").read_text() == ANCHOR
    assert json.loads((out / "manifest.json").read_text())["card"] == "tiny_task"
    ollama = (out / "Modelfile").read_text()
    before = json.dumps("<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n")
    assert f"{{{{- else }}}}{{{{ {before} }}}}" in ollama
    assert 'PARAMETER stop "<|im_end|>"' in ollama
    card = (out / "README.md").read_text()
    assert str(tmp_path) not in card
    for part in ("% of 6 [", "tiny_task", '    Say "yes"'):
        assert part in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"


def test_a_server_without_the_anchor_is_found_out(evaluated, model, tmp_path, cli):
    """The base model's folder has no anchor: prompts are shorter, and verify says no."""
    template = _template_of(model, "chatml").tokenizer
    template.chat_template = _CHATML
    copy = shutil.copytree(model, tmp_path / "bare")
    template.save_pretrained(copy)
    said = cli(1, "verify", copy, answers(tmp_path))
    assert "0 of 6 prompts have as many tokens" in said
    assert "no model in" in cli(1, "verify", tmp_path, answers(tmp_path))


@pytest.mark.slow
def test_the_adapter_at_a_scale(evaluated, tmp_path, trained, export, cli):
    """Asked where ms-swift, which changes peft, is not loaded."""
    cli(0, "eval", evaluated, *ASK, "--scales", "0.5")
    out = tmp_path / "half"
    export(0, trained, out, "--adapter", "--scale", "0.5")
    kept = ["--out", str(tmp_path / "again")]
    saved = answers(tmp_path, "checkpoint-4-scale0.5")
    assert in_fresh_process(main, ["verify", str(out), saved, *kept]) == 0
    texts = [
        {line.row: line.text for line in read_saved(folder).answers}
        for folder in (Path(saved), tmp_path / "again")
    ]
    assert texts[0] == texts[1]
    card = (out / "README.md").read_text()
    assert "multiplied by 0.5" in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "peft"


def test_a_model_of_full_tuning(trained, tmp_path, export):
    export(0, trained, tmp_path / "merged")
    whole = tmp_path / "full" / "checkpoint-4"
    whole.parent.mkdir()
    (tmp_path / "merged").rename(whole)
    (whole / "args.json").write_text((trained / "args.json").read_text())
    (whole / "optimizer.pt").write_text("large")
    assert "all weights were trained" in export(1, whole, tmp_path / "out", "--adapter")
    export(0, whole, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model.safetensors", "config.json", "chat_template.jinja", "anchor.txt"}
    assert "optimizer.pt" not in names


@pytest.fixture
def changing() -> Iterator[str]:
    """A template of ms-swift that does to the query what no chat template of ours tells."""
    from swift.template import TEMPLATE_MAPPING, Template, TemplateMeta, register_template

    class Changing(Template):
        def _swift_encode(self, inputs: Any) -> Any:
            inputs.messages[0]["content"] = inputs.messages[0]["content"].replace("o", "0")
            return super()._swift_encode(inputs)

    meta = TemplateMeta("changing", [], ["{{QUERY}}:"], [], template_cls=Changing)
    register_template(meta)
    yield meta.template_type
    del TEMPLATE_MAPPING["changing"]


def test_a_single_turn_that_differs_is_refused(changing, trained, tmp_path, export):
    saved = json.loads((trained / "args.json").read_text())
    (trained / "args.json").write_text(json.dumps(saved | {"template": changing, "system": None}))
    error = export(1, trained, tmp_path / "out")
    assert "no chat template gives the token ids of training" in error
    assert "swift deploy" in error
    assert not (tmp_path / "out").exists()


def test_what_is_refused(trained, tmp_path, export):
    out, there = tmp_path / "out", tmp_path / "there"
    there.mkdir()
    script = tmp_path / "convert.py"
    script.write_text("import sys; sys.exit('unknown architecture')")
    assert "'11' is no scale" in export(1, trained, out, "--scale", 11)
    assert "makes no GGUF file" in export(1, trained, out, "--adapter", "--gguf")
    assert "no converter 'no-such-one'" in export(1, trained, out, "--gguf", "no-such-one")
    assert "unknown architecture" in export(2, trained, out, "--gguf", script)
    assert "it is there already" in export(1, trained, there)
    (trained / "args.json").unlink()
    assert "no args.json, so nothing says how it was trained" in export(1, trained, out)
    assert "no adapter in" in export(1, there, out)
    assert not out.exists()
