/* Sessions: of this tab's chats every turn, cached and new; of all others what the server stores of them. */

import { age, bar, byId, count, counted, element, set } from "./dom.js";

const MOST_STORED = 12;

/** open: is called with the chat that was chosen. */
export function showChats(chats, open) {
  const rows = chats.all.filter((chat) => chat.turns.length).map((chat) => chatRow(chat, chat === chats.current, open));
  const empty = element("p", { class: "empty" }, "Each turn of a chat becomes a bar here.");
  const target = byId("sessions-chats");
  const focused = [...target.querySelectorAll("button")].indexOf(document.activeElement);
  target.replaceChildren(...(rows.length ? rows : [empty]));
  if (focused >= 0) target.querySelectorAll("button")[focused]?.focus();
}

function chatRow(chat, isCurrent, open) {
  const known = chat.turns.filter((turn) => turn.prompt !== null);
  const longest = Math.max(...known.map((turn) => turn.prompt), 1);
  const sums = known.reduce((sum, turn) => [sum[0] + turn.prompt, sum[1] + turn.cached], [0, 0]);
  const text = known.length
    ? `${counted(known.length, "turn", "turns")} · ${count(sums[1])} of ${count(sums[0])} prompt tokens cached`
    : "no turn finished yet";
  const button = element("button", { type: "button", class: "quiet name", onclick: () => open(chat), "aria-pressed": String(isCurrent) }, chat.name);
  const turns = known.map((turn, at) => turnRow(turn, at, longest));
  const head = element("div", { class: "head" }, button, element("p", { class: "note" }, text));
  return element("div", { class: "session" }, head, element("ol", { class: "turns" }, ...turns));
}

function turnRow(turn, at, longest) {
  const fresh = turn.prompt - turn.cached;
  const label = `Turn ${at + 1}: ${count(turn.cached)} cached, ${count(fresh)} new`;
  return element(
    "li",
    { title: label },
    bar([["pool", turn.cached / longest], ["new", fresh / longest]]),
    element("span", { class: "unseen" }, label),
    element("span", { class: "figures-right", "aria-hidden": "true" }, `${count(turn.cached)} + ${count(fresh)}`),
  );
}

/** Paths that end in a node of the tree, the last used first. */
export function showStored(tree) {
  const byNode = new Map(tree.nodes.map((node) => [node.id, node]));
  const parents = new Set(tree.nodes.map((node) => node.parent));
  const leaves = tree.nodes.filter((node) => !parents.has(node.id));
  const longest = Math.max(...leaves.map((leaf) => leaf.start + leaf.tokens), 1);
  const rows = leaves.slice(0, MOST_STORED).map((leaf) => storedRow(leaf, sharedOf(leaf, byNode), longest));
  const more = leaves.length - rows.length;
  if (more > 0) rows.push(element("li", { class: "note" }, `and ${counted(more, "more path", "more paths")}`));
  set(byId("sessions-stored-head"), { hidden: leaves.length === 0 });
  byId("sessions-stored").replaceChildren(element("ol", { class: "turns" }, ...rows));
}

/** Tokens of a path that other paths go through too. */
function sharedOf(leaf, byNode) {
  let after = leaf;
  for (let node = byNode.get(leaf.parent); node; node = byNode.get(node.parent)) {
    if (node.paths > 1) return after.start;
    after = node;
  }
  return after.start;
}

function storedRow(leaf, shared, longest) {
  const total = leaf.start + leaf.tokens;
  const used = leaf.running ? "in use" : age(leaf.age_s);
  const label = `${count(total)} tokens, ${count(shared)} shared, ${used}`;
  return element(
    "li",
    { title: label },
    bar([["pool", shared / longest], ["own", (total - shared) / longest]]),
    element("span", { class: "unseen" }, label),
    element("span", { class: "figures-right", "aria-hidden": "true" }, `${count(total)} · ${used}`),
  );
}
