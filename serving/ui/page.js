// The page's behaviour: choose a picture, ask for an animation, follow its steps, play it.

const byId = (id) => document.getElementById(id);
const [form, fileInput, drop, preview, hint, prompt, go, stop] =
  ["form", "image", "drop", "preview", "drop-hint", "prompt", "go", "stop"].map(byId);
const [screen, empty, still, video, moving, strip, status, problem, outcome, download, again, pause, facts] =
  ["screen", "empty", "still", "video", "moving", "strip", "status", "problem", "outcome", "download", "again", "pause", "facts"]
    .map(byId);

const SAMPLES = [
  ["balloon", "a red circle moves up"],
  ["night", "a yellow star moves right"],
  ["sail", "a white triangle moves left"],
  ["ball", "an orange circle jumps"],
  ["letter", "a pink heart grows"],
];
const LONGEST_WAIT_S = 30;

let picture = null; // File or Blob
let pictureUrl = "";
let resultUrl = "";
let about = null; // what /ui/model.json says
let running = null; // AbortController of the request in flight

// ---------------------------------------------------------------- choosing

function choose(blob, name) {
  if (!blob) return;
  clearProblem();
  if (!/^image\/(png|jpeg|webp)$/.test(blob.type)) {
    return complain(`${name || "This file"} is not a PNG, JPEG or WebP picture.`);
  }
  if (about && blob.size > about.max_image_bytes) {
    return complain(`The picture is over the limit of ${megabytes(about.max_image_bytes)}.`);
  }
  picture = blob;
  URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(blob);
  preview.src = pictureUrl;
  preview.alt = name ? `The chosen picture: ${name}` : "The chosen picture";
  preview.hidden = false;
  hint.hidden = true;
}

fileInput.addEventListener("change", () => choose(fileInput.files[0], fileInput.files[0]?.name));
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
drop.addEventListener("drop", (event) => {
  const file = event.dataTransfer.files[0];
  if (file) choose(file, file.name);
  else complain("Drop a picture's file; a link to a picture is never fetched.");
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (file) choose(file, file.name);
});

for (const [name, text] of SAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = text;
  button.setAttribute("aria-label", `Sample picture: ${text}`);
  const image = new Image();
  image.src = `samples/${name}.png`;
  image.alt = "";
  button.append(image);
  button.addEventListener("click", async () => {
    choose(await (await fetch(image.src)).blob(), `${name}.png`);
    prompt.value = text;
  });
  byId("samples").append(button);
}

// ---------------------------------------------------------------- asking

form.addEventListener("submit", (event) => { event.preventDefault(); run(); });
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); run(); }
});
stop.addEventListener("click", () => running?.abort());
pause.addEventListener("click", () => { if (video.paused) video.play(); else video.pause(); });
for (const kind of ["play", "pause"]) {
  video.addEventListener(kind, () => { pause.textContent = video.paused ? "Play" : "Pause"; });
}
again.addEventListener("click", () => { byId("seed").value = ""; run(); });

async function run() {
  if (running) return;
  clearProblem();
  if (!picture) { complain("Choose a picture first."); return fileInput.focus(); }
  if (!prompt.value.trim()) { complain("Say what should move."); return prompt.focus(); }
  running = new AbortController();
  showWorking();
  try {
    const response = await admitted(running.signal);
    if (response.ok) await follow(response);
    else await explain(response);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else complain("The connection to the server broke off. Try again in a moment.");
  } finally {
    running = null;
    showIdle();
  }
}

// A busy server refuses at once; come back later and later, and not all at the same moment.
async function admitted(signal) {
  for (let attempt = 1; ; attempt += 1) {
    say(attempt === 1 ? "Sending the picture" : `Trying again (attempt ${attempt})`);
    const response = await fetch("../animate/stream", { method: "POST", body: requestBody(), signal });
    if (response.status !== 429 && response.status !== 503) return response;
    const asked = Number(response.headers.get("Retry-After")) || 1;
    const backoff = Math.min(LONGEST_WAIT_S, 2 ** (attempt - 1));
    const wait = Math.max(Math.min(asked, LONGEST_WAIT_S), backoff) * (1 + Math.random() / 2);
    const why = response.status === 429
      ? "The server is busy with another animation."
      : "The server is getting ready.";
    await countDown(wait, (left) => say(`${why} Trying again in ${left} s (attempt ${attempt + 1}).`), signal);
  }
}

function requestBody() {
  const body = new FormData();
  body.append("image", picture, "picture");
  if (!prompt.disabled) body.append("prompt", prompt.value);
  for (const { name, kind } of options()) {
    const input = byId(name);
    const value = kind === "file" ? input.files[0] : input.value.trim();
    if (value) body.append(name, value);
  }
  return body;
}

function countDown(seconds, tell, signal) {
  return new Promise((resolve, reject) => {
    const end = performance.now() + seconds * 1000;
    const tick = () => {
      if (signal.aborted) return reject(new DOMException("stopped", "AbortError"));
      const left = end - performance.now();
      if (left <= 0) return resolve();
      tell(Math.ceil(left / 1000));
      setTimeout(tick, Math.min(250, left));
    };
    tick();
  });
}

// Server-sent events by hand: EventSource cannot POST.
async function follow(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (!name) continue;
      ended ||= name === "result" || name === "error";
      handle(name, JSON.parse(data));
    }
  }
  if (!ended) complain("The connection ended before the animation was finished.");
}

function handle(name, data) {
  if (name === "start") showSteps(0, data.steps, data.left_s);
  if (name === "step") showSteps(data.step, data.steps, data.left_s);
  if (name === "error") complain(data.error);
  if (name === "result") showResult(data);
}

async function explain(response) {
  let message = `The server answered with ${response.status}.`;
  try { message = (await response.json()).error || message; } catch { /* not ours: a proxy's */ }
  complain(message);
}

// ---------------------------------------------------------------- showing

function say(text) { if (status.textContent !== text) status.textContent = text; }
function complain(text) { problem.textContent = text; problem.hidden = false; say(""); }
function clearProblem() { problem.hidden = true; }

function showWorking() {
  go.disabled = true;
  stop.hidden = false;
  outcome.hidden = true;
  video.hidden = moving.hidden = empty.hidden = true;
  video.removeAttribute("src");
  still.src = pictureUrl;
  still.hidden = false;
  screen.dataset.state = "working";
  if (matchMedia("(max-width: 780px)").matches) screen.scrollIntoView({ block: "nearest" });
}

function showIdle() {
  go.disabled = false;
  stop.hidden = true;
  strip.hidden = true;
  strip.replaceChildren();
  if (screen.dataset.state === "working") {
    screen.dataset.state = "empty";
    still.hidden = true;
    empty.hidden = false;
  }
}

function showSteps(done, steps, left) {
  if (strip.children.length !== steps) {
    strip.replaceChildren(...Array.from({ length: steps }, () => document.createElement("i")));
    strip.setAttribute("aria-valuemax", steps);
    strip.hidden = false;
  }
  [...strip.children].forEach((cell, k) => cell.classList.toggle("done", k < done));
  strip.setAttribute("aria-valuenow", done);
  const rest = left >= 1 ? `, about ${Math.ceil(left)} s left` : "";
  say(done < steps ? `Step ${done} of ${steps}${rest}` : "Encoding the video");
}

function showResult(data) {
  const bytes = Uint8Array.from(atob(data.data), (c) => c.charCodeAt(0));
  URL.revokeObjectURL(resultUrl);
  resultUrl = URL.createObjectURL(new Blob([bytes], { type: data.media_type }));
  const isVideo = data.media_type.startsWith("video/");
  const player = isVideo ? video : moving;
  player.src = resultUrl;
  player.hidden = false;
  still.hidden = true;
  screen.dataset.state = "done";
  pause.hidden = !isVideo;
  pause.textContent = "Play";
  if (isVideo && !matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
  download.href = resultUrl;
  download.download = `animation-${data.seed}.${data.format}`;
  download.textContent = `Download ${data.format.toUpperCase()} (${megabytes(bytes.length)})`;
  const shown = [
    ["Seed", data.seed],
    ["Computed in", `${Number(data.compute_seconds).toFixed(1)} s`],
    ["Steps", `${data.steps} (${data.passes} passes)`],
    ["Region", data.region],
  ];
  facts.replaceChildren(...shown.map(([name, value]) => {
    const pair = document.createElement("div");
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    pair.append(term, detail);
    return pair;
  }));
  outcome.hidden = false;
  say(data.prompt_truncated ? `Done. The prompt is too long: ${data.prompt_truncated}.` : "Done.");
}

function megabytes(bytes) {
  return bytes < 2 ** 20 ? `${Math.max(1, Math.round(bytes / 1024))} kB` : `${Math.round(bytes / 2 ** 20)} MB`;
}

// ---------------------------------------------------------------- the model

async function introduce() {
  for (;;) {
    try {
      const response = await fetch("model.json");
      if (response.ok) { about = await response.json(); break; }
      byId("about").textContent = "The server is loading its model.";
    } catch {
      byId("about").textContent = "The server does not answer.";
    }
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
  }
  byId("about").textContent =
    `${about.model}: ${about.fields.find((field) => field.name === "frames").default} frames of ${about.width} × ${about.height}, ${about.steps} steps. Region ${about.region}.`;
  byId("limits").textContent = `PNG, JPEG or WebP, up to ${megabytes(about.max_image_bytes)}`;
  prompt.maxLength = about.max_prompt_chars;
  screen.style.aspectRatio = `${about.width} / ${about.height}`;
  const reads = about.fields.some((field) => field.name === "prompt");
  byId("prompt-field").hidden = !reads;
  prompt.disabled = !reads;
  byId("options").replaceChildren(...options().map(optionOf));
}

// What a request may hold beside picture and prompt, as the server says.
function options() {
  return about.fields.filter((field) => field.name !== "image" && field.name !== "prompt");
}

function optionOf(field) {
  const label = document.createElement("label");
  const input = document.createElement(field.kind === "choice" ? "select" : "input");
  input.id = field.name;
  if (field.kind === "choice") {
    const choices = field.default === null ? ["", ...field.choices] : field.choices;
    input.append(...choices.map((choice) => new Option(choice || "as the picture", choice, choice === field.default)));
  } else if (field.kind === "file") {
    input.type = "file";
    input.accept = "image/png,image/jpeg,image/webp";
  } else {
    input.autocomplete = "off";
    if (field.kind !== "text") input.inputMode = field.kind === "integer" ? "numeric" : "decimal";
    const limits = field.least !== null && field.most !== null ? ` (${field.least} to ${field.most})` : "";
    if (field.name === "seed") input.placeholder = "drawn";
    else if (field.default !== null) input.placeholder = `${field.default}${limits}`;
  }
  label.title = field.about;
  label.append(`${field.label} `, input);
  return label;
}

introduce();
