/* The explainer: two requests, the first computed and kept, the second looked up; where they part, and what to do. */

import { json, modelName } from "./api.js";
import { bar, byId, count, element, say, set } from "./dom.js";

const EXAMPLE = "You are the assistant of a library. Answer in one sentence, name the shelf, and never guess a title.";
const KINDS = {
  hit: "All that was known was found",
  never_seen: "Never seen",
  diverged: "They part",
  evicted: "It was evicted",
  expired: "It expired",
  dropped: "It was dropped",
  tools_changed: "The tools changed",
  model_changed: "Another model",
  template_changed: "Another template",
  restarted: "Before a restart",
  redis_unavailable: "Redis does not answer",
};

export class Explainer {
  #chats;
  #fields = [byId("explain-earlier"), byId("explain-later")];

  constructor(chats) {
    this.#chats = chats;
    byId("explain-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#run();
    });
    byId("explain-example").addEventListener("click", () => this.#fill(example("23 November"), example("24 November")));
    byId("explain-chat").addEventListener("click", () => this.#take());
  }

  #fill(...bodies) {
    bodies.forEach((body, at) => {
      this.#fields[at].value = JSON.stringify(body, null, 2);
    });
    this.#refuse("");
  }

  #take() {
    const asked = this.#chats.all
      .flatMap((chat) => chat.messages.map((message, at) => (message.role === "user" ? { messages: chat.asked(at + 1) } : null)))
      .filter(Boolean);
    if (asked.length < 2) this.#refuse("The chat has fewer than two requests so far.");
    else this.#fill(...asked.slice(-2));
  }

  #refuse(message, at = null) {
    say(byId("explain-error"), message);
    this.#fields.forEach((field, index) => set(field, { "aria-invalid": index === at ? "true" : null }));
    if (at !== null) this.#fields[at].focus();
  }

  /** The two bodies, or null after saying which is none. An empty first one is left out. */
  async #bodies() {
    const bodies = [];
    for (const [at, field] of this.#fields.entries()) {
      if (at === 0 && !field.value.trim()) {
        bodies.push(null);
        continue;
      }
      const name = at ? "This request" : "The earlier request";
      try {
        const body = JSON.parse(field.value);
        if (body === null || typeof body !== "object" || Array.isArray(body)) throw new Error("it must be an object");
        bodies.push({ model: await modelName(), ...body });
      } catch (error) {
        this.#refuse(`${name} is no JSON body of a chat completion: ${error.message}`, at);
        return null;
      }
    }
    return bodies;
  }

  async #run() {
    this.#refuse("");
    const bodies = await this.#bodies();
    if (!bodies) return;
    const button = byId("explain-run");
    button.disabled = true;
    try {
      if (bodies[0]) await json("/v1/cache/warm", { body: bodies[0] });
      byId("explain-result").replaceChildren(...told(await json("/v1/cache/explain", { body: bodies[1] })));
    } catch (error) {
      this.#refuse(error.message);
    }
    button.disabled = false;
    button.focus();
  }
}

function example(day) {
  return {
    messages: [
      { role: "system", content: `Today is ${day} 2026. ${EXAMPLE}` },
      { role: "user", content: "Where are the atlases?" },
    ],
  };
}

function told(found) {
  const { tiers, prompt_tokens: total } = found;
  const left = total - tiers.pool - tiers.host - tiers.disk - tiers.elsewhere;
  const shares = [["pool", tiers.pool], ["host", tiers.host], ["disk", tiers.disk], ["own", tiers.elsewhere], ["new", left]];
  const nodes = [
    element("h3", { class: `kind ${found.class}` }, KINDS[found.class] ?? found.class),
    bar(shares.map(([kind, tokens]) => [kind, tokens / total])),
    element(
      "p",
      { class: "note" },
      `${count(total)} prompt tokens · ${count(tiers.pool)} in the pool · ${count(tiers.host)} in host memory · ` +
        `${count(tiers.disk)} on disk · ` +
        `${count(tiers.elsewhere)} on another replica · ${count(left)} to compute`,
    ),
  ];
  if (found.divergence) nodes.push(...parting(found.divergence));
  if (found.lost) nodes.push(element("p", {}, `What comes next was stored, and ${found.lost.reason}${ago(found.lost)}.`));
  if (found.advice) nodes.push(element("p", { class: "advice" }, found.advice));
  return nodes;
}

const ago = (lost) => (lost.seconds_ago == null ? "" : ` ${count(lost.seconds_ago)} s ago`);

function parting(at) {
  const line = (mark, kind, name, text) =>
    element(
      "div",
      { class: `side ${kind}` },
      element("span", { class: "mark" }, mark),
      element("code", {}, element("span", { class: "same" }, at.before), element(kind === "now" ? "ins" : "del", {}, text)),
      element("span", { class: "note" }, name),
    );
  return [
    element("p", {}, `They part at token ${count(at.token)}: character ${count(at.offset)} of `, element("code", {}, at.param)),
    element("div", { class: "sides" }, line("−", "then", "earlier", at.then), line("+", "now", "now", at.now)),
  ];
}
