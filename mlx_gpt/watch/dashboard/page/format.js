// Numbers, durations and names as text.

const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** 1234567 -> "1.23M". */
export function short(value) {
  if (value == null) return "-";
  for (const [size, unit] of units) if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  return String(Number(value.toPrecision(4)));
}

/** A loss with four decimals, or with four digits if it is large. */
export function loss(value) {
  if (value == null) return "-";
  return Math.abs(value) < 1000 ? value.toFixed(4) : value.toPrecision(4);
}

/** Bytes -> "0.74 GB". */
export function bytes(value) {
  return value == null ? "-" : value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(1)} MB`;
}

/** Seconds -> "0:13", "2:03:20" or "3 d 4 h". */
export function duration(seconds) {
  if (seconds == null) return "-";
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** The names of runs without the folders that all of them share. Returns a function from name to short name. */
export function shortener(names) {
  const first = names[0] ?? "";
  let size = first.lastIndexOf("/") + 1;
  while (size && !names.every((name) => name.startsWith(first.slice(0, size)))) {
    size = first.lastIndexOf("/", size - 2) + 1;
  }
  return (name) => name.slice(size);
}

/** An element with text. Text of a run is inserted only by this function, so it is never markup. */
export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
