// The settings of a request: their fields, what is sent of them, and what is kept.

import { $ } from "./dom.js";
import { keep, recall } from "./storage.js";

// Fields whose id is the name of a field of the API. A field with data-neutral is not sent if it has that value.
const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "frequency_penalty", "presence_penalty",
];
const TEXTS = ["seed", "stop", "system"];
const LIMIT = 2n ** 63n; // a seed is at least -2^63 and less than 2^63

const nameOf = (field) => field.labels[0].firstChild.textContent.trim();

function fail(field, message) {
  field.setAttribute("aria-invalid", "true");
  $("settings").open = true;
  field.focus();
  throw new Error(`${nameOf(field)}: ${message}`);
}

// The value of a field of a number. An empty field has its default. A value between the steps is allowed.
export function number(field) {
  const value = Number(field.value || field.defaultValue), { badInput, rangeUnderflow, rangeOverflow } = field.validity;
  const whole = field.step === "1" && !Number.isInteger(value);
  if (badInput || rangeUnderflow || rangeOverflow || whole) {
    const range = field.max ? `from ${field.min} to ${field.max}` : `of at least ${field.min}`;
    fail(field, `give a ${field.step === "1" ? "whole " : ""}number ${range}`);
  }
  field.removeAttribute("aria-invalid");
  return value;
}

// The value of a field of a seed, as a string of digits; undefined if it is empty.
export function seed(field) {
  const text = field.value.trim();
  const whole = /^-?\d+$/.test(text);
  if (text && (!whole || BigInt(text) < -LIMIT || BigInt(text) >= LIMIT)) {
    fail(field, `give a whole number from ${-LIMIT} to ${LIMIT - 1n}, or nothing`);
  }
  field.removeAttribute("aria-invalid");
  return text ? String(BigInt(text)) : undefined;
}

// One stop string per line, in which \n, \t and \\ are a newline, a tab and a backslash.
const stops = (text) =>
  text.split("\n").filter(Boolean).map((line) => line.replace(/\\([nt\\])/g, (_, c) => ({ n: "\n", t: "\t", "\\": "\\" })[c]));

// The fields of a request that the settings determine. Throws an Error that names a field with a wrong value.
export function body() {
  const fields = { model: $("model-choice").value };
  for (const name of NUMBERS) {
    const value = number($(name));
    if (value !== Number($(name).dataset.neutral ?? NaN)) fields[name] = value;
  }
  const stop = stops($("stop").value), drawn = seed($("seed"));
  if (stop.length) fields.stop = stop;
  if (drawn !== undefined) fields.seed = drawn;
  return fields;
}

export const system = () => $("system").value.trim();

const all = () => [...NUMBERS, ...TEXTS].map($);

export function keepSettings() {
  keep("settings", Object.fromEntries(all().map((field) => [field.id, field.value])));
  keep("tint", $("tint").checked);
  keep("key", $("key").value, sessionStorage);
}

export function recallSettings() {
  const kept = recall("settings", {});
  for (const field of all()) field.value = kept[field.id] ?? field.defaultValue;
  $("tint").checked = recall("tint", true);
  $("key").value = recall("key", "", sessionStorage);
  $("key-label").hidden = !$("key").value;
}

export function resetSettings() {
  for (const field of all()) {
    field.value = field.defaultValue;
    field.removeAttribute("aria-invalid");
  }
  $("tint").checked = true;
  keepSettings();
}
