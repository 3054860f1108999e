// The list of questions, kept up to date while it is looked at.

import { announce, go, onKeys, press, step, tell, untell } from "./console.js";
import { forgetOld, unsent } from "./drafts.js";

const EVERY_MS = 3000;
const rows = () => [...document.querySelectorAll("[data-row]")];
let shown = document.getElementById("live").outerHTML;
let lost = false;

async function refresh() {
  if (document.hidden) return;
  const address = new URL(location.href);
  address.searchParams.set("part", "1");
  const response = await fetch(address, { redirect: "error", signal: AbortSignal.timeout(20000) }).catch(() => null);
  if (response?.ok) {
    show(await response.text());
    if (lost) untell();
    lost = false;
  } else if (!lost) {
    lost = true;
    tell(response?.status === 403
      ? "The server was started anew. Open the address that it printed."
      : "The list is not up to date: the server does not answer. It is tried again every few seconds.");
  }
}

function show(text) {
  if (text.trim() === shown.trim()) return;
  shown = text;
  const before = document.getElementById("live");
  const after = new DOMParser().parseFromString(text, "text/html").getElementById("live");
  if (!after) return;
  const n_new = Number(after.dataset.total) - Number(before.dataset.total);
  const here = document.activeElement;
  const address = before.contains(here) ? here.getAttribute("href") : null;
  before.replaceWith(after);
  if (address) [...after.querySelectorAll("a")].find((link) => link.getAttribute("href") === address)?.focus();
  if (n_new > 0) announce(n_new === 1 ? "A new question" : `${n_new} new questions`);
}

function tellUnsent() {
  const [id, ...others] = unsent.all();
  if (id === undefined) return;
  const open = () => go(`/question?id=${id}`);
  tell(others.length ? `${others.length + 1} answers were not sent.` : "An answer was not sent.", [["Open the question", open]]);
}

forgetOld();
tellUnsent();
setInterval(refresh, EVERY_MS);
document.addEventListener("visibilitychange", refresh);
onKeys({
  j: () => step(rows(), 1),
  k: () => step(rows(), -1),
  n: () => { document.querySelector("[data-next]").click(); return true; },
  u: () => press("[data-undo]"),
});
