// Saves what is shown: a chart as PNG or SVG, and its data as CSV.

import { element } from "./format.js";

const SIZE = { width: 1200, height: 600 };
const PIXELS = 2; // of a PNG for each unit of SIZE

/** The buttons of a chart. `figure()` returns the data and layout for plotly.js, `lines()` what saveData takes. */
export function saveButtons(title, figure, lines) {
  const row = element("span", "", { class: "row" });
  const name = title.replaceAll(/[^\w-]+/g, "-").replaceAll(/^-|-$/g, "").toLowerCase() || "chart";
  for (const [kind, save] of Object.entries({ PNG: () => savePng(name, figure()), SVG: () => saveSvg(name, figure()), CSV: () => saveData(name, lines()) })) {
    const button = element("button", kind, { type: "button", class: "small quiet", "aria-label": `Save ${title} as ${kind}` });
    button.addEventListener("click", save);
    row.append(button);
  }
  return row;
}

/** Saves the lines of charts as CSV, one row for each point. */
export function saveData(name, charts) {
  const rows = [["chart", "run", "field", "kind", "step", "x", "value", "min", "max"]];
  for (const { chart, lines } of charts) {
    for (const line of lines) {
      line.x.forEach((x, i) => rows.push([chart.title, line.run, line.label, line.role, line.steps[i], x, line.y[i], line.low?.[i] ?? "", line.high?.[i] ?? ""]));
    }
  }
  download(`${name}.csv`, new Blob([rows.map((row) => row.map(cell).join(",")).join("\r\n"), "\r\n"], { type: "text/csv" }));
}

/** Quotes a cell if it must be. A text that a spreadsheet would take for a formula gets an apostrophe. */
function cell(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const svgOf = (figure) => window.Plotly.toImage(figure, { format: "svg", ...SIZE });

async function saveSvg(name, figure) {
  const address = await svgOf(figure);
  download(`${name}.svg`, new Blob([decodeURIComponent(address.slice(address.indexOf(",") + 1))], { type: "image/svg+xml" }));
}

async function savePng(name, figure) {
  const picture = new Image();
  picture.src = await svgOf(figure);
  await picture.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: PIXELS * SIZE.width, height: PIXELS * SIZE.height });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => download(`${name}.png`, blob), "image/png");
}

function download(name, blob) {
  const link = element("a", "", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
