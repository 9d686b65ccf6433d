// Compare: two continuations of the text of the sheet, with two seeds, temperatures or checkpoints.

import { generate } from "./api.js";
import { $ } from "./dom.js";
import { difference } from "./diff.js";
import { status, summary, tell } from "./session.js";
import * as settings from "./settings.js";
import { sayEnd } from "./speech.js";
import { keep, recall } from "./storage.js";
import { Strip } from "./strip.js";
import { drawTokens, tokenGroup } from "./tokens.js";

const SIDES = ["a", "b"];
const FIELDS = ["model", "temperature", "seed"];
const LEAST_SHARED = 0.2; // of two texts that share less, the differences are not marked: they would be everywhere

export class Compare {
  writeLabel = "Write both";

  // `results` are the two texts: {text, tokens, seed, request}, or null before the first.
  // `onTake(last)` is called when one of them becomes a part of the text, see Complete.last.
  constructor(sheet, follower, onToken, onTake) {
    Object.assign(this, { sheet, follower, onTake, results: { a: null, b: null }, strips: {} });
    for (const side of SIDES) {
      $("sameness").before(article(side));
      this.strips[side] = new Strip($(`strip-${side}`), onToken);
      $(`keep-${side}`).addEventListener("click", () => this.take(side));
      for (const name of FIELDS) $(`${name}-${side}`).addEventListener("input", () => this.keep());
    }
  }

  get canWrite() {
    return true;
  }

  get canAgain() {
    return false;
  }

  get isEmpty() {
    return !this.results.a && !this.results.b;
  }

  get spans() {
    return [];
  }

  get copied() {
    return SIDES.map((side) => `${side.toUpperCase()}:\n${this.results[side]?.text ?? ""}`).join("\n\n");
  }

  get used() {
    return undefined;
  }

  request(side = "a") {
    const body = { ...settings.body(), prompt: this.sheet.text };
    const model = $(`model-${side}`).value, seed = settings.seed($(`seed-${side}`));
    if (model) body.model = model;
    if ($(`temperature-${side}`).value) body.temperature = settings.number($(`temperature-${side}`));
    if (seed !== undefined) body.seed = seed;
    return { kind: "completion", body };
  }

  async write(signal) {
    const requests = SIDES.map((side) => this.request(side)); // both are checked before one begins
    this.follower.begin();
    const results = await Promise.all(SIDES.map((side, i) => this.writeSide(side, requests[i], signal)));
    tell([...new Set(results.map((result) => result.error).filter(Boolean))].join(" "));
    this.redraw();
    const [a, b] = results.map((result) => summary(result));
    sayEnd(`A has ${a}. B has ${b}. ${$("sameness").textContent}`);
    this.keep();
  }

  async writeSide(side, request, signal) {
    const place = $(`text-${side}`), group = tokenGroup(`Continuation ${side.toUpperCase()}; the arrow keys choose a token`, []);
    place.replaceChildren(group);
    $(`keep-${side}`).disabled = true;
    $("sameness").textContent = "";
    const result = await generate(request, signal, (tokens, result) => {
      group.append(...drawTokens(tokens, result.tokens.at(-tokens.length - 1)));
      $(`about-${side}`).textContent = summary(result);
      this.follower.grown();
    });
    this.results[side] = result.text ? { text: result.text, tokens: result.tokens, seed: result.seed, request } : null;
    return result;
  }

  // Appends a continuation to the text of the sheet.
  take(side) {
    const { text, tokens, seed, request } = this.results[side], from = this.sheet.text.length;
    this.sheet.replace(from, from, text, tokens);
    const body = { ...request.body, seed };
    if (this.sheet.text.startsWith(body.prompt) && from === body.prompt.length) this.onTake({ from, request: { ...request, body }, after: this.sheet.text });
    this.clear();
    status(`${side.toUpperCase()} is now a part of the text; undo takes it back`);
    $("text").focus();
  }

  clear() {
    this.results = { a: null, b: null };
    this.redraw();
    this.keep();
  }

  redraw() {
    for (const side of SIDES) {
      const result = this.results[side], label = `Continuation ${side.toUpperCase()}; the arrow keys choose a token`;
      $(`text-${side}`).replaceChildren(...(result ? [tokenGroup(label, result.tokens)] : []));
      $(`about-${side}`).textContent = result ? summary({ ...result, seconds: 0 }) : "";
      $(`keep-${side}`).disabled = !result;
      this.strips[side].show([...$(`text-${side}`).querySelectorAll(".token")]);
    }
    this.mark();
  }

  // Marks the tokens of each text that the other one lacks.
  mark() {
    const { a, b } = this.results;
    $("sameness").textContent = "";
    if (!a || !b) return;
    const parts = difference(a.text, b.text), lengths = [a, b].map((result) => result.text.length);
    const same = parts.map((list, i) => lengths[i] - list.reduce((sum, [start, end]) => sum + end - start, 0));
    const first = Math.min(...parts.map((list) => list[0]?.[0] ?? Infinity));
    const share = (same[0] + same[1]) / (lengths[0] + lengths[1]);
    if (first === Infinity) $("sameness").textContent = "The two texts are the same.";
    else {
      const marked = share >= LEAST_SHARED;
      const how = marked ? " Underlined words are in one text only." : "";
      $("sameness").textContent = `The texts differ from character ${first + 1} on; ${Math.round(100 * share)}% is in both.${how}`;
      if (marked) SIDES.forEach((side, i) => markTokens($(`text-${side}`).querySelectorAll(".token"), parts[i]));
    }
  }

  keep() {
    const fields = Object.fromEntries(SIDES.flatMap((side) => FIELDS.map((name) => [`${name}-${side}`, $(`${name}-${side}`).value])));
    keep("compare", { fields, results: this.results }) || keep("compare", { fields });
  }

  recall() {
    const { fields = {}, results = {} } = recall("compare", {});
    for (const [id, value] of Object.entries(fields)) if ($(id)) $(id).value = value;
    this.results = { a: null, b: null, ...results };
    this.redraw();
  }
}

// The controls and the place of the text of a side.
function article(side) {
  const made = $("side").content.firstElementChild.cloneNode(true), name = side.toUpperCase();
  made.setAttribute("aria-label", `Continuation ${name}`);
  made.querySelector("h2").textContent = name;
  made.querySelector("[data-name=keep]").textContent = `Keep ${name}`;
  for (const element of made.querySelectorAll("[data-name]")) element.id = `${element.dataset.name}-${side}`;
  return made;
}

function markTokens(spans, parts) {
  let at = 0, next = 0;
  for (const span of spans) {
    const end = at + span.told.text.length;
    while (next < parts.length && parts[next][1] <= at) next++;
    span.classList.toggle("differs", next < parts.length && parts[next][0] < end && !!span.told.text.trim());
    at = end;
  }
}
