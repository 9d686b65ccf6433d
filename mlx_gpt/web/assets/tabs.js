// Tabs that the arrow keys move between, as in the ARIA Authoring Practices. Only the chosen tab is in the tab order.

// `list` is an element with role tablist. `onChoose(tab)` is called when the user chooses another tab.
// Returns a function that chooses a tab without that call.
export function tabs(list, onChoose) {
  const all = () => [...list.querySelectorAll("[role=tab]")];
  const choose = (tab) => {
    for (const other of all()) {
      other.setAttribute("aria-selected", other === tab);
      other.tabIndex = other === tab ? 0 : -1;
    }
  };
  const change = (tab) => {
    if (!tab || tab.disabled || tab.getAttribute("aria-selected") === "true") return;
    choose(tab);
    onChoose(tab);
  };
  list.addEventListener("click", (event) => change(event.target.closest("[role=tab]")));
  list.addEventListener("keydown", (event) => {
    const open = all().filter((tab) => !tab.disabled), now = open.indexOf(document.activeElement);
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1 + open.length, Home: 0, End: open.length - 1 }[event.key];
    if (to === undefined || now < 0) return;
    event.preventDefault();
    open[to % open.length].focus();
    change(open[to % open.length]);
  });
  return choose;
}
