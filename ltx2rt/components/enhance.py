"""Prompt enhancement: a language model turns a short request into a full description.

The bundle's own Gemma 3 does it (`components.language_model`), any endpoint that speaks the OpenAI
chat protocol, or a local transformers model (in `ltx2rt_export`, because it needs PyTorch). Answers
are cached by everything that decides them. Clean-up of the answer: spec/conditioning.md §6.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ltx2rt.components.endpoint import (
    chat_address,
    fetched,
    key_is_for,
    shown_url,
    url_problem,
)
from ltx2rt.env import cache_dir, enhance_key
from ltx2rt.errors import EnhanceError, Field, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.media.still_reader import load_image
from ltx2rt.partial import Partial
from ltx2rt.plain_data import parse_json

MAX_ANSWER_BYTES = 1_000_000
MAX_PROMPT_CHARACTERS = 20_000
IMAGE_SIDE = 896
MAX_NEW_TOKENS = 600
TEMPERATURE = 0.7

_COMMON = """\
You write the text that a video generator with sound is trained on. You are given a request; answer
with one paragraph in English that describes the finished clip, and with nothing else: no title, no
list, no quotation marks around it, no remark about your work.
Keep everything that the request asks for, word for word where it quotes speech. Where it is vague,
choose something plain and likely. Do not bring in people, speech, camera moves or cuts that it does
not ask for. Tell what is seen and heard in the order in which it happens, in the present tense,
with concrete nouns and verbs: who or what, how it looks, how it moves, where it is, what light
falls on it, how the picture is framed. Weave the sounds in where they occur: voices, noises, the
room, music only if there is reason for it. For speech say who speaks, in which language and tone,
and put the words in double quotes. Leave out what a camera and a microphone cannot record:
feelings, intentions, meanings. Between 80 and 200 words. If the request is that kind of description
already, return it as it is."""
SYSTEM_PROMPTS = {
    "text": _COMMON,
    "unseen": _COMMON
    + """
The clip begins with a picture that you do not see. Say nothing of how people, things and places
look that the request does not say; tell what happens and what is heard.""",
    "image": _COMMON
    + """
The picture that you see is the first frame of the clip. Start from exactly what it shows and do not
describe again what does not change; tell what happens next. Where request and picture disagree,
follow the request from the first frame on.""",
}

_PLAIN_CHARACTERS = str.maketrans(
    {
        "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-",
        "\N{NO-BREAK SPACE}": " ", "′": "'",
    }
)  # fmt: skip

#: (messages, image or None, seed) -> the model's answer
Ask = Callable[[list[dict[str, Any]], Path | None, int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhanceConfig:
    """Who enhances prompts.

    Attributes:
        url: base address of an endpoint (`http://127.0.0.1:8080/v1`); None: a local model.
        model: its name at the endpoint, or the folder of a local transformers model; None: the
            Gemma 3 of the bundle, which does not see images.
        timeout_s: how long to wait for the endpoint's whole answer.
        insecure: plain http may leave this machine, and be read and changed on its way.
        named_by_file: a job file named the address, not who owns the key.
    """

    model: str | None = None
    url: str | None = None
    timeout_s: float = 120.0
    insecure: bool = False
    named_by_file: bool = False

    def __post_init__(self) -> None:
        settle_types(self)
        problems = []
        if self.url is not None:
            wrong = url_problem(self.url, insecure=self.insecure)
            problems += [] if wrong is None else [wrong]
            if self.model is None:
                problems.append(Problem(Field("url"), " names an endpoint; give its model too"))
        elif self.model is not None and not Path(self.model).is_dir():
            problems.append(
                Problem(
                    Field("model"),
                    f"={self.model!r} is not the folder of a local model; for an endpoint give "
                    "its url too",
                )
            )
        if not 0 < self.timeout_s <= 3600:
            problems.append(Problem(Field("timeout_s"), f"={self.timeout_s} is not in (0, 3600]"))
        if problems:
            raise OptionError("prompt enhancement", problems)

    @property
    def is_own(self) -> bool:
        """Whether the bundle's Gemma does it."""
        return self.url is None and self.model is None


def enhance_prompt(
    prompt: str,
    config: EnhanceConfig,
    *,
    image: Path | None = None,
    seed: int = 10,
    local: Ask | None = None,
    own: str = "",
) -> str:
    """The prompt, rewritten.

    Args:
        prompt: the user's words.
        config: who does it.
        image: the clip's first frame, shown to the model.
        seed: of the model's sampling, as far as the endpoint heeds it.
        local: asks a local model: see `ltx2rt_export.enhance`, `Pipeline.enhance_prompt`.
        own: which it is, where `config` leaves it to the bundle.

    Raises:
        EnhanceError: the endpoint or model failed, or gave nothing usable.
        MediaError: the image cannot be read.
    """
    system = SYSTEM_PROMPTS["text" if image is None else "unseen" if config.is_own else "image"]
    if config.is_own:
        image = None
    picture = None if image is None else image.read_bytes() if image.is_file() else b""
    key = [prompt, system, config.url, config.model or own, seed, picture and _digest(picture)]
    cached = cache_dir() / "enhanced" / f"{_digest(json.dumps(key).encode())}.json"
    if (answer := _read_cached(cached)) is not None:
        return answer
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": _user_content(prompt, image, as_url=config.url is not None)},
    ]
    if config.url is not None:
        answer = _ask_endpoint(config, messages, seed)
    elif local is not None:
        answer = local(messages, image, seed)
    else:
        raise EnhanceError(
            "nothing was given that asks the local model; `Pipeline.enhance_prompt` asks the "
            "bundle's own."
        )
    answer = clean(answer)
    if not answer:
        who = shown_url(config.url) or config.model or "the bundle's Gemma"
        raise EnhanceError(
            f"{who} answered without a single word; try another model or leave the enhancement out."
        )
    _write_cached(cached, answer)
    return answer


def clean(answer: str) -> str:
    """Plain quotes, dashes and spaces; whatever comes before the first letter is dropped."""
    answer = answer.translate(_PLAIN_CHARACTERS).strip()
    first = next((i for i, c in enumerate(answer) if c.isalpha()), len(answer))
    return answer[first:]


def _user_content(prompt: str, image: Path | None, *, as_url: bool) -> Any:
    if image is None:
        return f"Request: {prompt}"
    shown = {"type": "image_url", "image_url": {"url": data_url(image)}} if as_url else {}
    return [shown or {"type": "image"}, {"type": "text", "text": f"Request: {prompt}"}]


def data_url(image: Path) -> str:
    """An image as a JPEG data URL, its long side at most `IMAGE_SIDE` pixels.

    Raises:
        MediaError: it cannot be read.
    """
    small = Image.fromarray(load_image(image))
    small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _ask_endpoint(config: EnhanceConfig, messages: list[dict[str, Any]], seed: int) -> str:
    assert config.url is not None
    address = chat_address(config.url)
    shown = shown_url(address)
    body = {
        "model": config.model,
        "messages": messages,
        "temperature": TEMPERATURE,
        "max_tokens": MAX_NEW_TOKENS,
        "seed": seed & 0x7FFFFFFF,
    }
    headers = {"Content-Type": "application/json"}
    if (secret := enhance_key()) is not None and key_is_for(
        config.url, named_by_file=config.named_by_file
    ):
        headers["Authorization"] = f"Bearer {secret}"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        data = fetched(request, config.timeout_s, MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        hint = ""
        if error.code in (401, 403):
            kept = secret is not None and "Authorization" not in headers
            hint = "; its key was not sent to this address" if kept else "; set LTX2RT_ENHANCE_KEY"
        raise EnhanceError(f"{shown} answered {error.code} {error.reason}{hint}.") from error
    except TimeoutError as error:
        raise EnhanceError(f"{shown} did not answer in {config.timeout_s:g} s.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no answer in {config.timeout_s:g} s"
        raise EnhanceError(f"cannot reach {shown}: {reason}.") from error
    return _answer_in(data, shown)


def _answer_in(data: bytes, address: str) -> str:
    """The text of a chat completion."""
    try:
        if len(data) > MAX_ANSWER_BYTES:
            raise ValueError("it is too long")
        content = parse_json(data.decode("utf-8"))["choices"][0]["message"]["content"]
        if not isinstance(content, str) or len(content) > MAX_PROMPT_CHARACTERS:
            raise ValueError("its text is missing or too long")
        content.encode("utf-8")  # JSON may hold halves of characters
    except (ValueError, LookupError, TypeError) as error:
        raise EnhanceError(
            f"{address} did not answer as the OpenAI chat protocol says: {error}."
        ) from error
    return content


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_cached(path: Path) -> str | None:
    """An answer that was kept; a damaged one is asked for again."""
    try:
        kept = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    answer = kept.get("answer") if isinstance(kept, dict) else None
    return answer if isinstance(answer, str) and answer else None


def _write_cached(path: Path, answer: str) -> None:
    """Keep an answer; a cache that cannot be written is no reason to stop."""
    text = json.dumps({"answer": answer}, ensure_ascii=False)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with Partial(path, mode=0o600) as part:  # prompts are nobody else's business
            part.file.write(text.encode())
