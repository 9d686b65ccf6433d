// One editable text, part written by the user and part by the model.
//
// The text is a <textarea>, so that undo, input methods, spell checkers and screen readers work as in every text field.
// A <textarea> has one colour. A layer behind it, the mirror, has the same text in the same places, and shows the tint
// of each token. While the model writes, the mirror shows the text. The text is then inserted into the field as one
// edit, so that one undo takes it back.

import { make } from "./dom.js";
import { drawToken, drawTokens, plain } from "./tokens.js";

const REMEMBERED = 50; // texts whose marks are kept for undo and redo

// Compares a text before and after an edit that ends at `caret`. Returns the lengths of the unchanged head and tail.
function unchanged(before, after, caret) {
  const shorter = Math.min(before.length, after.length), room = Math.min(after.length - caret, shorter);
  let tail = 0, head = 0;
  while (tail < room && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail++;
  while (head < shorter - tail && before[head] === after[head]) head++;
  return [head, tail];
}

// The marks of tokens that follow each other from an index on.
function marksOf(tokens, start) {
  return drawTokens(tokens).map((span) => {
    const mark = { start, end: start + span.textContent.length, token: span.told, span };
    start = mark.end;
    return mark;
  });
}

// Replaces the selection by a text, in one step of undo. execCommand() is deprecated, but nothing else can do that.
// insertText takes seconds for hundreds of lines in Chromium. insertHTML, here with a text whose markup is escaped, does
// not. Browsers that have insertHTML only outside of text fields return false.
function insert(text) {
  if (!text) return document.execCommand("delete");
  return document.execCommand("insertHTML", false, make("div", "", text).innerHTML) || document.execCommand("insertText", false, text);
}

export class Sheet {
  // `marks` are the tokens that the model wrote: {start, end, token, span}, in order. `start` and `end` are indices into
  // the text, and `span` is the token's element in the mirror.
  constructor(field, mirror, onChange) {
    Object.assign(this, { field, mirror, onChange, marks: [], shown: "", past: new Map() });
    this.end = make("span", "end", "\u200b"); // gives an empty last line its height
    field.addEventListener("input", () => this.inserting || this.edited());
    this.draw();
  }

  get text() {
    return this.field.value;
  }

  get tokens() {
    return this.marks.map((mark) => mark.token);
  }

  markAt(index) {
    return this.marks.find((mark) => mark.start <= index && index < mark.end);
  }

  // Adapts the marks to an edit by the user. Undo and redo bring back earlier texts, with the marks that they had.
  edited() {
    const before = this.shown, [head, tail] = unchanged(before, this.text, this.field.selectionEnd);
    const border = before.length - tail, shift = this.text.length - before.length;
    const later = this.marks.filter((mark) => mark.start >= Math.max(border, head) && mark.end > head);
    const kept = this.fitting([
      ...this.marks.filter((mark) => mark.end <= head),
      ...later.map((mark) => ({ ...mark, start: mark.start + shift, end: mark.end + shift })),
    ]);
    if (kept.length < this.marks.length) this.remember(before, this.marks);
    this.show(this.past.get(this.text) ?? kept);
  }

  remember(text, marks) {
    this.past.delete(text);
    this.past.set(text, marks);
    if (this.past.size > REMEMBERED) this.past.delete(this.past.keys().next().value);
  }

  show(marks) {
    this.marks = marks;
    this.shown = this.text;
    this.draw();
    this.onChange();
  }

  draw(end = this.shown.length) {
    const nodes = [];
    let at = 0;
    for (const mark of this.marks) {
      if (mark.end > end) break;
      if (mark.start > at) nodes.push(this.shown.slice(at, mark.start));
      nodes.push(mark.span);
      at = mark.end;
    }
    this.mirror.replaceChildren(...nodes, this.shown.slice(at, end), this.end);
  }

  // The model begins to write at an index, in place of everything after it.
  begin(start) {
    Object.assign(this, { start, fresh: [] });
    this.draw(start);
    this.field.readOnly = true;
    this.field.setAttribute("aria-busy", "true");
    this.mirror.parentElement.classList.add("writing");
  }

  write(tokens) {
    this.end.before(...drawTokens(tokens, this.fresh.at(-1)));
    this.fresh.push(...tokens);
  }

  // The model has written `text`. If that is empty, the text before begin() comes back.
  finish(text, tokens) {
    this.field.readOnly = false;
    this.field.removeAttribute("aria-busy");
    this.mirror.parentElement.classList.remove("writing");
    if (text) this.replace(this.start, this.text.length, text, tokens);
    else this.draw();
  }

  // Replaces a part of the text, in one step of the field's own undo. Marks after the part are lost.
  replace(start, end, text, tokens = []) {
    const wanted = this.text.slice(0, start) + text + this.text.slice(end);
    const focused = document.activeElement, marks = this.marks.filter((mark) => mark.end <= start);
    if (this.marks.length) this.remember(this.shown, this.marks);
    const views = [this.field.closest("#scroll"), document.scrollingElement], places = views.map((view) => view.scrollTop);
    this.inserting = true;
    this.field.focus({ preventScroll: true });
    this.field.setSelectionRange(start, end);
    insert(text);
    if (this.text !== plain(wanted)) this.field.value = wanted; // without undo; Chromium drops U+0000
    this.inserting = false;
    views.forEach((view, i) => (view.scrollTop = places[i])); // the edit has scrolled to its end
    if (focused !== this.field && focused !== document.body) focused.focus({ preventScroll: true });
    marks.push(...marksOf(tokens, start));
    const fitting = this.fitting(marks);
    if (tokens.length) this.remember(this.text, fitting);
    this.show(fitting);
  }

  // The marks whose text is at their place. A newline after the carriage return of another token has no text of its own.
  fitting(marks) {
    return marks.filter(({ start, end, token }) => {
      const text = this.text.slice(start, end), whole = plain(token.text);
      return text === whole || (`\n${text}` === whole && this.text[start - 1] === "\n");
    });
  }

  // For storage: the text and its marks, and back. While the model writes: with what it has written.
  get state() {
    const { start, fresh } = this.field.readOnly ? this : { start: this.text.length, fresh: [] };
    const marks = [...this.marks.filter((mark) => mark.end <= start), ...marksOf(fresh, start)];
    const text = this.text.slice(0, start) + plain(fresh.map((token) => token.text).join(""));
    return { text, marks: marks.map(({ start, end, token }) => ({ start, end, token })) };
  }

  restore({ text, marks }) {
    this.field.value = text;
    this.show(this.fitting(marks).map((mark) => ({ ...mark, span: drawToken(mark.token, text.slice(mark.start, mark.end)) })));
  }
}
