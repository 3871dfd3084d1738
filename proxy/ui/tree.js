/* The picture of what is stored. Bars follow each other from the left as their tokens do; a bar is as long as the square
   root of its tokens, as thick as many paths go through it, and the paler the longer it was not used.

   Elements are kept by node, so that focus survives and growth is seen. Rows are in the order in which branches were
   first seen: a branch does not jump when it is used. */

import { age, count, counted, element, say, set, svg } from "./dom.js";

const ROW = 24;
const LEAST = 5;
const LABEL = 96;

export class TreePicture {
  #scroll;
  #detail;
  #picture = svg("svg", { class: "tree", role: "tree", "aria-labelledby": "trie-title" });
  #links = svg("g", { class: "links", "aria-hidden": "true" });
  #bars = svg("g", { role: "presentation" });
  #drawn = new Map();
  #seen = new Map();
  #order = [];
  #chosen = null;
  #tree = null;

  constructor(scroll, detail) {
    this.#scroll = scroll;
    this.#detail = detail;
    this.#picture.append(this.#links, this.#bars);
    scroll.append(this.#picture);
    this.#picture.addEventListener("keydown", (event) => this.#move(event));
    new ResizeObserver(() => this.#tree && this.show(this.#tree)).observe(scroll);
  }

  show(tree) {
    this.#tree = tree;
    this.#scroll.hidden = tree.nodes.length === 0;
    const placed = layout(tree.nodes, this.#seen, Math.max(0, this.#scroll.clientWidth - 2));
    this.#order = placed.order;
    set(this.#picture, { width: placed.width, height: placed.height });
    this.#forget(placed.at);
    this.#links.replaceChildren(...this.#order.flatMap((node) => link(node, placed.at)));
    for (const node of this.#order) this.#draw(node, placed.at.get(node.id));
    if (!placed.at.has(this.#chosen)) this.#chosen = this.#order[0]?.id ?? null;
    this.#rove();
    this.#tell();
  }

  #forget(at) {
    for (const [id, drawn] of this.#drawn) {
      if (!at.has(id)) {
        drawn.item.remove();
        this.#drawn.delete(id);
      }
    }
    for (const id of this.#seen.keys()) if (!at.has(id)) this.#seen.delete(id);
  }

  #draw(node, at) {
    const { item, rect, label } = this.#drawn.get(node.id) ?? this.#make(node.id);
    this.#bars.append(...(item.parentNode ? [] : [item]));
    set(item, {
      class: `node ${node.tier}${node.running ? " running" : ""}`,
      "aria-level": at.depth + 1,
      "aria-label": described(node),
      "data-tokens": node.tokens,
    });
    set(rect, { x: at.x, y: at.y - at.thick / 2, width: at.width, height: at.thick, rx: Math.min(4, at.thick / 2) });
    set(rect, { "fill-opacity": node.running ? 1 : freshness(node.age_s) });
    set(label, at.ends ? { x: at.x + at.width + 6, y: at.y + 4 } : { x: at.x + 1, y: at.y - at.thick / 2 - 3 });
    say(label, labelled(node, at));
  }

  #make(id) {
    const rect = svg("rect");
    const label = svg("text", { "aria-hidden": "true" });
    const item = svg("g", { role: "treeitem", tabindex: -1 }, rect, label);
    item.addEventListener("focus", () => this.#choose(id));
    item.addEventListener("click", () => item.focus());
    const drawn = { item, rect, label };
    this.#drawn.set(id, drawn);
    return drawn;
  }

  #choose(id) {
    this.#chosen = id;
    this.#rove();
    this.#tell();
  }

  /** One stop for Tab; arrows do the rest. */
  #rove() {
    for (const [id, { item }] of this.#drawn) {
      set(item, { tabindex: id === this.#chosen ? 0 : -1, "aria-selected": String(id === this.#chosen) });
    }
  }

  #tell() {
    const node = this.#order.find((one) => one.id === this.#chosen);
    if (!node) return this.#detail.replaceChildren();
    const facts = [
      ["tokens", `${count(node.start)} to ${count(node.start + node.tokens)}`],
      ["paths", count(node.paths)],
      ["hits", count(node.hits)],
      ["tier", node.tier === "host" ? "host memory" : node.tier],
      ["held by", counted(node.running, "request", "requests")],
      ["last used", node.running || node.age_s < 1 ? "now" : `${age(node.age_s)} ago`],
    ];
    if (node.pinned) facts.push(["pinned", "yes"]);
    if (!this.#detail.childElementCount) this.#detail.append(element("dl"));
    const list = this.#detail.firstElementChild;
    list.replaceChildren(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    return undefined;
  }

  #move(event) {
    const at = this.#order.findIndex((node) => node.id === this.#chosen);
    const node = this.#order[at];
    const next = {
      ArrowDown: () => this.#order[at + 1],
      ArrowUp: () => this.#order[at - 1],
      ArrowLeft: () => this.#order.find((one) => one.id === node.parent),
      ArrowRight: () => this.#order.find((one) => one.parent === node.id),
      Home: () => this.#order[0],
      End: () => this.#order.at(-1),
    }[event.key];
    if (!next || !node) return;
    event.preventDefault();
    const target = next();
    if (target) this.#drawn.get(target.id).item.focus();
  }
}

/** Where each node stands: {order, at: id -> {x, y, width, thick, depth, ends}, width, height}. */
export function layout(nodes, seen, width) {
  const children = new Map();
  let next = Math.max(-1, ...seen.values()) + 1;
  for (const node of nodes) {
    if (!seen.has(node.id)) seen.set(node.id, next++);
    const siblings = children.get(node.parent) ?? [];
    siblings.push(node);
    children.set(node.parent, siblings);
  }
  for (const siblings of children.values()) siblings.sort((a, b) => seen.get(a.id) - seen.get(b.id));
  const order = [];
  const at = new Map();
  let rows = 0;
  let longest = 1;
  const place = (node, depth, x) => {
    const long = Math.sqrt(node.tokens);
    order.push(node);
    const reach = (child) => Math.min(1, (child.start - node.start) / node.tokens);
    const [after, beside] = parted(children.get(node.id) ?? [], (child) => reach(child) === 1);
    const ends = after.length === 0;
    const mine = { x, width: long, depth, ends, thick: Math.min(16, 5 + 2.6 * Math.log2(node.paths)) };
    at.set(node.id, mine);
    longest = Math.max(longest, x + long);
    const row = ends ? ROW * (rows++ + 0.75) : 0;
    const ys = after.map((child) => place(child, depth + 1, x + long));
    mine.y = row || (ys[0] + ys.at(-1)) / 2;
    for (const child of beside) place(child, depth + 1, x + long * reach(child));
    return mine.y;
  };
  for (const top of children.get(null) ?? []) place(top, 0, top.start ? Math.sqrt(top.start) : 0);
  const scale = Math.max(0, width - LABEL - 14) / longest;
  for (const mine of at.values()) {
    mine.x = 10 + mine.x * scale;
    mine.width = Math.max(LEAST, mine.width * scale - 2);
  }
  return { order, at, width, height: ROW * (rows + 0.5) };
}

function parted(all, isFirst) {
  return [all.filter(isFirst), all.filter((one) => !isFirst(one))];
}

function link(node, at) {
  const own = at.get(node.id);
  const before = node.parent === null ? null : at.get(node.parent);
  if (!before) {
    const lead = svg("path", { d: `M4,${own.y}H${own.x}`, class: node.start ? "declared" : "root" });
    return [lead];
  }
  const x = Math.min(before.x + before.width, own.x);
  const bend = Math.min(8, Math.max(2, own.x - x));
  const d = `M${x},${before.y}C${x + bend},${before.y} ${x},${own.y} ${own.x},${own.y}`;
  return [svg("path", { d: own.y === before.y ? `M${x},${own.y}H${own.x}` : d })];
}

const WHERE = { pool: "in the pool", host: "in host memory only", disk: "on disk only" };

const freshness = (unused) => Math.max(0.3, 1 - Math.log10(1 + unused) / 5).toFixed(2);

function labelled(node, at) {
  const more = node.left_out ? ` +${count(node.left_out)} not shown` : "";
  if (at.ends) return `${count(node.tokens)} · ${age(node.running ? 0 : node.age_s)}${more}`;
  return at.width > 30 ? count(node.tokens) : "";
}

function described(node) {
  const parts = [
    counted(node.tokens, "token", "tokens"),
    WHERE[node.tier],
    counted(node.paths, "path", "paths"),
    counted(node.hits, "hit", "hits"),
    node.running ? `held by ${counted(node.running, "request", "requests")}` : `last used ${age(node.age_s)} ago`,
  ];
  if (node.left_out) parts.push(`${counted(node.left_out, "branch", "branches")} not shown`);
  return parts.join(", ");
}
