// How a run looks in the charts and in the lists: a colour and a dash pattern. Each pair is used once in 35 runs.

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const STROKES = { solid: "", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4" };
const NUM_COLOURS = 7;
const slots = new Map(); // run -> number; it keeps its look while the page is open

/** Gives the runs their numbers. A number that a hidden run has left is used again. */
export function assign(names) {
  for (const name of [...slots.keys()]) if (!names.includes(name)) slots.delete(name);
  const used = new Set(slots.values());
  let next = 0;
  for (const name of names) {
    if (slots.has(name)) continue;
    while (used.has(next)) next += 1;
    slots.set(name, next);
    used.add(next);
  }
}

export function lookOf(name) {
  const slot = slots.get(name) ?? 0;
  return { colour: variable(`--run-${slot % NUM_COLOURS}`), dash: DASHES[slot % DASHES.length] };
}

/** The colour of the n-th line of a chart of one run. */
export function lineLook(n) {
  return { colour: variable(`--run-${n % NUM_COLOURS}`), dash: DASHES[n % DASHES.length] };
}

/** The value of a variable of the style sheet, which depends on light and dark. */
export function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A small line in the look of a run. */
export function swatch(name, shown) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 30 12");
  svg.setAttribute("aria-hidden", "true");
  if (shown) {
    const { colour, dash } = lookOf(name);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const values = { x1: 0, x2: 30, y1: 6, y2: 6, stroke: colour, "stroke-width": 3, "stroke-dasharray": STROKES[dash] };
    for (const [attribute, value] of Object.entries(values)) line.setAttribute(attribute, value);
    svg.append(line);
  }
  return svg;
}
