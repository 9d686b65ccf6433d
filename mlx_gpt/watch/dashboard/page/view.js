// What is shown, as held by the address of the page: a link restores the view.

const initial = { runs: null, x: "tokens", xlog: false, y: "linear", smooth: 0.9, sort: "newest", filter: "", charts: "", range: null, losses: null };

export const view = read();

/**
 * Changes the view and the address. `runs` is null while the newest runs are shown. The back button takes a change back
 * that is a step of the history.
 */
export function change(values, isStep = false) {
  Object.assign(view, values);
  const parts = Object.entries(view).filter(([name, value]) => String(value) !== String(initial[name])).map(write);
  const address = parts.length ? `#${parts.join("&")}` : location.pathname;
  if (isStep) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

export function reread() {
  Object.assign(view, read());
}

function write([name, value]) {
  const text = name === "runs" ? value.map(encodeURIComponent).join(",") : encodeURIComponent(value);
  return `${name}=${text}`;
}

function read() {
  const found = { ...initial };
  for (const part of location.hash.slice(1).split("&")) {
    const [name, text = ""] = part.split(/=(.*)/s);
    const value = decode(text);
    if (name === "runs") found.runs = text ? text.split(",").map(decode) : [];
    else if (name === "x" && ["tokens", "step", "elapsed"].includes(value)) found.x = value;
    else if (name === "y" && value === "log") found.y = value;
    else if (name === "xlog") found.xlog = value === "true";
    else if (name === "smooth" && value >= 0 && value < 1) found.smooth = Number(value);
    else if (["sort", "filter", "charts"].includes(name)) found[name] = value;
    else if (name === "range" || name === "losses") found[name] = interval(value);
  }
  return found;
}

/** "1,2.5" -> [1, 2.5]; null if it is no interval. */
function interval(text) {
  const ends = text.split(",").map((end) => (end.trim() ? Number(end) : NaN));
  return ends.length === 2 && ends.every(Number.isFinite) && ends[0] < ends[1] ? ends : null;
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a link that was cut
  }
}
