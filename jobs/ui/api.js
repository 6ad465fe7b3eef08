// What both pages need: requests with the key, and waiting.

const KEY = "stillmotion.key";

export class Problem extends Error {
  constructor(status, message, retryAfter = 0, code = "") {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.code = code;
  }
}

// A browser that is told to keep nothing throws at each use of its storage: the key is kept until a reload then.
let kept = "";
try { kept = sessionStorage.getItem(KEY) || ""; } catch { /* as above */ }
export const key = {
  get: () => kept,
  set: (value) => {
    kept = value;
    try { sessionStorage.setItem(KEY, value); } catch { /* as above */ }
  },
};

const gone = () => new Problem(0, "The service does not answer. What was submitted is kept.", 2);

// Answers that say no become a Problem; a service that does not answer one of status 0.
export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw gone();
  }
  if (response.ok) return response;
  let message = `The service answered with ${response.status}.`;
  let code = "";
  try {
    const { error } = await response.json();
    message = error.message || message;
    code = error.code;
  } catch { /* not ours: a proxy's */ }
  throw new Problem(response.status, message, Number(response.headers.get("Retry-After")) || 0, code);
}

// A page of JSON. What hangs, or is something else's page, is no answer either.
export async function read(path) {
  const response = await ask(path, { signal: AbortSignal.timeout(20_000) });
  try { return await response.json(); } catch { throw gone(); }
}

export const pause = (seconds) => new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
