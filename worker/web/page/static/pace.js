// The slider of a pace: its places are powers, because 10 rows a second and 10,000 are both of use. A move sets the pace
// at once, and the walk obeys within a batch. The right end is no limit.
const SEND_MS = 250;
const LEAST = 1;

export function pace() {
  begin();
  document.addEventListener("page:update", begin);
}

function begin() {
  for (const form of document.querySelectorAll("form[data-pace]:not([data-own-begun])")) start(form);
}

function start(form) {
  form.dataset.ownBegun = "";
  const slider = form.querySelector("input[type=range]");
  const field = form.querySelector("[name=rows_per_second]");
  const most = Number(slider.dataset.most);
  const note = form.querySelector("[data-pace-note]");
  let timer = 0;
  const read = () => document.querySelector("[data-pace-now]")?.dataset.paceNow;
  let known = read() ?? field.value; // the pace that was set when the field was changed
  let isTyped = field.value !== known; // and it was not sent
  let sent = "";
  slider.closest("label").hidden = false;
  const slide = (value) => {
    const place = value > LEAST ? (99 * Math.log(value / LEAST)) / Math.log(most / LEAST) : 0;
    slider.value = value === "" ? 100 : Math.min(99, place);
    slider.setAttribute("aria-valuetext", value === "" ? "no limit" : `${value} rows a second`);
  };
  const show = (value) => {
    field.value = value;
    slide(value);
  };
  field.addEventListener("input", () => {
    isTyped = field.value !== known;
    slide(field.value);
  });
  form.addEventListener("submit", () => (sent = field.value));
  form.addEventListener("order:done", () => {
    known = sent;
    isTyped = field.value !== sent;
    note.textContent = "";
  });
  const send = () => {
    if (form.hasAttribute("data-ordering")) timer = setTimeout(send, SEND_MS);
    else form.requestSubmit();
  };
  slider.addEventListener("input", () => {
    const place = Number(slider.value);
    // Two digits: 7.6, 430, 1200.
    show(place === 100 ? "" : Number((LEAST * (most / LEAST) ** (place / 99)).toPrecision(2)));
    isTyped = true;
    slider.value = place;
    clearTimeout(timer);
    timer = setTimeout(send, SEND_MS);
  });
  document.addEventListener("page:update", () => {
    const now = read();
    if (now === undefined || form.hasAttribute("data-ordering")) return;
    const isChanged = isTyped && now !== known && now !== field.value;
    const text = isChanged ? `Changed meanwhile: ${now === "" ? "no limit" : `${now} rows/s`}.` : "";
    if (note.textContent !== text) note.textContent = text;
    if (isTyped || [field, slider].includes(document.activeElement)) return;
    known = now;
    show(now);
  });
  show(field.value);
}
