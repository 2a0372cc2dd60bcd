// Which page is shown, light or dark, and what the console is connected to.

import { can, findOut, get } from "./api.js";
import { know } from "./colours.js";
import { $, empty, h } from "./dom.js";

const PAGES = {
  playground: () => import("./playground.js"),
  bank: () => import("./bank.js"),
  traffic: () => import("./traffic.js"),
  review: () => import("./review.js"),
  evaluate: () => import("./evaluate.js"),
};
const TITLES = { playground: "Playground", bank: "Bank", traffic: "Traffic", review: "Review", evaluate: "Evaluate" };

/** What all pages know: the console's state and the bank that serves. */
const context = { state: null, bank: null, refresh };
let leave = () => {};

async function refresh() {
  const server = $("#server");
  try {
    context.bank = await get("/api/v1/bank");
    know(context.bank.adapters.map((adapter) => adapter.name));
    server.replaceChildren(h("i", { class: "dot ok", "aria-hidden": "true" }), h("span", {}, new URL(context.state.url).host),
      h("code", { title: "the bank that serves" }, context.bank.version));
  } catch (error) {
    context.bank = null;
    server.replaceChildren(h("i", { class: "dot failed", "aria-hidden": "true" }), h("span", { title: error.message }, new URL(context.state.url).host));
    throw error;
  }
  return context.bank;
}

async function show(name, { push = false, focus = false } = {}) {
  leave();
  leave = () => {};
  if (push) history.pushState({}, "", `/${name}`);
  document.title = `${TITLES[name]} – dlp console`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const main = $("#page");
  main.className = name;
  main.dataset.ready = "";
  try {
    if (!context.bank) await refresh();
    const page = await PAGES[name]();
    main.replaceChildren(h("h1", { class: "sr" }, TITLES[name]));
    leave = (await page.show(main, context)) ?? leave;
    main.dataset.ready = name;
  } catch (error) {
    main.replaceChildren(empty("The server does not answer as it should", error.message,
      h("button", { class: "primary", onclick: () => show(name) }, "Try again")));
    main.dataset.ready = "failed";
  }
  if (focus) main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

const current = () => { const name = location.pathname.slice(1); return name in PAGES ? name : "playground"; };

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-page]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  show(link.dataset.page, { push: true, focus: true });
});
window.addEventListener("popstate", () => show(current()));

const stored = localStorage.getItem("theme");
if (stored) document.documentElement.dataset.theme = stored;
$("#theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});

context.state = await get("/console/state");
await findOut(context.state);
if (can.admin && !context.state.password) document.documentElement.dataset.admin = "open";
show(current());
