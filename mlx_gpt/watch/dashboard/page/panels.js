// What stands around the charts: progress, alerts, samples, comparison and settings of the runs that are shown.

import { ask, details, points, runs } from "./data.js";
import { bytes, duration, element, loss, short } from "./format.js";
import { meaningOf, silenceOf } from "./list.js";
import { swatch } from "./style.js";

const COLUMNS = ["run", "state", "step", "done", "loss", "validation", "best", "at step", "ETA", "time", "tokens", "tokens/s", "memory"];
// Kind of an alert -> its title.
const TITLES = {
  diverging: "Loss is diverging", stalled: "No reports", plateau: "Loss no longer falls", overfitting: "Overfitting", collapse: "Output is collapsing", repetition: "Samples repeat",
  dead: "A part of the network does nothing", throughput: "Updates became slower", memory: "Memory is nearly full", disk: "Disk is nearly full", "out-of-memory": "Out of memory",
};
const MAX_ALERTS = 30; // alerts on the page
const MAX_CARDS = 6; // runs whose samples are shown
const chosen = new Map(); // run -> index of the sample that is shown; none is the newest
let comparisons = 0; // that were asked for
const section = (id) => document.getElementById(id);

export function drawPanels(names, changed, shorten) {
  drawProgress(names, shorten);
  drawAlerts(names, shorten);
  if (changed === null || names.some((name) => changed.has(name))) {
    drawSamples(names, shorten);
    drawSettings(names);
    drawComparison(names, shorten);
  }
}

function drawProgress(names, shorten) {
  const [head, body] = section("progress").querySelectorAll("thead, tbody");
  section("progress").hidden = !names.length;
  if (!head.children.length) {
    const row = element("tr");
    row.append(...COLUMNS.map((name) => element("th", name, { scope: "col" })));
    head.append(row);
  }
  body.replaceChildren(...names.map((name) => progressRow(runs.get(name), shorten)));
}

function progressRow(run, shorten) {
  const row = element("tr");
  const name = element("th", "", { scope: "row" });
  const label = element("span", "", { class: "name" });
  label.append(swatch(run.run, true), shorten(run.run));
  name.append(label);
  const { state } = run;
  const bar = element("td");
  if (run.iters && run.step != null) bar.append(element("progress", "", { max: run.iters, value: Math.min(run.step, run.iters), "aria-label": "progress" }));
  const cells = [
    run.step == null ? "-" : `${run.step.toLocaleString("en")}${run.iters ? ` / ${run.iters.toLocaleString("en")}` : ""}`, bar,
    loss(run.loss), loss(run.val_loss), loss(run.best?.val_loss), run.best?.step?.toLocaleString("en") ?? "-",
    state === "training" ? duration(run.eta) : "-", duration(run.elapsed), short(run.tokens), short(run.tokens_per_second), bytes(run.memory),
  ];
  row.append(name, element("td", state, { class: "state", "data-state": state, title: meaningOf(run) }), ...cells.map((cell) => (typeof cell === "string" ? element("td", cell) : cell)));
  return row;
}

function drawAlerts(names, shorten) {
  const found = names.flatMap((name) => (details.get(name)?.alerts ?? []).map((alert) => ({ name, ...alert }))).sort((a, b) => b.step - a.step);
  const items = found.slice(0, MAX_ALERTS).map(({ name, kind, step, since, evidence, advice }) => {
    const item = element("li");
    const when = since && since !== step ? `steps ${since.toLocaleString("en")} to ${step.toLocaleString("en")}` : `step ${step.toLocaleString("en")}`;
    item.append(element("strong", Object.hasOwn(TITLES, kind) ? TITLES[kind] : kind), ` in ${shorten(name)}, ${when}: ${evidence}. ${advice.charAt(0).toUpperCase()}${advice.slice(1)}`);
    return item;
  });
  for (const name of names) {
    for (const note of [silenceOf(runs.get(name)), ...runs.get(name).notes].filter(Boolean)) {
      const item = element("li", `${shorten(name)}: ${note}`, { class: "note" });
      items.push(item);
    }
  }
  const list = section("alerts").querySelector("ul");
  section("alerts").hidden = !items.length;
  if (list.textContent !== items.map((item) => item.textContent).join("")) list.replaceChildren(...items);
}

function drawSamples(names, shorten) {
  const having = names.filter((name) => details.get(name)?.samples.length).slice(0, MAX_CARDS);
  section("samples").hidden = !having.length;
  const focused = document.activeElement?.closest?.(".card")?.dataset.run;
  if (focused && having.includes(focused)) return; // a reader who moves through the history is not interrupted
  section("samples").querySelector(".cards").replaceChildren(...having.map((name) => card(name, shorten)));
}

function card(name, shorten) {
  const { samples } = details.get(name);
  const made = element("article", "", { class: "card", "data-run": name });
  const row = element("div", "", { class: "row" });
  const slider = element("input", "", { type: "range", min: 0, max: samples.length - 1, "aria-label": `Sample of ${shorten(name)}` });
  const step = element("span", "", { class: "number soft" });
  const text = element("pre");
  slider.value = chosen.get(name) ?? samples.length - 1;
  const show = () => {
    const sample = samples[Number(slider.value)];
    step.textContent = `step ${sample.step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", step.textContent);
    text.textContent = sample.text;
  };
  slider.addEventListener("input", () => {
    if (Number(slider.value) === samples.length - 1) chosen.delete(name);
    else chosen.set(name, Number(slider.value));
    show();
  });
  row.append(swatch(name, true), element("strong", shorten(name)), step, ...(samples.length > 1 ? [slider] : []));
  made.append(row, text);
  show();
  return made;
}

async function drawComparison(names, shorten) {
  const evaluated = names.filter((name) => points.get(name)?.series.eval.fields.val_loss);
  const turn = ++comparisons;
  section("compare").hidden = evaluated.length < 2;
  if (evaluated.length < 2) return;
  let found;
  try {
    found = await ask("compare", { run: evaluated });
  } catch {
    section("compare").hidden = true; // the next answer of the server tells what is wrong
    return;
  }
  if (turn !== comparisons) return; // other runs are shown by now
  const head = element("tr");
  head.append(element("td"), ...found.runs.map((name) => element("th", shorten(name), { scope: "col" })));
  const rows = found.rows.map(([label, cells]) => {
    const row = element("tr");
    row.append(element("th", label, { scope: "row" }), ...cells.map((cell) => element("td", cell)));
    return row;
  });
  section("compare").querySelector("table").replaceChildren(head, ...rows);
}

/** The settings of the only run that is shown; those that differ are in the comparison. */
function drawSettings(names) {
  const settings = names.length === 1 ? (details.get(names[0])?.settings ?? []) : [];
  section("settings").hidden = !settings.length;
  const [changed, defaults] = section("settings").querySelectorAll("tbody");
  const isDefault = ({ source }) => source === "default";
  changed.replaceChildren(...settings.filter((setting) => !isDefault(setting)).map(settingRow));
  defaults.replaceChildren(...settings.filter(isDefault).map(settingRow));
  section("settings").querySelector("p").textContent = `${changed.children.length} of ${settings.length} settings differ from the defaults; the last column is where the value comes from`;
  section("settings").querySelector("summary").textContent = `${defaults.children.length} settings with their defaults`;
}

function settingRow({ name, value, source }) {
  const row = element("tr");
  row.append(element("th", name, { scope: "row" }), element("td", value), element("td", source));
  return row;
}
