"""The options of transformers on an exported folder: each gives what the plain call gives, or is refused in one line.

`python transformers_options.py FOLDER SCRATCH`. Run by test_huggingface.py, in the environment with transformers.
"""

import copy
import functools
import sys
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

torch.set_num_threads(1)  # the products are small
folder, scratch = sys.argv[1:]
COUNT = 20
LAWS = []


def load(**options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


model, tokenizer = load(), AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
V, SIZE = model.config.vocab_size, model.config.block_size
draw = torch.Generator().manual_seed(0)
tokens = torch.randint(2, V, (4, 40), generator=draw)
prompts = torch.randint(2, V, (2, 12), generator=draw)


def close(a, b, tolerance=1e-5):
    a, b = a.detach().double(), b.detach().double()
    np.testing.assert_allclose(a, b, atol=tolerance * max(1, b.abs().max().item()), rtol=tolerance)


def refused(call, *words):
    try:
        call()
    except ValueError as error:
        assert "\n" not in str(error) and all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"not refused: {words}")


def written(prompts, count=COUNT, by=model, **options):
    """The greedy tokens after prompts (B, T)."""
    given = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, **options}
    return by.generate(prompts, attention_mask=torch.ones_like(prompts), **given)[:, prompts.shape[1] :]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def trained(model, batches):
    """The loss and the gradients of one update over `batches`, as Trainer computes them, without an optimizer."""
    accepts = getattr(model, "accepts_loss_kwargs", True)  # Trainer takes an argument **kwargs of forward() for it
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(parallelism_config=None),
        label_smoother=None,
        compute_loss_func=None,
        model_accepts_loss_kwargs=accepts,
        _loss_shifts_labels=True,
        args=SimpleNamespace(average_tokens_across_devices=False, n_gpu=1),
        **{f"get_{kind}_size": lambda: 1 for kind in ("tp", "cp", "sp")},
    )
    count = Trainer._get_num_items_in_batch(trainer, batches, "cpu")
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = Trainer.compute_loss(trainer, model, batch, num_items_in_batch=count)
        loss = loss if accepts and count is not None else loss / len(batches)  # as Trainer.training_step
        loss.backward()
        total += loss.item()
    return total, gradients(model)


@LAWS.append
def accumulated_gradients_are_those_of_one_batch():
    """Also if the parts have different numbers of labels."""
    labels = tokens.clone()
    labels[0, :30] = labels[2, 5:9] = -100
    whole = trained(model, [{"input_ids": tokens, "labels": labels}])
    parts = [{"input_ids": tokens[i : i + 1], "labels": labels[i : i + 1]} for i in range(4)]
    loss, found = trained(model, parts)
    assert abs(loss - whole[0]) < 1e-5 * whole[0], (loss, whole[0])
    for name, gradient in found.items():
        close(gradient, whole[1][name])
    assert abs(whole[0] - model(tokens, labels=labels).loss.item()) < 1e-5


@LAWS.append
def trainer_updates_by_parts_as_by_one_batch():
    """The loss that it logs, and the weights after an update; also with checkpointed gradients."""
    rows, found = [{"input_ids": row, "labels": row} for row in tokens], []
    for parts, checkpointing in ((1, False), (4, False), (4, True)):
        options = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=4 // parts,
            gradient_accumulation_steps=parts,
            gradient_checkpointing=checkpointing,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
        )
        trainer = Trainer(load(), options, train_dataset=rows)
        trainer.train()
        found.append((trainer.state.log_history[0]["loss"], dict(trainer.model.named_parameters())))
    (loss, weights), *others = found
    for other, changed in others:
        assert abs(other - loss) < 1e-3 * loss, (other, loss)
        for name, w in changed.items():
            close(w, weights[name])


@LAWS.append
def labels_of_minus_100_do_not_count():
    labels = tokens.clone()
    labels[:, 20:] = -100
    close(model(tokens, labels=labels).loss, model(tokens[:, :20], labels=tokens[:, :20]).loss)


@LAWS.append
def checkpointed_gradients_are_the_same():
    whole = trained(model.train(), [{"input_ids": tokens, "labels": tokens}])
    for reentrant in (True, False):
        again = load().train()
        again.gradient_checkpointing_enable({"use_reentrant": reentrant})
        calls = []
        again.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss, found = trained(again, [{"input_ids": tokens, "labels": tokens}])
        assert len(calls) == 2 and abs(loss - whole[0]) < 1e-5 * whole[0], (
            len(calls),
            loss,
            whole[0],
        )  # once forward, once again for the gradients
        for name, gradient in found.items():
            close(gradient, whole[1][name])
    model.eval()


@LAWS.append
def caches_and_attentions_write_the_same():
    """A static cache, no cache, and eager attention, within the context and past it."""
    for count in (COUNT, SIZE):
        plain = written(prompts, count)
        for options in ({"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 1}):
            assert torch.equal(written(prompts, count, **options), plain), options
        assert torch.equal(written(prompts, count, load(attn_implementation="eager")), plain)
    for name in ("flash_attention_2", "flex_attention"):
        refused_by_the_library(name)
    padded = torch.cat([torch.ones(2, 5, dtype=torch.long), prompts], dim=1)
    mask = torch.cat([torch.zeros(2, 5, dtype=torch.long), torch.ones_like(prompts)], dim=1)
    for options in ({}, {"cache_implementation": "static"}):
        out = model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=COUNT, **options)
        plain = model.generate(prompts, do_sample=False, max_new_tokens=COUNT, attention_mask=torch.ones_like(prompts))
        assert torch.equal(out[:, 17:], plain[:, 12:])


def refused_by_the_library(name):
    try:
        load(attn_implementation=name)
    except (ImportError, ValueError):
        return
    raise AssertionError(name)


@LAWS.append
def float64_is_exact_to_1e_10():
    double = load(dtype=torch.float64)
    logits = double(tokens).logits
    assert logits.dtype == torch.float64
    close(model(tokens).logits, logits, 1e-4)
    out, steps = None, []
    for t in range(40):
        out = double(tokens[:, t : t + 1], past_key_values=out and out.past_key_values)
        steps.append(out.logits)
    close(torch.cat(steps, dim=1), logits, 1e-10)
    close(double(tokens, output_attentions=True).logits, logits, 1e-10)
    assert written(prompts, SIZE, double).shape == (2, SIZE)


@LAWS.append
def halves_stay_near():
    """Also in a left-padded batch."""
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, :5] = 0
    padded = torch.cat([torch.ones(2, 5, dtype=torch.long), prompts], dim=1)
    plain = model(padded, attention_mask=mask).logits[:, 5:]
    for narrow, off in ((copy.deepcopy(model).half(), 0.02), (copy.deepcopy(model).bfloat16(), 0.1)):
        close(narrow(padded, attention_mask=mask).logits[:, 5:], plain, off)
        assert written(prompts, SIZE, narrow).shape == (2, SIZE)


@LAWS.append
def logits_are_kept_where_asked():
    plain = model(tokens).logits
    close(model(tokens, logits_to_keep=3).logits, plain[:, -3:])
    places = torch.tensor([0, 7, 39])
    close(model(tokens, logits_to_keep=places).logits, plain[:, places])
    refused(lambda: model(tokens, logits_to_keep=places[None]), "logits_to_keep has the shape (1, 3)")


@LAWS.append
def hidden_states_and_attentions_explain_the_logits():
    plain = model(tokens).logits
    out = model(tokens, output_hidden_states=True, output_attentions=True)
    close(out.logits, plain)
    assert len(out.hidden_states) == model.config.n_layer + 1 and len(out.attentions) == model.config.n_layer
    assert {h.shape for h in out.hidden_states} == {(4, 40, model.config.n_embd)}
    head = model.get_output_embeddings() or (lambda x: x @ model.wte.weight.T)
    close(head(out.hidden_states[-1]), plain)
    for weights in out.attentions:
        close(weights.sum(-1), torch.ones(4, model.config.n_head, 40))
        assert not weights.triu(1).any()
    out = model(tokens, return_dict=False, output_hidden_states=True)
    close(out[0], plain)
    assert len(out[-1]) == model.config.n_layer + 1
    found = model.generate(
        prompts, max_new_tokens=3, min_new_tokens=3, do_sample=False, return_dict_in_generate=True,
        output_hidden_states=True, output_attentions=True, output_logits=True,
    )  # fmt: skip
    assert len(found.hidden_states) == len(found.attentions) == len(found.logits) == 3


@LAWS.append
def embeddings_and_positions_stand_for_tokens():
    plain = model(tokens).logits
    embedded = model.get_input_embeddings()(tokens)
    close(model(inputs_embeds=embedded).logits, plain)
    close(model(tokens, position_ids=torch.arange(40)[None]).logits, plain)
    whole = model.generate(prompts, do_sample=False, max_new_tokens=COUNT, min_new_tokens=COUNT)[:, 12:]
    embedded = model.get_input_embeddings()(prompts)
    given = {"inputs_embeds": embedded, "do_sample": False, "min_new_tokens": COUNT, "max_new_tokens": COUNT}
    assert torch.equal(model.generate(**given), whole)
    refused(
        lambda: model.generate(**given | {"max_new_tokens": SIZE, "min_new_tokens": SIZE}), f"context of {SIZE} tokens"
    )
    refused(lambda: model(), "either input_ids or inputs_embeds")
    refused(lambda: model(tokens, attention_mask=torch.ones(4, 1, 40, 40)), "attention_mask has the shape", "(4, 40)")


@LAWS.append
def assistants_write_the_same_within_the_context():
    plain = written(prompts[:1])
    for options in ({"assistant_model": load()}, {"prompt_lookup_num_tokens": 3}):
        assert torch.equal(written(prompts[:1], **options), plain), options
        long = functools.partial(written, prompts[:1], SIZE, **options)
        refused(long, "assisted decoding up to", "max_new_tokens")


@LAWS.append
def beams_and_samples_do_not_depend_on_the_cache():
    """Beams reorder the cache; past the context they read the text again."""
    for count in (COUNT, SIZE):
        plain = written(prompts, count, num_beams=3, num_return_sequences=2, use_cache=False)
        assert plain.shape == (4, count)
        assert torch.equal(written(prompts, count, num_beams=3, num_return_sequences=2), plain)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(written(prompts, do_sample=True, num_return_sequences=3, use_cache=use_cache))
    assert torch.equal(*found) and found[0].shape == (6, COUNT)


@LAWS.append
def new_embeddings_leave_the_old_logits():
    resized = load()
    plain = resized(tokens).logits
    resized.resize_token_embeddings(V + 5)
    assert resized.config.vocab_size == V + 5
    logits = resized(tokens).logits
    assert logits.shape[-1] == V + 5
    close(logits[..., :V], plain)


@LAWS.append
def a_compiled_model_is_the_same():
    close(torch.compile(model, backend="aot_eager")(tokens).logits, model(tokens).logits)


@LAWS.append
def a_saved_folder_is_the_same():
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    again = AutoModelForCausalLM.from_pretrained(scratch, trust_remote_code=True)
    close(again(tokens).logits, model(tokens).logits)


for law in LAWS:
    law()
print("ok")
