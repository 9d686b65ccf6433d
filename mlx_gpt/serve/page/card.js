// The served models: their choice, their facts, and first lines of the text that they were trained on.

import { ask } from "./api.js";
import { $, button, make } from "./dom.js";
import { recall } from "./storage.js";

let cards = [];

const chosen = () => cards.find((card) => card.id === $("model-choice").value);

function facts({ n_params, val_loss, iteration, corpus, n_ctx, n_vocab, n_layer, n_head, n_embd, chat_template }) {
  return {
    Parameters: n_params.toLocaleString("en"),
    "Validation loss": val_loss === null ? "unknown" : `${val_loss} nats per token (perplexity ${Math.exp(val_loss).toFixed(2)})`,
    Corpus: corpus ?? "unknown",
    Trained: `${iteration.toLocaleString("en")} iterations`,
    Network: `${n_layer} layers, ${n_head} heads, ${n_embd} wide`,
    Context: `${n_ctx} tokens`,
    Vocabulary: `${n_vocab.toLocaleString("en")} tokens`,
    "Chat template": chat_template,
  };
}

// Asks the server for its models, and shows the chosen one.
export async function loadCards() {
  cards = (await (await ask("/v1/models")).json()).data;
  const options = () => cards.map(({ id }) => Object.assign(make("option", "", id), { value: id }));
  const before = $("model-choice").value || recall("model", "");
  $("model-choice").replaceChildren(...options());
  if (cards.some((card) => card.id === before)) $("model-choice").value = before;
  for (const side of ["a", "b"]) {
    const kept = recall("compare", {}).fields?.[`model-${side}`];
    $(`model-${side}`).replaceChildren(...options());
    $(`model-${side}`).value = cards.some((card) => card.id === kept) ? kept : cards[side === "b" ? cards.length - 1 : 0].id;
  }
  for (const label of document.querySelectorAll(".several")) label.hidden = cards.length < 2;
}

export function showCard() {
  const card = chosen();
  document.title = card.id;
  $("model").textContent = card.id;
  $("model").classList.toggle("spoken", cards.length > 1); // its name is in the field that chooses it
  $("max_tokens").max = card.meta.max_tokens ?? "";
  const pairs = Object.entries(facts(card.meta)).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
  $("card").querySelector("dl").replaceChildren(...pairs);
}

// Shows lines of the training text as prompts to begin with. There are none if the server cannot read that text.
export async function loadExamples(onChoose) {
  const { data } = await (await ask(`/v1/examples?model=${encodeURIComponent(chosen().id)}`)).json();
  const buttons = data.map((text) => button(text, "small", () => onChoose(text)));
  $("examples").replaceChildren(...(data.length ? [make("span", "soft", "Begin like the training text:"), ...buttons] : []));
}
