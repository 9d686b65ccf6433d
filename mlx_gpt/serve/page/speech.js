// What screen readers speak while the model writes: whole sentences and results, not every token.

import { $, make } from "./dom.js";

const KEPT = 4; // sentences that stay in the live region
const LONGEST = 300; // characters after which a text without the end of a sentence is spoken
const SENTENCE = /^[\s\S]*(?:[.!?]["')\]]*\s|\n)/; // up to the last end of a sentence

let rest = "";

export function say(sentence) {
  if (!sentence.trim()) return;
  $("spoken").append(make("p", "", sentence.trim()));
  while ($("spoken").children.length > KEPT) $("spoken").firstElementChild.remove();
}

export function hear(text) {
  rest += text;
  const whole = rest.match(SENTENCE)?.[0] ?? (rest.length > LONGEST ? rest : "");
  rest = rest.slice(whole.length);
  say(whole);
}

// Speaks the rest of the text, and a last sentence about it.
export function sayEnd(sentence) {
  say(rest);
  rest = "";
  say(sentence);
}
