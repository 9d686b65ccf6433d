// The charts there are, and the lines of each: pure functions of the data and the view.

import { points, runs } from "./data.js";

const OBJECTIVE = "objective"; // the name for the loss of a run with rewards: it is not a cross-entropy
/**
 * The charts that are always named. A field of a report that none of them takes gets a chart of its own, which it
 * shares with the fields that differ only in a number or after the first dot, such as those of each layer.
 */
const NAMED = [
  { id: "reward", title: "Reward", unit: "mean over the texts of an update", takes: ["reward", "reward.*"], wide: true },
  { id: "loss", title: "Loss", unit: "nats per token", takes: ["loss", "val_loss"], wide: true },
  { id: "success", title: "Success", unit: "share of the texts", takes: ["success"] },
  { id: "distinct", title: "Different texts", unit: "share of the texts of a prompt", takes: ["distinct"] },
  { id: "length", title: "Length", unit: "tokens per text", takes: ["length"] },
  { id: "kl", title: "KL", unit: "divergence from the reference, nats", takes: ["kl"] },
  { id: "objective", title: "Objective", unit: "of the rewards; it has no scale", takes: [OBJECTIVE] },
  { id: "rate", title: "Learning rate", unit: "per update", takes: ["lr", "rule_lrs.*"] },
  { id: "norm", title: "Gradient norm", unit: "L2, before clipping", takes: ["grad_norm"] },
  { id: "speed", title: "Speed", unit: "tokens per second", takes: ["tokens_per_second"] },
  { id: "memory", title: "Memory", unit: "bytes", takes: ["peak_memory", "memory"] },
  { id: "gap", title: "H - CE", unit: "nats; entropy minus cross-entropy", takes: ["H-CE"] },
  { id: "entropy", title: "Entropy and cross-entropy", unit: "nats", takes: ["H", "ce"] },
  { id: "bits", title: "Bits per byte", unit: "validation", takes: ["val_bits_per_byte"] },
  { id: "experts", title: "Experts", unit: "load, relative to an equal share", takes: ["max_load", "min_load"] },
  { id: "idle", title: "Idle experts", unit: "share of the experts", takes: ["experts.idle"] },
  { id: "seconds", title: "Time", unit: "seconds per update", takes: ["seconds", "seconds.*"] },
];
const PARTS = 20; // an average covers about 1 / PARTS of a curve at most
const HIDDEN = new Set(["step", "tokens", "elapsed", "val_ppl", "best_loss"]); // axes, and what another chart shows
const KINDS = ["step", "eval"];

/**
 * The charts for which the runs have data: { id, title, unit, wide, fields }; fields are [kind, name] pairs. The fields of
 * a chart of several runs would look alike, so each gets a chart of its own. Each word of the filter must occur in the
 * title or in a field.
 */
export function chartsOf(names, filter = "") {
  const found = new Map(NAMED.map((chart) => [chart.id, { ...chart, fields: [] }]));
  for (const kind of KINDS) {
    const fields = new Set(names.flatMap((name) => [...fieldsOf(name, kind).keys()]));
    for (const field of [...fields].sort()) {
      if (HIDDEN.has(field) || (kind === "eval" && field === "seconds")) continue;
      const named = NAMED.find((chart) => chart.takes.some((taken) => taken === field || (taken.endsWith("*") && field.startsWith(taken.slice(0, -1)))));
      const id = named?.id ?? groupOf(field);
      if (!found.has(id)) found.set(id, { id, title: id, unit: "", fields: [] });
      found.get(id).fields.push([kind, field]);
    }
  }
  const charts = [...found.values()].filter((chart) => chart.fields.length);
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const passes = ({ title, fields }) => words.every((word) => `${title} ${fields.map(([, field]) => field).join(" ")}`.toLowerCase().includes(word));
  return (names.length > 1 ? charts.flatMap(divided) : charts).filter(passes);
}

/** The charts of the single fields of a chart. The loss, and fields that differ in a number only, share one. */
function divided(chart) {
  const fields = new Set(chart.fields.map(([, field]) => field));
  if (chart.id === "loss" || chart.id.includes("*") || fields.size === 1) return [chart];
  return [...fields].map((field) => {
    const part = field.split(".").slice(1).join(".") || field;
    const wide = chart.wide && field === chart.id;
    const title = field === chart.id ? chart.title : chart.takes ? `${chart.title}: ${part}` : field;
    return { ...chart, id: `${chart.id}: ${field}`, title, wide, fields: chart.fields.filter(([, other]) => other === field) };
  });
}

/** The fields of a run that are drawn: name -> [mean, lowest, highest]. */
function fieldsOf(run, kind) {
  const found = new Map(Object.entries(points.get(run)?.series[kind].fields ?? {}));
  // The learning rate of the run is that of one of its rules, and would hide it.
  if ([...found.keys()].some((name) => name.startsWith("rule_lrs."))) found.delete("lr");
  if (found.has("reward") && found.has("loss")) {
    found.set(OBJECTIVE, found.get("loss"));
    found.delete("loss");
  }
  return found;
}

function groupOf(field) {
  return /\d/.test(field) ? field.replace(/\d+/g, "*") : field.split(".")[0];
}

/**
 * The lines of a chart: { run, label, role, x, y, low, high, steps }. The role is "raw" (means of bins, with their
 * extremes), "smooth", "points" (evaluations) or "best".
 */
export function linesOf(chart, names, view) {
  const lines = [];
  for (const run of names) {
    for (const [kind, field] of chart.fields) {
      const line = lineOf(run, kind, field, view);
      if (!line) continue;
      lines.push({ ...line, role: kind === "eval" ? "points" : "raw" });
      if (kind === "step" && field !== "lr" && field !== "peak_memory" && !field.startsWith("rule_lrs.")) {
        const decay = Math.min(view.smooth, Math.max(1 - PARTS / line.y.length, 0));
        lines.push({ ...line, y: smoothed(line.y, decay), low: null, high: null, role: "smooth" });
      }
    }
    const best = runs.get(run)?.best;
    if (chart.id === "loss" && best) {
      lines.push({ run, label: `best ${best.val_loss.toFixed(4)}`, role: "best", x: [best[view.x]], y: [best.val_loss], low: null, high: null, steps: [best.step] });
    }
  }
  return lines;
}

function lineOf(run, kind, field, view) {
  const fields = fieldsOf(run, kind);
  const values = fields.get(field);
  const along = fields.get(view.x)?.[0];
  if (!values || !along) return null;
  const kept = along.map((_, i) => i).filter((i) => along[i] != null && values[0][i] != null);
  if (!kept.length) return null;
  const [mean, low, high] = values.map((list) => kept.map((i) => list[i]));
  return { run, label: field, x: kept.map((i) => along[i]), y: mean, low, high, steps: kept.map((i) => fields.get("step")[0][i]) };
}

/** The exponential moving average with this decay rate for each point, without the bias of its start. */
export function smoothed(values, decay) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = decay * sum + (1 - decay) * value;
    weight = decay * weight + (1 - decay);
    return sum / weight;
  });
}

