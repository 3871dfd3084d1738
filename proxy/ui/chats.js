/* The conversations of this tab: what was said, and what each turn found in the cache. Pure: no element is touched.

   message    {role: "user", content}   or   {role: "assistant", content, thoughts, turn}
   turn       {prompt, cached, ttft_s, state: "running" | "done" | "stopped" | "failed", why}; figures null until known */

export class Chat {
  constructor(name, system = "", messages = []) {
    this.name = name;
    this.system = system;
    this.messages = messages;
    this.inherited = new Set(messages);
  }

  /** Its own: those of the chat that it was forked from are that one's. */
  get turns() {
    const own = this.messages.filter((message) => message.role === "assistant" && !this.inherited.has(message));
    return own.map((message) => message.turn);
  }

  /** What a request would send: all up to message `end`, but for replies that never began. Thoughts go back as they came,
      or the reply would not be the tokens that were generated. */
  asked(end = this.messages.length) {
    const begun = this.messages.slice(0, end).filter(({ content, thoughts }) => content || thoughts);
    const said = begun.map(({ role, content, thoughts }) => ({ role, content, ...(thoughts ? { reasoning_content: thoughts } : {}) }));
    return this.system ? [{ role: "system", content: this.system }, ...said] : said;
  }

  /** The user says `content` in place of message `at` and all after it. Returns the reply's message, still empty. */
  say(content, at = this.messages.length) {
    this.messages.length = at;
    const turn = { prompt: null, cached: null, ttft_s: null, state: "running", why: "" };
    const reply = { role: "assistant", content: "", thoughts: "", turn };
    this.messages.push({ role: "user", content }, reply);
    return reply;
  }
}

export class Chats {
  #number = 1;

  constructor() {
    this.all = [new Chat("Chat 1")];
    this.current = this.all[0];
  }

  begin() {
    this.#number += 1;
    return this.#add(new Chat(`Chat ${this.#number}`, this.current.system));
  }

  /** A new chat with all up to message `end` of the current one. */
  fork(end) {
    this.#number += 1;
    const { name, system, messages } = this.current;
    return this.#add(new Chat(`Chat ${this.#number} (from ${name.split(" (")[0]})`, system, messages.slice(0, end)));
  }

  #add(chat) {
    this.all.push(chat);
    this.current = chat;
    return chat;
  }
}

/** "1,204 prompt · 1,187 cached · 17 new · TTFT 41 ms" */
export function turnLine(turn, count, seconds) {
  const parts = [];
  if (turn.prompt !== null) {
    parts.push(`${count(turn.prompt)} prompt`, `${count(turn.cached)} cached`, `${count(turn.prompt - turn.cached)} new`);
  }
  if (turn.ttft_s !== null) parts.push(`TTFT ${seconds(turn.ttft_s)}`);
  if (turn.state === "stopped") parts.push("stopped");
  return parts.join(" · ");
}
