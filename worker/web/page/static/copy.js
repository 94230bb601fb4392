import { toast } from "./orders.js";

export function copy() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      toast("Copied.");
    } catch {
      getSelection().selectAllChildren(code); // no clipboard without TLS: the text is selected
      toast("Selected: copy it with your keyboard.");
    }
  });
}
