// Values that outlive a reload, as JSON. A browser may refuse storage, or have no room left.

const PREFIX = "mlxgpt.";

export function recall(name, fallback, store = localStorage) {
  try {
    return JSON.parse(store.getItem(PREFIX + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

// Returns whether the value was stored.
export function keep(name, value, store = localStorage) {
  try {
    store.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
