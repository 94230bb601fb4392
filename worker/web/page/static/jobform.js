// Sends the form of a job without an entry in the history, so that Back never asks to send it again. If the job was
// enqueued, the page of the run follows; else the answer takes the place of what is shown, and the first fault has focus.
import { morph } from "./morph.js";
import { LOST, toast } from "./orders.js";
import { updateTimes } from "./times.js";

const FORM = "form[data-lines]";

export function jobForm() {
  document.addEventListener("submit", (event) => {
    const form = event.target.closest(FORM);
    if (!form) return;
    event.preventDefault();
    if (!form.hasAttribute("aria-busy")) send(form, event.submitter);
  });
  addEventListener("pageshow", () => document.querySelector(FORM)?.removeAttribute("aria-busy"));
}

async function send(form, submitter) {
  const address = new URL(submitter?.getAttribute("formaction") ?? form.getAttribute("action"), location);
  const body = new URLSearchParams(new FormData(form, submitter));
  form.setAttribute("aria-busy", "true");
  try {
    const headers = { Accept: "text/html, application/json" };
    const response = await fetch(address, { method: "POST", body, headers });
    if (response.headers.get("Content-Type").startsWith("text/html")) show(await response.text(), address.hash);
    else {
      const { place, text } = await response.json();
      if (place) return location.assign(place); // the form stays busy
      toast(text, "problem");
    }
  } catch {
    toast(LOST, "problem");
  }
  form.removeAttribute("aria-busy");
}

function show(html, hash) {
  const main = document.getElementById("main");
  morph(main, new DOMParser().parseFromString(html, "text/html").getElementById("main").innerHTML);
  updateTimes();
  document.dispatchEvent(new Event("page:update"));
  const faults = main.querySelectorAll(`${FORM} [aria-invalid=true]`);
  if (faults.length) toast(`${faults.length} field${faults.length > 1 ? "s are" : " is"} not valid.`, "problem");
  const place = faults[0] ?? main.querySelector("#enqueue [role=alert]") ?? document.getElementById(hash.slice(1));
  place?.focus();
  place?.scrollIntoView({ block: faults.length ? "center" : "start" });
}
