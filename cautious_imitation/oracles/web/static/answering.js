// One question, or one pair: the claim is kept while the page is open, drafts are kept until they are sent.

import { deliver, go, isLeaving, onKeys, post, press, step, tell, untell } from "./console.js";
import { draft, forget, forgetOld, unsent } from "./drafts.js";

const data = document.body.dataset;
const { id, view, claims } = data;
const fields = () => [...document.querySelectorAll("#text, #actions, #reason")];
const answerable = () => ["yours", "late"].includes(data.standing);
const isQuestion = data.page === "question";
const seconds = (ms) => Math.max(0, Math.floor(ms / 1000));

function restore() {
  const kept = draft.get(id);
  const waiting = unsent.get(id);
  if (!answerable()) return showKept(kept, waiting);
  for (const field of fields()) {
    if (kept?.[field.id] && !field.value) {
      field.value = kept[field.id];
      if (field.id === "reason") document.getElementById("decline").open = true;
    }
  }
  if (waiting) {
    const what = waiting.shown ? `Your answer “${waiting.shown.trim().slice(0, 60)}” was` : "Your answer was";
    tell(`${what} not sent.`, [
      ["Send it now", () => deliver(waiting.path, waiting.fields, { id, shown: waiting.shown })],
      ["Discard it", () => { unsent.put(id, null); untell(); }],
    ]);
  }
}

/** Somebody has answered: what was written here is shown, unless it is what was answered. */
function showKept(kept, waiting) {
  const box = document.getElementById("kept"), area = document.getElementById("written");
  if (!box) return;
  // It was answered from here, only the acknowledgement was lost.
  if (waiting && data.given && (waiting.shown.trim() === data.given.trim() || data.given.includes(`(${waiting.fields.act})`)
    || waiting.fields.act === data.given)) forget(id);
  else {
    area.value ||= kept?.text || kept?.actions || kept?.reason || waiting?.shown || "";
    if (area.value && area.value.trim() !== data.given.trim()) box.hidden = false;
  }
  const discard = document.getElementById("discard");
  discard.hidden = false;
  discard.addEventListener("click", () => { forget(id); box.hidden = true; });
}

function keepDraft() {
  if (answerable()) draft.put(id, Object.fromEntries(fields().map((field) => [field.id, field.value])));
}

/** Renew the claim; say so if somebody else has the question, or the server is gone. */
async function renew() {
  if (data.standing !== "yours" || isLeaving()) return;
  const response = await post(`${claims}/renew`, { id });
  if (isLeaving()) return;
  if (response === null) {
    tell("The server cannot be reached. What you write is kept in this browser.", [["Try again", () => { untell(); renew(); }]]);
  } else if (response.status === 409) {
    tell("Somebody else has taken or answered this one. What you write is kept in this browser.",
      [["See what became of it", () => go(location.href)]]);
  }
}

function release() {
  if (data.standing !== "yours") return;
  navigator.sendBeacon(`${claims}/release`, new URLSearchParams({ id, view, mark: data.mark }));
}

function countDown() {
  const time = document.querySelector("[data-deadline]");
  if (!time) return;
  const left = seconds(Number(time.dataset.deadline) * 1000 - Date.now());
  const [hours, minutes] = [Math.floor(left / 3600), Math.floor(left / 60) % 60];
  if (left === 0) time.parentElement.textContent = "the deadline has passed";
  else if (hours < 48) time.textContent = hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${left % 60} s` : `${left} s`;
}

if (id !== undefined) {
  if (isQuestion) {
    forgetOld();
    restore();
    document.addEventListener("input", keepDraft);
  }
  setInterval(renew, Math.max(1, Number(data.renewSeconds)) * 1000);
  setInterval(countDown, 1000);
  addEventListener("pagehide", release);
  // A page that comes back from the browser's memory has given its claim back.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  document.addEventListener("replaced", () => { if (isQuestion) restore(); });
}

const actions = () => [...document.querySelectorAll(".action")].filter((button) => button.checkVisibility());
const keys = {
  j: () => step(actions(), 1),
  k: () => step(actions(), -1),
  s: () => press("[data-skip]"),
  x: () => { const nothing = document.querySelector("[data-nothing] button"); nothing?.focus(); return Boolean(nothing); },
  u: () => press("[data-undo]"),
  d: () => {
    const decline = document.getElementById("decline");
    if (!decline) return false;
    decline.open = true;
    document.getElementById("reason").focus();
    return true;
  },
  w: () => {
    const field = document.querySelector("#text, #actions");
    field?.focus();
    return Boolean(field);
  },
  n: () => { const next = document.querySelector("[data-next]"); next?.click(); return Boolean(next); },
};
for (let digit = 0; digit <= 9; digit++) {
  keys[digit] = () => {
    const button = document.querySelector(`[data-key="${digit}"], [data-press="${digit}"]`);
    if (!button) return false;
    button.focus();
    // A verdict can always be undone, an answer only until the run goes on with it: that one waits for Enter.
    if (button.dataset.press) button.click();
    return true;
  };
}
onKeys(keys);
