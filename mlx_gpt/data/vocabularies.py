"""Reads vocabulary files, and restores the tokenizers of checkpoints."""

from pathlib import Path
from typing import Any

from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer, steps_of
from mlx_gpt.data.tokenizer import SPECIALS, CharTokenizer, Tokenizer
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import parse_json, read_bytes


def tokenizer_from_dict(data: dict) -> Tokenizer:
    """Restores a tokenizer from the dict that to_dict() returned. Raises BadFile if the dict is invalid."""
    try:
        match data["kind"]:
            case CharTokenizer.kind:
                return CharTokenizer(data["characters"], data.get("fim", False) is True)
            case BPETokenizer.kind:
                return BPETokenizer.from_dict(data)
            case ByteBPETokenizer.kind:
                further = {k: data[k] for k in ("specials", "vocab_size", "chat_template") if k in data}
                return ByteBPETokenizer(data["json"], **further)
            case kind:
                raise BadFile(f"tokenizer of unknown kind {kind!r}; this version reads 'char', 'bpe' and 'byte-bpe'")
    except BadFile:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"tokenizer: not written by mlxgpt, or corrupt: {type(error).__name__} {error}") from None


def open_vocab(path: Path, **further: Any) -> Tokenizer:
    """Reads a vocabulary file.

    Args:
        path: a vocab.json of randyGPT, a tokenizer.json of mlxgpt or of any byte-level BPE, or a folder that contains
            a tokenizer.json.
        further: arguments of ByteBPETokenizer besides the text, for a byte-level BPE.

    Returns:
        A BPETokenizer, a ByteBPETokenizer, or, for a BPE of characters without merges, a CharTokenizer.

    Raises:
        UserError: if there is no such file.
        BadFile: if the file cannot be read or is none of these.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path}: no such file; give a vocab.json or a tokenizer.json")
    text = read_bytes(path)
    data = parse_json(text, str(path))
    text = text.decode("utf-8")
    try:
        if isinstance(data, dict) and {"vocab", "merges"} <= data.keys():
            return BPETokenizer.from_dict(data)
        if isinstance(data, dict) and isinstance(data.get("model"), dict):
            # The files of BPETokenizer and CharTokenizer have a single pre-tokenization step, of type Split (_engine).
            is_bpe = data["model"].get("type") == "BPE"
            if not is_bpe or [step.get("type") for step in steps_of(data["pre_tokenizer"])] != ["Split"]:
                return ByteBPETokenizer(text, **further)
            known = BPETokenizer.from_json(text)
            characters = known.vocab[len(SPECIALS) : known.vocab_size - len(known.fim_names)]
            is_char = not known.merges and all(len(string) == 1 for string in characters)
            return CharTokenizer("".join(characters), known.fim_ids is not None) if is_char else known
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"{path}: not a vocabulary: {type(error).__name__} {error}") from None
    raise BadFile(f"{path}: neither a vocab.json (with vocab and merges) nor a tokenizer.json (with model)")
