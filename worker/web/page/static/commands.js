// Shows an order as command lines: of a form, before it is sent, or of the form of a job, while it is filled in.
const WAIT_MS = 300;
let timer = 0;

export function commands() {
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (!button?.matches("[data-command], [data-lines-button]")) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // it orders nothing
    if (button.matches("[data-command]")) show(event.target, button);
    else update(event.target, button, true);
  });
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form[data-lines]");
    const out = form?.querySelector("[data-lines-out]");
    if (!out || out.hidden) return;
    clearTimeout(timer);
    timer = setTimeout(() => update(form, form.querySelector("[data-lines-button]"), false), WAIT_MS);
  });
}

async function ask(form, button) {
  const address = button.getAttribute("formaction") ?? form.getAttribute("action");
  const body = new URLSearchParams(new FormData(form, button));
  try {
    const response = await fetch(address, { method: "POST", body, headers: { Accept: "application/json" } });
    return await response.json();
  } catch {
    return { text: "The server does not answer." };
  }
}

async function show(form, button) {
  const answer = await ask(form, button);
  const dialog = document.getElementById("lines");
  fill(dialog.querySelector(".commands"), answer);
  dialog.querySelector("h2").textContent = button.getAttribute("aria-label");
  dialog.showModal();
}

async function update(form, button, isPressed) {
  const answer = await ask(form, button);
  const out = form.querySelector("[data-lines-out]");
  fill(out, answer);
  out.hidden = false;
  if (isPressed) out.querySelector("button")?.focus();
}

function fill(place, { lines = [], problems = {}, problem, text }) {
  const faults = [...Object.entries(problems ?? {}).map(([name, one]) => `${name}: ${one}`), problem, text].filter(Boolean);
  place.replaceChildren(
    ...faults.map((one) => Object.assign(document.createElement("p"), { className: "problem", textContent: one })),
    ...lines.map((line) => {
      const row = document.createElement("p");
      if (line.startsWith("# ")) {
        row.append(Object.assign(document.createElement("span"), { className: "hint", textContent: line.slice(2) }));
        return row;
      }
      const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet" });
      button.dataset.copy = "";
      button.setAttribute("aria-label", "Copy");
      button.append(document.getElementById("copy-icon").content.cloneNode(true));
      row.append(Object.assign(document.createElement("code"), { textContent: line }), button);
      return row;
    }),
  );
}
