// The dashboard: connects the data, the list of runs, the charts and the panels.

import { allLines, redrawCharts, showCharts, shownLosses } from "./charts.js";
import { follow, load, points, Refused, runs, server } from "./data.js";
import { duration, element, short, shortener } from "./format.js";
import { connectList, drawList, shownRuns } from "./list.js";
import { drawPanels } from "./panels.js";
import { saveData } from "./save.js";
import { assign } from "./style.js";
import { change, reread, view } from "./view.js";

const part = (id) => document.getElementById(id);
let answered = 0; // time of the last answer, in milliseconds

/** Draws everything, or with a set of names what depends on these runs. */
function draw(changed = null) {
  const names = shownRuns();
  assign(names);
  const shorten = shortener([...runs.keys()]);
  drawList(names, shorten, choose);
  drawPanels(names, changed, shorten);
  showCharts(names.filter((name) => points.has(name)), changed, shorten, drawControls);
  drawControls();
  const missing = (view.runs ?? []).filter((name) => !runs.has(name));
  part("empty").hidden = names.length > 0;
  part("empty").textContent = missing.length && !server.unread
    ? `no such run: ${missing.join(", ")}`
    : runs.size ? "no run is shown; choose runs in the list" : `no runs yet in ${server.paths.join(", ")}; a run appears here when its training begins`;
}

async function choose(names) {
  change({ runs: names }, true);
  draw();
  try {
    await Promise.all(names.map((name) => load(name)));
    draw();
  } catch (error) {
    fail(error);
  }
}

function drawControls() {
  for (const name of ["x", "y", "smooth"]) part(name).value = view[name];
  part("xlog").checked = view.xlog;
  if (document.activeElement !== part("metric")) part("metric").value = view.charts;
  part("smoothed").textContent = Number(view.smooth).toFixed(2);
  for (const [i, name] of ["low", "high"].entries()) {
    // A number that is being typed is not replaced.
    if (document.activeElement !== part(name)) part(name).value = view.losses ? Number(view.losses[i].toPrecision(4)) : "";
  }
  part("whole").hidden = view.range === null && view.losses === null;
}

/** The range of losses in the two fields. An empty field is the end of what the chart shows. */
function typedLosses() {
  const shown = shownLosses();
  const [low, high] = ["low", "high"].map((name, i) => (part(name).value === "" ? shown[i] : Number(part(name).value)));
  return low < high ? [low, high] : null;
}

function connect() {
  for (const name of ["x", "y", "smooth"]) {
    part(name).addEventListener("input", () => {
      change(name === "x" ? { x: part("x").value, range: null } : { [name]: name === "smooth" ? Number(part(name).value) : part(name).value });
      draw();
    });
  }
  part("metric").addEventListener("input", () => { change({ charts: part("metric").value }); draw(); });
  part("xlog").addEventListener("change", () => { change({ xlog: part("xlog").checked }); draw(); });
  for (const name of ["low", "high"]) part(name).addEventListener("input", () => { change({ losses: typedLosses() }); draw(); });
  part("whole").addEventListener("click", () => { change({ range: null, losses: null }, true); draw(); });
  part("data").addEventListener("click", () => saveData("runs", allLines()));
  part("controls").addEventListener("submit", (event) => event.preventDefault());
  part("access").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", part("key").value);
    location.reload();
  });
  const adopt = connectList(choose, () => draw());
  window.addEventListener("hashchange", () => { reread(); adopt(); draw(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); redrawCharts(); });
}

/** Loads plotly.js, of 5 MB, after the numbers are on the screen. */
function loadPlotly() {
  const script = element("script", "", { src: "plotly.js" });
  script.addEventListener("load", redrawCharts);
  script.addEventListener("error", () => fail(new Error("plotly.js is not there")));
  document.head.append(script);
}

function succeed(changed) {
  if (!answered) requestAnimationFrame(() => setTimeout(loadPlotly));
  answered = Date.now();
  part("fault").hidden = true;
  part("access").hidden = true;
  const training = [...runs.values()].filter((run) => run.state === "training").length;
  const status = `${runs.size} run${runs.size === 1 ? "" : "s"}, ${training} training${server.unread ? `; ${short(server.unread)} bytes still to read` : ""}`;
  if (part("status").textContent !== status) part("status").textContent = status;
  draw(changed);
}

function fail(error) {
  const since = answered ? `, no answer for ${duration((Date.now() - answered) / 1000)}` : "";
  part("fault").hidden = false;
  part("fault").textContent = error instanceof Refused ? error.message : `the dashboard does not answer${since}; start it again with: mlxgpt watch`;
  part("access").hidden = error.status !== 401;
  if (!(error instanceof Refused) && error.name === "TypeError" && !/fetch/i.test(error.message)) throw error;
}

connect();
drawControls();
follow(shownRuns, succeed, fail);
