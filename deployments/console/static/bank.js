// What serves: the adapters, where they are resident and what asks for them; the versions, and what changes them.

import { can, evaluations, get, post } from "./api.js";
import { bar, chips, dot } from "./colours.js";
import { bytes, cell, confirm, count, date, empty, gateTag, h, notice, percent } from "./dom.js";

const RESIDENCY_MS = 5000;

export async function show(main, context) {
  const bank = await context.refresh();
  const traffic = await get("/console/traffic").catch(() => null);
  const versions = can.versions ? await get("/api/v1/bank/versions").then((list) => list.data, () => []) : null;
  const judged = versions ? await evaluations().then(({ results }) => results, () => []) : [];
  const again = () => { main.replaceChildren(main.firstElementChild); return show(main, context); };

  /** Change the bank; show what the server says, and the bank that serves then. */
  async function change(path, body, done) {
    try {
      const said = await post(`/api/v1/bank/${path}`, body);
      for (const warning of said.warnings ?? []) notice(`warning: ${warning}`, { failed: true });
      notice(done(said));
    } catch (error) {
      notice(error.message, { failed: true });
    }
    await again();
  }

  const size = bank.adapters.reduce((total, adapter) => total + sizeOf(adapter), 0);
  main.append(h("div", { class: "tiles" },
    tile("bank that serves", h("b", { class: "mono", id: "serving" }, bank.version), date(bank.created)),
    tile("base model", h("b", { class: "mono", title: bank.base_model.id }, bank.base_model.id), bank.base_model.aliases?.length ? `also ${bank.base_model.aliases.join(", ")}` : "frozen backbone"),
    tile("adapters", h("b", {}, count(bank.adapters.length)), bytes(size)),
    tile("router", h("b", { class: "mono" }, bank.router?.version ?? "none"), bank.router ? `chooses among ${bank.router.labels.length}` : "adapters by name only")));

  const { canary, canary_end: ended, shadow } = bank.rollout ?? bank;
  if (canary) main.append(trial("Canary", canary, change));
  else if (ended) main.append(h("p", { class: "soft" }, "The last canary, ", h("code", {}, ended.version), `, was ${ended.outcome.replaceAll("_", " ")}: ${ended.reason}.`));
  if (shadow) main.append(trial("Shadow", shadow, change));
  main.append(adapters(bank, traffic));
  if (bank.recipes?.length) main.append(recipes(bank.recipes));
  main.append(versions ? versionTable(bank, versions, judged, change) : empty("Versions are the operator's",
    "To see earlier versions of the bank, compare them, publish, pin and roll back, start the console with the server's admin token: DLP_ADMIN_TOKEN, or --admin-token."));
  if (versions) main.append(publishForm(change));

  const timer = setInterval(async () => {
    const now = await get("/console/traffic").catch(() => null);
    const cells = main.querySelectorAll("td[data-resident] > div");
    if (now) for (const cell of cells) cell.replaceChildren(...where(cell.parentElement.dataset.resident, now.resident));
  }, RESIDENCY_MS);
  return () => clearInterval(timer);
}

const tile = (name, value, below) => h("div", { class: "tile" }, h("small", { class: "soft" }, name), value, h("small", { class: "soft" }, below));
const sizeOf = (adapter) => adapter.files.reduce((total, file) => total + file.size, 0);

function adapters(bank, traffic) {
  const asked = {};
  for (const point of traffic?.points ?? []) for (const [name, hits] of Object.entries(point.adapters)) asked[name] = (asked[name] ?? 0) + hits;
  const most = Math.max(1, ...Object.values(asked));
  return h("section", { class: "card" },
    h("header", {}, h("h2", {}, "Adapters"), traffic?.problem && h("small", { class: "soft" }, `no traffic and residency: ${traffic.problem}`)),
    h("div", { class: "scroll" }, h("table", { class: "stack", id: "adapters" },
      h("thead", {}, h("tr", {}, ["adapter", "version", "rank", "modules", "size", "resident on", "requests, last hour"].map((name) => h("th", { class: ["rank", "size"].includes(name) ? "num" : "" }, name)))),
      h("tbody", {}, bank.adapters.map((adapter) => h("tr", {},
        cell("", {}, h("span", { class: "name" }, dot(adapter.name), adapter.name, !adapter.routed && h("span", { class: "tag" }, "by name only")),
          adapter.description && h("div", { class: "about" }, adapter.description)),
        cell("version", {}, h("code", {}, adapter.version)),
        cell("rank", { class: "num" }, String(adapter.rank)),
        cell("modules", { class: "modules" }, adapter.modules.join(" ")),
        cell("size", { class: "num" }, bytes(sizeOf(adapter))),
        cell("resident on", { "data-resident": adapter.name }, where(adapter.name, traffic?.resident ?? {})),
        cell("last hour", {}, asked[adapter.name] ? bar(adapter.name, asked[adapter.name] / most / 1.6, count(asked[adapter.name])) : h("span", { class: "soft" }, "–"))))))));
}

/** The replicas that have an adapter in a slot. */
function where(name, resident) {
  const replicas = Object.entries(resident);
  const holders = replicas.filter(([, names]) => names.includes(name)).map(([replica]) => replica);
  if (!holders.length) return [h("span", { class: "soft" }, "–")];
  return [h("span", { class: "tag good", title: holders.join("\n") }, `${holders.length} of ${replicas.length} replica${replicas.length === 1 ? "" : "s"}`)];
}

const UNTOLD = ["id", "version", "manifest_sha256", "counts", "test"];

/** A canary or a shadow: what it is told to do, what was counted of it, and what its test says. */
function trial(kind, facts, change) {
  const told = Object.entries(facts).filter(([name, value]) => !UNTOLD.includes(name) && value !== null);
  const shown = (name, value) => (name === "share" ? percent(value, 1) : name === "began" ? date(value) : String(value));
  const path = kind.toLowerCase();
  return h("section", { class: "card", id: path },
    h("header", {}, h("h2", {}, `${kind} `, h("code", {}, facts.version)), can.admin && h("div", { class: "row" },
      h("button", { class: "small", onclick: () => change(path, { stop: true }, () => `${facts.version} is no longer the ${path}`) }, "Stop"),
      kind === "Canary" && h("button", { class: "small primary", onclick: async () => {
        if (await confirm(`Promote ${facts.version} to all requests?`, { yes: "Promote" })) change("promote", {}, () => `${facts.version} serves`);
      } }, "Promote"))),
    h("dl", { class: "facts" }, told.map(([name, value]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, shown(name, value))))),
    facts.counts && counted(facts.counts),
    facts.test && verdict(facts.test));
}

/** Counts of two banks side by side with their shares, or those of a shadow. */
function counted(counts) {
  if (!counts.serving) return h("dl", { class: "facts" }, Object.entries(counts).map(([name, n]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, count(n)))));
  const of = (bank, name) => (name === "negative" ? bank.rated : bank.requests);
  const names = Object.keys(counts.serving);
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", {}), names.map((name) => h("th", { class: "num" }, name)))),
    h("tbody", {}, Object.entries(counts).map(([bank, found]) => h("tr", {}, h("td", {}, bank), names.map((name) => h("td", { class: "num" }, count(found[name]),
      !["requests", "rated"].includes(name) && of(found, name) > 0 && h("small", { class: "soft" }, ` ${percent(found[name] / of(found, name), 1)}`))))))));
}

function verdict(test) {
  const alarm = test.evidence_log10 >= test.alarm_log10;
  return h("p", { class: alarm ? "bad" : "soft" }, `Evidence that it is worse: 10^${test.evidence_log10.toFixed(2)} to 1, alarm from 10^${test.alarm_log10.toFixed(0)} on. `,
    Object.entries(test.signals_log10 ?? {}).map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", "));
}

function recipes(list) {
  return h("section", { class: "card" }, h("header", {}, h("h2", {}, "Recipes")),
    h("div", { class: "scroll" }, h("table", { class: "stack", id: "recipes" },
      h("thead", {}, h("tr", {}, ["recipe", "adapters and weights", "fitted on"].map((name) => h("th", {}, name)))),
      h("tbody", {}, list.map((recipe) => h("tr", {},
        cell("", {}, h("span", { class: "name" }, recipe.name, !recipe.routed && h("span", { class: "tag" }, "by name only")),
          recipe.description && h("div", { class: "about" }, recipe.description)),
        cell("adapters and weights", {}, chips(recipe.adapters)),
        cell("fitted on", {}, recipe.fitted ? `${count(recipe.fitted.rows)} rows` : h("span", { class: "soft" }, "–"))))))));
}

function versionTable(bank, versions, judged, change) {
  const gate = (version) => {
    const newest = judged.findLast((one) => one.bank.version === version);
    return newest?.verdict ? gateTag(newest.verdict) : h("span", { class: "soft" }, newest ? "nothing to compare with" : "not evaluated");
  };
  const rows = versions.map((one) => {
    const below = h("tr", { hidden: true }, h("td", { colspan: 6, "data-label": "" }));
    const actions = h("div", { class: "row end" },
      !one.current && h("button", { class: "small", onclick: () => differ(bank.version, one.version, below) }, "Diff"),
      !one.current && h("button", { class: "small", onclick: () => rollBack(bank, one, change) }, "Roll back"),
      !one.current && can.canary && h("button", { class: "small", onclick: () => canary(one, change) }, "Canary"),
      !one.current && can.shadow && h("button", { class: "small", onclick: () => change("shadow", { version: one.version }, () => `${one.version} is the shadow`) }, "Shadow"),
      h("button", { class: "small ghost", onclick: () => change(one.pinned ? "unpin" : "pin", { version: one.version }, () => `${one.version} is ${one.pinned ? "no longer " : ""}pinned`) }, one.pinned ? "Unpin" : "Pin"));
    return [h("tr", { class: one.current ? "now" : "", "data-version": one.version },
      cell("version", {}, h("code", {}, one.version), " ", one.current && h("span", { class: "tag good" }, "serves"), " ", one.pinned && h("span", { class: "tag", title: "`dlp bank gc` keeps it" }, "pinned")),
      cell("created", {}, date(one.created)),
      cell("adapters", { class: "num" }, String(one.adapters)),
      cell("size", { class: "num" }, bytes(one.size)),
      cell("gate", {}, gate(one.version)),
      cell("", {}, actions)), below];
  });
  return h("section", { class: "card" },
    h("header", {}, h("h2", {}, "Versions"), h("small", { class: "soft" }, "a roll back moves the pointer; requests in flight end on the bank they began with")),
    h("div", { class: "scroll" }, h("table", { class: "stack", id: "versions" },
      h("thead", {}, h("tr", {}, h("th", {}, "version"), h("th", {}, "created"), h("th", { class: "num" }, "adapters"), h("th", { class: "num" }, "size"), h("th", {}, "gate"), h("th", {}))),
      h("tbody", {}, rows))));
}

async function differ(from, to, row) {
  if (!row.hidden) { row.hidden = true; return; }
  try {
    row.firstElementChild.replaceChildren(await difference(from, to));
    row.hidden = false;
  } catch (error) {
    notice(error.message, { failed: true });
  }
}

async function difference(from, to) {
  const found = await get(`/api/v1/bank/diff?from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}`);
  const lines = [
    ...found.added.map((name) => h("span", { class: "good" }, `+ ${name}`)),
    ...found.removed.map((name) => h("span", { class: "bad" }, `- ${name}`)),
    ...found.changed.map((name) => h("span", { class: "warn" }, `~ ${name}`)),
    ...(found.recipes_added ?? []).map((name) => h("span", { class: "good" }, `+ recipe ${name}`)),
    ...(found.recipes_removed ?? []).map((name) => h("span", { class: "bad" }, `- recipe ${name}`)),
    ...(found.recipes_changed ?? []).map((name) => h("span", { class: "warn" }, `~ recipe ${name}`)),
    found.mixes === "listed" && h("span", { class: "warn" }, "~ only the pairs of allowed_together are mixed"),
    found.mixes === "any" && h("span", { class: "warn" }, "~ any adapters are mixed"),
    ...(found.pairs_added ?? []).map((pair) => h("span", { class: "good" }, `+ ${pair.join(" with ")}`)),
    ...(found.pairs_removed ?? []).map((pair) => h("span", { class: "bad" }, `- ${pair.join(" with ")}`)),
    found.router_changed && h("span", { class: "warn" }, "~ the router"),
    found.base_changed && h("span", { class: "warn" }, "~ the base model"),
  ].filter(Boolean);
  return h("div", { class: "diff" }, h("small", { class: "soft" }, `what changes from ${from} to ${to}`), lines.length ? lines : "no difference");
}

async function rollBack(bank, one, change) {
  const detail = await difference(bank.version, one.version).catch((error) => h("p", { class: "bad" }, error.message));
  if (await confirm(`Roll back to ${one.version}?`, { detail, yes: "Roll back", danger: true })) await change("rollback", { version: one.version }, (said) => `${said.version} serves`);
}

async function canary(one, change) {
  const share = h("input", { type: "number", min: "1", max: "99", value: "5", "aria-label": "Share in per cent" });
  const detail = h("label", { class: "field" }, h("span", {}, "share of the requests, in %"), share);
  if (await confirm(`Try ${one.version} as a canary?`, { detail, yes: "Start" })) {
    await change("canary", { version: one.version, share: Number(share.value) / 100 }, () => `${one.version} serves ${share.value} % of the requests`);
  }
}

function publishForm(change) {
  const folder = h("input", { type: "text", name: "folder", placeholder: "s3://bucket/candidate/, or a folder on the backbone's node", autocomplete: "off", spellcheck: false });
  const version = h("input", { type: "text", name: "version", placeholder: "derived from its content", autocomplete: "off", spellcheck: false });
  const stage = can.stage && h("input", { type: "checkbox", name: "stage" });
  const button = h("button", { class: "primary", onclick: async (event) => {
    event.preventDefault();
    if (!folder.value.trim()) { folder.focus(); return; }
    const staged = Boolean(stage && stage.checked);
    if (!(await confirm(staged ? `Store ${folder.value.trim()} without serving it?` : `Publish ${folder.value.trim()} to all requests?`, { detail: h("p", { class: "soft" }, "Every adapter is checked against the base model first. The bank that serves stays until all replicas have the new one."), yes: staged ? "Store" : "Publish" }))) return;
    button.disabled = true;
    button.textContent = "Publishing …";
    await change("publish", { folder: folder.value.trim(), ...(version.value.trim() ? { version: version.value.trim() } : {}), ...(staged ? { stage: true } : {}) },
      (said) => `${said.version} ${staged ? "is stored" : "serves"}, with ${said.adapters} adapters`);
  } }, "Publish");
  return h("section", { class: "card" }, h("header", {}, h("h2", {}, "Publish a bank folder")),
    h("form", { class: "publish" }, h("label", { class: "field" }, h("span", {}, "folder"), folder), h("label", { class: "field" }, h("span", {}, "version"), version), button,
      stage && h("label", { class: "row" }, stage, "only store it, for a canary or a shadow")));
}
