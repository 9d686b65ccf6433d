// Chat: turns of the user and the model.

import { generate } from "./api.js";
import { $, button, make } from "./dom.js";
import { plural, status, summary, tell } from "./session.js";
import * as settings from "./settings.js";
import { hear, sayEnd } from "./speech.js";
import { keep, recall } from "./storage.js";
import { drawTokens, tokenGroup } from "./tokens.js";

const NAMES = { user: "You", assistant: "Model" };

export class Chat {
  writeLabel = "Send";

  // A turn is {role, text}. A turn of the model also has {tokens, seed}.
  constructor(follower, copy) {
    Object.assign(this, { follower, copy, turns: [], busy: false });
  }

  get canWrite() {
    return !!$("message").value.trim();
  }

  get canAgain() {
    return this.turns.length > 0;
  }

  get isEmpty() {
    return !this.turns.length;
  }

  get spans() {
    return [...$("turns").querySelectorAll(".token")];
  }

  get copied() {
    return this.turns.map((turn) => `${NAMES[turn.role]}: ${turn.text}`).join("\n\n");
  }

  get used() {
    return this.turns.at(-1)?.seed;
  }

  // The request of the last answer, with the seed that was used, or of the next one.
  request() {
    const draft = $("message").value.trim();
    if (!draft && this.used !== undefined) return this.ask(this.turns.slice(0, -1), this.used);
    return this.ask([...this.turns, ...(draft ? [{ role: "user", text: draft }] : [])]);
  }

  ask(turns, seed) {
    const system = settings.system(), first = system ? [{ role: "system", content: system }] : [];
    const messages = [...first, ...turns.map(({ role, text }) => ({ role, content: text }))];
    return { kind: "chat", body: { ...settings.body(), messages, ...(seed !== undefined && { seed }) } };
  }

  async write(signal) {
    settings.body(); // a wrong setting leaves the message where it is
    this.turns.push({ role: "user", text: $("message").value.trim() });
    $("message").value = "";
    await this.answer(signal);
  }

  // Generates the last answer again.
  async again(signal) {
    settings.body();
    if (this.turns.at(-1).role === "assistant") this.turns.pop();
    await this.answer(signal);
  }

  async answer(signal) {
    const request = this.ask(this.turns), turn = { role: "assistant", text: "", tokens: [] };
    this.turns.push(turn);
    this.busy = true;
    this.redraw();
    const place = $("turns").lastElementChild.querySelector(".written");
    this.follower.begin();
    const result = await generate(request, signal, (tokens, result) => {
      Object.assign(turn, { text: result.text, tokens: result.tokens });
      place.append(...drawTokens(tokens, result.tokens.at(-tokens.length - 1)));
      hear(tokens.map((token) => token.text).join(""));
      status(summary(result));
      this.follower.grown();
    });
    this.busy = false;
    turn.seed = result.seed;
    if (!result.text) this.turns.pop();
    if (!result.text && result.error) this.takeBack();
    tell(result.error);
    sayEnd(`${signal.aborted ? "Stopped after" : "The answer has"} ${plural(result.tokens.length, "token")}.`);
    this.redraw();
    this.follower.grown();
    this.keep();
  }

  // A message that the server refused goes back into the field, where the user can change it.
  takeBack() {
    if (this.turns.at(-1)?.role !== "user" || $("message").value) return;
    $("message").value = this.turns.pop().text;
  }

  // A message of the user goes back into the field. It and everything after it leave the chat.
  edit(index) {
    $("message").value = this.turns[index].text;
    this.turns.length = index;
    this.redraw();
    this.keep();
    $("message").focus();
  }

  clear() {
    this.turns = [];
    this.redraw();
    this.keep();
  }

  redraw() {
    $("turns").replaceChildren(...this.turns.map((turn, i) => this.draw(turn, i)));
    this.onChange?.();
  }

  draw(turn, index) {
    const block = make("article", `turn ${turn.role}`), head = make("div", "row");
    head.append(make("h2", "", NAMES[turn.role]));
    if (turn.role === "user") head.append(button("Edit", "small", () => this.edit(index)));
    head.append(button("Copy", "small", () => this.copy(turn.text)));
    for (const control of head.querySelectorAll("button")) control.disabled = this.busy;
    block.setAttribute("aria-label", `${NAMES[turn.role]}, turn ${index + 1}`);
    block.append(head, turn.tokens?.length || this.busy && turn === this.turns.at(-1) ? tokenGroup("Answer; the arrow keys choose a token", turn.tokens) : make("div", "given mono", turn.text));
    return block;
  }

  keep() {
    const draft = $("message").value;
    const plain = this.turns.map(({ role, text, seed }) => ({ role, text, seed })); // if there is no room for the tokens
    keep("chat", { turns: this.turns, draft }) || keep("chat", { turns: plain, draft });
  }

  recall() {
    const { turns = [], draft = "" } = recall("chat", {});
    this.turns = turns;
    $("message").value = draft;
    this.redraw();
  }
}
