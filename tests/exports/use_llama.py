"""What users of transformers and mlx-lm do with a folder of Llama's network, against what mlxgpt says.

`python use_llama.py LIBRARY FOLDER EXPECTED.npz SCRATCH`; EXPECTED is what test_llama.py's expectations() wrote. No
code from the folder is run.
"""

import json
import pathlib
import sys

import numpy as np

library, folder, expected, scratch = sys.argv[1], sys.argv[2], np.load(sys.argv[3]), sys.argv[4]
assert not list(pathlib.Path(folder).glob("*.py")) and "auto_map" not in json.load(open(f"{folder}/config.json"))
pairs, texts = (json.loads(str(expected[name])) for name in ("pairs", "texts"))
count = int(expected["count"])


def close(found, wanted, bound):
    """Compares relative to the spread of the wanted values."""
    assert np.abs(np.array(found) - wanted).max() <= bound * (wanted.max() - wanted.min())


def use_transformers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM" and tokenizer.padding_side == "left"
    tokens = torch.tensor(expected["tokens"].astype(np.int64))
    close(model(tokens).logits.detach(), expected["logits"], 1e-5)
    loss = model(tokens, labels=tokens).loss
    assert abs(loss.item() - float(expected["loss"])) < 1e-5
    loss.backward()
    gradients = {name: w.grad.numpy() for name, w in model.named_parameters()}
    wanted = {k.removeprefix("gradient."): expected[k] for k in expected if k.startswith("gradient.")}
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        close(gradient, wanted[name], 1e-5)
    for text, ids in texts:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == text, text

    def write(prompts):
        batch = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
        out = model.generate(**batch, do_sample=False, max_new_tokens=count)
        return [tokenizer.decode(row[batch["input_ids"].shape[1] :], skip_special_tokens=True) for row in out]

    for prompt, text in pairs:
        assert write([prompt]) == [text], prompt
    assert write([p for p, _ in pairs]) == [t for _, t in pairs]
    told = pipeline("text-generation", model=folder)(
        pairs[0][0], do_sample=False, max_new_tokens=count, return_full_text=False
    )
    assert told[0]["generated_text"] == pairs[0][1]
    options = TrainingArguments(output_dir=scratch, max_steps=1, learning_rate=1e-3, report_to=[], use_cpu=True)
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    before = model.model.norm.weight.detach().clone()
    Trainer(model, options, train_dataset=rows).train()
    assert not torch.equal(before, model.model.norm.weight)
    again = AutoModelForCausalLM.from_pretrained(folder)
    again.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)


def use_mlx_lm():
    import mlx.core as mx
    from mlx_lm import generate, load

    mx.set_default_device(mx.cpu)
    model, tokenizer = load(folder)
    tokens = mx.array(expected["tokens"].astype(np.int32))
    quantized = "quantization" in json.load(open(f"{folder}/config.json"))
    close(model(tokens), expected["logits"], 1e-4 if quantized else 1e-5)
    for prompt, text in pairs:
        told = generate(model, tokenizer, prompt, max_tokens=count)
        assert told in (text, text.removeprefix(" ")), (prompt, told, text)  # it drops a space that bytes begin with


{"transformers": use_transformers, "mlx-lm": use_mlx_lm}[library]()
print("ok")
