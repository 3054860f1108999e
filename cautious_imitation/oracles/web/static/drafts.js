// What was typed or pressed and has not been acknowledged, kept in this browser until it is.

const MONTH = 30 * 24 * 3600 * 1000;

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? null;
  } catch {
    return null; // Storage may be forbidden, and others may have written to it.
  }
}

function write(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify({ ...value, at: Date.now() }));
    return true;
  } catch {
    return false;
  }
}

export const draft = {
  get: (id) => read(`draft:${id}`),
  put: (id, fields) => write(`draft:${id}`, Object.values(fields).some(Boolean) ? fields : null),
};

export const unsent = {
  get: (id) => read(`unsent:${id}`),
  put: (id, what) => write(`unsent:${id}`, what),
  all: () => keys().filter((key) => key.startsWith("unsent:")).map((key) => key.slice("unsent:".length)),
};

export function forget(id) {
  write(`draft:${id}`, null);
  write(`unsent:${id}`, null);
}

export function forgetOld() {
  for (const key of keys()) {
    if (/^(draft|unsent):/.test(key) && !(Date.now() - (read(key)?.at ?? 0) < MONTH)) write(key, null);
  }
}

function keys() {
  try {
    return Object.keys(localStorage);
  } catch {
    return [];
  }
}
