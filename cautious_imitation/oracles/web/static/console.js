// What the pages share: saying what happened, sending forms without losing them, single keys.

import { forget, unsent } from "./drafts.js";

const PATIENCE_MS = 20000;
const { mark } = document.body.dataset;
let leaving = false;

export const isLeaving = () => leaving;

/** Go to another page of the console. */
export function go(to) {
  leaving = true;
  location.assign(to);
}

/** Say something to those who hear the page. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  announcer.textContent = "";
  // A change is only heard if it comes after what was there before.
  requestAnimationFrame(() => { announcer.textContent = text; });
}

/** Show what went wrong, with buttons: `[["Send again", f], ...]`. */
export function tell(text, buttons = []) {
  const banner = document.getElementById("banner");
  const said = document.createElement("p");
  said.textContent = text;
  banner.replaceChildren(said, ...buttons.map(([name, act]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", act);
    return button;
  }));
  banner.hidden = false;
}

export function untell() {
  document.getElementById("banner").hidden = true;
}

/** Post fields; the response, or null if none came. */
export async function post(path, fields) {
  const body = new URLSearchParams(fields);
  body.set("mark", mark);
  try {
    return await fetch(path, {
      method: "POST", body, headers: { Accept: "application/json" }, redirect: "error",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
  } catch {
    return null;
  }
}

async function problemIn(response) {
  const page = new DOMParser().parseFromString(await response.text().catch(() => ""), "text/html");
  return { page, problem: page.querySelector("[data-problem]")?.textContent ?? `The server answered ${response.status}.` };
}

/** Show the server's own page of what became of the question in place of this one. */
function replaceWith(page) {
  const main = document.getElementById("main");
  main.replaceChildren(...page.getElementById("main").childNodes);
  document.title = page.title;
  Object.assign(document.body.dataset, { standing: "", ...page.body.dataset, mark });
  document.dispatchEvent(new Event("replaced"));
  main.querySelector("h1")?.focus();
}

let busy = false;

/** Send fields to a path, say what became of it, and keep them if nobody took them. */
export async function deliver(path, fields, { id = null, shown = "", form = null } = {}) {
  if (busy) return;
  busy = true;
  form?.setAttribute("aria-busy", "true");
  untell();
  if (id !== null) unsent.put(id, { path, fields, shown });
  const response = await post(path, fields);
  busy = false;
  form?.removeAttribute("aria-busy");
  const again = ["Send again", () => deliver(path, fields, { id, shown, form })];
  if (response === null) {
    tell(id === null ? "The server cannot be reached." :
      "Not sent: the server cannot be reached. What you answered is kept in this browser.", [again]);
  } else if (response.ok) {
    const { location: to } = await response.json().catch(() => ({}));
    if (id !== null) forget(id);
    go(to ?? "/");
  } else {
    const { page, problem } = await problemIn(response);
    // Others may take it later: a log that is locked, a server that is busy or was started anew.
    const later = [403, 408, 429].includes(response.status) || response.status >= 500;
    if (!later && id !== null) unsent.put(id, null);
    if (response.status === 409 && page.getElementById("main")) {
      replaceWith(page);
    } else {
      tell(`Not sent: ${problem}`, later ? [again] : []);
    }
  }
}

document.addEventListener("submit", (event) => {
  const form = event.target, how = form.dataset.send;
  if (how === undefined) return;
  event.preventDefault();
  const fields = Object.fromEntries(new FormData(form, event.submitter));
  delete fields.mark;
  const answers = /\/(answer|decline)$/.test(form.getAttribute("action"));
  const shown = fields.text ?? fields.actions ?? fields.reason ?? event.submitter?.querySelector(".label")?.textContent ?? "";
  deliver(form.getAttribute("action"), fields, { id: answers ? fields.id : null, shown, form });
});

/** Single keys; those with which something is written, and those of the browser, stay what they are. */
export function onKeys(actions) {
  const switcher = document.getElementById("keys-on");
  const on = () => { try { return localStorage.getItem("keys") !== "off"; } catch { return true; } };
  if (switcher) {
    switcher.checked = on();
    switcher.addEventListener("change", () => {
      try { localStorage.setItem("keys", switcher.checked ? "on" : "off"); } catch { /* For this page only, then. */ }
    });
  }
  for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;
  document.addEventListener("keydown", (event) => {
    const writing = event.target.matches("textarea, input:not([type=radio], [type=checkbox]), select");
    if (event.key === "Escape" && writing) event.target.blur();
    if (event.ctrlKey || event.metaKey) {
      if (event.key === "Enter" && writing && event.target.form?.dataset.send !== undefined) {
        event.preventDefault();
        event.target.form.requestSubmit();
      }
      return;
    }
    if (writing || event.altKey || event.isComposing || event.repeat && !/^[jk]$/.test(event.key)) return;
    if (switcher ? !switcher.checked : !on()) return;
    const act = actions[event.key];
    if (act && act() !== false) event.preventDefault();
  });
}

/** Move the focus among elements, as j and k do. */
export function step(elements, by) {
  const here = elements.indexOf(document.activeElement);
  const to = here < 0 ? (by > 0 ? 0 : elements.length - 1) : here + by;
  elements[Math.min(elements.length - 1, Math.max(0, to))]?.focus();
}

/** Press the button of the first form that a selector finds. */
export function press(selector) {
  const form = document.querySelector(selector);
  if (!form) return false;
  form.requestSubmit(form.querySelector("button"));
  return true;
}
