// The fleet, as its control loop sees it: regions with their load, the table, the last moves with their reasons.

import { element, pause, read } from "./api.js";

const byId = (id) => document.getElementById(id);
const percent = (share) => (share == null ? "unknown" : `${Math.round(100 * share)} %`);
const rate = (value) => (value == null ? "unknown" : `${Number(value).toPrecision(3).replace(/\.?0+$/, "")} a second`);

// A load is a number, or one by the metric that tells it.
const loadOf = (region) => (region.load && typeof region.load === "object" ? Math.max(0, ...Object.values(region.load)) : region.load);

function tile(name, region) {
  const load = loadOf(region);
  const bar = element("div", { className: "bar" }, element("i"));
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-label", `Load of ${name}`);
  bar.setAttribute("aria-valuenow", Math.round(100 * (load ?? 0)));
  bar.firstChild.style.width = `${Math.min(100, 100 * (load ?? 0))}%`;
  const tags = [
    region.drained && "drained by an operator",
    region.edge_gone && "no edge answers",
    region.stale && "not heard of",
    region.gpus_missing > 0 && `GPU servers missing: ${region.gpus_missing}`,
    region.burst,
  ].filter(Boolean);
  const facts = [
    ["GPU servers", `${region.gpus_ready ?? "unknown"} of ${region.gpus} ready`],
    ["Load", percent(load)],
    ["Waiting", region.waiting == null ? "" : String(Math.round(region.waiting))],
    ["Its users ask for", rate(region.demand_rps)],
    ["Sent to it", rate(region.assigned_rps ?? region.given_rps)],
    ["It can compute", rate(region.capacity_rps)],
  ];
  return element("li", { className: "card" },
    element("h3", { textContent: name }), bar,
    element("dl", {}, ...facts.filter(([, value]) => value).map(([term, value]) =>
      element("div", {}, element("dt", { textContent: term }), element("dd", { textContent: value })))),
    ...(tags.length ? [element("p", { className: "row" }, ...tags.map((text) => element("span", { className: "tag", textContent: text })))] : []));
}

function showTable(shares) {
  const names = Object.keys(shares);
  const head = element("tr", {}, element("th", { scope: "col", textContent: "Users in" }),
    ...names.map((name) => element("th", { scope: "col", textContent: `to ${name}` })));
  const rows = names.map((source) => element("tr", {}, element("th", { scope: "row", textContent: source }),
    ...names.map((to) => element("td", { textContent: shares[source][to] ? percent(shares[source][to]) : "–" }))));
  byId("table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function show(status) {
  byId("regions").replaceChildren(...Object.entries(status.regions).map(([name, region]) => tile(name, region)));
  showTable(status.shares);
  const moves = status.moves.slice(-20).reverse();
  byId("moves").replaceChildren(...(moves.length ? moves : [null]).map((move) => element("li", {
    textContent: move ? `${rate(move.rps)} of ${move.source}'s users, from ${move.from} to ${move.to}: ${move.why}` : "None: all traffic is at home.",
  })));
  const wrong = status.failure ? `The control loop's last round failed: ${status.failure}` : status.frozen ? `The table is frozen: ${status.frozen}` : "";
  say(wrong);
  const at = String(status.generated_at).slice(0, 19).replace("T", " ");
  byId("about").textContent = `Table ${status.version}, published ${at} UTC; a round takes place every ${status.interval_s} s.`;
}

function say(text) {
  byId("state").hidden = !text;
  if (byId("state").textContent !== text) byId("state").textContent = text;
}

for (;;) {
  try {
    const { queue } = await read("about.json");
    const text = `Clips being computed: ${queue.in_progress}. Clips waiting: ${queue.queued}.`;
    if (byId("queue").textContent !== text) byId("queue").textContent = text;
    show(await read("fleet.json"));
  } catch (error) {
    say(error.status === 401 ? "This service asks for a key: enter it on the page Animate, in this tab." : error.message);
  }
  await pause(document.hidden ? 15 : 3);
}
