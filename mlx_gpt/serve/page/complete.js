// Complete: the model continues the text of the sheet.

import { generate } from "./api.js";
import { $ } from "./dom.js";
import { plural, status, summary, tell } from "./session.js";
import * as settings from "./settings.js";
import { hear, sayEnd } from "./speech.js";
import { keep, recall } from "./storage.js";

export class Complete {
  writeLabel = "Write";

  constructor(sheet, follower) {
    Object.assign(this, { sheet, follower, last: null });
  }

  // `last` is the last text that was written, and how: {from, request, after}. It holds until the text changes.
  get fresh() {
    return this.last?.after === this.sheet.text ? this.last : null;
  }

  get canWrite() {
    return true;
  }

  get canAgain() {
    return !!this.fresh;
  }

  get isEmpty() {
    return !this.sheet.text;
  }

  get spans() {
    return [...this.sheet.mirror.querySelectorAll(".token")];
  }

  get copied() {
    return this.sheet.text;
  }

  get used() {
    return this.fresh?.request.body.seed;
  }

  // The request of the last text, with the seed that was used, or of the next one.
  request() {
    return this.fresh?.request ?? { kind: "completion", body: { ...settings.body(), prompt: this.sheet.text } };
  }

  // Continues the text from an index on. What was there goes.
  async write(signal, from = this.sheet.text.length) {
    const { sheet, follower } = this, request = { kind: "completion", body: { ...settings.body(), prompt: sheet.text.slice(0, from) } };
    sheet.begin(from);
    follower.begin();
    const result = await generate(request, signal, (tokens, result) => {
      sheet.write(tokens);
      hear(tokens.map((token) => token.text).join(""));
      status(summary(result));
      follower.grown();
    });
    sheet.finish(result.text, result.tokens);
    if (result.text) this.last = { from, request: { ...request, body: { ...request.body, seed: result.seed } }, after: sheet.text };
    tell(result.error);
    sayEnd(`${signal.aborted ? "Stopped after" : "Wrote"} ${plural(result.tokens.length, "token")}.`);
    this.keep();
  }

  again(signal) {
    return this.write(signal, this.fresh.from);
  }

  // Puts another token at the place of a mark, and continues from there.
  async choose(signal, mark, name) {
    const { sheet } = this;
    sheet.replace(mark.start, sheet.text.length, name);
    await this.write(signal);
  }

  clear() {
    this.sheet.replace(0, this.sheet.text.length, "");
    this.keep();
  }

  redraw() {
    $("examples").hidden = !this.isEmpty || !$("examples").childElementCount;
  }

  keep() {
    const { last, sheet: { state } } = this;
    keep("complete", { ...state, last }) || keep("complete", { ...state, marks: [], last: null });
  }

  recall() {
    const { text = "", marks = [], last = null } = recall("complete", {});
    this.last = last;
    this.sheet.restore({ text, marks });
  }
}
