// Routed prompts, least sure first: were they routed right? By keyboard, a second or two for each.

import { can, get, post } from "./api.js";
import { chip, chips } from "./colours.js";
import { empty, h, notice, percent } from "./dom.js";

const PAGE = 50;
const KEYED = 9;

export async function show(main, { bank }) {
  let list;
  try {
    list = await get(`/api/v1/requests?order=confidence&reviewed=false&limit=${PAGE}`);
  } catch (error) {
    main.append(empty("Nothing to review here", error.status === 404 && !can.feedback ? "This server does not keep feedback." : error.message,
      "A server keeps what was routed, and the feedback on it, where log.prompts is on in its config. It is your users' text: whoever opens this page reads it."));
    return;
  }
  const names = [...bank.adapters, ...(bank.recipes ?? [])].map((entry) => entry.name);
  const items = together(list.data);
  let current = 0;

  const queue = h("ol", { class: "queue", "aria-label": "Routed prompts, least sure first" });
  const progress = h("span", { class: "soft" });
  main.append(h("div", { class: "row" }, h("h2", {}, "Routed today, least sure first"), progress,
    h("span", { class: "soft hint", style: { "margin-left": "auto" } }, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " move  ", h("kbd", {}, "r"), " right  ", h("kbd", {}, "w"), " wrong  ", h("kbd", {}, "1"), "–", h("kbd", {}, "9"), " should have been  ", h("kbd", {}, "n"), " nobody's")), queue);
  if (!items.length) queue.append(h("li", {}, empty("All reviewed", "There is no routed prompt of today without feedback.")));

  const elements = items.map((item, index) => {
    const verdict = h("div", { class: "verdict" });
    const element = h("li", { class: "item", tabindex: "-1", "data-id": item.id, onclick: () => { if (index !== current) move(index); } },
      h("p", { class: "text" }, item.text),
      h("div", { class: "meta" }, chips(item.mix), h("span", {}, item.confidence === null ? item.reason.replaceAll("_", " ") : `confidence ${percent(item.confidence, 1)}`),
        item.reason !== "routed" && h("span", { class: "tag" }, item.reason.replaceAll("_", " ")),
        item.ids.length > 1 && h("span", {}, `asked ${item.ids.length} times`), h("span", { class: "given" })),
      verdict);
    queue.append(element);
    return element;
  });

  function move(index, { scroll = true } = {}) {
    if (!items.length) return;
    current = Math.max(0, Math.min(items.length - 1, index));
    elements.forEach((element, i) => {
      if (i === current) element.setAttribute("aria-current", "true");
      else element.removeAttribute("aria-current");
      element.querySelector(".verdict").replaceChildren(...(i === current ? choices() : []));
      element.querySelector(".verdict").hidden = i !== current;
    });
    elements[current].focus({ preventScroll: true });
    if (scroll) elements[current].scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    progress.textContent = `${items.filter((item) => item.given).length} of ${items.length}${list.has_more ? "+" : ""} reviewed`;
  }

  const choices = () => [
    h("div", { class: "pick" },
      h("button", { onclick: () => give(right()) }, h("kbd", {}, "r"), "Right"),
      h("button", { onclick: () => give(wrong()) }, h("kbd", {}, "w"), "Wrong"),
      h("button", { onclick: () => give(nobody()) }, h("kbd", {}, "n"), "Belongs to nobody")),
    h("div", { class: "pick", role: "group", "aria-label": "Should have been" }, h("small", { class: "soft" }, "should have been"),
      names.slice(0, KEYED).map((name, i) => h("button", { class: "small", onclick: () => give(should(name)) }, h("kbd", {}, String(i + 1)), name)),
      names.length > KEYED && h("select", { "aria-label": "Another adapter", style: { width: "auto" }, onchange: (event) => event.target.value && give(should(event.target.value)) },
        h("option", { value: "" }, "another …"), names.slice(KEYED).map((name) => h("option", {}, name))))];

  const right = () => ({ body: { rating: "up" }, said: () => h("span", { class: "tag good" }, "right") });
  const wrong = () => ({ body: { rating: "down" }, said: () => h("span", { class: "tag bad" }, "wrong") });
  const nobody = () => ({ body: { rating: rated([]), adapter: null }, said: () => h("span", { class: "tag warn" }, "nobody's") });
  const should = (name) => ({ body: { rating: rated([name]), adapter: name }, said: () => ["should have been ", chip(name)] });
  /** A route that was as it should have been is a good one. */
  const rated = (adapters) => (items[current]?.mix.map((part) => part.adapter).join() === adapters.join() ? "up" : "down");

  async function give({ body, said }) {
    const index = current;
    const item = items[index];
    if (!item) return;
    const mark = elements[index].querySelector(".given");
    mark.replaceChildren("…");
    item.given = true;
    move(index + 1);
    try {
      for (const id of item.ids) await post("/api/v1/feedback", { request_id: id, ...body });
      mark.replaceChildren(...[said()].flat());
      elements[index].classList.add("done");
    } catch (error) {
      item.given = false;
      mark.replaceChildren(h("span", { class: "tag bad" }, "not saved"));
      notice(error.message, { failed: true });
    }
    move(current, { scroll: false });
  }

  const keys = {
    j: () => move(current + 1), ArrowDown: () => move(current + 1), k: () => move(current - 1), ArrowUp: () => move(current - 1),
    r: () => give(right()), w: () => give(wrong()), n: () => give(nobody()),
  };
  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
    const digit = /^[1-9]$/.test(event.key) ? names[Number(event.key) - 1] : null;
    const action = digit ? () => give(should(digit)) : keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
  document.addEventListener("keydown", press);
  move(0, { scroll: false });
  return () => document.removeEventListener("keydown", press);
}

/** Requests of the same text that were routed alike, as one, with all their ids. */
function together(requests) {
  const found = new Map();
  for (const request of requests) {
    const key = JSON.stringify([request.text, request.reason, request.mix]);
    if (found.has(key)) found.get(key).ids.push(request.id);
    else found.set(key, { ...request, ids: [request.id] });
  }
  return [...found.values()];
}
