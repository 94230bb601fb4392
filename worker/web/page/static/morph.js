// Changes an element so that it equals some HTML, and leaves alone what is equal: focus, selection and scroll stay.

export function morph(element, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  mergeChildren(element, template.content);
}

// `id` of a form is its field of that name, if it has one.
function idOf(node) {
  return node.getAttribute?.("id");
}

function mergeChildren(from, to) {
  const known = new Map();
  for (const child of from.children) if (idOf(child)) known.set(idOf(child), child);
  let at = from.firstChild;
  for (const next of [...to.childNodes]) {
    let match = null;
    if (idOf(next)) match = known.get(idOf(next)) ?? null;
    else if (at && !idOf(at) && at.nodeType === next.nodeType && at.nodeName === next.nodeName) match = at;
    if (!match) {
      from.insertBefore(next, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else from.insertBefore(match, at);
    mergeNode(match, next);
  }
  while (at) {
    const rest = at.nextSibling;
    at.remove();
    at = rest;
  }
}

function mergeNode(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return;
  }
  if (from.hasAttribute("data-keep")) return;
  for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  for (const { name } of [...from.attributes]) {
    // The visitor has opened it, or the script has set it.
    if (!to.hasAttribute(name) && name !== "open" && !name.startsWith("data-own")) from.removeAttribute(name);
  }
  mergeChildren(from, to);
}
