"""Folders that Hugging Face transformers and mlx-lm can load.

A folder contains config.json, generation_config.json, model.safetensors, the files of the tokenizer, the code of the
model and a model card. The code is a fixed template that contains nothing from the user. Folders that mlxgpt or
randyGPT's scripts have exported can be read. Reading never runs the code in a folder.
"""

import dataclasses
import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.container import read_header, read_tensors
from mlx_gpt.checkpoint.store import Checkpoint, Header, Tensors
from mlx_gpt.config.schema import MAX_VOCAB, SHAPE_KEYS, Config, ModelConfig
from mlx_gpt.config.table import toml_value
from mlx_gpt.data.bpe import character_specials, open_vocab, tokenizer_from_dict, tokenizer_json
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import make_folder, write_atomic
from mlx_gpt.formats import rgpt
from mlx_gpt.formats.huggingface.card import card
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.parse import read_json

TARGETS = ("huggingface", "mlx-lm")
TEMPLATES = Path(__file__).parent / "templates"
# The code files of each target: the name in the folder, and the name in TEMPLATES.
CODE = {
    "huggingface": {"configuration_mlxgpt.py": "configuration_mlxgpt.py", "modeling_mlxgpt.py": "modeling_mlxgpt.py"},
    "mlx-lm": {"mlxgpt.py": "mlxgpt_mlx_lm.py"},
}
# The names of all files that an export to either target writes.
FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "README.md", "curve.png"),
    *(name for code in CODE.values() for name in code),
}
# Keys of config.json besides the shape, and the settings of the table [model] that they hold.
OPTIONS = {
    **{key: key for key in ("positions", "qk_norm", "norm_weights", "final_norm", "tied_head")},
    "mlp": "ffn",
}
# The values that the templates support besides the default, for each setting of the table [model].
COMPUTED: dict[str, Container] = {
    "positions": ("rotary",),
    **{switch: (True,) for switch in ("qk_norm", "norm_weights", "final_norm", "tied_head")},
    "ffn": ("swiglu",),
    "ffn_dim": range(1, 1 << 21),
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
        # Folders of randyGPT's scripts have no code file of mlx-lm, so they count as "huggingface".
        has_mlx_lm_code = all((path / name).is_file() for name in CODE["mlx-lm"])
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
        write_weights(path, checkpoint.weights)

    def refuses(self, config: Config) -> str | None:
        model = config.model
        plain = ModelConfig(**model.shape()).architecture()  # randyGPT's network, the defaults
        others = {k: v for k, v in model.architecture().items() if v != plain[k] and v not in COMPUTED.get(k, ())}
        if others:
            found = ", ".join(f"model.{k}={toml_value(v)}" for k, v in others.items())
            return f"{self.name} has no code for {found}; keep the safetensors file"
        return None

    def require(self, config: Config) -> None:
        """Raises UserError if refuses() gives a reason."""
        if reason := self.refuses(config):
            raise UserError(reason)


def write_folder(
    folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, target: str, readme: str, extra: dict
) -> list[Path]:
    """Writes all files of a folder except the weights and curve.png. Removes the code of the other target, if any.

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
    block_size = checkpoint.header.config.model.block_size
    files = {
        "config.json": _dump(config_json(checkpoint.header, tokenizer, target) | extra),
        "generation_config.json": _dump(_token_ids(tokenizer) | GENERATION),
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": _dump(_tokenizer_config(tokenizer, block_size)),
        "special_tokens_map.json": _dump(_token_names(tokenizer)),
        "README.md": readme,
        **{name: (TEMPLATES / template).read_text("utf-8") for name, template in CODE[target].items()},
    }
    make_folder(folder)
    for name in {name for code in CODE.values() for name in code} - CODE[target].keys():
        (folder / name).unlink(missing_ok=True)  # the code of the other target, from an earlier export
    paths = [folder / name for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        write_atomic(path, [text.encode()])
    return paths


def write_weights(folder: Path, weights: Tensors) -> Path:
    """Writes model.safetensors, with the metadata {"format": "pt"} that transformers requires. Returns its path."""
    path = folder / "model.safetensors"
    write_atomic(path, [safetensors.numpy.save(weights, {"format": "pt"})])
    return path


def config_json(header: Header, tokenizer: Tokenizer, target: str) -> dict:
    """The content of config.json.

    The entry "mlxgpt" holds the progress of the run, for read_folder(). Its keys are those of checkpoint format version
    2: `iteration` is header.step, and `step` is header.num_updates. `best_loss` is a string: JSON has no infinity.
    """
    model = header.config.model
    facts = {
        "model_type": "mlxgpt",
        "architectures": ["MLXGPTForCausalLM"],
        "vocab_size": header.vocab_size,
        **model.shape(),
        **{key: getattr(model, setting) for key, setting in OPTIONS.items()},
        "mlp_dim": model.ffn_width,
        **_token_ids(tokenizer),
        # With tied_head, the template itself uses wte as the head. There is no lm_head for transformers to tie.
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
        "mlxgpt": {"iteration": header.step, "step": header.num_updates, "best_loss": repr(header.best_loss)},
    }
    if target == "mlx-lm":
        return facts | {"model_file": "mlxgpt.py"}
    return facts | {
        "auto_map": {
            "AutoConfig": "configuration_mlxgpt.MLXGPTConfig",
            "AutoModelForCausalLM": "modeling_mlxgpt.MLXGPTForCausalLM",
        }
    }


def _tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_token_names(tokenizer),
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "split_special_tokens": True,  # text that spells a special token is encoded as text
        "model_input_names": ["input_ids", "attention_mask"],
    }


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
    if "quantization" not in _json(folder / "config.json"):
        read_folder(folder)
    read_header(folder / "model.safetensors")
    open_vocab(folder / "tokenizer.json")


def read_folder(folder: Path) -> Checkpoint:
    """Reads a folder that mlxgpt or randyGPT's scripts have exported.

    Returns:
        A checkpoint without optimizer state. Its tokenizer is None if the folder has no tokenizer.json. Its step, its
        number of updates and its best loss are those of the exported checkpoint if config.json contains them.

    Raises:
        BadFile: A file is corrupt or not supported. The message names the file and what is wrong with it.
        UserError: model.safetensors is missing.
    """
    facts = _json(folder / "config.json")
    kind = facts.get("model_type")
    if kind not in ("randygpt", "mlxgpt"):
        raise BadFile(f"{folder / 'config.json'}: model_type {kind!r} is not supported; randygpt and mlxgpt are")
    if "quantization" in facts:
        raise BadFile(f"{folder}: quantized weights cannot be read; export without --quantize")
    try:
        options = {setting: facts[key] for key, setting in OPTIONS.items() if key in facts}
        model = ModelConfig(**{k: facts[k] for k in SHAPE_KEYS}, **options)
    except KeyError as error:
        raise BadFile(f"{folder / 'config.json'}: {error} is missing") from None
    except UserError as error:
        raise BadFile(f"{folder / 'config.json'}: {error}") from None
    width = facts.get("mlp_dim", model.ffn_width)
    if type(width) is not int or width < 1:
        raise BadFile(
            f"{folder / 'config.json'}: mlp_dim {width!r} is not allowed; expected a width, such as {model.ffn_width}"
        )
    model = dataclasses.replace(model, ffn_dim=width)
    vocab_size = facts.get("vocab_size")
    if type(vocab_size) is not int or not 1 <= vocab_size <= MAX_VOCAB:
        raise BadFile(f"{folder / 'config.json'}: vocab_size {vocab_size!r} is not allowed, expected 1 to {MAX_VOCAB}")
    weights = _weights(folder / "model.safetensors", shapes_of(model, vocab_size))
    tokenizer = None
    if (folder / "tokenizer.json").is_file():
        tokenizer = open_vocab(folder / "tokenizer.json")
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
    return _checkpoint(model, vocab_size, _weights(path, shapes_of(model, vocab_size)), None)


def _weights(path: Path, expected: dict[str, tuple[int, ...]]) -> Tensors:
    """Reads the tensors of a safetensors file as float32.

    Args:
        path: The file.
        expected: The shape of every tensor by its name.

    Raises:
        BadFile: The file is corrupt, its tensors are not exactly the expected ones, or a value is not finite.
        UserError: There is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    entries, _ = read_header(path)
    for name in expected.keys() - entries.keys():
        raise BadFile(f"{path}: {name} is missing")
    for name, entry in entries.items():
        if name not in expected:
            raise BadFile(f"{path}: {name} (at byte {entry.first}) does not belong to this model")
        if entry.shape != expected[name] or entry.dtype not in ("F32", "F16", "BF16"):
            raise BadFile(
                f"{path}: {name} (at byte {entry.first}) is {entry.dtype} {entry.shape}, expected F32, F16 or BF16 "
                f"{expected[name]}"
            )
    weights = read_tensors(path, entries)
    store.require_finite(path, weights)
    return weights


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


def _json(path: Path) -> dict:
    """Reads a JSON object. Raises BadFile if the file is not a JSON object, see parse.read_json()."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise BadFile(f"{path}: not a JSON object")
    return data
