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
  let timer = 0;
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
  field.addEventListener("input", () => slide(field.value));
  slider.addEventListener("input", () => {
    const place = Number(slider.value);
    // Two digits: 7.6, 430, 1200.
    show(place === 100 ? "" : Number((LEAST * (most / LEAST) ** (place / 99)).toPrecision(2)));
    slider.value = place;
    clearTimeout(timer);
    timer = setTimeout(() => form.requestSubmit(), SEND_MS);
  });
  document.addEventListener("page:update", () => {
    const now = document.querySelector("[data-pace-now]");
    if (now && ![field, slider].includes(document.activeElement) && !form.hasAttribute("data-ordering")) show(now.dataset.paceNow);
  });
  show(field.value);
}
