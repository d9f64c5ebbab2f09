"""A chat template (Jinja) that gives a model the token ids of its training, anchor included.

Any server that reads a model's folder renders conversations by such a template, and knows nothing
of ms-swift's. The model's own is tried first, with the anchor put before the user's turns; then one
written from what ms-swift's template makes of a few probes. Which one is right is not reasoned
but tried: the ids of whole conversations are compared.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("LOG_LEVEL", "WARNING")  # ms-swift logs every argument else

from swift.template import update_generation_config_eos_token
from swift.template.template_inputs import TemplateInputs
from transformers import GenerationConfig

from tell_plugins.bridge.engine import model_arguments
from tell_plugins.bridge.templates import Front, anchor_template

Message = dict[str, Any]
Conversation = list[Message]
_USER, _SYSTEM, _ANSWER, _LAST = "[[tell-user]]", "[[tell-system]]", "[[tell-answer]]", "[[tell-2]]"

_ANCHORED = """\
{%- set tell = namespace(messages=[], open=true) -%}
{%- for message in messages -%}
{%- set tell.message = message -%}
{%- if message['role'] == 'user' and tell.open -%}
{%- set tell.open = ALL_TURNS -%}
{%- if message['content'] is not string -%}
{%- set tell.message = {'role': 'user', 'content': [{'type': 'text', 'text': FRONT}] + \
message['content']} -%}
{%- elif not message['content'].lstrip().startswith(BARE) -%}
{%- set tell.message = {'role': 'user', 'content': FRONT + message['content']} -%}
{%- endif -%}
{%- endif -%}
{%- set tell.messages = tell.messages + [tell.message] -%}
{%- endfor -%}
{%- set messages = tell.messages %}"""

_GENERATED = """\
{%- if messages[0]['role'] == 'system' -%}
{{- BEFORE_SYSTEM + messages[0]['content'] + AFTER_SYSTEM -}}
{%- set messages = messages[1:] -%}
{%- else -%}
{{- WITHOUT_SYSTEM -}}
{%- endif -%}
{%- for message in messages -%}
{{- message['content'] -}}
{%- if message['role'] == 'user' -%}
{{- BEFORE_LAST if loop.last and add_generation_prompt else BEFORE_ANSWER -}}
{%- else -%}
{{- END if loop.last else BEFORE_NEXT -}}
{%- endif -%}
{%- endfor -%}"""


def training_template(values: Mapping[str, Any]) -> Any:
    """ms-swift's template for a run's keys, with its tokenizer; no weights are loaded."""
    args = model_arguments(values)
    _, processor = args.get_model_processor(load_model=False)
    template = args.get_template(processor)
    template.max_length = None
    return template


def save_texts(template: Any, chat: ChatTemplate, folder: Path) -> None:
    """Write the tokenizer with its chat template, and the tokens that end an answer."""
    template.tokenizer.chat_template = chat.text
    template.tokenizer.save_pretrained(folder)
    try:
        config = GenerationConfig.from_pretrained(template.model_info.model_dir)
    except OSError:  # the model has none
        config = GenerationConfig()
    update_generation_config_eos_token(config, template)
    config.save_pretrained(folder)


_MODELFILE = """\
# Ollama reads no Jinja: the same as chat_template.jinja, for `ollama create NAME` in this folder
FROM WEIGHTS
TEMPLATE \"\"\"{{- if .System }}{{ BEFORE_SYSTEM }}{{ .System }}{{ AFTER_SYSTEM }}
{{- else }}{{ WITHOUT_SYSTEM }}{{ end }}
{{- $open := true }}
{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}{{ if $open }}{{ FRONT }}{{ end }}{{ $open = ALL_TURNS }}{{ .Content }}
{{- if $last }}{{ BEFORE_LAST }}{{ else }}{{ BEFORE_ANSWER }}{{ end }}
{{- else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}{{ BEFORE_NEXT }}{{ end }}
{{- end }}
{{- end }}\"\"\"
"""


@dataclass(frozen=True)
class Case:
    """A conversation, what it stands for, and its token ids in ms-swift's template.

    `single` is one turn of the user, with or without a system message.
    """

    name: str
    messages: Conversation
    ids: list[int]
    single: bool


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, whether it is the model's own, and the cases whose ids differ."""

    text: str
    own: bool
    differences: dict[str, str] = field(default_factory=dict)


def find_template(
    tokenizer: Any, template: Any, front: Front, cases: Sequence[Case]
) -> ChatTemplate:
    """The template with the fewest differences, the model's own among equals."""
    own = getattr(tokenizer, "chat_template", None)
    own = own.get("default") if isinstance(own, dict) else own  # of several the one without tools
    found = []
    for body, is_own in ((own, True), (generated(template), False)):
        if body is not None:
            text = anchored(body, front)
            found.append(ChatTemplate(text, is_own, differences(tokenizer, text, cases)))
    nothing = {case.name: "shows no text to write one by" for case in cases}
    return min(
        found or [ChatTemplate("", False, nothing)],
        key=lambda chat: (single_differs(chat, cases), len(chat.differences)),
    )


def single_differs(chat: ChatTemplate, cases: Iterable[Case]) -> list[str]:
    """The names of single turns that a template encodes otherwise than training did."""
    return sorted({case.name for case in cases if case.single} & set(chat.differences))


def made_cases(
    template: Any, front: Front, conversations: Iterable[tuple[str, Conversation]]
) -> list[Case]:
    """Cases with the ids that ms-swift's serving template, anchored, gives them.

    A conversation that it refuses, as some do a system message, is left out.
    """
    template = anchor_template(template, front) if front.text else template
    template.set_mode("transformers")
    cases = []
    for name, messages in conversations:
        try:
            ids = template.encode({"messages": [dict(message) for message in messages]})
        except AssertionError:  # ms-swift's way to say that a template takes no system message
            continue
        single = sum(message["role"] == "user" for message in messages) == 1
        cases.append(Case(name, messages, list(ids["input_ids"]), single))
    return cases


def trained_ids(template: Any, query: str) -> list[int]:
    """What stands before the answer where training encodes a query, its anchor included."""
    user, answer = {"role": "user", "content": query}, {"role": "assistant", "content": "yes"}
    template.set_mode("train")
    encoded = template.encode({"messages": [user, answer]})
    template.set_mode("transformers")
    start = next(place for place, label in enumerate(encoded["labels"]) if label != -100)
    return list(encoded["input_ids"][:start])


def differences(tokenizer: Any, text: str, cases: Iterable[Case]) -> dict[str, str]:
    """For each kind of case whose ids differ, where the first of them parts."""
    found: dict[str, str] = {}
    for case in cases:
        if case.name in found:
            continue
        try:
            rendered = tokenizer.apply_chat_template(
                case.messages, chat_template=text, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template of someone else raises
            found[case.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            continue
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if ids != case.ids:
            found[case.name] = _parting(tokenizer, ids, case.ids)
    return found


def _parting(tokenizer: Any, ids: Sequence[int], trained: Sequence[int]) -> str:
    pairs = enumerate(zip(ids, trained, strict=False))
    place = next((n for n, (one, other) in pairs if one != other), min(len(ids), len(trained)))
    here, there = (tokenizer.decode(part[place : place + 8]) for part in (ids, trained))
    return f"from token {place} on {here!r}, in training {there!r}"


def anchored(body: str, front: Front) -> str:
    """A chat template that puts the anchor before the user's turns which lack it."""
    if not front.text:
        return body
    return _filled(_ANCHORED, _of_front(front) | {"BARE": _literal(front.text.strip())}) + body


def _of_front(front: Front) -> dict[str, str]:
    turns = "false" if front.first_alone else "true"
    return {"ALL_TURNS": turns, "FRONT": _literal(front.text)}


def generated(template: Any) -> str | None:
    """A chat template written from what ms-swift's template puts around texts; None where it shows
    no text."""
    pieces = _pieces(template, no_system="raise_exception('this model takes no system message')")
    return _filled(_GENERATED, pieces) if pieces else None


def modelfile(template: Any, front: Front, weights: str) -> str | None:
    """Ollama's description of a model, with a template in Go's language; None as above.

    The token that begins a text is left out where the tokenizer adds it: so does Ollama, by the
    same setting, and it would stand there twice.
    """
    tokenizer = template.tokenizer
    first = tokenizer("x")["input_ids"][0]
    bos = tokenizer.bos_token if first == tokenizer.bos_token_id else None
    pieces = _pieces(template, no_system='""', added=bos or "")
    if not pieces:
        return None
    pieces |= {"WEIGHTS": weights} | _of_front(front)
    stops = [word for word in template.template_meta.stop_words if isinstance(word, str)]
    text = _filled(_MODELFILE, pieces)
    return text + "".join(f"PARAMETER stop {_literal(token)}\n" for token in stops)


def _pieces(template: Any, no_system: str, added: str = "") -> dict[str, str]:
    """What ms-swift's template puts around the texts of a conversation, between quotes.

    `no_system` is what stands before a system message where it takes none, `added` what another
    puts before the whole; empty where the template shows no text.
    """
    system, user, answer, last = (
        {"role": role, "content": text}
        for role, text in zip(
            ("system", "user", "assistant", "user"), (_SYSTEM, _USER, _ANSWER, _LAST), strict=True
        )
    )
    plain = _text_of(template, [user])
    done = _text_of(template, [user, answer], mode="train")
    if _USER not in plain or _ANSWER not in done:
        return {}
    two = _text_of(template, [user, answer, last])
    between = (two if _ANSWER in two else done).partition(_USER)[2]  # some take one turn alone
    head, _, rest = _text_of(template, [system, user]).partition(_SYSTEM)
    texts = {
        "BEFORE_SYSTEM": head.removeprefix(added),
        "AFTER_SYSTEM": rest.partition(_USER)[0],
        "WITHOUT_SYSTEM": plain.partition(_USER)[0].removeprefix(added),
        "BEFORE_LAST": plain.partition(_USER)[2],
        "BEFORE_ANSWER": between.partition(_ANSWER)[0],
        "BEFORE_NEXT": two.partition(_ANSWER)[2].partition(_LAST)[0],
        "END": done.partition(_ANSWER)[2],
    }
    pieces = {name: _literal(text) for name, text in texts.items()}
    return pieces if rest else pieces | {"BEFORE_SYSTEM": no_system}


def _text_of(template: Any, messages: Conversation, mode: str = "transformers") -> str:
    """What ms-swift's template makes of a conversation, as text; "" where it refuses it."""
    inputs = TemplateInputs.from_dict({"messages": [dict(message) for message in messages]}).chosen
    template.set_mode(mode)
    try:
        contexts, *_ = template._swift_encode(inputs)
    except AssertionError:
        return ""
    finally:
        template.set_mode("transformers")
    tokens = template.tokenizer.convert_ids_to_tokens
    return "".join(part if isinstance(part, str) else "".join(tokens(part)) for part in contexts)


def _literal(text: str) -> str:
    """A text as Jinja reads it between quotes: JSON's escapes, and no others."""
    return json.dumps(text, ensure_ascii=False)


def _filled(pattern: str, values: dict[str, str]) -> str:
    """The pattern with each name in capitals replaced, all at once: a value may hold a name."""
    return re.sub(r"\b[A-Z_]{3,}\b", lambda found: values.get(found[0], found[0]), pattern)
