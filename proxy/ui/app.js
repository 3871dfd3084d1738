/* Wiring: the stream into the pictures, the chat into the sessions, the key into both. */

import { key, notices } from "./api.js";
import { ChatPane } from "./chat.js";
import { Chats } from "./chats.js";
import { byId, count, counted, say } from "./dom.js";
import { Explainer } from "./explain.js";
import { Figures } from "./figures.js";
import { Live } from "./live.js";
import { showChats, showStored } from "./sessions.js";
import { TreePicture } from "./tree.js";

const chats = new Chats();
const live = new Live();
const figures = new Figures(byId("figures"));
const picture = new TreePicture(byId("trie"), byId("trie-detail"));
const pane = new ChatPane(chats, () => showChats(chats, (chat) => pane.open(chat)));
new Explainer(chats);
showChats(chats, (chat) => pane.open(chat));

live.addEventListener("state", ({ detail }) => {
  const status = byId("connection");
  status.dataset.state = detail;
  say(status, detail);
});

live.addEventListener("moment", ({ detail: moment }) => {
  say(byId("model"), moment.model);
  figures.show(moment);
  picture.show(moment.tree);
  showStored(moment.tree);
  const { nodes, left_out: leftOut } = moment.tree;
  const tokens = nodes.reduce((sum, node) => sum + node.tokens, 0);
  const rest = leftOut ? ` · ${counted(leftOut, "branch", "branches")} not shown` : "";
  byId("trie-empty").hidden = nodes.length > 0;
  byId("trie-detail").hidden = nodes.length === 0;
  say(byId("trie-sum"), nodes.length ? `${count(tokens)} tokens in ${counted(nodes.length, "run", "runs")}${rest}` : "");
});

const dialog = byId("key-dialog");

function askForKey(why) {
  if (dialog.open) return;
  say(byId("key-why"), why);
  byId("key-input").value = key.get();
  dialog.showModal();
}

notices.addEventListener("keyneeded", () => {
  askForKey(key.get() ? "The server does not know this key." : "This server asks for a key. It stays in this tab until the tab is closed.");
});
byId("key-button").addEventListener("click", () => askForKey("It stays in this tab until the tab is closed."));
byId("key-cancel").addEventListener("click", () => dialog.close());
byId("key-form").addEventListener("submit", () => {
  key.set(byId("key-input").value.trim());
  live.restart();
});

live.start();
