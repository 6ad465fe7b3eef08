// What both pages need: requests with the key, and waiting.

const KEY = "stillmotion.key";

export class Problem extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => { if (value) sessionStorage.setItem(KEY, value); else sessionStorage.removeItem(KEY); },
};

// Answers that say no become a Problem; a service that does not answer one of status 0.
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem(0, "The service does not answer. What was submitted is kept.", 2);
  }
  if (response.ok) return response;
  let message = `The service answered with ${response.status}.`;
  try { message = (await response.json()).error.message || message; } catch { /* not ours: a proxy's */ }
  throw new Problem(response.status, message, Number(response.headers.get("Retry-After")) || 0);
}

export const pause = (seconds) => new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
