// What the server did in the last hour, as the console has read it from /metrics.

import { get } from "./api.js";
import { chart } from "./chart.js";
import { known, solid } from "./colours.js";
import { count, empty, h, percent, seconds, segmented } from "./dom.js";

const BINS = 60;
const SPANS = [["300", "5 min"], ["900", "15 min"], ["3600", "hour"]];
const SIZES = ["plain", "1", "2", "3", "4", "more"];
const SIZE_OF = { 0.5: "plain", 1: "1", 2: "2", 3: "3", 4: "4" };
const STATUS = { ok: "served", refused: "refused (4xx)", left: "client left", failed: "failed (5xx)" };
const GREYS = ["oklch(0.75 0.02 255)", "oklch(0.66 0.14 255)", "oklch(0.62 0.15 200)", "oklch(0.68 0.15 155)", "oklch(0.72 0.15 90)", "oklch(0.66 0.17 40)"];

export async function show(main) {
  let span = 900;
  let points = [];
  let since = 0;

  const charts = {
    adapters: chart("Requests by adapter", { kind: "bars", format: count, note: "a mix counts for each of its adapters" }),
    sizes: chart("Adapters in a mix", { kind: "bars", format: count }),
    first: chart("Time to the first token", { kind: "lines", format: seconds, note: "from the replica's acceptance" }),
    between: chart("Time between tokens", { kind: "lines", format: seconds }),
    confidence: chart("Router's confidence", { kind: "lines", format: (value) => percent(value) }),
    abstained: chart("Without an adapter, and errors", { kind: "bars", format: count }),
    drift: chart("Drift from the router's training", { kind: "lines", format: (value) => value.toFixed(2), note: "look from 0.1 on, act from 0.25 on; a day's prompts" }),
  };
  const tiles = h("div", { class: "tiles" });
  const problem = h("div");
  main.append(h("div", { class: "row" }, segmented("Time shown", SPANS, String(span), (value) => { span = Number(value); draw(); }), h("small", { class: "soft", id: "sampled" })),
    problem, tiles, h("div", { class: "charts" }, Object.values(charts).map((one) => one.element)));

  async function read() {
    const answer = await get(`/console/traffic?since=${since}`);
    points = [...points, ...answer.points].filter((point) => point.at > Date.now() / 1000 - answer.kept_s);
    since = points.at(-1)?.at ?? since;
    problem.replaceChildren(...(answer.problem ? [empty("No new readings", answer.problem)] : []));
    main.querySelector("#sampled").textContent = `read every ${answer.every_s} s by this console, kept for an hour`;
    draw();
  }

  function draw() {
    const now = Math.max(Date.now() / 1000, since);
    const width = span / BINS;
    const ends = Array.from({ length: BINS }, (_, i) => now - span + (i + 1) * width);
    const binned = ends.map(() => []);
    for (const point of points) {
      const index = Math.floor((point.at - (now - span)) / width);
      if (index >= 0 && index < BINS) binned[index].push(point);
    }
    const sum = (bin, pick) => bin.reduce((total, point) => total + pick(point), 0);
    const merged = (bin, key) => bin.reduce((all, point) => { for (const [bound, n] of Object.entries(point[key])) all[bound] = (all[bound] ?? 0) + n; return all; }, {});
    const whole = binned.flat();
    const used = new Set(whole.flatMap((point) => Object.keys(point.adapters)));
    const names = [...known().filter((name) => used.has(name)), ...[...used].filter((name) => !known().includes(name))];

    charts.adapters.update({ bins: ends, series: names.map((name) => ({ name, colour: solid(name), values: binned.map((bin) => sum(bin, (point) => point.adapters[name] ?? 0)) })) });
    charts.sizes.update({ bins: ends, series: SIZES.map((size, i) => ({ name: size, colour: GREYS[i], values: binned.map((bin) => sum(bin, (point) => Object.entries(point.sizes).reduce((n, [bound, value]) => n + ((SIZE_OF[bound] ?? "more") === size ? value : 0), 0))) })) });
    for (const key of ["first", "between"]) {
      charts[key].update({ bins: ends, series: [["half of them within", 0.5, "var(--accent)"], ["95 % within", 0.95, "var(--warn)"]].map(([name, share, colour]) => ({ name, colour, values: binned.map((bin) => quantile(merged(bin, key), share)) })) });
    }
    charts.confidence.update({ bins: ends, series: [["median", 0.5, "var(--accent)"], ["a tenth is below", 0.1, "var(--warn)"]].map(([name, share, colour]) => ({ name, colour, values: binned.map((bin) => quantile(merged(bin, "confidence"), share)) })) });
    const abstained = { none_of_these: "none of these", low_confidence: "low confidence", router_unavailable: "router unavailable" };
    charts.abstained.update({ bins: ends, series: [
      ...Object.entries(abstained).map(([reason, name], i) => ({ name, colour: GREYS[[0, 2, 4][i]], values: binned.map((bin) => sum(bin, (point) => point.abstained[reason] ?? 0)) })),
      ...["refused", "left", "failed"].map((kind) => ({ name: STATUS[kind], colour: { refused: "var(--warn)", left: "var(--plain)", failed: "var(--bad)" }[kind], values: binned.map((bin) => sum(bin, (point) => statuses(point)[kind])) }))] });

    const drifting = [...new Set(whole.flatMap((point) => Object.keys(point.drift)))].sort();
    charts.drift.update({ bins: ends, series: drifting.map((name) => ({ name: name === "(all)" ? "all" : name, colour: name === "(all)" ? "var(--accent)" : solid(name), values: binned.map((bin) => bin.at(-1)?.drift[name] ?? null) })) });

    const all = (pick) => sum(whole, pick);
    const routed = all((point) => point.routed);
    const plain = all((point) => Object.values(point.abstained).reduce((a, b) => a + b, 0));
    const failed = all((point) => statuses(point).failed + statuses(point).refused);
    const lasted = sum(whole, (point) => point.seconds);
    const tile = (name, value, below) => h("div", { class: "tile" }, h("small", { class: "soft" }, name), h("b", {}, value), h("small", { class: "soft" }, below));
    const half = (key) => quantile(merged(whole, key), 0.5);
    tiles.replaceChildren(
      tile("prompts given a mix", count(routed), lasted ? `${(routed / lasted).toFixed(2)} a second` : "no reading yet"),
      tile("without an adapter", routed ? percent(plain / routed) : "–", "the router's choice"),
      tile("first token", half("first") === null ? "–" : seconds(half("first")), "median"),
      tile("between tokens", half("between") === null ? "–" : seconds(half("between")), "median"),
      tile("tokens written", count(all((point) => point.tokens.completion ?? 0)), `${count(all((point) => point.tokens.prompt ?? 0))} read`),
      tile("refused or failed", count(failed), whole.at(-1) ? `${count(whole.at(-1).running)} running, ${count(whole.at(-1).waiting)} waiting` : ""));
  }

  await read();
  const timer = setInterval(() => read().catch((error) => problem.replaceChildren(empty("The console does not answer", error.message))), 5000);
  return () => { clearInterval(timer); Object.values(charts).forEach((one) => one.close()); };
}

function statuses(point) {
  const found = { ok: 0, refused: 0, left: 0, failed: 0 };
  for (const [status, n] of Object.entries(point.statuses)) found[status === "499" ? "left" : status >= "500" ? "failed" : status >= "400" ? "refused" : "ok"] += n;
  return found;
}

/** Of a histogram {upper bound: count}, interpolated in its bucket as Prometheus does; null if it is empty. */
function quantile(histogram, share) {
  const buckets = Object.entries(histogram).map(([bound, n]) => [Number(bound.replace("inf", "Infinity")), n]).sort((a, b) => a[0] - b[0]);
  const total = buckets.reduce((sum, [, n]) => sum + n, 0);
  if (!total) return null;
  let below = 0;
  let lower = 0;
  for (const [bound, n] of buckets) {
    if (below + n >= share * total) return bound === Infinity ? lower : lower + (bound - lower) * ((share * total - below) / n);
    below += n;
    lower = bound;
  }
  return lower;
}
