// The work of the page: at most one request at a time, its status, and its errors.

import { $ } from "./dom.js";
import { meanBits } from "./tokens.js";

let controller = null;

export const busy = () => controller !== null;
export const stop = () => controller?.abort();

export function tell(message) {
  $("error").textContent = message ?? "";
  $("error").hidden = !message;
}

// Runs `work(signal)` unless other work is running. `onChange` is called when it begins and when it ends.
export async function run(work, onChange) {
  if (controller) return;
  controller = new AbortController();
  tell(null);
  onChange();
  try {
    await work(controller.signal);
  } catch (error) {
    tell(error.message);
  } finally {
    controller = null;
    onChange();
  }
}

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// One line about a result of generate().
export function summary({ tokens, seconds, seed }) {
  const rate = tokens.length > 1 && seconds > 0 ? `${((tokens.length - 1) / seconds).toFixed(0)} tokens/s` : "";
  const parts = [plural(tokens.length, "token"), rate, `${meanBits(tokens).toFixed(2)} bits per token`, seed && `seed ${seed}`];
  return parts.filter(Boolean).join(", ");
}

export function status(text) {
  $("status").textContent = $("status").title = text;
}
