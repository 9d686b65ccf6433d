// Connects the parts of the page.

import { loadCards, loadExamples, showCard } from "./card.js";
import { Chat } from "./chat.js";
import { asCurl, asPython } from "./code.js";
import { Compare } from "./compare.js";
import { Complete } from "./complete.js";
import { $ } from "./dom.js";
import { Follower } from "./follow.js";
import { busy, run, status, stop, tell } from "./session.js";
import { keepSettings, recallSettings, resetSettings } from "./settings.js";
import { Sheet } from "./sheet.js";
import { say } from "./speech.js";
import { keep, recall } from "./storage.js";
import { Strip } from "./strip.js";
import { tabs } from "./tabs.js";
import { chosenToken, hideTip, showTip } from "./tip.js";
import { neighbour } from "./tokens.js";

const follower = new Follower($("end"), $("scroll"), $("composer"));
const strip = new Strip($("strip"), reveal);
const sheet = new Sheet($("text"), $("mirror"), () => (hideTip(), refresh()));
const modes = {
  complete: new Complete(sheet, follower),
  compare: new Compare(sheet, follower, reveal, (last) => (modes.complete.last = last)),
  chat: new Chat(follower, copy),
};
let mode = modes.complete;

// -- display ------------------------------------------------------------------------------------------------------

// Updates buttons, labels and the strip to the mode, its text, and whether a text is being generated.
function refresh() {
  const chat = mode === modes.chat;
  for (const element of document.querySelectorAll("[data-in]")) element.hidden = !element.dataset.in.split(" ").includes(nameOf(mode));
  $("write-label").textContent = busy() ? "Stop" : mode.writeLabel;
  $("write").querySelector("kbd").textContent = busy() ? "Esc" : chat ? "\u23ce" : `${MODIFIER}\u23ce`;
  $("write").setAttribute("aria-keyshortcuts", busy() ? "Escape" : chat ? "Enter" : "Control+Enter");
  $("again").disabled = busy() || !mode.canAgain;
  $("clear").disabled = $("copy").disabled = busy() || mode.isEmpty;
  $("curl").disabled = $("python").disabled = busy();
  for (const tab of document.querySelectorAll("[role=tab]")) tab.disabled = busy();
  $("hint").hidden = !(mode.isEmpty && (chat || !sheet.text));
  $("used").textContent = mode.used ?? "none yet";
  $("use-seed").disabled = mode.used === undefined;
  $("legend").hidden = !$("tint").checked || mode.isEmpty;
  for (const name of ["mirror", "turns", "columns"]) $(name).classList.toggle("tinted", $("tint").checked);
  mode === modes.complete && mode.redraw();
  document.querySelector(".sheet").classList.toggle("short", mode === modes.compare);
  strip.show(mode.spans);
}

const nameOf = (mode) => Object.keys(modes).find((name) => modes[name] === mode);

function enter(name) {
  mode = modes[name];
  keep("mode", name);
  $("panel").setAttribute("aria-labelledby", `tab-${name}`);
  hideTip();
  tell(null);
  status("");
  refresh();
}

// Brings a token into view, and shows its tip.
function reveal(span) {
  span.scrollIntoView({ block: "center" });
  const mark = sheet.marks.find((mark) => mark.span === span);
  mark ? pin(mark) : showTip(span);
}

// -- the tip ------------------------------------------------------------------------------------------------------

// Shows the tip of a token of the sheet so that it stays. In Complete, its rows replace the token.
function pin(mark, takeFocus = false) {
  const choose = (name) => {
    hideTip();
    $("text").focus({ preventScroll: true });
    work((signal) => modes.complete.choose(signal, mark, name));
  };
  showTip(mark.span, mode === modes.complete && !busy() ? choose : undefined);
  if (takeFocus) ($("tip").querySelector("button.drawn") ?? $("tip").querySelector("button"))?.focus();
}

// Where the pointer was. Browsers send events without a movement when the page moves under a resting pointer.
let pointer = "";

function tokenUnder(event) {
  return document.elementsFromPoint(event.clientX, event.clientY).find((element) => element.told);
}

$("scroll").addEventListener("pointermove", (event) => {
  const at = `${event.clientX},${event.clientY}`;
  if (at === pointer || event.pointerType === "touch" || $("tip").classList.contains("pinned") && !$("tip").hidden) return;
  pointer = at;
  const span = tokenUnder(event);
  if (span !== chosenToken()) span ? showTip(span) : hideTip();
});
$("scroll").addEventListener("pointerleave", () => $("tip").classList.contains("pinned") || hideTip());
$("scroll").addEventListener("click", (event) => {
  const span = tokenUnder(event), mark = sheet.marks.find((mark) => mark.span === span);
  if (!span) return hideTip();
  mark ? pin(mark) : showTip(span);
});
$("scroll").addEventListener("scroll", () => $("tip").contains(document.activeElement) || hideTip());
document.addEventListener("focusout", (event) => event.target.classList.contains("written") && hideTip());
$("card").addEventListener("toggle", hideTip);
addEventListener("resize", hideTip);

// -- actions ------------------------------------------------------------------------------------------------------

function work(task) {
  hideTip();
  return run(task, refresh).then(() => follower.grown());
}

const write = () => (busy() ? stop() : mode.canWrite ? work((signal) => mode.write(signal)) : $("message").focus());

const again = () => busy() || !mode.canAgain || work((signal) => mode.again(signal));

async function copy(text, what = "the text") {
  try {
    await navigator.clipboard.writeText(text);
    status(`copied ${what}`);
    say(`Copied ${what}.`);
  } catch {
    tell(text); // the browser denied access to the clipboard: show the text, so that the user can copy it
  }
}

function copyAs(write, name) {
  try {
    const request = mode.request();
    copy(write(request, $("key").value), `the request of the ${request.body.seed && mode.used ? "last" : "next"} text as ${name}`);
  } catch (error) {
    tell(error.message);
  }
}

async function load() {
  try {
    await loadCards();
    await changeModel();
    tell(null);
  } catch (error) {
    tell(error.message);
  }
}

async function changeModel() {
  showCard();
  await loadExamples((text) => {
    sheet.replace(0, sheet.text.length, text);
    $("text").focus();
  });
  refresh();
}

$("composer").addEventListener("submit", (event) => (event.preventDefault(), write()));
$("again").addEventListener("click", again);
$("clear").addEventListener("click", () => (mode.clear(), status(""), refresh()));
$("copy").addEventListener("click", () => copy(mode.copied));
$("curl").addEventListener("click", () => copyAs(asCurl, "curl"));
$("python").addEventListener("click", () => copyAs(asPython, "Python"));
$("use-seed").addEventListener("click", () => (($("seed").value = mode.used), keepSettings()));
$("reset").addEventListener("click", () => (resetSettings(), refresh()));
$("settings").addEventListener("input", keepSettings);
$("tint").addEventListener("change", refresh);
$("key").addEventListener("change", () => (keepSettings(), load()));
$("model-choice").addEventListener("change", () => (keep("model", $("model-choice").value), changeModel()));
modes.chat.onChange = refresh;
for (const id of ["text", "message"])
  $(id).addEventListener("keydown", (event) => {
    const sends = id === "message" ? !event.shiftKey : event.ctrlKey || event.metaKey;
    if (event.key === "Enter" && sends && !event.isComposing && !busy()) (event.preventDefault(), event.shiftKey ? again() : write());
  });
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown" || !event.altKey) return;
  const at = $("text").selectionStart, mark = sheet.markAt(at) ?? sheet.markAt(at - 1);
  event.preventDefault();
  mark ? pin(mark, true) : say("The model did not write this part of the text.");
});
$("tip").addEventListener("keydown", (event) => {
  const to = neighbour([...$("tip").querySelectorAll("button")], document.activeElement, { ArrowDown: "ArrowRight", ArrowUp: "ArrowLeft" }[event.key]);
  if (to) (event.preventDefault(), to.focus());
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") busy() ? stop() : hideTip() && $("text").focus({ preventScroll: true });
  const group = document.activeElement.closest(".written");
  const to = group && neighbour([...group.querySelectorAll(".token")], chosenToken(), event.key);
  if (!to) return;
  event.preventDefault();
  showTip(to);
  say($("tip").getAttribute("aria-label"));
});
addEventListener("pagehide", () => Object.values(modes).forEach((mode) => mode.keep()));

// -- start --------------------------------------------------------------------------------------------------------

const MODIFIER = /Mac|iPhone|iPad/.test(navigator.platform) ? "\u2318" : "Ctrl ";
for (const key of document.querySelectorAll("kbd[data-modifier]")) key.prepend(MODIFIER);
$("settings").open = matchMedia("(min-width: 64rem)").matches;
const chooseTab = tabs($("tabs"), (tab) => enter(tab.dataset.mode));
recallSettings();
Object.values(modes).forEach((mode) => mode.recall());
const first = recall("mode", "complete");
chooseTab($(`tab-${first in modes ? first : "complete"}`));
enter(first in modes ? first : "complete");
load();
