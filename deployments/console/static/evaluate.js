// Reports of `dlp eval`: scores of banks by task, and what the gate said.

import { evaluations } from "./api.js";
import { chart } from "./chart.js";
import { cell, date, empty, gateTag, h } from "./dom.js";

const SERVED = "top-p=0.9";

export async function show(main) {
  const reports = await evaluations();
  if (!reports.sources.length) {
    main.append(empty("No evaluations here", "Those in the bank's store are the operator's: start the console with the server's admin token. Or start it with --reports DIR, where DIR has what `dlp eval --out` wrote."));
    return;
  }
  const unreadable = reports.unreadable.length > 0 && h("section", { class: "card" }, h("h2", { class: "bad" }, "Not readable"), reports.unreadable.map((one) => h("p", { class: "soft" }, h("code", {}, one.path), ` ${one.reason}`)));
  if (!reports.results.length) {
    main.append(empty("No reports yet", `There are no results of an evaluation in ${reports.sources.join(" or ")}. This makes some, and stores them with a published bank:`,
      h("pre", { class: "code" }, "dlp eval --suite SUITE --bank URI --base-model MODEL")), unreadable || "");
    return;
  }
  const suites = [...new Map(reports.results.map((one) => [one.suite.digest, one.suite])).values()].reverse();
  const choose = h("select", { "aria-label": "Suite", style: { width: "auto" }, onchange: () => draw(choose.value) }, suites.map((suite) => h("option", { value: suite.digest }, `${suite.name}, ${suite.rows} rows`)));
  const body = h("div", { style: { display: "grid", gap: "1rem" } });
  main.append(h("div", { class: "row" }, choose, h("small", { class: "soft" }, reports.sources.join(", "))), body);
  if (unreadable) main.append(unreadable);
  let open = [];

  function draw(digest) {
    open.forEach((one) => one.close());
    const results = reports.results.filter((one) => one.suite.digest === digest);
    const versions = results.map((one) => one.bank.version);
    const gates = reports.gates.filter((one) => versions.includes(one.bank));
    const history = results.length > 1 ? lines(results) : null;
    open = history ? [history] : [];
    body.replaceChildren(verdicts(results, gates), byTask(results), ...(history ? [history.element] : []), arms(results.at(-1)));
  }
  draw(suites[0].digest);
  return () => open.forEach((one) => one.close());
}

const armOf = (result) => result.arms.find((arm) => arm.name === SERVED) ?? result.arms.find((arm) => arm.name.startsWith("top-p")) ?? result.arms.at(-1);
const points = (value) => value.toFixed(1);

function verdicts(results, gates) {
  const said = (verdict) => verdict
    ? [gateTag(verdict),
      verdict.worse.length ? h("div", { class: "bad" }, `worse: ${verdict.worse.join(", ")}`) : null, verdict.better?.length ? h("div", { class: "good" }, `better: ${verdict.better.join(", ")}`) : null]
    : h("span", { class: "soft" }, "nothing to compare with");
  return h("section", { class: "card" },
    h("header", {}, h("h2", {}, "Banks on this suite"), h("small", { class: "soft" }, `each against the one before it, as dlp eval gate compares them: arm ${SERVED}, a task may lose 1 point`)),
    h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, h("th", {}, "bank"), h("th", {}, "evaluated"), h("th", { class: "num" }, "score"), h("th", {}, "95 % interval"), h("th", {}, "verdict"), h("th", {}, "report"))),
      h("tbody", {}, [...results].reverse().map((one) => {
        const { score } = armOf(one);
        const gate = gates.findLast((verdict) => verdict.bank === one.bank.version);
        return h("tr", {}, cell("bank", {}, h("code", {}, one.bank.version)), cell("evaluated", {}, date(one.created)), cell("score", { class: "num" }, h("b", {}, points(score.mean))),
          cell("interval", {}, `${points(score.low)} to ${points(score.high)}`), cell("verdict", {}, said(gate ?? one.verdict)), cell("report", { class: "soft" }, one.path));
      })))));
}

/** Of several banks, each under the arm that serves; of a single one, its arms. */
function byTask(results) {
  const columns = results.length > 1
    ? results.slice(-6).map((one) => ({ name: one.bank.version, tasks: armOf(one).tasks }))
    : results[0].arms.filter((arm, i, all) => all.findIndex((other) => other.choices === arm.choices) === i).slice(0, 6);
  const tasks = [...new Set(columns.flatMap((one) => Object.keys(one.tasks)))].sort();
  const scored = (column, task) => {
    const score = column.tasks[task]?.score;
    if (!score) return h("td", { class: "cell soft" }, "–");
    return h("td", { class: "cell", title: `${points(score.low)} to ${points(score.high)}`, style: { background: `color-mix(in oklch, var(--good) ${Math.round(score.mean * 0.42)}%, var(--raised))` } }, points(score.mean));
  };
  return h("section", { class: "card" }, h("header", {}, h("h2", {}, results.length > 1 ? "Score by task" : "Score by task and arm"), h("small", { class: "soft" }, "points of 100; the interval is under the pointer")),
    h("div", { class: "scroll" }, h("table", { class: "heat" },
      h("thead", {}, h("tr", {}, h("th", {}, "task"), columns.map((one) => h("th", { class: "num" }, h("code", {}, one.name))))),
      h("tbody", {}, tasks.map((task) => h("tr", {}, h("th", {}, task), columns.map((one) => scored(one, task))))))));
}

function lines(results) {
  const tasks = Object.keys(armOf(results.at(-1)).tasks).slice(0, 8);
  const made = chart("Score over bank versions", { kind: "lines", format: (value) => value.toFixed(0), called: (version) => version, note: "in the order they were evaluated" });
  made.update({ bins: results.map((one) => one.bank.version), series: [
    { name: "mean", colour: "var(--text)", values: results.map((one) => armOf(one).score.mean) },
    ...tasks.map((task, i) => ({ name: task, colour: `oklch(var(--solid-l) 0.14 ${(i * 137.5 + 30) % 360})`, values: results.map((one) => armOf(one).tasks[task]?.score.mean ?? null) }))] });
  return made;
}

function arms(result) {
  const most = Math.max(...result.arms.map((arm) => arm.score.mean), 1);
  return h("section", { class: "card" },
    h("header", {}, h("h2", {}, "Does routing pay?"), h("small", { class: "soft" }, `arms of the newest report: bank ${result.bank.version}, ${result.setup}`)),
    h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, h("th", {}, "arm"), h("th", {}, "score"), h("th", {}, "95 % interval"), h("th", { class: "num" }, "adapters in a mix"), h("th", { class: "num" }, "plain"))),
      h("tbody", {}, result.arms.map((arm) => h("tr", {}, cell("arm", {}, h("span", { class: "name" }, arm.name)),
        cell("score", {}, h("span", { class: "bar" }, h("i", { style: { width: `${(60 * arm.score.mean) / most}%`, background: "var(--accent)" } }), h("b", {}, points(arm.score.mean)))),
        cell("interval", {}, `${points(arm.score.low)} to ${points(arm.score.high)}`), cell("adapters", { class: "num" }, arm.adapters.toFixed(2)), cell("plain", { class: "num" }, `${(100 * arm.plain).toFixed(0)} %`)))))));
}
