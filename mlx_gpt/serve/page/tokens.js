// Tokens as elements, tinted by their surprisal: -log2 of the probability that the model gave them, in bits.

import { make } from "./dom.js";

export const MOST_BITS = 8; // surprisal at and above which a token has the full tint
const STRONGEST = 0.55; // opacity of the full tint; text stays readable on it

export const bitsOf = (token) => -token.logprob / Math.LN2;

// The text as a text field holds it: without carriage returns.
export const plain = (text) => text.replace(/\r\n?/g, "\n");

// `text` is the token's text as it is shown.
export function drawToken(token, text) {
  const span = make("span", "token", text);
  span.style.setProperty("--surprise", (Math.min(bitsOf(token) / MOST_BITS, 1) * STRONGEST).toFixed(3));
  span.told = token; // for the tip
  return span;
}

// Draws tokens that follow the token `before`, if any. A carriage return and a newline in two tokens are one newline.
export function drawTokens(tokens, before) {
  return tokens.map((token) => {
    const shown = plain(before?.text.endsWith("\r") ? token.text.replace(/^\n/, "") : token.text);
    before = token;
    return drawToken(token, shown);
  });
}

export const meanBits = (tokens) => tokens.reduce((sum, token) => sum + bitsOf(token), 0) / Math.max(tokens.length, 1);

// Spaces, newlines and tabs as visible symbols; the symbol of the empty set for an empty text.
export const visible = (text) =>
  text.replaceAll("\n", "\u23ce").replaceAll(" ", "\u2423").replaceAll("\t", "\u21e5") || "\u2205";

// An element of tokens that cannot be edited. It has the focus as a whole, and the arrow keys choose one of its tokens.
export function tokenGroup(label, tokens) {
  const group = make("div", "written mono");
  group.tabIndex = 0;
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", label);
  group.append(...drawTokens(tokens));
  return group;
}

// The token to which a key moves from `now`. Returns undefined for a key that moves nowhere.
export function neighbour(spans, now, key) {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[key];
  if (!step || !spans.length) return undefined;
  const at = spans.indexOf(now);
  return spans[Math.max(0, Math.min(spans.length - 1, at < 0 && step < Infinity ? 0 : at + step))];
}
