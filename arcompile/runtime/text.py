"""Prompts become features: tokenised, run through the engine's graph `text`, laid out in slots.

`manifest["info"]["text"]` says how: `tokens` a prompt may have, its end included; whether captions
are cleaned; at which side a row is padded. No family is known here by name.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import numpy as np

from arcompile.errors import MACHINE, ArcError

if TYPE_CHECKING:
    from arcompile.runtime.engine import Engine

Array = np.ndarray[Any, Any]
GRAPH = "text"  # ids i64[b,t], mask bool[b,t] -> features f32[b,t,C]
TOKENIZER = "tokenizer.json"
MAX_PROMPT = 10_000  # characters


def are_prompts(cond: Any) -> bool:
    """A text, or a list of things of which some are."""
    several = isinstance(cond, list | tuple | np.ndarray)
    return isinstance(cond, str) or (several and any(isinstance(c, str) for c in cond))


def takes(engine: Engine) -> bool:
    """Can the engine read prompts in place of features?"""
    return GRAPH in engine.manifest.get("graphs", ()) and "text" in engine.manifest["info"]


def features(engine: Engine, prompts: Sequence[str]) -> dict[str, Array]:
    """The inputs `features` f32 [b,T,C] and `mask` bool [b,T] of prompts. Raises ArcError.

    T is what the program says, else the length of the longest prompt. Slots that are padded are 0.
    """
    said = engine.manifest["info"]["text"]
    ids = _ids(engine, prompts, said)
    runner = engine.models.runner()
    found = []
    for row in ids:  # one by one: the same numbers whatever else is asked for
        given = {"ids": row[None], "mask": np.ones((1, len(row)), bool)}
        found.append(runner.numpy(runner.run(GRAPH, given)["features"])[0])
    slots = dict(engine.program.inputs)["features"].shape[1]
    return place(found, slots if isinstance(slots, int) else max(map(len, ids)), said["pad"])


def place(rows: Sequence[Array], slots: int, pad: str) -> dict[str, Array]:
    """Rows [n,C] of different n in `slots` slots each, padded with zeros at the `pad` side."""
    out = np.zeros((len(rows), slots, rows[0].shape[1]), np.float32)
    mask = np.zeros((len(rows), slots), bool)
    for i, row in enumerate(rows):
        where = slice(slots - len(row), None) if pad == "left" else slice(len(row))
        out[i, where], mask[i, where] = row, True
    return {"features": out, "mask": mask}


# --- tokens --------------------------------------------------------------------------------------


def _ids(engine: Engine, prompts: Sequence[str], said: Mapping[str, Any]) -> list[Array]:
    """Token ids of each prompt, cut to the limit, then the end."""
    file = engine.manifest["files"].get(TOKENIZER)
    if file is None:
        raise ArcError(f"engine {engine.folder} has no {TOKENIZER}", hint="rebuild the engine")
    tokenizer = _tokenizer(engine.folder / TOKENIZER, file["sha256"])
    found = []
    for prompt in prompts:
        text = clean(clean(_checked(prompt))) if said["clean"] else _checked(prompt)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        row = np.array([*ids[: said["tokens"] - 1], said["end"]], np.int64)
        if row.max() >= said["vocabulary"]:
            hint = "build with the tokenizer.json of the same model"
            raise ArcError(f"the tokenizer makes token {row.max()}, but the text encoder knows "
                           f"{said['vocabulary']} of them", hint=hint)
        found.append(row)
    return found


def _checked(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise ArcError(f"a prompt is text, got {type(prompt).__name__}",
                       hint="give a str, or a list of them")
    if len(prompt) > MAX_PROMPT:
        raise ArcError(f"a prompt of {len(prompt)} characters; at most {MAX_PROMPT}",
                       hint="shorten it")
    try:
        prompt.encode()
    except UnicodeEncodeError as e:
        raise ArcError(f"a prompt is not text: {e.reason} at character {e.start}",
                       hint="lone surrogates are no characters; decode the bytes anew") from None
    return prompt


@lru_cache(maxsize=4)
def _tokenizer(path: Path, sha256: str) -> Any:
    """The tokenizer of a file of that digest; without what the file says of length."""
    try:
        import tokenizers
    except ImportError:
        raise ArcError("prompts need the package tokenizers, which is not installed", code=MACHINE,
                       hint="pip install 'arcompile[text]'") from None
    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # tokenizers raises nothing more precise
        first, hint = str(e).partition("\n")[0][:200], "a newer tokenizers package may read it"
        raise ArcError(f"{path} is not a tokenizer: {first}", hint=hint) from None
    made.no_truncation()
    made.no_padding()
    return made


# --- captions ------------------------------------------------------------------------------------

_PICTURE = "png|jpe?g|bmp|webp|eps|pdf|apk|mp4"
# fmt: off
# In this order: pattern -> replacement. Repeats are bounded, so that no text takes long.
_RULES = [(re.compile(pattern), new) for pattern, new in (
    (r"<person>", "person"),
    (r"\b(?:https?://|www[.:])\S+|\b[a-z\d-]{1,63}(?:\.[a-z\d-]{1,63}){0,3}\."
     r"(?:com|co|ru|net|org|edu|gov|it)\b[\w/-]*", ""),  # addresses
    (r"<[a-z/!][^<>]{0,200}>", ""),  # markup
    (r"@\w+", ""),  # handles
    (r"[\u31c0-\u9fff]+", ""),  # Han and its neighbours, which T5 cannot read
    (r"[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2212\u2e3a\u2e3b\u301c\u3030\ufe58\ufe63\uff0d]+",
     "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # internet addresses
    (r"\\n", " "),
    (r"#(?:\d{1,3}|\d{5,})\b|\b\d{6,}\b", ""),  # numbers of articles
    (rf"\S{{1,100}}\.(?:{_PICTURE})\b", ""),  # names of files
    (r"[\"']{2,}", '"'),
    (r"\.{2,}|[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+|\s\.\s", " "),
)]
_CODES = [(re.compile(pattern), new) for pattern, new in (
    (r"\b[a-z]{1,3}\d{3,15}\b|\b[a-z]+\d+[a-z]+\b|\b\d+[a-z]+\d+\b", ""),  # jc6640, 6640vc231
    (rf"\b(?:{_PICTURE})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b|\b\d+(?:\.\d+)?[x×]\d+(?:\.\d+)?\b", ""),
    (r"([^\d\s][,.])(?=\w)", r"\1 "),  # "a,b" -> "a, b"
    (r"\s+", " "),
    (r" : ", ": "),
)]
# fmt: on


def clean(caption: str) -> str:
    """A caption as captions were in training: plain lower-case words and punctuation.

    Approximates the cleaning of DeepFloyd IF, which was written for captions from the web and
    which LlamaGen applies twice; ordinary prompts come out the same.
    """
    text = unicodedata.normalize("NFC", unquote_plus(caption)).strip().lower()
    text = html.unescape(text)
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub("[-_]", " ", text)
    for pattern, new in _CODES:
        text = pattern.sub(new, text)
    if len(text) > 2 and text[0] in "\"'" and text[-1] in "\"'":
        text = text[1:-1]
    return re.sub(r"^['_,:;-]|['_,:+-]$", "", text.strip()).strip()
