// Charts over time in SVG: stacked bars and lines, with a reading under the pointer or the arrow keys.

import { clock, h, s } from "./dom.js";

const H = 190;
const PAD = { left: 44, right: 6, top: 8, bottom: 20 };

/** A chart of `series`: [{name, colour, values}], one value or null for each bin. `bins` are Unix times of their ends,
 * or what `called` makes a text. `kind` is "bars" (stacked) or "lines"; `format` makes a number a text. */
export function chart(title, { kind, format, called = clock, note = null }) {
  const svg = s("svg", { role: "img", tabindex: "0", "aria-label": title });
  const keys = h("div", { class: "keys" });
  const element = h("figure", { class: "card chart" }, h("header", {}, h("h2", {}, title), note && h("small", { class: "soft" }, note)), svg, keys);
  let data = null;
  let at = null;

  function draw() {
    if (!data) return;
    const { bins, series } = data;
    const W = svg.clientWidth || 500;
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    const inner = { w: W - PAD.left - PAD.right, h: H - PAD.top - PAD.bottom };
    const totals = bins.map((_, i) => kind === "bars" ? series.reduce((sum, one) => sum + (one.values[i] ?? 0), 0) : Math.max(0, ...series.map((one) => one.values[i] ?? 0)));
    const top = nice(Math.max(...totals, 0));
    const x = (i) => PAD.left + (inner.w * i) / bins.length;
    const y = (value) => PAD.top + inner.h * (1 - value / top);
    const parts = [];
    for (const share of format(top / 2) === format(top) ? [0, 1] : [0, 0.5, 1]) {
      parts.push(s("line", { class: "grid", x1: PAD.left, x2: W - PAD.right, y1: y(top * share), y2: y(top * share) }),
        s("text", { x: PAD.left - 6, y: y(top * share) + 4, "text-anchor": "end" }, format(top * share)));
    }
    const ticks = Math.min(bins.length, W < 420 ? 3 : 5);
    for (let n = 0; n < ticks; n++) {
      const i = ticks === 1 ? 0 : Math.round(((bins.length - 1) * n) / (ticks - 1));
      parts.push(s("text", { x: x(i + 0.5), y: H - 4, "text-anchor": n === 0 ? "start" : n === ticks - 1 ? "end" : "middle" }, called(bins[i])));
    }
    if (kind === "bars") {
      const width = Math.max(1, inner.w / bins.length - 1);
      bins.forEach((_, i) => {
        let below = 0;
        for (const one of series) {
          const value = one.values[i] ?? 0;
          if (!value) continue;
          parts.push(s("rect", { x: x(i), width, y: y(below + value), height: Math.max(0.5, y(below) - y(below + value)), style: { fill: one.colour } }));
          below += value;
        }
      });
    } else {
      for (const one of series) {
        const runs = [];
        one.values.forEach((value, i) => {
          if (value === null) return;
          if (i > 0 && one.values[i - 1] !== null) runs.at(-1).push([x(i + 0.5), y(value)]);
          else runs.push([[x(i + 0.5), y(value)]]);
        });
        for (const run of runs) {
          if (run.length === 1) parts.push(s("circle", { cx: run[0][0], cy: run[0][1], r: 2.2, style: { fill: one.colour } }));
          else parts.push(s("path", { d: `M${run.map((point) => point.map((n) => n.toFixed(1)).join(" ")).join("L")}`, fill: "none", "stroke-width": 2, "stroke-linejoin": "round", style: { stroke: one.colour } }));
        }
      }
    }
    if (at !== null) parts.push(s("line", { class: "cross", x1: x(at + 0.5), x2: x(at + 0.5), y1: PAD.top, y2: H - PAD.bottom }));
    svg.replaceChildren(...parts);
    const shown = (one) => at !== null ? one.values[at] : kind === "bars" ? one.values.reduce((sum, value) => sum + (value ?? 0), 0) : one.values.findLast((value) => value !== null);
    if (!series.some((one) => one.values.some((value) => value))) { keys.replaceChildren(h("span", {}, "nothing in this time")); return; }
    keys.replaceChildren(h("span", {}, at === null ? (kind === "bars" ? "all" : "last") : called(bins[at])),
      ...series.filter((one) => kind === "lines" || one.values.some(Boolean)).map((one) => h("span", {}, h("i", { class: "dot", "aria-hidden": "true", style: { background: one.colour } }), one.name, h("b", {}, shown(one) === null || shown(one) === undefined ? "–" : format(shown(one))))));
  }

  const point = (next) => { if (data) { at = next === null ? null : Math.min(data.bins.length - 1, Math.max(0, next)); draw(); } };
  svg.addEventListener("pointermove", (event) => { const box = svg.getBoundingClientRect(); point(Math.floor(((event.clientX - box.left - PAD.left) / (box.width - PAD.left - PAD.right)) * data.bins.length)); });
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); point((at ?? data.bins.length) + (event.key === "ArrowRight" ? 1 : -1)); }
  });
  const sizes = new ResizeObserver(draw);
  sizes.observe(svg);
  return { element, update: (next) => { data = next; draw(); }, close: () => sizes.disconnect() };
}

function nice(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 6, 8, 10].map((factor) => factor * unit).find((step) => step >= value);
}
