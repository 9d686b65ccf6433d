// Draws the charts with plotly.js, when they are in view, and lets the keyboard read and zoom them.

import { duration, element, short } from "./format.js";
import { saveButtons } from "./save.js";
import { lineLook, lookOf, variable } from "./style.js";
import { chartsOf, linesOf } from "./traces.js";
import { change, view } from "./view.js";

const [place, more] = ["charts", "more"].map((id) => document.getElementById(id));
const drawn = new Map(); // id of a chart -> { chart, lines, figure, plot, read, due, seen, cursor }
const observer = new IntersectionObserver(onSeen, { rootMargin: "200px" });
const MAX_LEGEND = 6; // lines
const HOVER = 60; // pixels to the nearest point of a line whose value is shown
// A finger that moves over a chart scrolls the page.
const CAN_DRAG = window.matchMedia("(any-hover: hover)").matches;
const waiting = new Set(); // charts to draw
let names = []; // of the runs that are shown
let short_name = (name) => name;
let onRange = () => {};

/** Shows the charts of these runs. Charts whose runs are all unchanged are left as they are. */
export function showCharts(shown, changed, shorten, rangeChanged) {
  [names, short_name, onRange] = [shown, shorten, rangeChanged];
  const charts = chartsOf(names, view.charts);
  for (const [id, held] of drawn) {
    if (charts.some((chart) => chart.id === id)) continue;
    window.Plotly?.purge(held.plot);
    observer.unobserve(held.plot);
    held.figure.remove();
    drawn.delete(id);
  }
  let [inPlace, inMore] = [0, 0];
  for (const chart of charts) {
    const held = drawn.get(chart.id) ?? add(chart);
    held.chart = chart;
    const [parent, at] = chart.takes ? [place, inPlace++] : [more, inMore++];
    if (parent.children[at] !== held.figure) parent.insertBefore(held.figure, parent.children[at] ?? null);
    if (changed === null || names.some((name) => changed.has(name))) held.due = true;
    draw(held);
  }
}

/** Draws the charts again in the colours of the style sheet, which have changed. */
export function redrawCharts() {
  for (const held of drawn.values()) held.due = true;
  for (const held of drawn.values()) draw(held);
}

/** The lines of all charts, also of those out of view: [{ chart, lines }]. */
export function allLines() {
  return [...drawn.values()].map(({ chart }) => ({ chart, lines: linesOf(chart, names, view) }));
}

function add(chart) {
  const figure = element("figure");
  const held = { chart, figure, plot: element("div", "", { class: "plot", tabindex: 0, role: "group" }), due: true, seen: false, cursor: null };
  held.read = element("p", "", { class: "read", "aria-live": "polite" });
  held.plot.setAttribute("aria-label", `Chart: ${chart.title}. Arrow keys read values, plus and minus zoom, 0 shows the whole range.`);
  const caption = element("figcaption");
  caption.append(element("h2", chart.title), element("span", chart.unit, { class: "unit" }), saveButtons(chart.title, () => figureOf(held, true), () => [{ chart: held.chart, lines: held.lines }]));
  figure.append(caption, held.plot, held.read);
  figure.classList.toggle("first", Boolean(chart.wide));
  held.plot.addEventListener("keydown", (event) => onKey(event, held));
  observer.observe(held.plot);
  drawn.set(chart.id, held);
  return held;
}

function onSeen(entries) {
  for (const entry of entries) {
    const held = [...drawn.values()].find(({ plot }) => plot === entry.target);
    if (!held) continue;
    held.seen = entry.isIntersecting;
    draw(held);
  }
}

/** Draws a chart soon, if it is in view. One chart is drawn at a time, so that the first one appears early. */
function draw(held) {
  if (!held.due || !held.seen || !window.Plotly) return;
  waiting.add(held);
  if (waiting.size === 1) setTimeout(drawNext);
}

function drawNext() {
  const [held] = waiting;
  if (held) {
    waiting.delete(held);
    if (drawn.get(held.chart.id) === held) drawNow(held);
  }
  if (waiting.size) setTimeout(drawNext);
}

function drawNow(held) {
  held.due = false;
  const { data, layout } = figureOf(held, false);
  const first = !held.plot.classList.contains("js-plotly-plot");
  window.Plotly.react(held.plot, data, layout, { displayModeBar: false, responsive: true, doubleClick: false, showTips: false });
  if (!first) return;
  held.plot.on("plotly_relayout", (found) => {
    const { xaxis, yaxis } = held.plot.layout;
    const ranges = {};
    if (found["xaxis.range[0]"] !== undefined) ranges.range = xaxis.range.map((end) => fromAxis(end, xaxis));
    if (found["yaxis.range[0]"] !== undefined) ranges.losses = yaxis.range.map((end) => fromAxis(end, { type: yaxis.type, unit: 1 }));
    if (Object.keys(ranges).length) zoom(ranges);
  });
  held.plot.on("plotly_doubleclick", () => zoom(WHOLE));
}

/** The range of losses that the chart of the loss shows. */
export function shownLosses() {
  const axis = drawn.get("loss")?.plot.layout?.yaxis;
  return axis?.range ? axis.range.map((end) => fromAxis(end, { type: axis.type, unit: 1 })) : [0, 10];
}

const WHOLE = { range: null, losses: null };

function zoom(ranges) {
  change(ranges, true);
  for (const held of drawn.values()) held.due = true;
  for (const held of drawn.values()) draw(held);
  onRange();
}

// Time is kept in seconds and drawn in a unit that fits.
function timeUnit(lines) {
  const longest = Math.max(0, ...lines.flatMap((line) => line.x.slice(-1)));
  if (view.x !== "elapsed") return [1, { tokens: "tokens", step: "steps" }[view.x]];
  return longest > 7200 ? [3600, "time, hours"] : longest > 120 ? [60, "time, minutes"] : [1, "time, seconds"];
}

const fromAxis = (end, axis) => (axis.type === "log" ? 10 ** end : end) * axis.unit;
const toAxis = (value, log, unit) => (log ? Math.log10(Math.max(value, 1e-9) / unit) : value / unit);

/** The data and the layout of a chart for plotly.js. A saved picture also has a title and a legend. */
function figureOf(held, saved) {
  held.lines = linesOf(held.chart, names, view);
  const [unit, label] = timeUnit(held.lines);
  const [ink, soft, line, sheet] = ["--ink", "--soft", "--line", "--sheet"].map(variable);
  const axis = { gridcolor: line, linecolor: soft, tickcolor: soft, zeroline: false, automargin: true };
  const xaxis = { ...axis, title: { text: label, standoff: 4 }, type: view.xlog ? "log" : "linear", autorange: !view.range, unit, hoverformat: ".4~s", unifiedhovertitle: { text: `%{x} ${label.replace("time, ", "")}` } };
  if (view.range) xaxis.range = view.range.map((end) => toAxis(end, view.xlog, unit));
  const largest = Math.max(...held.lines.map((found) => found.y.at(-1)));
  const layout = {
    font: { color: ink, size: 12 }, paper_bgcolor: sheet, plot_bgcolor: sheet, showlegend: saved, hovermode: isCrowded() ? "closest" : "x unified",
    hoverdistance: HOVER, dragmode: CAN_DRAG ? "zoom" : false,
    hoverlabel: { bgcolor: sheet, font: { color: ink } }, uirevision: "kept",
    margin: { l: 56, r: 12, t: saved ? 40 : 8, b: 40 },
    xaxis, yaxis: { ...axis, ...valueAxis(held.chart.id === "loss"), exponentformat: largest >= 1000 ? "SI" : "e" },
  };
  if (!saved && names.length === 1 && isNarrow(held.chart)) Object.assign(layout, { showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } } });
  if (saved) layout.title = { text: plain(`${held.chart.title}, ${held.chart.unit}`.replace(/, $/, "")) };
  return { data: held.lines.flatMap((found, i) => drawLine(found, i, held, unit)), layout };
}

/** Whether a legend of the lines of one run fits above the chart. The lines of several runs look as in the list. */
const isNarrow = ({ fields }) => fields.length > 1 && fields.length <= MAX_LEGEND;

/** Whether the values of all runs would fill the chart. Then only the nearest point is told. */
const isCrowded = () => names.length > (CAN_DRAG ? 8 : 3);

/** The type and the range of the vertical axis. Only that of the loss can be logarithmic or zoomed. */
function valueAxis(isLoss) {
  const log = isLoss && view.y === "log";
  const found = { type: log ? "log" : "linear", autorange: !(isLoss && view.losses), fixedrange: !isLoss };
  return found.autorange ? found : { ...found, range: view.losses.map((end) => toAxis(end, log, 1)) };
}

function drawLine(found, i, held, unit) {
  const fields = held.chart.fields.length;
  const { colour, dash } = names.length === 1 && fields > 1 && held.chart.id !== "loss" ? lineLook(held.chart.fields.findIndex(([, field]) => field === found.label)) : lookOf(found.run);
  const x = found.x.map((value) => value / unit);
  const word = { raw: "", smooth: ", smoothed", points: "", best: "" }[found.role];
  const name = plain(`${names.length > 1 ? `${short_name(found.run)}: ` : ""}${found.label}${word}`);
  const base = { x, type: "scatter", name, connectgaps: false, hovertemplate: isCrowded() ? "%{y:.5~g} at %{x:.4~s}" : "%{y:.5~g}" };
  if (found.role === "best") return [{ ...base, hoverinfo: "skip", hovertemplate: undefined, y: found.y, mode: "markers", marker: { color: colour, symbol: "star", size: 14, line: { color: variable("--sheet"), width: 1 } } }];
  if (found.role === "points") return [{ ...base, y: found.y, mode: "lines+markers", line: { color: colour, dash, width: 2.2 }, marker: { color: colour, size: 5 } }];
  if (found.role === "smooth") return [{ ...base, y: found.y, mode: "lines", line: { color: colour, dash, width: 1.8 } }];
  const alone = !held.lines.some((line) => line.role === "smooth" && line.run === found.run && line.label === found.label);
  if (alone) return [{ ...base, y: found.y, mode: "lines", line: { color: colour, dash, width: 1.8 } }];
  // The extremes of each bin, as a band, and its mean as a thin line.
  const edge = { ...base, mode: "lines", line: { width: 0, color: colour }, hoverinfo: "skip", hovertemplate: undefined, showlegend: false };
  const band = found.low.some((low, n) => low !== found.high[n]);
  const raw = { ...base, y: found.y, mode: "lines", opacity: 0.4, line: { color: colour, width: 0.8 }, hoverinfo: "skip", hovertemplate: undefined, showlegend: false };
  return band ? [{ ...edge, y: found.low }, { ...edge, y: found.high, fill: "tonexty", fillcolor: fade(colour) }, raw] : [raw];
}

/** plotly.js reads some HTML tags in texts. A zero-width space after each < keeps a name of a run as it is. */
const plain = (text) => text.replaceAll("<", "<\u200b").replaceAll("&", "&\u200b");
const fade = (colour) => `${colour}26`; // #rrggbb with an opacity of 15 %

function onKey(event, held) {
  const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
  if (step) read(held, step);
  else if (event.key === "+" || event.key === "=") scale(held, 0.5);
  else if (event.key === "-") scale(held, 2);
  else if (event.key === "0" || event.key === "Escape") zoom(WHOLE);
  else return;
  event.preventDefault();
}

/** Moves the cursor by a number of points, and tells the values there. */
function read(held, step) {
  const told = held.lines.filter((line) => line.role !== "raw" || !held.lines.some((other) => other.role === "smooth" && other.run === line.run && other.label === line.label));
  const inside = (value) => !view.range || (value >= view.range[0] && value <= view.range[1]);
  const all = [...new Set(told.flatMap((line) => line.x))].filter(inside).sort((a, b) => a - b);
  if (!all.length) return;
  const last = held.cursor === null ? all.length : all.findIndex((value) => value >= held.cursor);
  held.cursor = all[Math.min(Math.max((last < 0 ? all.length : last) + step, 0), all.length - 1)];
  const values = told.map((line) => {
    const nearest = line.x.reduce((best, value, i) => (Math.abs(value - held.cursor) < Math.abs(line.x[best] - held.cursor) ? i : best), 0);
    return `${names.length > 1 ? `${short_name(line.run)} ` : ""}${line.label} ${Number(line.y[nearest].toPrecision(5))}`;
  });
  const where = view.x === "elapsed" ? duration(held.cursor) : `${short(held.cursor)} ${view.x === "step" ? "steps" : "tokens"}`;
  held.read.textContent = `${where}: ${values.join("; ")}`;
  const [unit] = timeUnit(held.lines);
  window.Plotly?.Fx.hover(held.plot, { xval: toAxis(held.cursor, view.xlog, unit), yval: 0 }, "xy");
}

function scale(held, factor) {
  const axis = held.plot.layout?.xaxis;
  if (!axis?.range) return;
  const [low, high] = axis.range.map(Number);
  const unit = timeUnit(held.lines)[0];
  const middle = held.cursor === null ? (low + high) / 2 : toAxis(held.cursor, view.xlog, unit);
  zoom({ range: [middle - ((high - low) * factor) / 2, middle + ((high - low) * factor) / 2].map((end) => fromAxis(end, { type: axis.type, unit })) });
}
