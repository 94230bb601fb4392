// Sends the form of an order, says what was done, and reads the page again. Without scripts the form does it itself.
import { refresh } from "./live.js";

const TOAST_MS = 6000;
export const LOST = "The server does not answer: nothing is known of the order. Look, and repeat it.";

export function orders() {
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-order]");
    if (!form) return;
    event.preventDefault();
    give(form, event.submitter);
  });
}

async function give(form, submitter) {
  const address = submitter?.getAttribute("formaction") ?? form.getAttribute("action");
  const fields = new URLSearchParams(new FormData(form, submitter));
  if (form.hasAttribute("data-ordering")) return;
  form.setAttribute("data-ordering", "");
  try {
    const { isDone, text, links } = await post(address, fields);
    toast(text, isDone ? "" : "problem", links);
    if (!isDone) return;
    (submitter ?? form).closest("[popover]")?.hidePopover();
    form.dispatchEvent(new Event("order:done", { bubbles: true }));
    await refresh();
  } finally {
    form.removeAttribute("data-ordering");
  }
}

export async function post(address, fields) {
  try {
    const response = await fetch(address, { method: "POST", body: fields, headers: { Accept: "application/json" } });
    const { text, links } = await response.json();
    return { isDone: response.ok, text, links };
  } catch {
    return { isDone: false, text: LOST };
  }
}

// `links` are names in the text with their addresses, in the order of the text.
export function toast(text, kind = "", links = []) {
  const note = document.createElement("p");
  let rest = text;
  for (const [name, href] of links) {
    const at = rest.indexOf(name);
    if (at < 0) continue;
    note.append(rest.slice(0, at), Object.assign(document.createElement("a"), { href, textContent: name }));
    rest = rest.slice(at + name.length);
  }
  note.append(rest);
  note.className = kind;
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), kind || links.length ? TOAST_MS * 2 : TOAST_MS);
}
