// One stream for the page. The server sends the regions that changed; silence means that what is shown is old.
import { morph } from "./morph.js";
import { updateTimes } from "./times.js";

const SILENCE_MS = 13000;
const HIDDEN_MS = 5000;
let source = null;
let heardAt = 0;
let asOf = new Date();
let timer = 0;

export function live() {
  if (!document.body.dataset.live) return;
  open();
  setInterval(check, 1000);
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    // A browser opens six connections to a server: pages in the background must not hold them.
    if (document.hidden) timer = setTimeout(close, HIDDEN_MS);
    else if (!source) open();
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
}

function open() {
  close();
  heardAt = Date.now();
  const address = new URL(document.body.dataset.live, location);
  address.searchParams.set("live", "1");
  source = new EventSource(address);
  source.addEventListener("regions", (event) => {
    const { regions, error, at } = JSON.parse(event.data);
    performance.mark("page-update");
    apply(regions);
    performance.measure("page-update", "page-update");
    heard(at, error);
  });
  source.addEventListener("alive", (event) => {
    const { error, at } = JSON.parse(event.data);
    heard(at, error);
  });
  source.addEventListener("error", () => {
    // The browser connects again by itself unless the server has refused: then the session may have ended.
    if (source?.readyState === EventSource.CLOSED) setTimeout(() => !document.hidden && open(), 3000);
    heardAt = Math.min(heardAt, Date.now() - SILENCE_MS);
    check();
  });
}

function close() {
  source?.close();
  source = null;
}

export function apply(regions) {
  for (const [name, html] of Object.entries(regions)) {
    const region = document.getElementById(`region-${name}`);
    if (region) morph(region, html);
  }
  updateTimes();
  document.dispatchEvent(new Event("page:update"));
}

// Reads the page again, after an order or without a stream.
export async function refresh() {
  const response = await fetch(document.body.dataset.live ?? location.href);
  if (!response.ok || response.redirected) return location.reload();
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const regions = {};
  for (const region of page.querySelectorAll("[data-region]")) regions[region.id.slice("region-".length)] = region.innerHTML;
  apply(regions);
}

function heard(at, error) {
  heardAt = Date.now();
  if (!error) asOf = new Date(at);
  tell(error ? `The servers do not answer: ${error}. Figures are those of ${clock(asOf)}.` : "");
}

function check() {
  if (document.hidden || Date.now() - heardAt < SILENCE_MS) return;
  tell(`The connection is lost. Figures are those of ${clock(asOf)}; connecting again…`);
}

function tell(trouble) {
  const banner = document.getElementById("stale");
  document.body.classList.toggle("is-stale", Boolean(trouble));
  document.body.classList.toggle("is-live", !trouble);
  document.querySelector("[data-link]").textContent = trouble ? "Old" : "Live";
  if (banner.textContent !== trouble) banner.textContent = trouble;
  banner.hidden = !trouble;
}

function clock(moment) {
  return moment.toISOString().slice(11, 19) + " UTC";
}
