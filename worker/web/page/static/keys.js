// Keys: `?` lists them, `/` searches, j and k move through rows, g and a letter opens a view. An element with data-key
// has a key of its own, which presses it. `?` lists the keys that do something in the view.
const GO_MS = 1200;
const ROWS = "[data-row] [data-open]";
const SEARCH = "[data-search]";
const RUNS = "[data-go=r]";
const OF_LISTS = [
  ["j  k", "next and previous row", ROWS],
  ["Enter", "open the row", ROWS],
  ["x", "select the row", "[data-row] input.pick"],
];
let goUntil = 0;

export function keys() {
  document.addEventListener("keydown", press);
  document.addEventListener("click", (event) => event.target.closest("[data-help]") && help());
  if (location.hash === "#search") focusOn(SEARCH)?.();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const field = event.target.closest("input:not([type=checkbox], [type=range]), textarea, select, [contenteditable]");
  if (field) {
    if (event.key === "Escape") field.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const action = find(event.key);
  if (!action) return;
  event.preventDefault();
  action();
}

function find(key) {
  if (Date.now() < goUntil) {
    goUntil = 0;
    const link = document.querySelector(`[data-go="${CSS.escape(key)}"]`);
    return link && (() => link.click());
  }
  if (key === "g") return () => (goUntil = Date.now() + GO_MS);
  if (key === "?") return help;
  if (key === "/") return focusOn(SEARCH) ?? searchRuns();
  if (key === "j") return () => move(1);
  if (key === "k") return () => move(-1);
  if (key === "x") return pick();
  const own = [...document.querySelectorAll(`[data-key="${CSS.escape(key)}"]`)].find((one) => one.offsetParent);
  return own && (() => own.click());
}

function focusOn(selector) {
  const field = document.querySelector(selector);
  return field && (() => (field.focus(), field.select?.()));
}

// A view without a search has that of runs.
function searchRuns() {
  const link = document.querySelector(RUNS);
  return link && (() => location.assign(`${link.href}#search`));
}

function move(step) {
  const rows = [...document.querySelectorAll(ROWS)];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement?.closest("[data-row]")?.querySelector("[data-open]"));
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step));
  rows[next].focus();
  rows[next].scrollIntoView({ block: "nearest" });
}

function pick() {
  const box = document.activeElement?.closest("[data-row]")?.querySelector("input.pick");
  return box && (() => box.click());
}

function help() {
  const list = document.querySelector("[data-keys]");
  const rows = [["?", "this list"]];
  const searched = [SEARCH, RUNS].findIndex((selector) => document.querySelector(selector));
  if (searched >= 0) rows.push(["/", searched ? "search runs" : "search"]);
  for (const [key, text, selector] of OF_LISTS) if (document.querySelector(selector)) rows.push([key, text]);
  for (const link of document.querySelectorAll("[data-go]")) rows.push([`g ${link.dataset.go}`, link.textContent.trim()]);
  for (const one of document.querySelectorAll("[data-key]"))
    if (one.offsetParent) rows.push([one.dataset.key, one.dataset.keyName ?? one.textContent.trim()]);
  list.replaceChildren(
    ...rows.map(([key, text]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      const about = document.createElement("dd");
      for (const part of key.split(/\s+/)) term.append(Object.assign(document.createElement("kbd"), { textContent: part }));
      about.textContent = text;
      row.append(term, about);
      return row;
    }),
  );
  document.getElementById("keys").showModal();
}
