"use strict";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "top_k", "seed", "max_tokens"];
const KEPT = [...SETTINGS, "prompt"]; // fields whose values are kept in localStorage
const MOST_BITS = 8; // surprisal in bits, -log2(probability), at and above which a token has the full tint
const STRONGEST = 0.55; // opacity of the full tint; text stays readable on it

let mode = "complete";
let model = null;
const kept = { complete: [], chat: [] }; // the turns of the mode that is not shown
let running = null; // the AbortController of the text that is being generated
// A turn is {role, text, tokens}. Only generated turns have tokens. In complete mode, the first turn has the role
// "prompt", and each generated turn has the role "text". In chat mode, the roles are "user" and "assistant".
let turns = [];

// -- the server ---------------------------------------------------------------------------------------------------

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { headers: headers(), ...options }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server can't be reached.");
  });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  if (answer.status === 401) {
    $("key-label").hidden = false;
    throw new Error($("key").value ? "The API key is wrong; enter another one below." : "This server requires an API key; enter it below.");
  }
  throw new Error(body?.error?.message ?? `The server responded with status ${answer.status}.`);
}

// The path and the body of the request for the next text. During generation: of the request for the last turn.
function request() {
  const body = { model, stream: true };
  for (const name of SETTINGS) {
    const value = $(name).value || $(name).defaultValue;
    if (value) body[name] = Number(value);
  }
  if (mode === "complete") return ["/v1/completions", { ...body, prompt: given(), logprobs: 5 }];
  const draft = running || !$("prompt").value.trim() ? [] : [{ role: "user", text: $("prompt").value.trim() }];
  const messages = [...turns, ...draft].filter((turn) => turn.text || turn.role === "user").map(({ role, text }) => ({ role, content: text }));
  return ["/v1/chat/completions", { ...body, messages, logprobs: true, top_logprobs: 5 }];
}

// The text to continue: the prompt field or, during generation, the text of all turns before the last.
const given = () => (running ? turns.slice(0, -1).map((turn) => turn.text).join("") : $("prompt").value);

// Yields the JSON objects of a stream of server-sent events, until the event [DONE].
async function* frames(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The connection was closed before the text was complete.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      const frame = JSON.parse(part.slice(6));
      if (frame.error) throw new Error(frame.error.message);
      yield frame;
    }
  }
}

// The next two functions add a frame's text to the turn. They return its tokens as {text, name, logprob, top: [[name,
// logprob], ...]}. `text` has the characters that the token completes. `name` is the token alone: a part of a character is
// "bytes:\xf0\x9f". `top` has the most likely tokens in descending order.
function completionTokens(choice, turn) {
  turn.text += choice.text;
  turn.characters ??= []; // text_offset counts Unicode code points, but the indices of a string count UTF-16 units
  turn.characters.push(...choice.text);
  const { tokens, text_offset, token_logprobs, top_logprobs } = choice.logprobs;
  return tokens.map((name, i) => ({
    name,
    text: turn.characters.slice(text_offset[i], text_offset[i + 1]).join(""),
    logprob: token_logprobs[i],
    top: Object.entries(top_logprobs[i]).sort(([, a], [, b]) => b - a), // an object has the names of digits first
  }));
}

function chatTokens(choice, turn) {
  turn.text += choice.delta.content ?? "";
  turn.decoder ??= new TextDecoder();
  return (choice.logprobs?.content ?? []).map((token) => ({
    name: token.token,
    text: turn.decoder.decode(new Uint8Array(token.bytes), { stream: true }),
    logprob: token.logprob,
    top: token.top_logprobs.map(({ token, logprob }) => [token, logprob]),
  }));
}

async function write() {
  running = new AbortController();
  const turn = { role: mode === "complete" ? "text" : "assistant", text: "", tokens: [] };
  turns.push(turn);
  const [path, body] = request();
  const place = show(turn);
  tell(null);
  $("status").textContent = "";
  refresh();
  const start = performance.now();
  let first = null;
  try {
    const answer = await ask(path, { method: "POST", body: JSON.stringify(body), signal: running.signal });
    for await (const frame of frames(answer)) {
      const choice = frame.choices[0];
      const tokens = (mode === "complete" ? completionTokens : chatTokens)(choice, turn);
      if (tokens.length) first ??= performance.now();
      turn.tokens.push(...tokens);
      place.append(...tokens.map(drawToken));
      status(turn, start, first);
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
    if (error.name !== "AbortError" && !turn.text) takeBack();
  } finally {
    running = null;
    if (!turn.text) turns = turns.filter((other) => other !== turn);
    if (!turn.text) redraw();
    refresh();
    if (document.activeElement === document.body) $("prompt").focus({ preventScroll: true });
  }
}

// A chat message that the server refused is moved from the chat back into the field, where the user can change it.
function takeBack() {
  const refused = turns.findLast((turn) => turn.role === "user");
  if (mode !== "chat" || $("prompt").value) return;
  turns = turns.filter((turn) => turn !== refused);
  $("prompt").value = refused.text;
}

// -- display ------------------------------------------------------------------------------------------------------

function tell(message) {
  $("error").textContent = message ?? "";
  $("error").hidden = !message;
}

function status(turn, start, first) {
  const count = turn.tokens.length, seconds = (performance.now() - (first ?? start)) / 1000;
  const bits = -turn.tokens.reduce((sum, token) => sum + token.logprob, 0) / Math.LN2 / Math.max(count, 1);
  const rate = count > 1 && seconds > 0 ? `${((count - 1) / seconds).toFixed(0)} tokens/s, ` : "";
  $("status").textContent = `${count} tokens, ${rate}${bits.toFixed(2)} bits per token`;
}

// Updates the buttons and labels to the current mode, the turns, and whether a text is being generated.
function refresh() {
  const written = turns.some((turn) => turn.tokens?.length);
  $("write").disabled = $("curl").disabled = !!running;
  $("stop").disabled = !running;
  $("again").disabled = !!running || !turns.length;
  $("continue").disabled = !!running || !written;
  $("continue").hidden = mode === "chat";
  $("clear").disabled = !!running || !turns.length;
  $("tab-complete").disabled = $("tab-chat").disabled = !!running;
  $("hint").hidden = turns.length > 0;
  $("write").textContent = mode === "chat" ? "Send" : "Write";
  $("prompt").placeholder = mode === "chat" ? "Enter sends, Shift+Enter adds a line" : "The beginning of a text, or nothing";
  $("prompt-label").textContent = mode === "chat" ? "Your message" : "Prompt";
  for (const name of ["complete", "chat"]) $(`tab-${name}`).setAttribute("aria-selected", mode === name);
  $("page").setAttribute("aria-labelledby", `tab-${mode}`);
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Adds a turn to the page. Returns the element to which its tokens are added.
function show(turn) {
  const inline = turn.role === "prompt" || turn.role === "text";
  const last = $("turns").lastElementChild;
  const block = inline && last ? last : $("turns").appendChild(make("div", "turn"));
  if (!inline) block.append(make("h2", "", turn.role === "user" ? "You" : "Model"));
  const span = block.appendChild(make("span", turn.tokens ? "written" : "given"));
  if (turn.tokens) {
    span.tabIndex = 0;
    span.setAttribute("role", "group");
    span.setAttribute("aria-label", "Generated text; the arrow keys move from token to token");
    span.append(...turn.tokens.map(drawToken));
  } else span.textContent = turn.text;
  span.scrollIntoView({ block: "nearest" });
  return span;
}

function drawToken(token) {
  const span = make("span", "token", token.text);
  const bits = -token.logprob / Math.LN2;
  span.style.setProperty("--surprise", (Math.min(bits / MOST_BITS, 1) * STRONGEST).toFixed(3));
  span.told = token; // for showTip
  return span;
}

// Spaces, newlines and tabs as visible symbols; the symbol of the empty set for an empty text.
const visible = (text) => text.replaceAll("\n", "\u23ce").replaceAll(" ", "\u2423").replaceAll("\t", "\u21e5") || "\u2205";

function showTip(span) {
  hideTip();
  const token = span.told, tip = $("tip");
  span.classList.add("chosen");
  tip.replaceChildren(make("strong", "", `${(-token.logprob / Math.LN2).toFixed(2)} bits of surprisal`));
  const rows = token.top.some(([name]) => name === token.name) ? token.top : [...token.top, [token.name, token.logprob]];
  for (const [name, logprob] of rows) {
    const row = make("div", name === token.name ? "drawn" : ""), share = Math.exp(logprob), bar = make("span", "bar");
    bar.style.setProperty("--share", share.toFixed(3));
    row.append(make("span", "", visible(name)), make("span", "", `${(100 * share).toFixed(1)}%`), bar);
    tip.append(row);
  }
  tip.hidden = false;
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(left, 8) + scrollX}px`;
  const below = at.bottom + 6, fits = below + tip.offsetHeight < innerHeight;
  tip.style.top = `${(fits ? below : Math.max(at.top - tip.offsetHeight - 6, 0)) + scrollY}px`;
}

function hideTip() {
  $("tip").hidden = true;
  document.querySelector(".chosen")?.classList.remove("chosen");
}

// -- actions ------------------------------------------------------------------------------------------------------

function begin() {
  if (running) return;
  if (mode === "complete") {
    clear();
    turns = [{ role: "prompt", text: $("prompt").value }];
    show(turns[0]);
  } else {
    const text = $("prompt").value.trim();
    if (!text) return $("prompt").focus();
    $("prompt").value = "";
    keep();
    turns.push({ role: "user", text });
    show(turns.at(-1));
  }
  write();
}

// Generates the last turn again. In complete mode without a continuation, it starts over from the prompt field.
function again() {
  if (mode === "complete" && turns.length < 3) return begin();
  if (turns.at(-1).tokens) turns.pop();
  redraw();
  write();
}

function clear() {
  turns = [];
  hideTip();
  tell(null);
  $("status").textContent = "";
  redraw();
}

function redraw() {
  hideTip();
  $("turns").replaceChildren();
  turns.forEach(show);
  refresh();
}

async function copyCurl() {
  const [path, body] = request();
  const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const key = $("key").value ? ` -H "Authorization: Bearer $MLXGPT_API_KEY"` : "";
  const line = `curl -N ${location.origin}${path} -H 'Content-Type: application/json'${key} -d ${quote(JSON.stringify(body))}`;
  try {
    await navigator.clipboard.writeText(line);
    $("status").textContent = "copied";
  } catch {
    tell(line); // the browser denied access to the clipboard: show the line, so that the user can copy it
  }
}

function keep() {
  for (const name of KEPT) localStorage.setItem(`mlxgpt.${name}`, $(name).value);
  localStorage.setItem("mlxgpt.tint", $("tint").checked);
  sessionStorage.setItem("mlxgpt.key", $("key").value);
}

function recall() {
  for (const name of KEPT) $(name).value = localStorage.getItem(`mlxgpt.${name}`) ?? $(name).value;
  $("tint").checked = localStorage.getItem("mlxgpt.tint") !== "false";
  $("key").value = sessionStorage.getItem("mlxgpt.key") ?? "";
  $("key-label").hidden = !$("key").value;
}

async function loadCard() {
  try {
    const card = (await (await ask("/v1/models")).json()).data[0];
    model = card.id;
    $("max_tokens").max = card.meta.max_tokens ?? "";
    $("model").textContent = document.title = card.id;
    const { n_params, val_loss, iteration, corpus, n_ctx, n_vocab, n_layer, n_head, n_embd, chat_template } = card.meta;
    const facts = {
      Parameters: n_params.toLocaleString("en"),
      "Validation loss": val_loss === null ? "unknown" : `${val_loss} nats per token (perplexity ${Math.exp(val_loss).toFixed(2)})`,
      Corpus: corpus ?? "unknown",
      Trained: `${iteration.toLocaleString("en")} iterations`,
      Network: `${n_layer} layers, ${n_head} heads, ${n_embd} wide`,
      Context: `${n_ctx} tokens`,
      Vocabulary: `${n_vocab.toLocaleString("en")} tokens`,
      "Chat template": chat_template,
    };
    const pairs = Object.entries(facts).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
    $("card").querySelector("dl").replaceChildren(...pairs);
    tell(null);
  } catch (error) {
    tell(error.message);
  }
}

// Moves the tooltip from the chosen token to another one. Returns undefined for a key that does not move it.
function moveTip(key) {
  const tokens = [...document.activeElement.querySelectorAll(".token")], last = tokens.length - 1;
  const now = tokens.findIndex((token) => token.classList.contains("chosen"));
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[key];
  if (step && last >= 0) showTip(tokens[Math.max(0, Math.min(last, now < 0 && step < Infinity ? 0 : now + step))]);
  return step;
}

document.querySelector("form").addEventListener("submit", (event) => (event.preventDefault(), begin()));
$("stop").addEventListener("click", () => running?.abort());
$("again").addEventListener("click", again);
$("continue").addEventListener("click", write);
$("clear").addEventListener("click", clear);
$("curl").addEventListener("click", copyCurl);
$("key").addEventListener("change", () => (keep(), loadCard()));
document.querySelector("form").addEventListener("input", keep);
$("tint").addEventListener("change", () => $("turns").classList.toggle("tinted", $("tint").checked));
for (const name of ["complete", "chat"])
  $(`tab-${name}`).addEventListener("click", () => {
    if (mode === name) return;
    kept[mode] = turns;
    mode = name;
    turns = kept[mode];
    $("status").textContent = "";
    tell(null);
    redraw();
  });
$("prompt").addEventListener("keydown", (event) => {
  const sends = mode === "chat" ? !event.shiftKey : event.ctrlKey || event.metaKey;
  if (event.key === "Enter" && sends && !event.isComposing) (event.preventDefault(), begin());
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running ? running.abort() : hideTip();
  if (document.activeElement.classList.contains("written") && moveTip(event.key)) event.preventDefault();
});
for (const kind of ["mouseover", "click"])
  $("turns").addEventListener(kind, (event) => event.target.told && showTip(event.target));
$("turns").addEventListener("mouseleave", hideTip);
$("card").addEventListener("toggle", hideTip);
addEventListener("resize", hideTip);

recall();
$("turns").classList.toggle("tinted", $("tint").checked);
refresh();
loadCard();
