/* The chat pane: streams replies, says what each turn found in the cache; edit, fork, stop. */

import { events, modelName } from "./api.js";
import { turnLine } from "./chats.js";
import { bar, byId, count, element, say, seconds, set } from "./dom.js";

export class ChatPane {
  #chats;
  #changed;
  #abort = null;
  #shown = new Map();

  /** changed: is called when there is something new to say of any chat. */
  constructor(chats, changed) {
    this.#chats = chats;
    this.#changed = changed;
    this.log = byId("chat-log");
    this.input = byId("chat-input");
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    byId("chat-stop").addEventListener("click", () => this.#abort?.abort());
    byId("chat-new").addEventListener("click", () => this.#open(() => this.#chats.begin()));
    byId("chat-system").addEventListener("change", (event) => {
      this.#chats.current.system = event.target.value;
    });
    this.show();
  }

  /** Make `chat` the current one. */
  open(chat) {
    this.#open(() => {
      this.#chats.current = chat;
    });
  }

  #open(choose) {
    choose();
    byId("chat-system").value = this.#chats.current.system;
    this.show();
    this.#changed();
    this.input.focus();
  }

  show() {
    const chat = this.#chats.current;
    say(byId("chat-title"), chat.name);
    this.#shown.clear();
    const messages = chat.messages.map((message, at) => this.#message(message, at));
    const empty = element("p", { class: "empty" }, "Ask something, then ask again: the second turn pays for its new tokens only.");
    this.log.replaceChildren(...(messages.length ? messages : [empty]));
    this.log.scrollTop = this.log.scrollHeight;
    this.#buttons();
  }

  #buttons() {
    const busy = this.#abort !== null;
    byId("chat-stop").hidden = !busy;
    byId("chat-send").hidden = busy;
    set(this.log, { "aria-busy": String(busy) });
    for (const button of this.log.querySelectorAll("button")) button.disabled = busy;
  }

  #message(message, at) {
    const text = element("p", { class: "text" }, message.content);
    const isUser = message.role === "user";
    const tools = element("div", { class: "tools" });
    const node = element("article", { class: `message ${message.role}` }, element("h3", {}, isUser ? "You" : "Model"), text);
    if (isUser) {
      tools.append(element("button", { type: "button", class: "quiet", onclick: () => this.#edit(node, message, at) }, "Edit"));
    } else {
      const line = element("p", { class: "turn" });
      const picture = element("div", { class: "turn-bar" });
      const thoughts = element("p", { class: "text thoughts", "aria-label": "Thoughts", hidden: true });
      this.#shown.set(message, { text, thoughts, line, picture, node });
      text.before(thoughts);
      node.append(picture, line);
      tools.append(element("button", { type: "button", class: "quiet", onclick: () => this.#fork(at + 1) }, "Fork here"));
      this.#update(message);
    }
    node.append(tools);
    return node;
  }

  #update(message) {
    const shown = this.#shown.get(message);
    if (!shown) return;
    const { turn } = message;
    const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
    say(shown.text, message.content);
    say(shown.thoughts, message.thoughts);
    shown.thoughts.hidden = !message.thoughts;
    say(shown.line, turn.state === "failed" ? turn.why : turnLine(turn, count, seconds));
    set(shown.node, { "data-state": turn.state });
    if (turn.prompt !== null && !shown.picture.childElementCount) {
      const cached = turn.cached / turn.prompt;
      shown.picture.replaceChildren(bar([["pool", cached], ["new", 1 - cached]]));
    }
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }

  #fork(end) {
    this.#open(() => this.#chats.fork(end));
    say(byId("chat-status"), `Forked: ${this.#chats.current.name}`);
  }

  #edit(node, message, at) {
    const field = element("textarea", { rows: 3, "aria-label": "Edit the message" });
    field.value = message.content;
    const cancel = () => {
      this.show();
      this.log.querySelectorAll("article")[at]?.querySelector("button")?.focus();
    };
    const form = element(
      "form",
      { class: "compose" },
      field,
      element("p", { class: "note" }, "All before it stays cached; what follows is left."),
      element(
        "div",
        { class: "actions" },
        element("button", { type: "button", class: "quiet", onclick: cancel }, "Cancel"),
        element("button", { type: "submit", class: "main" }, "Send"),
      ),
    );
    const send = (event) => {
      event.preventDefault();
      if (field.value.trim()) this.#ask(field.value, at);
    };
    form.addEventListener("submit", send);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
      if (event.key === "Escape") cancel();
    });
    node.replaceChildren(element("h3", {}, "You"), form);
    field.focus();
  }

  #send() {
    const text = this.input.value;
    if (!text.trim() || this.#abort) return;
    this.input.value = "";
    this.#ask(text);
  }

  async #ask(content, at = undefined) {
    if (this.#abort) return;
    const chat = this.#chats.current;
    chat.system = byId("chat-system").value;
    const reply = chat.say(content, at);
    this.#abort = new AbortController();
    this.show();
    this.#changed();
    try {
      await this.#stream(chat, reply, this.#abort.signal);
      reply.turn.state = "done";
    } catch (error) {
      const isOurs = error.name === "AbortError";
      Object.assign(reply.turn, isOurs ? { state: "stopped" } : { state: "failed", why: error.message });
    }
    this.#abort = null;
    this.#update(reply);
    this.#buttons();
    this.#changed();
    say(byId("chat-status"), reply.turn.state === "failed" ? reply.turn.why : turnLine(reply.turn, count, seconds));
    if (document.activeElement === document.body) this.input.focus();
  }

  async #stream(chat, reply, signal) {
    const body = {
      model: await modelName(),
      messages: chat.asked(chat.messages.indexOf(reply)),
      stream: true,
      stream_options: { include_usage: true },
      max_completion_tokens: Number(byId("chat-max").value) || 128,
      temperature: Number(byId("chat-temperature").value),
    };
    const started = performance.now();
    for await (const chunk of events("/v1/chat/completions", { body, signal })) {
      const { content = "", reasoning_content: thoughts = "" } = chunk.choices[0]?.delta ?? {};
      if ((content || thoughts) && reply.turn.ttft_s === null) reply.turn.ttft_s = (performance.now() - started) / 1000;
      reply.content += content ?? "";
      reply.thoughts += thoughts ?? "";
      if (chunk.usage) {
        reply.turn.prompt = chunk.usage.prompt_tokens;
        reply.turn.cached = chunk.usage.prompt_tokens_details.cached_tokens;
      }
      this.#update(reply);
    }
  }
}
