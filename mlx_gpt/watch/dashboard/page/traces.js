// The charts there are, and the lines of each: pure functions of the data and the view.

import { points, runs } from "./data.js";

/**
 * The charts that are always named. A field of a report that none of them takes gets a chart of its own, which it
 * shares with the fields that differ only in a number or after the first dot, such as those of each layer.
 */
const NAMED = [
  { id: "loss", title: "Loss", unit: "nats per token", takes: ["loss", "val_loss"] },
  { id: "rate", title: "Learning rate", unit: "per update", takes: ["lr", "rule_lrs.*"] },
  { id: "norm", title: "Gradient norm", unit: "L2, before clipping", takes: ["grad_norm"] },
  { id: "speed", title: "Speed", unit: "tokens per second", takes: ["tokens_per_second"] },
  { id: "memory", title: "Memory", unit: "bytes", takes: ["peak_memory", "memory"] },
  { id: "gap", title: "H - CE", unit: "nats; entropy minus cross-entropy", takes: ["H-CE"] },
  { id: "entropy", title: "Entropy and cross-entropy", unit: "nats", takes: ["H", "ce"] },
  { id: "bits", title: "Bits per byte", unit: "validation", takes: ["val_bits_per_byte"] },
];
const HIDDEN = new Set(["step", "tokens", "elapsed", "val_ppl", "best_loss"]); // axes, and what another chart shows
const KINDS = ["step", "eval"];

/** The charts for which the runs have data: { id, title, unit, fields }; fields are [kind, name] pairs. */
export function chartsOf(names) {
  const found = new Map(NAMED.map((chart) => [chart.id, { ...chart, fields: [] }]));
  for (const kind of KINDS) {
    const fields = new Set(names.flatMap((name) => Object.keys(points.get(name)?.series[kind].fields ?? {})));
    for (const field of [...fields].sort()) {
      if (HIDDEN.has(field) || (kind === "eval" && field === "seconds")) continue;
      const named = NAMED.find((chart) => chart.takes.some((taken) => taken === field || (taken.endsWith("*") && field.startsWith(taken.slice(0, -1)))));
      const id = named?.id ?? groupOf(field);
      if (!found.has(id)) found.set(id, { id, title: id, unit: "", fields: [] });
      found.get(id).fields.push([kind, field]);
    }
  }
  return [...found.values()].filter((chart) => chart.fields.length);
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
      // The learning rate of a rule that is also the learning rate of the run would hide it.
      if (field === "lr" && chart.fields.some(([, other]) => other.startsWith("rule_lrs.") && points.get(run).series[kind].fields[other])) continue;
      lines.push({ ...line, role: kind === "eval" ? "points" : "raw" });
      if (kind === "step" && field !== "lr" && !field.startsWith("rule_lrs.")) {
        lines.push({ ...line, y: smoothed(line.y, view.smooth), low: null, high: null, role: "smooth" });
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
  const series = points.get(run)?.series[kind];
  const values = series?.fields[field];
  const along = series?.fields[view.x]?.[0];
  if (!values || !along) return null;
  const kept = along.map((_, i) => i).filter((i) => along[i] != null && values[0][i] != null);
  if (!kept.length) return null;
  const [mean, low, high] = values.map((list) => kept.map((i) => list[i]));
  return { run, label: field, x: kept.map((i) => along[i]), y: mean, low, high, steps: kept.map((i) => series.fields.step[0][i]) };
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

