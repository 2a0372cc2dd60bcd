// One colour for each adapter, the same on every page: by its place in the bank.

import { h, percent } from "./dom.js";

// far apart for the first ones; the golden angle keeps any number of further ones apart
const HUES = [255, 48, 155, 320, 205, 20, 95, 285];
const hues = new Map();

export function know(names) {
  hues.clear();
  names.forEach((name, index) => hues.set(name, HUES[index] ?? (index * 137.508 + 30) % 360));
}

export const known = () => [...hues.keys()];

/** The custom properties that style.css makes an adapter's colours of. */
export function colour(name) {
  if (!hues.has(name)) hues.set(name, (hues.size * 137.508 + 30) % 360);
  return { "--hue": String(hues.get(name)) };
}

export const solid = (name) => (name === null ? "var(--plain)" : `oklch(var(--solid-l) 0.155 ${colour(name)["--hue"]})`);
const tint = (name) => (name === null ? "var(--plain-tint)" : `oklch(var(--tint-l) var(--tint-c) ${colour(name)["--hue"]})`);

const LEAST = 0.22; // of the lines' height, or a small weight could not be seen

/** Hard stops of a gradient, one band for each part. */
function stops(parts, shares) {
  let at = 0;
  return parts.map((part, i) => {
    const from = at;
    at += 100 * shares[i];
    return `${solid(part.adapter)} ${from}% ${at}%`;
  }).join(", ");
}

/** The background of text under a mix: a line for each of its adapters, as thick as its weight, under a tint of the
 * heaviest. A swatch has them side by side. */
export function paint(element, mix) {
  const parts = mix.length ? mix : [{ adapter: null, weight: 1 }];
  const sum = parts.reduce((total, part) => total + Math.abs(part.weight), 0) || 1;
  const shares = parts.map((part) => Math.abs(part.weight) / sum);
  element.style.setProperty("--bar", `linear-gradient(to right, ${stops(parts, shares)})`);
  const least = shares.map((share) => Math.max(share, LEAST));
  const all = least.reduce((total, share) => total + share, 0);
  element.style.setProperty("--thick", `${1 + 2 * parts.length}px`);
  element.style.setProperty("--lines", `linear-gradient(to bottom, ${stops(parts, least.map((share) => share / all))})`);
  element.style.setProperty("--tint", tint(parts.reduce((best, part) => (part.weight > best.weight ? part : best)).adapter));
  element.title = nameOf(mix);
}

export const nameOf = (mix) => mix.length ? mix.map((part) => `${part.adapter} ${part.weight.toFixed(2)}`).join(" + ") : "plain backbone";
export const keyOf = (mix) => mix.map((part) => `${part.adapter}=${part.weight}`).join(",");

/** "cron=0.80,shell=0.20" of the header x-dlp-adapters. */
export function parseMix(header) {
  if (!header || header === "base") return [];
  return header.split(";")[0].split(",").map((part) => {
    const at = part.lastIndexOf("=");
    return { adapter: part.slice(0, at).trim(), weight: Number(part.slice(at + 1)) };
  });
}

export const dot = (name) => h("i", { class: "dot", "aria-hidden": "true", style: { background: solid(name) } });

/** An adapter's name with its colour, and its weight if it has one. */
export const chip = (name, weight = null, extra = {}) =>
  h("span", { class: "chip", ...extra }, dot(name), name ?? "plain backbone", weight !== null && h("b", {}, weight.toFixed(2)));

export const chips = (mix) => h("span", { class: "chips" }, mix.length ? mix.map((part) => chip(part.adapter, part.weight)) : chip(null));

/** A share as a bar with its number. */
export const bar = (name, share, label = percent(share)) =>
  h("span", { class: "bar" }, h("i", { style: { width: `${Math.min(100, 100 * share)}%`, background: solid(name) } }), h("b", {}, label));
