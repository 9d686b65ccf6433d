// The list of all runs: which of them are shown, in which order, and in which state they are.

import { runs, server } from "./data.js";
import { duration, element, loss, short } from "./format.js";
import { swatch } from "./style.js";
import { change, view } from "./view.js";

const NUM_NEWEST = 6; // runs that are shown until the user chooses
const ORDERS = {
  newest: (a, b) => b.mtime - a.mtime,
  name: (a, b) => a.run.localeCompare(b.run, undefined, { numeric: true }),
  best: (a, b) => (a.best?.val_loss ?? Infinity) - (b.best?.val_loss ?? Infinity),
  tokens: (a, b) => (b.tokens ?? -1) - (a.tokens ?? -1),
  alerts: (a, b) => b.alerts - a.alerts,
};
// state of a run, as `mlxgpt runs` names it -> what it means
const MEANINGS = {
  training: "a process trains it", finished: "it is finished", stopped: "a signal stopped it", diverged: "training diverged", failed: "an error ended it",
  killed: "no process of this machine trains it, and there is no report of its end", unknown: "no report tells its state", gone: "its files are gone",
};

const list = document.getElementById("list");
const items = new Map(); // run -> { item, text, box }

/** What the state of a run means, and the time of its last report. */
export function meaningOf(run) {
  const reason = run.reason ? ` (${run.reason})` : "";
  return `${MEANINGS[run.state] ?? run.state}${reason}; last report ${duration(server.now - run.mtime)} ago`;
}

/** How long a run that trains has been silent, in words; "" if that is usual for it. */
export function silenceOf(run) {
  const silence = server.now - run.mtime;
  return run.state === "training" && silence > run.quiet_after ? `no report for ${duration(silence)}` : "";
}

/** The runs to show: those that the user chose, or the newest. */
export function shownRuns() {
  if (view.runs) return view.runs.filter((name) => runs.has(name));
  return sorted([...runs.values()], "newest").slice(0, NUM_NEWEST).map((run) => run.run).sort();
}

/** The runs that pass the filter, in order. Each word of the filter must occur in the name. */
export function listedRuns() {
  const words = view.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const passing = [...runs.values()].filter((run) => words.every((word) => run.run.toLowerCase().includes(word)));
  return sorted(passing, view.sort);
}

function sorted(found, order) {
  return found.sort((a, b) => (ORDERS[order] ?? ORDERS.newest)(a, b) || ORDERS.name(a, b));
}

/** Draws the list. Elements of runs that look the same as before are kept. */
export function drawList(shown, shorten, chosen) {
  const listed = listedRuns();
  document.getElementById("count").textContent = `${shown.length} of ${runs.size} shown`;
  for (const [name, { item }] of items) if (!listed.some((run) => run.run === name)) item.remove(), items.delete(name);
  listed.forEach((run, i) => {
    const item = itemOf(run, shown.includes(run.run), shorten, chosen);
    if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null);
  });
}

function itemOf(run, isShown, shorten, chosen) {
  const { state } = run;
  const facts = [stepOf(run)];
  if (run.best) facts.push(`best ${loss(run.best.val_loss)}`);
  if (run.tokens) facts.push(`${short(run.tokens)} tokens`);
  if (run.unread) facts.push(`${short(run.unread)} bytes to read`);
  const alarm = [run.alerts ? `${run.alerts} alert${run.alerts > 1 ? "s" : ""}` : "", silenceOf(run)].filter(Boolean).join(" · ");
  const key = JSON.stringify([shorten(run.run), state, facts, alarm, isShown, isShown && swatch(run.run, true).outerHTML]);
  const held = items.get(run.run) ?? add(run.run, chosen);
  held.item.title = `${run.run}: ${meaningOf(run)}`;
  if (held.key === key) return held.item;
  held.key = key;
  held.box.checked = isShown;
  held.label.replaceChildren(
    held.box, swatch(run.run, isShown), element("span", shorten(run.run), { class: "name" }),
    element("span", state, { class: "state", "data-state": state }), element("span", facts.join(" · "), { class: "facts" }),
  );
  if (alarm) held.label.lastChild.append(" · ", element("span", alarm, { class: "alarm" }));
  return held.item;
}

function stepOf({ step, iters, state }) {
  if (step == null) return state === "training" ? "first update is being compiled" : "no update yet";
  if (step === iters) return `${step.toLocaleString("en")} steps`;
  return `step ${step.toLocaleString("en")}${iters ? ` of ${iters.toLocaleString("en")}` : ""}`;
}

function add(name, chosen) {
  const held = { item: element("li"), label: element("label"), box: element("input", "", { type: "checkbox" }) };
  held.box.addEventListener("change", () => chosen(held.box.checked ? [...shownRuns(), name] : shownRuns().filter((other) => other !== name)));
  const only = element("button", "only", { type: "button", class: "small quiet", "aria-label": `Show only ${name}` });
  only.addEventListener("click", () => chosen([name]));
  held.item.append(held.label, only);
  items.set(name, held);
  return held;
}

/** Connects the filter, the order and the two buttons. `chosen(names)` shows these runs; `redraw()` draws the list. */
export function connectList(chosen, redraw) {
  const [filter, order] = [document.getElementById("filter"), document.getElementById("sort")];
  const adopt = () => { filter.value = view.filter; order.value = view.sort; };
  filter.addEventListener("input", () => { change({ filter: filter.value }); redraw(); });
  order.addEventListener("change", () => { change({ sort: order.value }); redraw(); });
  document.getElementById("show-all").addEventListener("click", () => chosen(listedRuns().map((run) => run.run)));
  document.getElementById("show-none").addEventListener("click", () => chosen([]));
  adopt();
  return adopt;
}
