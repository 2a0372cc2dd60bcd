// Elements, formats and notices: all that the pages share.

/** An element. Attributes that start with "on" are listeners; false and null are left out; text is never read as HTML. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else if (name in element && typeof value !== "string" && !(element instanceof SVGElement)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (selector, within = document) => within.querySelector(selector);

/** A line that goes away by itself; one about something that failed stays longer. */
export function notice(text, { failed = false } = {}) {
  const line = h("p", { class: failed ? "notice failed" : "notice" }, text);
  $("#notices").append(line);
  setTimeout(() => line.remove(), failed ? 12000 : 5000);
}

/** Asks; resolves to whether the answer was yes. */
export function confirm(question, { detail = null, yes = "Do it", danger = false } = {}) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-label": question },
      h("form", { method: "dialog" },
        h("h2", {}, question), detail,
        h("div", { class: "row end" },
          h("button", { value: "no", class: "ghost" }, "Cancel"),
          h("button", { value: "yes", class: danger ? "danger" : "primary", autofocus: true }, yes))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    notice(`${what} copied`);
  } catch {
    const dialog = h("dialog", {}, h("form", { method: "dialog" }, h("pre", { class: "code" }, text), h("button", { class: "ghost" }, "Close")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
}

/** A group of radio buttons that looks like one control. `change` gets the value. */
export function segmented(label, options, value, change) {
  const name = `seg-${label.replace(/\W+/g, "-")}-${Math.random().toString(36).slice(2, 7)}`;
  return h("fieldset", { class: "segmented" }, h("legend", { class: "sr" }, label),
    options.map(([key, text]) => h("label", {},
      h("input", { type: "radio", name, value: key, checked: key === value, onchange: () => change(key) }), h("span", {}, text))));
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
export const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} GB` : n >= 1e5 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e3).toFixed(1)} kB`);
export const seconds = (t) => (t < 0.9995 ? `${(1000 * t).toFixed(0)} ms` : t < 10 ? `${t.toFixed(2)} s` : `${t.toFixed(1)} s`);
export const count = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${(n / 1e3).toFixed(1)}k` : `${Math.round(n)}`);
export const date = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
export const clock = (unix) => new Date(1000 * unix).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/** A cell of a table that becomes a list on narrow screens, where it has its column's name before it. */
export const cell = (label, attributes, ...children) => {
  const filled = children.flat(Infinity).some((child) => child !== null && child !== undefined && child !== false);
  return h("td", { "data-label": label, ...attributes }, filled && h("div", {}, children));
};

/** What a page shows instead of what it cannot show. */
export const empty = (title, ...lines) => h("section", { class: "card empty" }, h("h2", {}, title), lines.map((line) => (typeof line === "string" ? h("p", {}, line) : line)));

/** What the gate says of a bank against the one before it. */
export function gateTag({ passed, mean, baseline }) {
  const points = `${mean.mean >= 0 ? "+" : "\u2212"}${Math.abs(mean.mean).toFixed(1)}`;
  return h("span", {}, h("span", { class: passed ? "tag good" : "tag bad" }, passed ? "passed" : "failed"), " ", h("span", { class: "soft" }, `${points} to ${baseline}`));
}
