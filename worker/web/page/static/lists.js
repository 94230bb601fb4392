// Selection of many rows, and filters that act at once.
export function lists() {
  document.addEventListener("change", (event) => {
    const { target } = event;
    if (target.matches("[data-pick-all]")) {
      for (const box of boxes(target.closest("table"))) box.checked = target.checked;
    }
    if (target.matches("[data-submit]")) target.form.requestSubmit();
    if (target.matches("input.pick")) count();
  });
  document.addEventListener("page:update", count);
  document.addEventListener("page:update", tail);
  tail();
  document.addEventListener("order:done", (event) => {
    if (event.target.id !== "bulk") return;
    for (const box of boxes()) box.checked = false;
    count();
  });
  count();
}

// A log stays at its end, unless the visitor has scrolled up.
function tail() {
  for (const log of document.querySelectorAll("[data-tail]")) {
    const seen = Number(log.dataset.ownSeen ?? log.scrollHeight);
    if (log.dataset.ownSeen === undefined || log.scrollTop + log.clientHeight >= seen - 40) log.scrollTop = log.scrollHeight;
    log.dataset.ownSeen = log.scrollHeight;
  }
}

function boxes(place = document) {
  return [...place.querySelectorAll("input.pick[form=bulk]")];
}

function count() {
  const form = document.getElementById("bulk");
  if (!form) return;
  const picked = boxes().filter((box) => box.checked).length;
  form.classList.toggle("has-some", picked > 0);
  const text = form.querySelector("[data-picked]");
  text.dataset.empty ??= text.textContent;
  text.textContent = picked ? `${picked} selected` : text.dataset.empty;
  for (const button of form.querySelectorAll("button")) button.disabled = !picked;
  for (const whole of document.querySelectorAll("[data-pick-all]")) {
    const own = boxes(whole.closest("table"));
    const some = own.filter((box) => box.checked).length;
    whole.checked = some > 0 && some === own.length;
    whole.indeterminate = some > 0 && some < own.length;
  }
}
