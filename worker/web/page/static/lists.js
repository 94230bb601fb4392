// Selection of many rows, and filters that act at once.
export function lists() {
  document.addEventListener("change", (event) => {
    const { target } = event;
    if (target.matches("[data-pick-all]")) {
      for (const box of boxes()) box.checked = target.checked;
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

function boxes() {
  return document.querySelectorAll("input.pick[form=bulk]");
}

function count() {
  const form = document.getElementById("bulk");
  if (!form) return;
  const all = [...boxes()];
  const picked = all.filter((box) => box.checked).length;
  form.classList.toggle("has-some", picked > 0);
  const text = form.querySelector("[data-picked]");
  text.dataset.empty ??= text.textContent;
  text.textContent = picked ? `${picked} selected` : text.dataset.empty;
  for (const button of form.querySelectorAll("button")) button.disabled = !picked;
  const whole = document.querySelector("[data-pick-all]");
  if (whole) {
    whole.checked = picked > 0 && picked === all.length;
    whole.indeterminate = picked > 0 && picked < all.length;
  }
}
