// The state of the runs, kept up to date: asks the server again and again for what has changed.

const PERIOD = 700; // milliseconds between requests
const MAX_FIRST = 50; // runs that the server reads first
const HIDDEN_PERIOD = 10_000; // while nobody looks at the page

/** name -> summary, as in /api/runs */
export const runs = new Map();
/** name -> { stamp, series }: the curves of a run that is or was shown. Each kind has width, bins and fields. */
export const points = new Map();
/** name -> { samples, alerts, settings } */
export const details = new Map();
/** The clock of the server, the bytes it has not read yet, and the folders it watches. */
export const server = { id: null, stamp: 0, now: 0, unread: 0, paths: [] };

export class Refused extends Error {}

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) for (const one of [value].flat()) query.append(name, one);
  const key = sessionStorage.getItem("key");
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(`api/${path}?${query}`, { headers, signal: AbortSignal.timeout(20_000) });
  const body = await response.json();
  if (!response.ok) throw Object.assign(new Refused(body.error.message), { status: response.status });
  return body;
}

/**
 * Calls `changed(names)` after each answer with the set of runs that changed, and `failed(error)` if there was none.
 * `shown()` returns the names of the runs whose curves are needed.
 */
export async function follow(shown, changed, failed) {
  for (;;) {
    try {
      const names = await refresh(shown());
      if (!points.size) changed(new Set()); // the list, before the curves
      await Promise.all(shown().map((name) => load(name, names)));
      changed(names);
    } catch (error) {
      failed(error);
    }
    await pause(server.unread ? 30 : document.hidden ? HIDDEN_PERIOD : PERIOD);
  }
}

/** Asks for the runs that have changed. The server reads the files of the given runs first. */
async function refresh(shown) {
  const found = await ask("runs", { after: server.stamp, run: server.unread ? shown.slice(0, MAX_FIRST) : [] });
  if (server.id !== null && server.id !== found.server) {
    for (const known of [runs, points, details]) known.clear();
    Object.assign(server, { id: null, stamp: 0 });
    return refresh(shown); // the stamps of another server mean nothing
  }
  Object.assign(server, { id: found.server, stamp: found.stamp, now: found.now, unread: found.unread, paths: found.paths });
  for (const run of found.runs) runs.set(run.run, run);
  return new Set(found.runs.map((run) => run.run));
}

/** Loads what is missing of a run. */
export async function load(name, names = new Set()) {
  const run = runs.get(name);
  if (!run) return;
  if ((points.get(name)?.stamp ?? -1) < run.stamp) {
    merge(await ask("points", { run: name, after: points.get(name)?.stamp ?? 0 }));
    names.add(name);
  }
  const held = details.get(name);
  if (!held || held.num_samples !== run.samples || held.num_alerts !== run.alerts || held.settings_stamp !== run.settings_stamp) {
    const found = await ask("details", { run: name });
    details.set(name, { ...found, num_samples: run.samples, num_alerts: run.alerts, settings_stamp: run.settings_stamp });
    names.add(name);
  }
}

function merge(found) {
  const held = points.get(found.run);
  if (!held || found.whole) {
    points.set(found.run, { stamp: found.stamp, series: found.series });
    return;
  }
  held.stamp = found.stamp;
  for (const [kind, change] of Object.entries(found.series)) mergeSeries(held.series[kind], change);
}

function mergeSeries(held, change) {
  const places = change.bins.map((bin) => place(held, bin));
  for (const [name, lists] of Object.entries(change.fields)) {
    held.fields[name] ??= [0, 1, 2].map(() => new Array(held.bins.length).fill(null));
    lists.forEach((values, which) => values.forEach((value, i) => { held.fields[name][which][places[i]] = value; }));
  }
}

/** The index of a bin, which is inserted in its order if it is new. */
function place(held, bin) {
  let at = held.bins.length;
  while (at && held.bins[at - 1] >= bin) at -= 1;
  if (held.bins[at] !== bin) {
    held.bins.splice(at, 0, bin);
    for (const lists of Object.values(held.fields)) for (const values of lists) values.splice(at, 0, null);
  }
  return at;
}

function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", done);
      resolve();
    }
    document.addEventListener("visibilitychange", done);
  });
}
