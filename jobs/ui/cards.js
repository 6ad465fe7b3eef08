// One job as the list shows it: its picture while it waits, its progress, its clip, and what can be done with it.

import { ask, element, key } from "./api.js";

export const nameOf = (job) => job.prompt || "clip";

// Settings as the form has them. Frames come from the seconds that were asked for.
export const settingsOf = (job) => job.settings ?? {};

const address = (job, variant) => `../v1/videos/${job.id}/content${variant ? `?variant=${variant}` : ""}`;

// With a key, files cannot be named to the browser by their addresses alone: they are fetched, once.
const fetched = new Map(); // address -> promise of the one that the browser takes

function source(job, variant) {
  const from = address(job, variant);
  if (!key.get()) return Promise.resolve(from);
  if (!fetched.has(from)) {
    const coming = ask(from).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob));
    fetched.set(from, coming);
    coming.catch(() => fetched.delete(from));
  }
  return fetched.get(from);
}

export function letGo(job) {
  for (const variant of [undefined, "thumbnail"]) {
    fetched.get(address(job, variant))?.then((url) => URL.revokeObjectURL(url), () => {});
    fetched.delete(address(job, variant));
  }
}

// The clip, as an element that plays.
export async function clipOf(job) {
  const label = `Clip: ${nameOf(job)}`;
  if (job.result.media_type.startsWith("image/")) return element("img", { src: await source(job), alt: label });
  const [src, poster] = await Promise.all([source(job), source(job, "thumbnail")]);
  const video = element("video", { loop: true, muted: true, playsInline: true, controls: true, src, poster });
  video.setAttribute("aria-label", label);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) video.autoplay = true;
  return video;
}

const MARKS = { c2pa: "C2PA manifest, signed", iptc: "IPTC digital source type" };

export function cardOf(job, actions) {
  const title = element("h3", { textContent: nameOf(job) });
  const screen = element("div", { className: "screen" });
  const status = element("p", { className: "status" });
  const bar = element("div", { className: "bar" }, element("i"));
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", `Progress of ${nameOf(job)}`);
  const facts = element("dl");
  const row = element("div", { className: "row" });
  const body = element("div", { className: "body" }, title, status, bar, facts, row);
  const card = element("li", { className: "card clip" }, screen, body);

  const button = (text, label, act) => {
    const made = element("button", { type: "button", textContent: text });
    made.setAttribute("aria-label", `${label}: ${nameOf(job)}`);
    made.addEventListener("click", () => act(current));
    return made;
  };
  const again = button("Run again", "Run again with a change", actions.again);
  const compare = button("Compare", "Compare side by side", actions.compare);
  const remove = button("Stop", "Stop and delete", actions.remove);
  const download = element("a", { className: "button", textContent: "Download" });
  download.setAttribute("aria-label", `Download: ${nameOf(job)}`);
  let current = job;
  let shown = "";

  card.compare = (chosen) => compare.setAttribute("aria-pressed", String(chosen));
  card.show = (next) => {
    current = next;
    bar.hidden = next.status !== "in_progress" && next.status !== "queued";
    bar.setAttribute("aria-valuenow", next.progress);
    bar.firstChild.style.width = `${next.progress}%`;
    const text = statusOf(next);
    if (status.textContent !== text) status.textContent = text;
    if (shown === next.status) return;
    shown = next.status;
    card.dataset.status = next.status;
    status.classList.toggle("bad", next.status === "failed");
    const unfinished = next.status === "queued" || next.status === "in_progress";
    remove.textContent = unfinished ? "Stop" : "Delete";
    remove.setAttribute("aria-label", `${unfinished ? "Stop and delete" : "Delete"}: ${nameOf(job)}`);
    if (next.status === "completed") {
      row.replaceChildren(download, again, compare, remove);
      showFacts(facts, next);
      download.download = `animation-${next.result.seed ?? next.id}.${next.result.format ?? "mp4"}`;
      whenSeen(card, async () => {
        download.href = await source(next);
        screen.replaceChildren(await clipOf(next));
      });
    } else {
      row.replaceChildren(...(next.status === "failed" ? [again, remove] : [remove]));
      showFacts(facts, next);
      if (!screen.firstChild) {
        whenSeen(card, async () => {
          const picture = element("img", { src: await source(next, "thumbnail"), alt: "" });
          if (!screen.firstChild) screen.append(picture);
        });
      }
    }
  };
  card.show(job);
  return card;
}

function statusOf(job) {
  const later = job.priority === "batch" ? " Others go first." : "";
  if (job.status === "queued") return `Waiting for a GPU.${later}`;
  if (job.status === "in_progress") return job.progress ? `Computing: ${job.progress} %` : "Starting";
  if (job.status === "failed") return `Failed. ${job.error?.message ?? ""}`;
  return "Done";
}

function showFacts(list, job) {
  const result = job.result ?? {};
  const { seed, ...rest } = settingsOf(job);
  const shown = [
    ["Seed", result.seed ?? seed],
    ["Length", job.seconds === "auto" ? "" : `${job.seconds} s`],
    ["Size", job.size === "auto" ? "" : job.size],
    ...Object.entries(rest).filter(([name]) => !["frames", "size"].includes(name)).map(([name, value]) => [name.replaceAll("_", " "), value]),
    ["Steps", result.steps],
    ["Computed in", result.compute_seconds && `${Number(result.compute_seconds).toFixed(1)} s`],
    ["Submitted", new Date(job.created_at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })],
    ["Marked as AI-made", job.status === "completed" ? marksOf(result.marks) : ""],
  ];
  list.replaceChildren(...shown.filter(([, value]) => value).map(([name, value]) =>
    element("div", { className: String(value).length > 20 ? "whole" : "" },
      element("dt", { textContent: name }), element("dd", { textContent: value }))));
}

const marksOf = (text) => (text ? text.split(", ").map((one) => MARKS[one] ?? one).join("; ") : "no");

const watched = new Map();
const observer = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    const act = watched.get(target);
    watched.delete(target);
    observer.unobserve(target);
    act?.().catch(() => { /* gone meanwhile: the next look at the list removes it */ });
  }
}, { rootMargin: "300px" });

function whenSeen(card, act) {
  watched.set(card, act);
  observer.observe(card);
}
