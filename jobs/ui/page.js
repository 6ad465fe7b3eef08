// The page's behaviour: choose pictures, submit them, follow the queue, look at what came of it.
// All that is shown of jobs is the service's own list: a reload, or another device, shows the same.

import { Problem, ask, element, key, pause, read } from "./api.js";
import { cardOf, clipOf, letGo, nameOf, settingsOf } from "./cards.js";

const byId = (id) => document.getElementById(id);
const [form, fileInput, drop, chosenList, prompt, batch, go, sending, problem, list, empty, older, counts, said, state] =
  ["form", "image", "drop", "chosen", "prompt", "batch", "go", "sending", "problem", "list", "empty", "older", "counts", "said", "state"]
    .map(byId);

const PAGE = 20;
let about = null; // what about.json says
let chosen = []; // {blob, name, url}
let jobs = new Map(); // id -> {job, card}
let reaches = PAGE; // how many clips are shown
let compared = []; // ids
let submitting = false;

// ---------------------------------------------------------------- choosing

function choose(blobs) {
  clearProblem();
  for (const blob of blobs) {
    const name = blob.name || "the picture";
    if (!/^image\/(png|jpeg|webp)$/.test(blob.type)) complain(`${name} is not a PNG, JPEG or WebP picture.`);
    else if (about && blob.size > about.max_image_bytes) complain(`${name} is over the limit of ${megabytes(about.max_image_bytes)}.`);
    else chosen.push({ blob, name, url: URL.createObjectURL(blob) });
  }
  showChosen();
}

function showChosen() {
  chosenList.replaceChildren(...chosen.map((one, place) => {
    const remove = element("button", { type: "button", className: "remove", textContent: "×" });
    remove.setAttribute("aria-label", `Leave out ${one.name}`);
    remove.addEventListener("click", () => {
      URL.revokeObjectURL(one.url);
      chosen = chosen.filter((other) => other !== one);
      showChosen();
      (chosenList.querySelectorAll("button")[place] || chosenList.querySelector("button:last-child") || fileInput).focus();
    });
    return element("li", {}, element("img", { src: one.url, alt: one.name }), remove);
  }));
  go.textContent = chosen.length > 1 ? `Animate ${chosen.length} pictures` : "Animate";
}

fileInput.addEventListener("change", () => { choose(fileInput.files); fileInput.value = ""; });
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
drop.addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length) choose(event.dataTransfer.files);
  else complain("Drop a picture's file; a link to a picture is never fetched.");
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) choose(event.clipboardData.files);
});

// ---------------------------------------------------------------- submitting

form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); submit(); }
});

async function submit() {
  if (submitting) return;
  clearProblem();
  if (!chosen.length) { complain("Choose a picture first."); return fileInput.focus(); }
  if (!prompt.value.trim()) { complain("Say what should move."); return prompt.focus(); }
  submitting = true;
  go.disabled = true;
  const fields = settings();
  const all = chosen.length;
  try {
    while (chosen.length) {
      const one = chosen[0];
      say(sending, all > 1 ? `Sending picture ${all - chosen.length + 1} of ${all}` : "Sending the picture");
      await submitOne(one, fields);
      URL.revokeObjectURL(one.url);
      chosen = chosen.slice(1);
      showChosen();
      await refreshNow();
    }
    say(sending, all > 1 ? `${all} pictures are in the queue.` : "It is in the queue.");
  } catch (error) {
    say(sending, "");
    if (error.status === 401) askForKey();
    complain(error.message);
  } finally {
    submitting = false;
    go.disabled = false;
  }
}

// The same key for each try: a picture is taken once, even where an answer got lost.
async function submitOne(one, fields) {
  const idempotency = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()) + Date.now();
  for (let attempt = 1; ; attempt += 1) {
    const body = new FormData();
    body.append("input_reference", one.blob, one.name);
    for (const [name, value] of fields) body.append(name, value);
    try {
      return await ask("../v1/videos", { method: "POST", body, headers: { "Idempotency-Key": idempotency } });
    } catch (error) {
      if (!(error instanceof Problem) || ![0, 429, 503].includes(error.status) || attempt > 20) throw error;
      if (error.retryAfter > 600) throw new Problem(error.status, `${sentence(error.message)} Come back in ${spell(error.retryAfter)}.`);
      const wait = Math.min(60, Math.max(error.retryAfter, 2 ** Math.min(attempt, 4)));
      const why = error.code === "queue_full" ? "The queue is full." : sentence(error.message);
      for (let left = Math.ceil(wait); left > 0; left -= 1) {
        say(sending, `${why} Trying again in ${left} s.`);
        await pause(1);
      }
    }
  }
}

function settings() {
  const found = [["prompt", prompt.value.trim()]];
  for (const { name, kind } of options()) {
    const input = byId(`option-${name}`);
    const value = kind === "file" ? input.files[0] : input.value.trim();
    if (value) found.push([name, value]);
  }
  if (batch.checked) found.push(["priority", "batch"]);
  return found;
}

// ---------------------------------------------------------------- the list

const actions = {
  async again(job) {
    clearProblem();
    try {
      const picture = await (await ask(`../v1/videos/${job.id}/content?variant=picture`)).blob();
      const kind = await kindOf(picture);
      for (const one of chosen) URL.revokeObjectURL(one.url);
      chosen = [];
      choose([new File([picture], "earlier picture", { type: kind })]);
    } catch (error) {
      return complain(error.message);
    }
    prompt.value = job.prompt;
    const given = settingsOf(job);
    for (const { name } of options()) {
      const input = byId(`option-${name}`);
      if (input.type !== "file") input.value = given[name] ?? input.dataset.initial ?? "";
    }
    batch.checked = job.priority === "batch";
    byId("more").open = true;
    prompt.scrollIntoView({ block: "center" });
    prompt.focus();
    prompt.select();
  },
  compare(job) {
    compared = compared.includes(job.id) ? compared.filter((id) => id !== job.id) : [...compared, job.id].slice(-2);
    showCompared();
  },
  async remove(job) {
    const card = jobs.get(job.id)?.card;
    const next = card?.nextElementSibling || card?.previousElementSibling;
    try {
      const answer = await (await ask(`../v1/videos/${job.id}`, { method: "DELETE" })).json();
      say(said, answer.computation === "none" ? "The clip is deleted." : "Stopped: its computation ends at the next step.");
    } catch (error) {
      if (error.status !== 404) return complain(error.message);
    }
    forget(job.id);
    (next?.querySelector("button") || list).focus();
    await refreshNow();
  },
};

function forget(id) {
  const known = jobs.get(id);
  known?.card.remove();
  if (known) letGo(known.job);
  jobs.delete(id);
  if (compared.includes(id)) { compared = compared.filter((other) => other !== id); showCompared(); }
}

async function refresh() {
  const found = [];
  let more = true;
  while (more && found.length < reaches) {
    const after = found.length ? `&after=${found.at(-1).id}` : "";
    const page = await read(`../v1/videos?limit=${PAGE}${after}`);
    found.push(...page.data);
    more = page.has_more;
  }
  older.hidden = !more;
  const there = new Set(found.map((job) => job.id));
  for (const id of [...jobs.keys()]) if (!there.has(id)) forget(id);
  let before = null;
  for (const job of found.toReversed ? found.toReversed() : [...found].reverse()) {
    let known = jobs.get(job.id);
    if (!known) {
      known = { job, card: cardOf(job, actions) };
      jobs.set(job.id, known);
      list.insertBefore(known.card, before);
    } else {
      if (known.job.status !== job.status) announce(job);
      known.job = job;
      known.card.show(job);
    }
    before = known.card;
  }
  empty.hidden = found.length > 0;
  const waiting = found.filter((job) => job.status === "queued").length;
  const computing = found.filter((job) => job.status === "in_progress").length;
  say(counts, waiting + computing ? [computing && `${computing} computing`, waiting && `${waiting} waiting`].filter(Boolean).join(", ") : "");
  for (const { job, card } of jobs.values()) card.compare(compared.includes(job.id));
  return waiting + computing;
}

// Where it does not work, `watch` says so.
const refreshNow = () => refresh().catch(() => {});

function announce(job) {
  if (job.status === "completed") say(said, `Done: ${nameOf(job)}.`);
  if (job.status === "failed") say(said, `Failed: ${nameOf(job)}. ${job.error?.message ?? ""}`);
}

older.addEventListener("click", () => { reaches += PAGE; refreshNow(); });

// ---------------------------------------------------------------- side by side

async function showCompared() {
  for (const { job, card } of jobs.values()) card.compare(compared.includes(job.id));
  const panel = byId("compare");
  panel.hidden = compared.length < 2;
  if (panel.hidden) return byId("pair").replaceChildren();
  byId("pair").replaceChildren(...compared.map((id) => {
    const { job } = jobs.get(id);
    const figure = element("figure", {}, element("div", { className: "screen" }), element("figcaption"));
    figure.lastChild.append(nameOf(job), element("small", { textContent: Object.entries({ seed: job.result?.seed, ...settingsOf(job) })
      .filter(([, value]) => value).map(([name, value]) => `${name} ${value}`).join(", ") }));
    clipOf(job).then((clip) => { figure.firstChild.append(clip); }, (error) => complain(error.message));
    return figure;
  }));
  panel.scrollIntoView({ block: "nearest" });
}

byId("compare-play").addEventListener("click", () => {
  for (const clip of document.querySelectorAll("#pair video")) { clip.currentTime = 0; clip.play(); }
  for (const clip of document.querySelectorAll("#pair img")) clip.src = clip.src; // restarts it
});
byId("compare-close").addEventListener("click", () => { compared = []; showCompared(); list.focus(); });

// ---------------------------------------------------------------- how things are

const STATES = {
  busy: "All GPUs are busy. Clips wait their turn, and nothing is lost.",
  unreachable: "No GPU server answers just now. Clips wait, and start by themselves when one is back.",
  draining: "The service is about to restart. What it computes is finished or begun anew; nothing is lost.",
  gone: "The service does not answer. What was submitted is kept; this page goes on by itself.",
};

function showState(name) {
  state.hidden = !(name in STATES);
  state.dataset.state = name;
  say(state, STATES[name] ?? "");
}

function introduce(told) {
  const first = !about || JSON.stringify(about.fields) !== JSON.stringify(told.fields);
  about = told;
  byId("to-fleet").hidden = !about.fleet;
  byId("limits").textContent = `PNG, JPEG or WebP, up to ${megabytes(about.max_image_bytes)} each`;
  prompt.maxLength = about.max_prompt_chars;
  const frames = about.fields.find((field) => field.name === "frames")?.default;
  byId("about").textContent = (about.model ? `${about.model}: ${frames ? `${frames} frames of ` : ""}${about.width} × ${about.height}, ${about.steps} steps. ` : "")
    + `Clips are kept for ${spell(about.expires_s)}.`;
  if (first) byId("options").replaceChildren(...options().map(optionOf));
}

// What a request may hold beside picture and prompt, as the server says.
function options() {
  return (about?.fields ?? []).filter(({ name, choices }) => !["image", "prompt"].includes(name) && choices.length !== 1);
}

function optionOf(field) {
  const input = document.createElement(field.kind === "choice" ? "select" : "input");
  input.id = `option-${field.name}`;
  if (field.kind === "choice") {
    const choices = field.default == null ? ["", ...field.choices] : field.choices;
    input.append(...choices.map((choice) => new Option(choice || "as the picture", choice, choice === field.default)));
    input.dataset.initial = input.value;
  } else if (field.kind === "file") {
    input.type = "file";
    input.accept = "image/png,image/jpeg,image/webp";
  } else {
    input.autocomplete = "off";
    if (field.kind !== "text") input.inputMode = field.kind === "integer" ? "numeric" : "decimal";
    const limits = field.least != null && field.most != null ? ` (${field.least} to ${field.most})` : "";
    if (field.name === "seed") input.placeholder = "drawn";
    else if (field.default != null) input.placeholder = `${field.default}${limits}`;
  }
  return element("label", { title: field.about }, `${field.label} `, input);
}

// ---------------------------------------------------------------- the key

function askForKey() {
  byId("key-form").hidden = false;
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  try {
    await refresh();
    byId("key-form").hidden = true;
    clearProblem();
    prompt.focus();
  } catch (error) {
    complain(error.message);
  }
});

// ---------------------------------------------------------------- small things

function say(where, text) { if (where.textContent !== text) where.textContent = text; }
function complain(text) { problem.textContent = text; problem.hidden = false; }
function clearProblem() { problem.hidden = true; }
function sentence(text) { return /[.!?]$/.test(text) ? text : `${text}.`; }
function spell(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} seconds` : seconds < 7200 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;
}
function megabytes(bytes) {
  return bytes < 2 ** 20 ? `${Math.max(1, Math.round(bytes / 1024))} kB` : `${Math.round(bytes / 2 ** 20)} MB`;
}

async function kindOf(blob) {
  const head = new Uint8Array(await blob.slice(0, 4).arrayBuffer());
  return head[0] === 0x89 ? "image/png" : head[0] === 0xff ? "image/jpeg" : "image/webp";
}

async function watch() {
  for (;;) {
    let left = 0;
    try {
      introduce(await read("about.json"));
      showState(about.state);
      if (about.needs_key && !key.get()) askForKey();
      else left = await refresh();
    } catch (error) {
      if (error.status === 401) askForKey();
      else if (error.status === 0 || error.status >= 500) showState("gone");
    }
    await pause(document.hidden ? 10 : left ? 1 : 4);
  }
}

watch();
