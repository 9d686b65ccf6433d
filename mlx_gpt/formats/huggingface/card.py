"""The model card: the network, how to load it, and its training data and losses as far as they are known."""

import math

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.formats import llama
from mlx_gpt.model.cost import num_params

LIBRARY = {"huggingface": "transformers", "mlx-lm": "mlx-lm"}
# {remote} and {flag} allow the code in the folder, if it contains any.
LOADING = {
    "huggingface": """```python
from transformers import pipeline

write = pipeline("text-generation", model="{name}"{remote})
print(write("{prompt}", max_new_tokens=200)[0]["generated_text"])
```""",
    "mlx-lm": """```
mlx_lm.generate --model {name}{flag} --ignore-chat-template --prompt "{prompt}"
```""",
}


def card(
    header: Header, name: str, target: str, license: str, evaluations: list[dict], has_curve: bool, notes: list[str]
) -> str:
    """Returns the card as Markdown, with the YAML front matter that the Hugging Face hub reads.

    Args:
        header: The header of the checkpoint. Its tokenizer is not None.
        name: The model's name.
        target: "huggingface" or "mlx-lm".
        license: The identifier of the license, such as mit.
        evaluations: The lines of metrics.jsonl that are evaluations, in order. May be empty.
        has_curve: Whether the folder contains curve.png, which the card then shows. Otherwise the card has a table of
            evenly spaced evaluations, at most 39.
        notes: Further items for the list of facts about the training.
    """
    model = header.config.model
    has_code = llama.refuses(model) is not None
    remote, flag = (", trust_remote_code=True", " --trust-remote-code") if has_code else ("", "")
    code = (
        f"{LIBRARY[target]} does not implement this network, so this folder contains the code of the model. The code "
        "is short, and it is the same for every model."
    )
    lines = [
        "---",
        "library_name: " + {"huggingface": "transformers", "mlx-lm": "mlx"}[target],
        "pipeline_tag: text-generation",
        f"license: {license}",
        "tags:",
        "- mlxgpt",
        "---",
        "",
        f"# {name}",
        "",
        f"A GPT of {num_params(model, header.vocab_size):,} parameters: "
        f"{model.n_layer} layers of {model.n_head} heads, {model.n_embd} wide, {model.block_size} tokens of context, a "
        f"vocabulary of {header.vocab_size:,} ({header.tokenizer['kind']}).",
        "",
        LOADING[target].format(name=name, prompt="The ", remote=remote, flag=flag),
        "",
        code if has_code else f"The network is Llama's, which {LIBRARY[target]} implements.",
        "",
        "## Training",
        "",
        *(f"- {fact}" for fact in [*_facts(header), *notes]),
        "",
    ]
    if has_curve:
        lines += ["![validation loss](curve.png)", ""]
    elif evaluations:
        lines += ["| step | tokens | validation loss | perplexity |", "|---|---|---|---|"]
        shown = evaluations[:: max(len(evaluations) // 20, 1)]
        lines += [f"| {e['step']:,} | {e['tokens']:,} | {e['val_loss']:.4f} | {e['val_ppl']:.2f} |" for e in shown]
        lines += [""]
    return "\n".join(lines)


def _facts(header: Header) -> list[str]:
    """What is known about the training. A checkpoint of another program says nothing about its text and its steps."""
    train, facts = header.config.train, []
    if header.corpus:
        facts.append(f"text: {', '.join(header.config.data.corpus)} (SHA-256 of the documents {header.corpus[:16]}...)")
    if header.tokens:
        facts.append(
            f"{header.step:,} steps of {train.sequences_per_step} x {header.config.model.block_size} tokens, "
            f"{header.tokens:,} in total, with {header.config.optimizer.name}, in {train.dtype}"
        )
    if math.isfinite(header.best_loss):
        facts.append(f"best validation loss {header.best_loss:.4f} nats per token, at step {header.best_step:,}")
    return facts or ["not known: the weights were imported from another program"]
