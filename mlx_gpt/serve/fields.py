"""Decodes the JSON of requests, and checks its fields.

Clients also send fields that are not supported, of OpenAI's, llama.cpp's and vLLM's servers. They are accepted if their
value changes nothing (NEUTRAL, IGNORED). Any other value of them is an error. An option that has another name on one of
these servers is accepted under both names (ALIASES). An unknown top-level field is an error too, because it may be
misspelled. Every error about a field names it.
"""

import difflib
import math
import re
from typing import Any

import msgspec

from mlx_gpt.web.errors import ApiError, bad, cut

# Field -> values that mean the same as leaving the field out, like null.
NEUTRAL = {
    # OpenAI
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # there are no tools
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none", "medium"),  # no model reasons; medium is OpenAI's default
    "response_format": ({"type": "text"},),
    "stop": ("", []),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),  # OpenAI's default
    "web_search_options": (),
    # llama.cpp and vLLM
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "id_slot": (-1,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "lora": ([],),
    "min_keep": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "n_keep": (0,),
    "n_probs": (0,),
    "priority": (0,),
    "prompt_logprobs": (),
    "repeat_last_n": (-1,),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "t_max_predict_ms": (0, -1),
    "tfs_z": (1,),
    "timings_per_token": (False,),
    "top_k": (-1,),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
ALIASES = {"repeat_penalty": "repetition_penalty"}  # llama.cpp's name -> vLLM's
SAME = {"best_of": "n"}  # a field is also neutral if its value is that of the other field
# These do not change the text, whatever their value is.
IGNORED = {
    "add_special_tokens",  # no prompt gets special tokens
    "cache_prompt",
    "dry_allowed_length",  # the parameters of methods that are off
    "dry_base",
    "dry_penalty_last_n",
    "metadata",
    "mirostat_eta",
    "mirostat_tau",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "xtc_threshold",
}
WHOLE = re.compile(rb"\A(-?\d+)\.0+\Z")  # a JSON number whose fraction is zero


def decode(body: bytes, kind: type) -> Any:
    """Decodes and checks a request. Integers may be written with a fraction of zero, as 16.0.

    Args:
        body: The body of the request, JSON.
        kind: The type of the request: CompletionRequest, ChatRequest or RandyRequest.

    Raises:
        ApiError: The body is not JSON, or a field is unknown, unsupported or has an invalid value. The status is 400.
    """
    if not body:
        raise ApiError(400, "the body is empty; send JSON", code="invalid_json")
    fields: dict[str, bytes] = {}  # the JSON of each field
    try:
        raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields = {name: WHOLE.sub(rb"\1", bytes(value)) for name, value in raw.items()}
        fields = {name: value for name, value in fields.items() if not _is_neutral(name, fields)}
        for alias in ALIASES.keys() & fields.keys():
            if ALIASES[alias] in fields:
                raise bad(alias, f"{alias} and {ALIASES[alias]} are one option; give one of them")
            fields[ALIASES[alias]] = fields.pop(alias)
        if unsupported := fields.keys() & NEUTRAL.keys() - set(kind.__struct_fields__):
            raise _unsupported(name := min(unsupported), fields[name])
        return msgspec.json.decode(msgspec.json.encode({k: msgspec.Raw(v) for k, v in fields.items()}), type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), fields, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None


def _is_neutral(name: str, fields: dict[str, bytes]) -> bool:
    """Whether a request means the same without this field. `fields` has the JSON of each field."""
    if name not in NEUTRAL:
        return name in IGNORED
    value, neutral = _value(fields[name]), [None, *NEUTRAL[name]]
    if SAME.get(name) in fields:
        neutral.append(_value(fields[SAME[name]]))
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)


def _value(value: bytes) -> Any:
    """The value of valid JSON; NaN, which equals nothing, for a number that is out of range."""
    try:
        return msgspec.json.decode(value)
    except msgspec.ValidationError:
        return math.nan


def _unsupported(name: str, value: bytes) -> ApiError:
    """The error for a field that is not supported. `value` is its JSON."""
    neutral = " or ".join(msgspec.json.encode(other).decode() for other in NEUTRAL[name])
    hint = f"leave it out, or give {neutral}" if neutral else "leave it out"
    return bad(name, f"{name}={_shown(value)} is not supported; {hint}", "unsupported_parameter")


def _invalid(message: str, fields: dict[str, bytes], kind: type) -> ApiError:
    """Converts a validation error of msgspec to an ApiError that names the field.

    For an unknown field, the error suggests the known field with the most similar name. For an invalid value of a
    top-level field, the error contains the value.

    Args:
        message: The message of msgspec, such as "Expected `int`, got `str` - at `$.max_tokens`".
        fields: The JSON of each field of the request.
        kind: The type of the request.
    """
    expected, _, path = message.partition(" - at ")
    name = path.strip("`").rpartition("$")[2].removeprefix(".")
    expected += " as a key" * path.startswith("`key` in ")
    if unknown := re.search("unknown field `(.*)`", expected, re.DOTALL):
        near = difflib.get_close_matches(cut(unknown[1]), kind.__struct_fields__, 1)
        name = f"{name}.{unknown[1]}".lstrip(".")
        hint = f"did you mean {near[0]}?" if near else "leave it out"
        return bad(name, f"{cut(name)}: no such field; {hint}", "unknown_parameter")
    given = f"={_shown(fields[name])}" if name in fields else ""
    return bad(name or None, f"{cut(name) or 'body'}{given}: {expected}")


def _shown(value: bytes) -> str:
    """The beginning of a JSON value, in ASCII."""
    return ascii(value[:40].decode(errors="replace"))[1:-1]
