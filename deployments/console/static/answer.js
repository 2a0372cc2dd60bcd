// One side of the playground: an answer as it streams, each token in the colours of its mix, and why it has that mix.

import { post, stream } from "./api.js";
import { bar, chip, dot, keyOf, nameOf, paint, parseMix, solid } from "./colours.js";
import { h, percent, seconds } from "./dom.js";

const NEAR = 0.005; // of a word's share of the decision, below which it says nothing
const REASONS = {
  routed: "the router chose by the text",
  named: "the request names this adapter",
  base: "the request asks for the plain backbone",
  explicit: "the request gives the weights",
  none_of_these: "no adapter of the bank fits: the plain backbone answers",
  low_confidence: "the router is less sure than min_confidence asks: the plain backbone answers",
  router_unavailable: "no router answered: the fallback serves",
};

export class Answer {
  /** `select` chooses what answers; it heads the side. `number` names it for assistive technology. */
  constructor(select, tools, number) {
    this.text = h("div", { class: "answer", role: "log", "aria-label": `Answer ${number}`, tabindex: 0, "data-empty": "The answer comes here, each token in the colour of the adapters it ran under." });
    this.legend = h("div", { class: "legend" });
    this.state = h("span", { class: "state" });
    this.why = h("div", { class: "why", hidden: true });
    this.facts = h("dl", { class: "facts", hidden: true });
    this.element = h("section", { class: "card side", "aria-label": `Side ${number}` },
      h("header", {}, select, this.state), this.legend, this.text, this.facts, this.why, tools);
    this.aborting = null;
  }

  get running() { return this.aborting !== null; }

  stop() { this.aborting?.abort(); }

  async run(path, body) {
    this.stop();
    const aborting = (this.aborting = new AbortController());
    Object.assign(this, { tokens: [], mixes: [], painted: [], spans: null, promptTokens: null, said: "", shown: "", measured: false, decoder: new TextDecoder() });
    this.text.replaceChildren(this.caret = h("span", { class: "caret" }));
    this.text.classList.remove("dim");
    this.legend.replaceChildren();
    this.why.hidden = this.facts.hidden = true;
    this.state.textContent = "routing …";
    const began = performance.now();
    let first = null;
    let last = null;
    const explaining = this.#explain(path, body);
    try {
      const asked = { ...body, stream: true, stream_options: { include_usage: true }, ...(path.endsWith("chat/completions") ? { logprobs: true, top_logprobs: 3 } : { logprobs: 3 }) };
      const opened = (headers) => { this.mix = parseMix(headers.get("x-dlp-adapters")); };
      for await (const chunk of stream(`/api${path}`, asked, { signal: aborting.signal, opened })) {
        if (chunk.dlp?.spans) this.spans = chunk.dlp.spans;
        if (chunk.usage) this.promptTokens = chunk.usage.prompt_tokens;
        for (const choice of chunk.choices) {
          if (this.#add(choice)) {
            last = performance.now();
            first ??= last;
          }
          if (choice.finish_reason) this.finish = choice.finish_reason;
        }
        this.#recolour();
        this.state.textContent = this.#counted();
        if (chunk.dlp?.bank) this.#show(chunk, { first: (first ?? performance.now()) - began, took: (last ?? 0) - (first ?? 0) });
      }
      this.state.textContent = this.#counted() + (this.finish === "length" ? ", cut at max tokens" : "");
    } catch (error) {
      if (error.name === "AbortError") this.state.textContent = "stopped";
      else {
        this.state.textContent = "failed";
        this.text.append(h("p", { class: "error" }, error.message));
      }
    } finally {
      this.caret.remove();
      if (this.aborting === aborting) this.aborting = null;
    }
    await explaining;
  }

  #counted() { return `${this.tokens.length} token${this.tokens.length === 1 ? "" : "s"}`; }

  /** Append what a choice of a chunk brings: its tokens, or its text if tokens are not told. */
  #add(choice) {
    const text = choice.delta ? choice.delta.content : choice.text;
    const tokens = choice.delta
      ? (choice.logprobs?.content ?? []).map((token) => ({ text: this.decoder.decode(Uint8Array.from(token.bytes), { stream: true }), logprob: token.logprob, top: token.top_logprobs.map((other) => [other.token, other.logprob]) }))
      : (choice.logprobs?.tokens ?? []).map((token, i) => ({ text: token, logprob: choice.logprobs.token_logprobs[i], top: Object.entries(choice.logprobs.top_logprobs?.[i] ?? {}) }));
    this.said += text ?? "";
    this.measured ||= tokens.length > 0;
    // text may come before the token it belongs to is complete; what is still missing at the end, half a character, has none
    const missing = this.said.slice(this.shown.length);
    if (missing && !tokens.length && (choice.finish_reason || !this.measured)) tokens.push({ text: missing });
    for (const token of tokens) {
      this.shown += token.text;
      const element = h("span", { class: "token" }, token.text);
      element.dataset.p = token.logprob === undefined || token.logprob === null ? "" : percent(Math.exp(token.logprob), 1);
      element.top = token.top ?? [];
      this.tokens.push(element);
      this.mixes.push(null);
      this.caret.before(element);
    }
    const box = this.text;
    if (tokens.length && box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
    return tokens.length > 0;
  }

  /** Colour each token by its span, or, before spans are told, by the mix the answer begins with. */
  #recolour() {
    const first = this.promptTokens ?? null;
    let before = null;
    this.tokens.forEach((element, index) => {
      // until the prompt's length is told, with the usage, spans count from an unknown token: what is new has the last mix
      const mix = first === null && this.mixes[index] !== null ? this.painted[index] : this.#mixOf(index, first);
      const key = keyOf(mix);
      this.painted[index] = mix;
      if (this.mixes[index] !== key) {
        this.mixes[index] = key;
        paint(element, mix);
        if (element.dataset.p) element.title = `${nameOf(mix)}\nprobability ${element.dataset.p}${element.top.map(([text, p]) => `\n${percent(Math.exp(p), 1)}  ${JSON.stringify(text)}`).join("")}`;
        element.dataset.mix = key;
        element.classList.toggle("open", before !== null && before !== key);
        this.#learn(mix, key);
      }
      before = key;
    });
  }

  #mixOf(index, first) {
    if (!this.spans) return this.mix ?? [];
    if (first === null) return this.spans.at(-1).mix;
    return (this.spans.find((span) => first + index < span.end) ?? this.spans.at(-1)).mix;
  }

  /** A legend entry for a mix that has not been seen. It lights its tokens. */
  #learn(mix, key) {
    if ([...this.legend.children].some((entry) => entry.dataset.mix === key)) return;
    const swatch = h("i", { class: "swatch", "aria-hidden": "true" });
    paint(swatch, mix);
    const light = (on) => {
      this.text.classList.toggle("dim", on);
      for (const token of this.tokens) token.classList.toggle("lit", on && token.dataset.mix === key);
    };
    this.legend.append(h("button", { type: "button", "data-mix": key, title: "show its tokens", onmouseenter: () => light(true), onmouseleave: () => light(false), onfocus: () => light(true), onblur: () => light(false) },
      swatch, nameOf(mix)));
  }

  #show(chunk, times) {
    const { dlp } = chunk;
    this.reply = chunk;
    const used = new Set(this.mixes);
    for (const entry of [...this.legend.children]) if (!used.has(entry.dataset.mix)) entry.remove();
    const rate = times.took > 0 && this.tokens.length > 1 ? (1000 * (this.tokens.length - 1)) / times.took : null;
    const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
    this.facts.replaceChildren(
      fact("first token", seconds(times.first / 1000)),
      rate === null ? "" : fact("then", `${rate.toFixed(0)} tokens/s`),
      dlp.confidence !== null && dlp.confidence !== undefined ? fact("confidence", percent(dlp.confidence, 1)) : "",
      fact("bank", h("code", {}, dlp.bank)));
    this.facts.hidden = false;
  }

  /** Ask /v1/route the same, for the words that decided. */
  async #explain(path, body) {
    const { model, dlp } = body;
    const asked = { model, ...(dlp ? { dlp } : {}), ...(body.messages ? { messages: body.messages } : { prompt: body.prompt }) };
    try {
      const route = await post("/api/v1/route", asked);
      this.#because(route);
    } catch (error) {
      if (error.code !== "unreachable") this.why.replaceChildren(h("p", { class: "soft" }, error.message));
    }
  }

  #because(route) {
    const parts = [h("div", {}, h("h3", {}, "Why"), h("p", {}, REASONS[route.reason] ?? route.reason))];
    if (route.probabilities) {
      const likeliest = Object.entries(route.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 5);
      const kept = new Set([...route.mix.map((part) => part.adapter), ...(route.recipes ?? [])]);
      parts[0].append(h("p", { class: "soft" }, `“None of these” ${percent(route.none, 1)}; from ${percent(route.none_threshold)} on, no adapter is used. The likeliest are kept until they reach ${route.top_p}, at most ${route.max_adapters}.`));
      parts.push(h("div", {}, h("h3", {}, "Probabilities"), h("div", { class: "probabilities" }, likeliest.map(([name, share]) =>
        [h("span", { class: kept.has(name) ? "name" : "name soft", style: { "font-weight": kept.has(name) ? 600 : 400 } }, dot(name), name), bar(name, share, percent(share, 1))]))));
      const largest = Math.max(...route.words.map((word) => Math.abs(word.effect)), NEAR);
      parts.push(h("div", {}, h("h3", {}, "Words that decided for ", chip(route.explains)), h("p", { class: "words" }, route.words.map((word) => this.#word(word, route.explains, largest)))));
    }
    this.why.replaceChildren(...parts);
    this.why.hidden = false;
  }

  #word({ text, effect }, adapter, largest) {
    const strength = Math.abs(effect) / largest;
    const against = effect < 0;
    const background = strength < 0.08 ? "none" : `color-mix(in oklch, ${against ? "var(--bad)" : solid(adapter)} ${Math.round(8 + 47 * strength)}%, transparent)`;
    return [h("span", { style: { background }, title: `${effect > 0 ? "+" : ""}${effect.toFixed(2)} to the log-odds of ${adapter}` }, text), " "];
  }
}

