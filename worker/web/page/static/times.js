// Relative times count on, in the words of the server (text.py).
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

export function times() {
  updateTimes();
  setInterval(updateTimes, 1000);
}

export function updateTimes() {
  const now = Date.now();
  for (const element of document.querySelectorAll("time[datetime]")) {
    const text = ago((now - Date.parse(element.dateTime)) / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
}

function ago(seconds) {
  const [size, unit] = UNITS.find(([one]) => Math.abs(seconds) >= one) ?? UNITS[3];
  const count = Math.floor(Math.abs(seconds) / size);
  if (!count) return "now";
  return seconds > 0 ? `${count} ${unit} ago` : `in ${count} ${unit}`;
}
