// Try a prompt: what answers, which adapters each token ran under, and why. Two sides compare.

import { can } from "./api.js";
import { Answer } from "./answer.js";
import { curl, python } from "./code.js";
import { copy, h, segmented } from "./dom.js";

const STORED = "playground";
const DEFAULTS = { kind: "chat", prompt: "", system: "", topP: 0.9, most: 3, granularity: "request", temperature: 0, tokens: 128, two: false, sides: [{ model: "auto" }, { model: "" }] };

export async function show(main, context) {
  const { bank, state } = context;
  const wanted = { ...DEFAULTS, ...JSON.parse(sessionStorage.getItem(STORED) ?? "{}") };
  const save = () => sessionStorage.setItem(STORED, JSON.stringify(wanted));
  const { canary, shadow } = bank.rollout ?? bank;
  const beside = can.pinBank ? [canary && ["canary", canary.version], shadow && ["shadow", shadow.version]].filter(Boolean) : [];

  const prompt = h("textarea", { class: "prompt", id: "prompt", "aria-label": "Prompt", rows: 4, placeholder: "Ask what one of the adapters can answer …", oninput: () => { wanted.prompt = prompt.value; save(); } });
  const system = h("textarea", { rows: 2, "aria-label": "System prompt", oninput: () => { wanted.system = system.value; save(); } });
  prompt.value = wanted.prompt;
  system.value = wanted.system;
  const systemBox = h("details", { open: Boolean(wanted.system), hidden: wanted.kind !== "chat" }, h("summary", {}, "System prompt"), system);

  const answers = wanted.sides.map((side, index) => {
    const model = h("select", { "aria-label": `What answers on side ${index + 1}`, onchange: () => { side.model = model.value; save(); } },
      h("option", { value: "auto" }, "auto: the router chooses"),
      h("option", { value: bank.base_model.id }, "plain backbone"),
      h("optgroup", { label: "One adapter" }, bank.adapters.map((adapter) => h("option", { value: adapter.name }, adapter.name))),
      bank.recipes?.length ? h("optgroup", { label: "A recipe" }, bank.recipes.map((recipe) => h("option", { value: recipe.name }, recipe.name))) : null);
    model.value = side.model || bank.base_model.id;
    if (!model.value) model.value = "auto";
    side.model = model.value;
    if (!bank.router) model.options[0].disabled = true;
    const pinned = beside.length > 0 && h("select", { "aria-label": `Bank of side ${index + 1}`, onchange: () => { side.bank = pinned.value; save(); } },
      h("option", { value: "" }, "the server picks a bank"), h("option", { value: bank.version }, `serving ${bank.version}`), beside.map(([kind, version]) => h("option", { value: version }, `${kind} ${version}`)));
    if (pinned && side.bank) pinned.value = side.bank;
    if (!pinned || !pinned.value) delete side.bank;
    const tools = h("div", { class: "row end" },
      h("button", { type: "button", class: "ghost small", onclick: () => copy(curl(state.url, path(), body(side), state.key), "curl") }, "Copy as curl"),
      h("button", { type: "button", class: "ghost small", onclick: () => copy(python(state.url, path(), body(side), state.key), "Python") }, "Copy as Python"));
    const heads = h("div", { class: "row grow" }, model, pinned);
    return new Answer(heads, tools, index + 1);
  });

  const path = () => (wanted.kind === "chat" ? "/v1/chat/completions" : "/v1/completions");
  function body(side) {
    const dlp = {};
    if (side.model === "auto") Object.assign(dlp, { top_p: wanted.topP, max_adapters: wanted.most, ...(wanted.granularity === "request" ? {} : { granularity: wanted.granularity }) });
    if (side.bank) dlp.bank = side.bank;
    const messages = [...(wanted.system.trim() ? [{ role: "system", content: wanted.system }] : []), { role: "user", content: wanted.prompt }];
    return { model: side.model, ...(wanted.kind === "chat" ? { messages } : { prompt: wanted.prompt }), max_tokens: wanted.tokens, ...(wanted.temperature ? { temperature: wanted.temperature } : {}), ...(Object.keys(dlp).length ? { dlp } : {}) };
  }

  const active = () => (wanted.two ? answers : answers.slice(0, 1));
  async function run() {
    if (!wanted.prompt.trim()) { prompt.focus(); return; }
    runButton.disabled = true;
    stopButton.disabled = false;
    await Promise.all(active().map((answer, index) => answer.run(path(), body(wanted.sides[index]))));
    runButton.disabled = false;
    stopButton.disabled = true;
  }
  const stop = () => answers.forEach((answer) => answer.stop());

  const runButton = h("button", { type: "button", class: "primary", id: "run", onclick: run }, "Run", h("kbd", { class: "hint" }, "Ctrl ⏎"));
  const stopButton = h("button", { type: "button", disabled: true, onclick: stop }, "Stop", h("kbd", { class: "hint" }, "Esc"));
  const sides = h("div", { class: "sides" }, answers.map((answer) => answer.element));
  const arrange = () => { sides.classList.toggle("two", wanted.two); answers[1].element.hidden = !wanted.two; };
  const two = h("input", { type: "checkbox", id: "two", checked: wanted.two, onchange: () => { wanted.two = two.checked; save(); arrange(); } });

  const slider = (label, key, attributes, format = String) => {
    const out = h("output", {}, format(wanted[key]));
    return h("label", { class: "field" }, h("span", {}, label, out),
      h("input", { type: "range", name: key, "aria-label": label, ...attributes, value: String(wanted[key]), oninput: (event) => { wanted[key] = Number(event.target.value); out.textContent = format(wanted[key]); save(); } }));
  };

  main.append(
    h("section", { class: "card composer", "aria-label": "Request" },
      h("div", { class: "ask" },
        h("div", { class: "row" },
          segmented("Kind of request", [["chat", "Chat"], ["text", "Completion"]], wanted.kind, (kind) => { wanted.kind = kind; systemBox.hidden = kind !== "chat"; save(); })),
        prompt, systemBox,
        h("div", { class: "row" }, runButton, stopButton, h("label", { class: "row" }, two, "Two answers side by side"))),
      h("div", { class: "knobs" },
        slider("top_p", "topP", { min: "0.05", max: "1", step: "0.05" }, (value) => value.toFixed(2)),
        slider("max adapters", "most", { min: "1", max: "8", step: "1" }),
        slider("temperature", "temperature", { min: "0", max: "2", step: "0.1" }, (value) => (value ? value.toFixed(1) : "greedy")),
        slider("max tokens", "tokens", { min: "8", max: "512", step: "8" }),
        h("div", { class: "field wide" }, h("span", {}, "one mix for each"),
          segmented("Granularity", [["request", "request"], ["sentence", "sentence"], ["task", "task"]], wanted.granularity, (value) => { wanted.granularity = value; save(); })))),
    sides);
  arrange();

  function keys(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !runButton.disabled) { event.preventDefault(); run(); }
    if (event.key === "Escape") stop();
  }
  document.addEventListener("keydown", keys);
  if (matchMedia("(min-width: 700px)").matches) prompt.focus();
  return () => { stop(); document.removeEventListener("keydown", keys); };
}
