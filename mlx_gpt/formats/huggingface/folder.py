"""Folders that Hugging Face transformers and mlx-lm can load.

A folder contains config.json, generation_config.json, model.safetensors, the files of the tokenizer and a model card.
The module `stock` describes folders of Llama's network, which need no code, and `coded` those of other networks, which
contain the code of the model. Reading never runs the code in a folder.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gpt.checkpoint.container import read_header
from mlx_gpt.checkpoint.store import Checkpoint, Header, Tensors
from mlx_gpt.config.schema import MAX_VOCAB, Config, ModelConfig
from mlx_gpt.data.bpe import tokenizer_json
from mlx_gpt.data.tokenizer import Tokenizer, character_specials
from mlx_gpt.data.vocabularies import open_vocab, tokenizer_from_dict
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import make_folder, write_atomic
from mlx_gpt.formats import rgpt
from mlx_gpt.formats.huggingface import coded, stock
from mlx_gpt.formats.huggingface.card import card
from mlx_gpt.formats.huggingface.weights import read_file, read_weights, write_weights
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.parse import read_bytes, read_object

TARGETS = ("huggingface", "mlx-lm")
# The two kinds of folders. A network gets the first one that does not refuse it.
LAYOUTS: tuple[Any, ...] = (stock, coded)
QUANTIZED = {"quantization", "quantization_config"}  # keys of config.json
# The names of all files that an export to either target writes.
FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "README.md", "curve.png"),
    *("model.safetensors.index.json", *(name for code in coded.CODE.values() for name in code)),
}
# The content of generation_config.json, from which generate() of transformers takes its defaults.
GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 200}


@dataclass(frozen=True)
class Folder:
    """The folder format of one target, see formats.Format.

    It holds no optimizer state. A checkpoint without a tokenizer cannot be written.

    Args:
        name: One of TARGETS.
    """

    name: str
    is_folder = True

    def recognizes(self, path: Path) -> bool:
        # Without code the two targets have the same files, except the model card. Such folders count as "huggingface".
        has_mlx_lm_code = all((path / name).is_file() for name in coded.CODE["mlx-lm"])
        return is_folder(path) and has_mlx_lm_code == (self.name == "mlx-lm")

    def read(self, path: Path, known: Mapping[str, Any] | None = None) -> Checkpoint:
        return read_folder(path)

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        header = checkpoint.header
        self.require(header.config)
        if header.tokenizer is None:
            raise UserError(
                f"{self.name} needs a tokenizer, but this checkpoint has none; add one with mlxgpt convert and "
                "--corpus or --vocab"
            )
        text = card(header, path.resolve().name, self.name, "other", [], False, [])
        write_folder(path, checkpoint, tokenizer_from_dict(header.tokenizer), self.name, text, {})
        write_weights(path, names_of(header), checkpoint.weights)

    def refuses(self, config: Config) -> str | None:
        if layout_of(config.model):
            return None
        if config.model.ternary_norm:
            return "no other program supports model.ternary_norm=true; keep the safetensors file"
        return (
            f"{self.name} has no code for {coded.refuses(config.model)}, and only Llama's network needs none, but this "
            f"one has {stock.refuses(config.model)}; keep the safetensors file"
        )

    def require(self, config: Config) -> None:
        """Raises UserError if refuses() gives a reason."""
        if reason := self.refuses(config):
            raise UserError(reason)


def layout_of(model: ModelConfig) -> Any:
    """Returns the first of LAYOUTS that does not refuse a network, or None if all do."""
    return next((layout for layout in LAYOUTS if not layout.refuses(model)), None)


def names_of(header: Header) -> dict[str, str]:
    """The names of the weights in a folder, by our names. The network is one that Folder.refuses() accepts."""
    model = header.config.model
    return layout_of(model).names_of(model, header.vocab_size)


def write_folder(
    folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, target: str, readme: str, extra: dict
) -> list[Path]:
    """Writes all files of a folder except the weights and curve.png. Removes code of an earlier export, if any.

    Args:
        folder: The folder; it is created if it does not exist.
        checkpoint: The model.
        tokenizer: Its tokenizer.
        target: One of TARGETS.
        readme: The content of README.md, from card().
        extra: Further entries of config.json.

    Returns:
        The paths of the files written.

    Raises:
        UserError: The templates do not support the network, a tokenizer.json cannot represent the vocabulary, or a file
            cannot be written.
        OutOfRoom: The disk is full.
    """
    Folder(target).require(checkpoint.header.config)
    model = checkpoint.header.config.model
    code = layout_of(model).CODE[target]
    files = {
        "config.json": _dump(config_json(checkpoint.header, tokenizer, target) | extra),
        "generation_config.json": _dump(_token_ids(tokenizer) | GENERATION),
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": _dump(_tokenizer_config(tokenizer, model.block_size)),
        "special_tokens_map.json": _dump(_token_names(tokenizer)),
        "README.md": readme,
        **{name: (coded.TEMPLATES / template).read_text("utf-8") for name, template in code.items()},
    }
    make_folder(folder)
    for name in {name for other in coded.CODE.values() for name in other} - code.keys():
        (folder / name).unlink(missing_ok=True)  # code of an earlier export
    paths = [folder / name for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        write_atomic(path, [text.encode()])
    return paths


def config_json(header: Header, tokenizer: Tokenizer, target: str) -> dict:
    """The content of config.json.

    The entry "mlxgpt" holds the progress of the run, for read_folder(). Its keys are those of checkpoint format version
    2: `iteration` is header.step, and `step` is header.num_updates. `best_loss` is a string: JSON has no infinity.
    """
    return {
        **layout_of(header.config.model).facts_of(header, target),
        "vocab_size": header.vocab_size,
        **_token_ids(tokenizer),
        "use_cache": True,
        "dtype": "float32",
        "mlxgpt": {"iteration": header.step, "step": header.num_updates, "best_loss": repr(header.best_loss)},
    }


def _tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict:
    """The content of tokenizer_config.json."""
    chat = getattr(tokenizer, "chat_template", None)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_token_names(tokenizer),
        **({"chat_template": chat} if chat else {}),
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "split_special_tokens": True,  # text that spells a special token is encoded as text
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Reads the names of BOS and EOS and the chat template, as arguments of ByteBPETokenizer. Raises BadFile."""
    path, found = folder / "tokenizer_config.json", {}
    facts = read_object(path) if path.is_file() else {}
    tokens = [facts.get(key) for key in ("bos_token", "eos_token")]
    bos, eos = (token.get("content") if isinstance(token, dict) else token for token in tokens)
    if isinstance(eos, str):
        found["specials"] = (bos if isinstance(bos, str) else eos, eos)
    template = folder / "chat_template.jinja"
    chat = read_bytes(template).decode("utf-8", "replace") if template.is_file() else facts.get("chat_template")
    return found | ({"chat_template": chat} if isinstance(chat, str) else {})


def _token_ids(tokenizer: Tokenizer) -> dict:
    """The ids of the special tokens, as config.json names them. EOS is also the padding token."""
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}


def _token_names(tokenizer: Tokenizer) -> dict:
    """The names of the special tokens, as tokenizer_config.json names them. EOS is also the padding token."""
    bos, eos = special_names(tokenizer)
    return {"bos_token": bos, "eos_token": eos, "pad_token": eos}


def _dump(content: dict) -> str:
    return json.dumps(content, indent=2)


def special_names(tokenizer: Tokenizer) -> tuple[str, str]:
    """The names of BOS and EOS in tokenizer.json."""
    if tokenizer.kind == "char":
        return character_specials(tokenizer.characters)
    return tokenizer.special_names


def is_folder(path: Path) -> bool:
    """Whether the path is a folder that contains a config.json."""
    return path.is_dir() and (path / "config.json").is_file()


def require_whole(folder: Path) -> None:
    """Checks that the weights and the vocabulary of an exported folder can be read.

    Of quantized weights, only the header of model.safetensors is checked, since read_folder() does not support them.

    Raises:
        BadFile: A file is corrupt.
        UserError: A file is missing.
    """
    if not QUANTIZED & read_object(folder / "config.json").keys():
        read_folder(folder)
    read_header(folder / "model.safetensors")
    open_vocab(folder / "tokenizer.json")


def read_folder(folder: Path) -> Checkpoint:
    """Reads a folder that mlxgpt or randyGPT's scripts have exported, or one of a Llama network.

    Returns:
        A checkpoint without optimizer state. Its tokenizer is None if the folder has no tokenizer.json. Its step, its
        number of updates and its best loss are those of the exported checkpoint if config.json contains them.

    Raises:
        BadFile: A file is corrupt or not supported. The message names the file and what is wrong with it.
        UserError: model.safetensors is missing.
    """
    facts = read_object(folder / "config.json")
    kind = facts.get("model_type")
    layout = next((layout for layout in LAYOUTS if kind in layout.MODEL_TYPES), None)
    if not layout:
        known = ", ".join(name for layout in LAYOUTS for name in layout.MODEL_TYPES)
        raise BadFile(f"{folder / 'config.json'}: model_type {str(kind)[:60]!r} is not supported, only {known}")
    if QUANTIZED & facts.keys():
        raise BadFile(f"{folder}: quantized weights cannot be read; export without --quantize and --packed")
    try:
        model = layout.model_of(facts)
    except UserError as error:
        raise BadFile(f"{folder / 'config.json'}: {error}") from None
    vocab_size = facts.get("vocab_size")
    if type(vocab_size) is not int or not 1 <= vocab_size <= MAX_VOCAB:
        found = f"vocab_size {vocab_size!r} is not allowed" if "vocab_size" in facts else "'vocab_size' is missing"
        raise BadFile(f"{folder / 'config.json'}: {found}, expected 1 to {MAX_VOCAB}")
    weights = read_weights(folder, layout.names_of(model, vocab_size), shapes_of(model, vocab_size))
    tokenizer = None
    if (folder / "tokenizer.json").is_file():
        tokenizer = open_vocab(folder / "tokenizer.json", vocab_size=vocab_size, **_read_tokenizer_config(folder))
        if tokenizer.vocab_size != vocab_size:
            raise BadFile(
                f"{folder / 'tokenizer.json'}: has {tokenizer.vocab_size} ids, but config.json has {vocab_size}"
            )
    found = _checkpoint(model, vocab_size, weights, tokenizer.to_dict() if tokenizer else None)
    if "mlxgpt" not in facts:  # a folder of randyGPT's scripts has no such entry
        return found
    done = _progress(folder / "config.json", facts["mlxgpt"])
    return dataclasses.replace(found, header=dataclasses.replace(found.header, **done))


def _progress(path: Path, own: Any) -> dict[str, Any]:
    """Reads the entry "mlxgpt" of config.json, see config_json(). Returns fields of a Header. Raises BadFile."""
    try:
        counts = own["iteration"], own["step"]
        if all(type(count) is int and count >= 0 for count in counts):
            return {"step": counts[0], "num_updates": counts[1], "best_loss": float(own["best_loss"])}
    except (KeyError, TypeError, ValueError):
        pass
    raise BadFile(
        f"{path}: mlxgpt={str(own)[:60]!r} is not allowed; expected the counts iteration and step, and best_loss"
    )


def read_state_dict(path: Path, known: Mapping[str, Any]) -> Checkpoint:
    """Reads a PyTorch state_dict that is stored in a safetensors file and has randyGPT's tensor names.

    Args:
        path: The file.
        known: Settings of the table [model] that the caller knows. Only `n_head`, which is not in the file, is used.
            Without it, the number of heads is that of the presets with this n_embd and block_size.

    Returns:
        A checkpoint without a tokenizer and without optimizer state.

    Raises:
        BadFile: The file is corrupt, or has other tensors than randyGPT's network.
        UserError: The number of heads is not known, or it does not divide n_embd.
    """
    entries, _ = read_header(path)
    shapes = {name: entry.shape for name, entry in entries.items()}
    for name in ("wte.weight", "wpe.weight", "lm_head.weight"):
        if len(shapes.get(name, ())) != 2:
            raise BadFile(f"{path}: {name} is missing or not a matrix; give a state_dict with randyGPT's tensor names")
    vocab_size, n_embd = shapes["wte.weight"]
    layers = {parts[1] for parts in (name.split(".") for name in shapes) if parts[0] == "layers" and len(parts) > 2}
    found = {"n_embd": n_embd, "n_layer": len(layers), "block_size": shapes["wpe.weight"][0]}
    try:
        ModelConfig(**found, n_head=1)
        if not 1 <= vocab_size <= MAX_VOCAB:
            raise UserError(f"its vocabulary has {vocab_size} ids; 1 to {MAX_VOCAB} are allowed")
    except UserError as error:
        raise BadFile(f"{path}: {error}") from None
    model = ModelConfig(**found, n_head=known.get("n_head") or rgpt.known_heads(path, found))
    return _checkpoint(model, vocab_size, read_file(path, shapes_of(model, vocab_size)), None)


def _checkpoint(model: ModelConfig, vocab_size: int, weights: Tensors, tokenizer: dict | None) -> Checkpoint:
    """A checkpoint of weights whose training is not known. Its step is 1, the lowest that an RGPT file can hold."""
    header = Header(
        config=Config(model=model),
        vocab_size=vocab_size,
        step=1,
        num_updates=0,
        best_loss=math.inf,
        tokenizer=tokenizer,
    )
    return Checkpoint(header=header, weights=weights, optimizer={})
