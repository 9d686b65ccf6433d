// The tip of a token: its surprisal, and the tokens that the model found likely in its place.

import { $, button, make } from "./dom.js";
import { bitsOf, visible } from "./tokens.js";

let chosen = null; // the element of the token whose tip is shown

export const chosenToken = () => chosen;

export function hideTip() {
  const focused = $("tip").contains(document.activeElement);
  $("tip").hidden = true;
  chosen?.classList.remove("chosen");
  chosen?.removeAttribute("aria-describedby");
  chosen = null;
  return focused;
}

export const headline = (token) => `${bitsOf(token).toFixed(2)} bits of surprisal`;

// The rows of the tip: [name, log-probability], the token itself included.
export const alternatives = (token) =>
  token.top.some(([name]) => name === token.name) ? token.top : [...token.top, [token.name, token.logprob]];

// Shows the tip of a token. With `choose`, the tip stays, and its rows are buttons that call choose(name).
export function showTip(span, choose) {
  hideTip();
  const token = span.told, tip = $("tip");
  chosen = span;
  span.classList.add("chosen");
  span.setAttribute("aria-describedby", "tip");
  tip.setAttribute("role", choose ? "dialog" : "tooltip");
  tip.setAttribute("aria-label", `${visible(token.name)}: ${headline(token)}`);
  tip.classList.toggle("pinned", !!choose);
  tip.replaceChildren(make("strong", "", headline(token)), ...alternatives(token).map((row) => drawRow(row, token, choose)));
  if (choose) tip.append(make("p", "", "Choose a token to continue from it."));
  tip.hidden = false;
  place(tip, span);
}

function drawRow([name, logprob], token, choose) {
  const share = Math.exp(logprob), bar = make("span", "bar");
  const canChoose = choose && name && !name.startsWith("bytes:");
  const row = canChoose ? button("", "", () => choose(name)) : make("div");
  row.classList.add("choice");
  row.classList.toggle("drawn", name === token.name);
  bar.style.setProperty("--share", share.toFixed(3));
  row.append(make("span", "", visible(name)), make("span", "", `${(100 * share).toFixed(1)}%`), bar);
  return row;
}

function place(tip, span) {
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = at.bottom + 6, fits = below + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(left, 8) + scrollX}px`;
  tip.style.top = `${(fits ? below : Math.max(at.top - tip.offsetHeight - 6, 0)) + scrollY}px`;
}
