// Submits a picture and waits for its video, with nothing but what Node 20 and browsers have.
//
//   node docs/examples/jobs/submit.mjs assets/balloon.png "a red circle moves up" clip.mp4

import { readFile, writeFile } from "node:fs/promises";

const [picture, prompt, out] = process.argv.slice(2);
const api = process.env.STILLMOTION_API ?? "http://127.0.0.1:8080/v1";
const headers = { Authorization: `Bearer ${process.env.STILLMOTION_KEY ?? "none"}` };

async function call(path, options = {}) {
  const response = await fetch(api + path, { ...options, headers: { ...headers, ...options.headers } });
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response;
}

const body = new FormData();
body.append("prompt", prompt);
body.append("input_reference", new Blob([await readFile(picture)]), picture);
// The same key for a second try: the picture is taken once, even if the first answer got lost.
const once = { "Idempotency-Key": crypto.randomUUID() };
let response = await call("/videos", { method: "POST", body, headers: once });
let video = await response.json();
while (video.status === "queued" || video.status === "in_progress") {
  await new Promise((resolve) => setTimeout(resolve, Number(response.headers.get("openai-poll-after-ms") ?? 1000)));
  response = await call(`/videos/${video.id}`);
  video = await response.json();
  console.log(video.status, `${video.progress} %`);
}
if (video.status === "failed") throw new Error(video.error.message);
await writeFile(out, Buffer.from(await (await call(`/videos/${video.id}/content`)).arrayBuffer()));
