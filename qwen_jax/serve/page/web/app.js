"use strict";
// The page of the server: chat, comparisons, tokens and runs. One file, without a build step.
// Text of models is untrusted. It becomes text nodes, or passes markdown-it (which writes no HTML of
// others) and then DOMPurify; the content security policy is the third wall.
(() => {
const $ = (id) => document.getElementById(id);
const WINDOW = 60; // messages that are drawn at first; earlier ones on request
const MAX_MARKDOWN = 200_000; // characters; longer texts stay plain
const MAX_TURNS = 8; // answers in a row that call tools
const TOP = 10; // alternatives of a token
const SHOWN_TOKENS = 1500; // of a prompt, the last ones
const SAMPLING = [ // name of the API, label, step, least, most
  ["temperature", "Temperature", "0.1", 0, 2], ["top_p", "Top p", "0.05", 0.01, 1], ["top_k", "Top k", "1", 1, 1e6],
  ["repetition_penalty", "Repetition penalty", "0.05", 0.01, 100], ["max_tokens", "Maximum tokens", "1", 1, 1e7], ["seed", "Seed", "1", 0, 4294967295],
];

// ---------------------------------------------------------------- elements and safe text

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "className") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// Characters that change how the text around them is shown: bidi controls, and control characters
// such as those of ANSI sequences. Marks of Arabic and Hebrew (U+200E, U+200F) stay.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const codePoint = (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
const visible = (text) => text.replace(/\r\n?/g, "\n").replace(HIDDEN, (c) => c < " " ? String.fromCodePoint(0x2400 + c.charCodeAt(0)) : `[${codePoint(c)}]`);

function formula(source, display) {
  try { // MathML only: KaTeX's HTML needs inline styles, which the policy forbids
    return katex.renderToString(source, { displayMode: display, output: "mathml", throwOnError: true, trust: false, maxExpand: 200, maxSize: 20, strict: "ignore" })
      .replace(/<annotation[^>]*>[^]*?<\/annotation>/g, "").replace(/<\/?semantics>/g, "");
  } catch { return `<code>${markdown.utils.escapeHtml(source)}</code>`; }
}

function mathRules(md) {
  const inline = (state, silent) => {
    const rest = state.src.slice(state.pos, state.pos + 2000);
    const found = /^\$\$([^]+?)\$\$/.exec(rest) || /^\\\[([^]+?)\\\]/.exec(rest) || /^\\\(([^]+?)\\\)/.exec(rest)
      || /^\$(?![\s\d.,]*\$|\s)((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d)/.exec(rest);
    if (!found) return false;
    if (!silent) {
      const token = state.push("math", "math", 0);
      token.content = found[1];
      token.meta = { display: found[0].startsWith("$$") || found[0].startsWith("\\[") };
    }
    state.pos += found[0].length;
    return true;
  };
  md.inline.ruler.before("escape", "math", inline);
  const block = (state, start, end, silent) => {
    const begin = state.bMarks[start] + state.tShift[start];
    const opening = state.src.slice(begin, begin + 2);
    if (opening !== "$$" && opening !== "\\[") return false;
    const closing = opening === "$$" ? "$$" : "\\]";
    for (let line = start; line < Math.min(end, start + 60); line++) {
      const text = state.src.slice(state.bMarks[line], state.eMarks[line]).trimEnd();
      if (!text.endsWith(closing) || (line === start && text.trim().length < 4)) continue;
      if (silent) return true;
      const token = state.push("math", "math", 0);
      token.content = state.src.slice(begin + 2, state.bMarks[line] + text.length - 2);
      token.meta = { display: true };
      token.block = true;
      state.line = line + 1;
      return true;
    }
    return false;
  };
  md.block.ruler.before("paragraph", "math", block, { alt: ["paragraph", "blockquote", "list"] });
  md.renderer.rules.math = (tokens, index) => formula(tokens[index].content, tokens[index].meta.display);
}

const markdown = window.markdownit({
  html: false, linkify: false, breaks: true,
  highlight: (code, language) => {
    if (code.length > 20_000 || !hljs.getLanguage(language)) return "";
    try { return hljs.highlight(code, { language, ignoreIllegals: true }).value; } catch { return ""; }
  },
});
markdown.disable("image"); // a picture's address would be a request
markdown.validateLink = (url) => /^(https?:\/\/|mailto:)/i.test(url.trim());
mathRules(markdown);

const CLEAN = {
  USE_PROFILES: { html: true, mathMl: true }, RETURN_DOM_FRAGMENT: true, ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
  FORBID_TAGS: ["img", "picture", "source", "video", "audio", "form", "input", "button", "textarea", "select", "style", "dialog", "map", "area", "object"],
  FORBID_ATTR: ["style", "id", "name", "srcset", "background", "poster", "ping", "action", "usemap", "popover", "autofocus", "tabindex"],
};

function rendered(text) {
  if (text.length > MAX_MARKDOWN) {
    return el("div", {}, el("p", { className: "note" }, `${text.length.toLocaleString("en")} characters, shown as plain text.`), el("pre", { className: "plain", tabindex: "0" }, visible(text)));
  }
  const fragment = DOMPurify.sanitize(markdown.render(visible(text)), CLEAN);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    link.title = link.href; // a text may say another address
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    pre.tabIndex = 0;
    const box = el("div", { className: "code-box" });
    pre.replaceWith(box);
    box.append(pre, el("button", { className: "small", type: "button", onclick: (event) => copy(pre.textContent, event.target) }, "Copy"));
  }
  return fragment;
}

async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.textContent = "Not allowed"; }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const fold = (title, ...content) => el("details", { className: "fold" }, el("summary", {}, title), ...content);
const plain = (text) => el("pre", { className: "plain", tabindex: "0" }, visible(text));
const id = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(36).padStart(2, "0")).join("");

function say(text) { $("status").hidden = !text; $("status").textContent = text || ""; }

function confirmed(title, text, action = "Delete") {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = action;
  $("ask").returnValue = "no";
  $("ask").showModal();
  return new Promise((resolve) => $("ask").addEventListener("close", () => resolve($("ask").returnValue === "yes"), { once: true }));
}

// ---------------------------------------------------------------- the server

class ServerError extends Error {
  constructor(message, status, code) { super(message); this.status = status; this.code = code; }
}

let asking = null;
function askKey() {
  if (!asking) {
    $("key-dialog").showModal();
    asking = new Promise((resolve) => $("key-dialog").addEventListener("close", () => {
      sessionStorage.setItem("key", $("key").value);
      asking = null;
      resolve();
    }, { once: true }));
  }
  return asking;
}

async function call(path, body, signal) {
  for (;;) {
    const headers = {}, key = sessionStorage.getItem("key");
    if (key) headers.authorization = `Bearer ${key}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      away();
      throw new ServerError("The server does not answer.", 0, "away");
    }
    if (response.status === 401) { await askKey(); continue; }
    if (!response.ok) {
      let found = {};
      try { found = (await response.json()).error || {}; } catch { /* not of our server */ }
      throw new ServerError(found.message || `The server says ${response.status}.`, response.status, found.code);
    }
    return response;
  }
}
const read = async (path) => (await call(path)).json();
const send = async (path, body, signal) => (await call(path, body, signal)).json();

// Yields the JSON objects of a stream; ends with an error if the stream ends without its last event.
async function* events(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let text = "";
  for (;;) {
    let part;
    try { part = await reader.read(); } catch (error) {
      if (error.name === "AbortError") throw error;
      away();
      throw new ServerError("The connection ended in the middle of the answer.", 0, "away");
    }
    if (part.done) break;
    text += decoder.decode(part.value, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue;
      if (block === "data: [DONE]") return;
      const found = JSON.parse(block.slice(6));
      if (found.error) throw new ServerError(found.error.message, 0, found.error.code);
      yield found;
    }
  }
  away();
  throw new ServerError("The connection ended in the middle of the answer.", 0, "away");
}

let waiting = false;
async function away() { // says so, and looks until the server is back
  if (waiting) return;
  waiting = true;
  say("The server is away. Your conversations are safe; waiting for it to come back …");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    try { if ((await fetch("/health")).ok) break; } catch { /* still away */ }
  }
  waiting = false;
  await loadServer();
  say("The server is back.");
  setTimeout(() => { if ($("status").textContent === "The server is back.") say(""); }, 4000);
  redraw();
}

let server = { models: [], loaded: [], votes: false, tools: false, runs: false };
const described = new Map(); // name of a model -> what /page/model says

async function loadServer() {
  try { server = await read("/page/settings"); } catch (error) { if (error.code !== "away") say(error.message); return; }
  described.clear();
  for (const select of document.querySelectorAll("select.models, #model")) fillModels(select);
  $("runs-link").hidden = !server.runs;
}

function fillModels(select, wanted = select.value) {
  select.replaceChildren(...server.models.map((name) => el("option", { value: name }, name)));
  if (server.models.includes(wanted)) select.value = wanted;
}

async function describe(name) {
  if (!described.has(name)) described.set(name, await read(`/page/model?name=${encodeURIComponent(name)}`));
  return described.get(name);
}

// Streams an answer into `message`; `changed` is called as it grows.
async function stream(message, body, signal, changed) {
  const started = performance.now();
  for await (const chunk of events(await call("/v1/chat/completions", { stream: true, stream_options: { include_usage: true }, return_token_ids: true, ...body }, signal))) {
    if (chunk.prompt_token_ids) message.promptIds = chunk.prompt_token_ids;
    if (chunk.usage) message.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    const delta = choice.delta;
    message.tokenIds.push(...(choice.token_ids || []));
    message.content += delta.content || "";
    message.reasoning += delta.reasoning_content || "";
    for (const part of delta.tool_calls || []) {
      const own = message.calls[part.index] ||= { id: part.id, name: "", arguments: "" };
      own.name += part.function.name || "";
      own.arguments += part.function.arguments || "";
    }
    message.finish = choice.finish_reason || message.finish;
    message.seconds = (performance.now() - started) / 1000;
    changed();
  }
}

// Calls a function soon, and for at most a quarter of the time: a long text takes a while to draw.
function throttled(work) {
  let pending = null, next = 0;
  return () => {
    if (pending) return;
    pending = setTimeout(() => {
      const begin = performance.now();
      pending = null;
      work();
      next = performance.now() + Math.max(60, 3 * (performance.now() - begin));
    }, Math.max(0, next - performance.now()));
  };
}

// ---------------------------------------------------------------- conversations in the browser

let database;
function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("qwen_jax", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
const done = (request) => new Promise((resolve, reject) => { request.onsuccess = () => resolve(request.result); request.onerror = () => reject(request.error); });
const store = (name, mode = "readonly") => database.transaction(name, mode).objectStore(name);
const tabs = new BroadcastChannel("qwen_jax");
async function put(name, value) {
  if (erased.has(name === "messages" ? value.conversation : value.id)) return;
  try { await done(store(name, "readwrite").put(value)); } catch (error) { say(`This browser could not keep the conversation: ${error.message}`); }
}
async function changedHere(conversation) { tabs.postMessage(conversation); await listConversations(); }

let current = null; // the conversation that is shown
let messages = new Map(), children = new Map(); // of the current conversation
let shown = WINDOW;
const running = new Map(); // conversation -> its answer: {controller, conversation, own: its messages}
const erased = new Set(); // conversations that were deleted here: their answers are not kept

function keep(message) { // adds a message to the tree of the current conversation
  if (!messages.has(message.id)) {
    if (!children.has(message.parent)) children.set(message.parent, []);
    children.get(message.parent).push(message.id);
  }
  messages.set(message.id, message);
}

function path() { // the messages on the selected branch
  const found = [];
  let parent = "";
  for (let own = children.get(parent); own && own.length; own = children.get(parent)) {
    const chosen = current.chosen[parent];
    parent = own.includes(chosen) ? chosen : own[own.length - 1];
    found.push(messages.get(parent));
  }
  return found;
}

function newMessage(conversation, role, parent, more) {
  return { id: id(), conversation: conversation.id, parent, role, content: "", created: Date.now() + performance.now() % 1, ...more };
}

async function openConversation(name) {
  const found = await done(store("conversations").get(name));
  if (!found) return newConversation();
  const live = running.get(name);
  const all = live ? [...live.own.values()] : await done(store("messages").index("conversation").getAll(name));
  current = live ? live.conversation : found;
  messages = new Map(); children = new Map(); shown = WINDOW;
  all.sort((a, b) => a.created - b.created).forEach(keep);
  for (const message of all) if (message.live && !running.has(name) && !liveElsewhere.has(name)) { message.live = false; message.error ||= "The page was closed before the answer ended."; }
  localStorage.setItem("current", name);
  if (server.models.includes(current.model)) $("model").value = current.model;
  closeInspector();
  redraw(true);
  await listConversations();
  showModel();
}

function newConversation() {
  current = { id: id(), title: "", created: Date.now(), updated: Date.now(), chosen: {}, model: $("model").value, system: "", sampling: {}, thinking: true, tools: true };
  messages = new Map(); children = new Map(); shown = WINDOW;
  localStorage.removeItem("current");
  closeInspector();
  redraw(true);
  listConversations();
}

async function listConversations() {
  const all = (await done(store("conversations").getAll())).sort((a, b) => b.updated - a.updated);
  const wanted = $("search").value.trim().toLowerCase();
  $("conversations").replaceChildren(...all.filter((one) => one.title.toLowerCase().includes(wanted)).slice(0, 500).map((one) => el("li", {},
    el("button", { className: "title", title: visible(one.title), "aria-current": current && one.id === current.id ? "true" : null, onclick: () => { openConversation(one.id); closeSidebar(); } }, visible(one.title)),
    el("button", { className: "small", "aria-label": `Export ${visible(one.title)}`, title: "Export", onclick: () => exportConversations([one]) }, "⤓"),
    el("button", { className: "small", "aria-label": `Delete ${visible(one.title)}`, title: "Delete", onclick: () => removeConversation(one) }, "✕"))));
}

async function removeConversation(one) {
  if (!await confirmed("Delete the conversation?", visible(one.title))) return;
  await erase(one.id);
  tabs.postMessage(one.id);
  if (current.id === one.id) newConversation(); else listConversations();
}

async function erase(name) {
  erased.add(name);
  running.get(name)?.controller.abort();
  const transaction = database.transaction(["conversations", "messages"], "readwrite");
  transaction.objectStore("conversations").delete(name);
  const keys = await done(transaction.objectStore("messages").index("conversation").getAllKeys(name));
  keys.forEach((key) => transaction.objectStore("messages").delete(key));
  await new Promise((resolve) => { transaction.oncomplete = resolve; });
}

async function exportConversations(list) {
  const found = [];
  for (const one of list) found.push({ ...one, messages: await done(store("messages").index("conversation").getAll(one.id)) });
  const url = URL.createObjectURL(new Blob([JSON.stringify({ format: "qwen_jax conversations", version: 1, conversations: found }, null, 1)], { type: "application/json" }));
  el("a", { href: url, download: list.length === 1 ? "conversation.json" : "conversations.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const text = (value) => typeof value === "string" ? value : "";
const object = (value) => value && typeof value === "object" && !Array.isArray(value) ? value : {};
const integers = (value) => Array.isArray(value) && value.every(Number.isInteger) ? value : [];

async function importConversations(file) {
  let found;
  try {
    found = JSON.parse(await file.text());
    if (found.format !== "qwen_jax conversations" || !Array.isArray(found.conversations)) throw new Error("it was not exported by this page");
  } catch (error) { say(`${file.name} cannot be imported: ${error.message}.`); return; }
  let count = 0;
  for (const one of found.conversations) { // ids are new: nothing that exists is replaced
    const names = new Map([["", ""]]), name = id();
    const own = Array.isArray(one.messages) ? one.messages.filter((m) => ["user", "assistant", "tool"].includes(m.role)) : [];
    own.forEach((message) => names.set(message.id, id()));
    const transaction = database.transaction(["conversations", "messages"], "readwrite");
    for (const m of own) {
      transaction.objectStore("messages").put({
        id: names.get(m.id), conversation: name, parent: names.get(m.parent) ?? "", role: m.role, content: text(m.content), reasoning: text(m.reasoning), created: Number(m.created) || 0,
        calls: (Array.isArray(m.calls) ? m.calls : []).map((c) => ({ id: text(c.id), name: text(c.name), arguments: text(c.arguments) })),
        callId: text(m.callId), isError: m.isError === true, figures: (Array.isArray(m.figures) ? m.figures : []).filter(isFigure), model: text(m.model), finish: text(m.finish), error: text(m.error),
        promptIds: integers(m.promptIds), tokenIds: integers(m.tokenIds), sampling: object(m.sampling), seconds: Number(m.seconds) || 0,
      });
    }
    const chosen = Object.fromEntries(Object.entries(object(one.chosen)).filter(([from, to]) => names.has(from) && names.has(to)).map(([from, to]) => [names.get(from), names.get(to)]));
    transaction.objectStore("conversations").put({ id: name, title: text(one.title) || "Imported", created: Date.now(), updated: Date.now(), chosen, model: text(one.model), system: text(one.system), sampling: object(one.sampling), thinking: one.thinking !== false, tools: one.tools !== false });
    await new Promise((resolve) => { transaction.oncomplete = resolve; });
    count++;
    if (count === found.conversations.length) await openConversation(name);
  }
  say(count === 1 ? "1 conversation was imported." : `${count} conversations were imported.`);
  changedHere("");
}
const isFigure = (url) => typeof url === "string" && /^data:image\/png;base64,[A-Za-z0-9+/=]+$/.test(url);

// ---------------------------------------------------------------- chat

const nodes = new Map(); // message -> its node

function redraw(scroll = false) {
  const view = $("messages"), all = path().filter((message) => message.role !== "tool");
  const from = Math.max(0, all.length - shown);
  nodes.clear();
  const parts = [];
  if (!all.length) parts.push(welcome());
  if (from > 0) parts.push(el("p", {}, el("button", { id: "earlier", onclick: () => showEarlier() }, `Show ${Math.min(from, 200)} of ${from.toLocaleString("en")} earlier messages`)));
  for (const message of all.slice(from)) {
    const node = drawMessage(message);
    nodes.set(message.id, node);
    parts.push(node);
  }
  view.replaceChildren(...parts);
  if (scroll) view.scrollTop = view.scrollHeight;
  buttons();
}

function showEarlier() {
  const view = $("messages"), height = view.scrollHeight - view.scrollTop;
  shown += 200;
  redraw();
  view.scrollTop = view.scrollHeight - height;
  view.focus();
}

function welcome() {
  return el("div", { className: "welcome" }, el("h2", {}, `Chat with ${$("model").value || "a model"}`),
    el("p", {}, server.models.length ? "Conversations stay in this browser." : "There is no model yet. Train one: make quickstart."),
    server.models.length > 1 ? el("div", { className: "bar" }, el("a", { href: "#compare" }, `Compare ${server.models.length} models side by side`)) : null);
}

function buttons() {
  const busy = running.has(current.id);
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("send").disabled = !server.models.length;
}

function isNear(view) { return view.scrollHeight - view.scrollTop - view.clientHeight < 120; }

function update(message) { // draws a message again
  const old = nodes.get(message.id), view = $("messages");
  if (!old || !old.isConnected) return;
  const near = isNear(view), node = drawMessage(message);
  const opened = [...old.querySelectorAll("details")].map((one) => one.open);
  node.querySelectorAll("details").forEach((one, index) => { if (opened[index]) one.open = true; });
  nodes.set(message.id, node);
  old.replaceWith(node);
  if (near) view.scrollTop = view.scrollHeight;
}

function drawMessage(message) {
  const mine = message.role === "user";
  const node = el("article", { className: `message ${message.role}`, "data-id": message.id, "aria-label": mine ? "You" : `Answer of ${message.model || "the model"}` });
  node.append(el("div", { className: "who" }, mine ? "You" : visible(message.model || "model")));
  if (message.reasoning) node.append(fold(message.live && !message.content ? "Thinking …" : "Thoughts", plain(message.reasoning)));
  const body = el("div", { className: "body", dir: "auto" });
  if (mine) body.append(visible(message.content));
  else if (message.content) body.append(rendered(message.content));
  if (message.live && !message.calls?.length) (body.lastElementChild || body).classList.add("cursor");
  if (message.content || message.live) node.append(body);
  for (const one of message.calls || []) node.append(drawCall(message, one));
  if (message.error) node.append(el("p", { className: "problem", role: "alert" }, visible(message.error)));
  if (!message.live) node.append(drawActions(message));
  return node;
}

function drawCall(message, one) {
  const result = (children.get(message.id) || []).map((name) => messages.get(name)).concat(...chainOf(message)).find((other) => other && other.role === "tool" && other.callId === one.id);
  const state = !result ? (message.live || running.has(message.conversation) ? "running …" : "not run") : result.isError ? "failed" : "done";
  const argument = pretty(one.arguments);
  return el("div", {}, fold(`Called ${visible(one.name)} · ${state}`, el("h3", {}, "Input"), plain(argument), ...(result ? [el("h3", {}, "Result"), plain(result.content)] : [])),
    ...(result?.figures || []).filter(isFigure).map((url, index) => fold(`Figure ${index + 1} of ${visible(one.name)}`, el("img", { src: url, alt: `Figure ${index + 1}, drawn by ${visible(one.name)}` }))));
}

function chainOf(message) { // the results of tools after a message
  const found = [];
  for (let name = message.id; ;) {
    const own = children.get(name), chosen = own && (own.includes(current.chosen[name]) ? current.chosen[name] : own[own.length - 1]);
    const next = chosen && messages.get(chosen);
    if (!next || next.role !== "tool") return found;
    found.push(next);
    name = next.id;
  }
}

function pretty(source) {
  try {
    const found = JSON.parse(source);
    const values = Object.values(found);
    return values.length === 1 && typeof values[0] === "string" ? values[0] : JSON.stringify(found, null, 2);
  } catch { return source; }
}

function drawActions(message) {
  const mine = message.role === "user", siblings = (children.get(message.parent) || []).filter((name) => messages.get(name).role === message.role);
  const at = siblings.indexOf(message.id), busy = running.has(current.id);
  const button = (label, title, work) => el("button", { className: "small", title, type: "button", disabled: busy, onclick: work }, label);
  const move = (step) => { current.chosen[message.parent] = siblings[at + step]; put("conversations", current); redraw(); nodes.get(siblings[at + step])?.querySelector(".actions button")?.focus(); };
  const bar = el("div", { className: "actions" });
  if (siblings.length > 1) {
    bar.append(el("button", { className: "small", "aria-label": "Previous branch", disabled: busy || at === 0, onclick: () => move(-1) }, "‹"),
      el("span", { className: "note" }, `${at + 1} of ${siblings.length}`),
      el("button", { className: "small", "aria-label": "Next branch", disabled: busy || at === siblings.length - 1, onclick: () => move(1) }, "›"));
  }
  bar.append(el("button", { className: "small", type: "button", onclick: (event) => copy(message.content, event.target) }, "Copy"));
  if (mine) bar.append(button("Edit", "Write another version; this one is kept as a branch", () => edit(message)));
  else {
    bar.append(button("Regenerate", "Answer again; this answer is kept as a branch", () => answer(message.parent)));
    if (message.tokenIds?.length) bar.append(el("button", { className: "small", title: "Tokens, their alternatives, and what the template sent", onclick: (event) => inspect(message, event.target) }, "Look inside"));
    const count = message.tokenIds?.length || 0, reason = { length: "stopped at the maximum length", stopped: "stopped by you" }[message.finish];
    bar.append(el("span", { className: "note" }, [count ? `${count} tokens` : "", count && message.seconds ? `${(count / message.seconds).toFixed(1)} per second` : "", reason || ""].filter(Boolean).join(" · ")));
  }
  return bar;
}

function edit(message) {
  const node = nodes.get(message.id), area = el("textarea", { rows: "3", "aria-label": "Edit your message" });
  area.value = message.content;
  const close = () => update(message);
  const submit = () => { if (area.value.trim()) ask(area.value, message.parent); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
    if (event.key === "Escape") { event.stopPropagation(); close(); }
  });
  node.replaceChildren(area, el("div", { className: "bar" }, el("button", { className: "primary", onclick: submit }, "Send"), el("button", { onclick: close }, "Cancel")));
  area.focus();
}

async function ask(content, parent) {
  if (running.has(current.id) || !server.models.length) return;
  if (!current.title) {
    current.title = content.trim().split("\n")[0].slice(0, 80);
    localStorage.setItem("current", current.id);
  }
  const message = newMessage(current, "user", parent, { content });
  keep(message);
  current.chosen[parent] = message.id;
  await put("messages", message);
  await answer(message.id);
}

function history(tree, parent, system) { // the messages up to `parent`, as the API takes them
  const found = [];
  for (let message = tree.get(parent); message; message = tree.get(message.parent)) {
    if (message.role === "tool") found.push({ role: "tool", tool_call_id: message.callId, content: message.content });
    else if (message.role === "user") found.push({ role: "user", content: message.content });
    else {
      found.push({ role: "assistant", content: message.content, ...(message.calls?.length ? { tool_calls: message.calls.map((one) => ({ id: one.id, type: "function", function: { name: one.name, arguments: one.arguments } })) } : {}) });
    }
  }
  if (system) found.push({ role: "system", content: system });
  return found.reverse();
}

// Adds an answer below `parent`: the results of tools go back to the model until it calls none.
async function answer(parent) {
  const conversation = current, controller = new AbortController(), own = new Map(messages);
  if (running.has(conversation.id)) return;
  running.set(conversation.id, { controller, conversation, own });
  tabs.postMessage({ live: conversation.id });
  conversation.model = $("model").value;
  conversation.updated = Date.now();
  await put("conversations", conversation);
  const here = () => current.id === conversation.id;
  const alive = setInterval(() => tabs.postMessage({ live: conversation.id }), 1000);
  try {
    for (let turn = 0; turn < MAX_TURNS; turn++) {
      const message = newMessage(conversation, "assistant", parent, { model: conversation.model, reasoning: "", calls: [], tokenIds: [], live: true, sampling: { ...conversation.sampling } });
      const add = (one) => { own.set(one.id, one); conversation.chosen[one.parent] = one.id; if (here()) keep(one); };
      add(message);
      if (here()) redraw(turn === 0 || isNear($("messages")));
      await put("conversations", conversation);
      const finished = await oneAnswer(conversation, message, controller, own, here);
      await put("messages", message);
      if (here()) update(message);
      if (!finished || !message.calls.length) break;
      parent = message.id;
      for (const one of message.calls) {
        const result = await send("/page/tools", { session: conversation.id, name: one.name, arguments: one.arguments }, controller.signal)
          .catch((error) => ({ text: `Error: ${error.name === "AbortError" ? "the user stopped the call." : error.message}`, is_error: true, figures: [] }));
        const tool = newMessage(conversation, "tool", parent, { content: result.text, isError: result.is_error, figures: result.figures, callId: one.id });
        add(tool);
        await put("messages", tool);
        parent = tool.id;
        if (here()) update(message);
      }
      if (controller.signal.aborted) break;
      if (turn === MAX_TURNS - 1) { message.error = `The model called tools ${MAX_TURNS} times in a row. Write a message to let it go on.`; await put("messages", message); }
    }
  } finally {
    clearInterval(alive);
    running.delete(conversation.id);
    await put("conversations", conversation);
    if (here()) { redraw(isNear($("messages"))); $("announce").textContent = "The answer is complete."; showModel(); }
    await changedHere(conversation.id);
  }
}

async function oneAnswer(conversation, message, controller, own, here) {
  const saved = throttled(() => { if (here()) update(message); });
  let lastSave = 0;
  const changed = () => {
    saved();
    if (performance.now() - lastSave > 1000) { lastSave = performance.now(); put("messages", message); }
  };
  try {
    const model = await modelOf(conversation.model, here);
    const body = { model: conversation.model, messages: history(own, message.parent, conversation.system), ...conversation.sampling };
    if (model.thinking) body.chat_template_kwargs = { enable_thinking: conversation.thinking };
    if (model.tools.length && conversation.tools) body.tools = model.tools;
    await stream(message, body, controller.signal, changed);
    return true;
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else {
      message.error = error.message;
      if (error.code === "away") message.error += " What had arrived is kept; “Regenerate” asks again.";
      if (error.code === "context_length_exceeded") message.error += described.get(conversation.model)?.tools.length && conversation.tools ? " The descriptions of tools are part of the prompt: Settings switches them off." : " A new chat starts with an empty context.";
      if (!(error instanceof ServerError)) console.error(error);
    }
    message.calls = []; // they may be incomplete
    return false;
  } finally { message.live = false; }
}

async function modelOf(name, here = () => true) {
  const timer = setTimeout(() => { if (here()) say(`Loading ${name} …`); }, 400);
  try { return await describe(name); } finally {
    clearTimeout(timer);
    if ($("status").textContent === `Loading ${name} …`) say("");
  }
}

async function showModel() {
  const name = $("model").value;
  $("model-note").textContent = "";
  if (!name || !(server.loaded.includes(name) || described.has(name))) { if (name) $("model-note").textContent = "loaded with the first message"; return; }
  try {
    const model = await describe(name);
    if ($("model").value === name) $("model-note").textContent = model.problem || `${model.context.toLocaleString("en")} tokens of context${model.tools.length ? `, tools: ${model.tools.map((one) => one.function.name).join(", ")}` : ""}`;
  } catch (error) { $("model-note").textContent = error.message; }
}

// ---------------------------------------------------------------- settings

function samplingFields(values, defaults, changed) {
  return SAMPLING.map(([name, label, step, least, most]) => {
    const input = el("input", { type: "number", step: "any", min: least, max: most, name, placeholder: defaults[name] ?? ({ temperature: 1, top_p: 1, top_k: "all", repetition_penalty: 1, max_tokens: "all that fits", seed: "random" })[name] });
    input.value = values[name] ?? "";
    input.addEventListener("change", () => {
      const value = input.valueAsNumber;
      if (Number.isNaN(value)) delete values[name];
      else values[name] = step === "1" ? Math.round(Math.min(most, Math.max(least, value))) : Math.min(most, Math.max(least, value));
      input.value = values[name] ?? "";
      changed();
    });
    return el("label", {}, label, input);
  });
}

async function openSettings() {
  const conversation = current;
  const keepIt = () => { if (conversation.title) put("conversations", conversation); };
  let model = { defaults: {}, tools: [], thinking: false };
  try { model = await modelOf($("model").value); } catch (error) { say(error.message); }
  $("system").value = conversation.system;
  $("system").onchange = () => { conversation.system = $("system").value; keepIt(); };
  $("sampling").replaceChildren(...samplingFields(conversation.sampling, model.defaults, keepIt));
  $("thinking-label").hidden = !model.thinking;
  $("thinking").checked = conversation.thinking;
  $("thinking").onchange = () => { conversation.thinking = $("thinking").checked; keepIt(); };
  $("tools-label").hidden = !model.tools.length;
  $("tool-names").textContent = model.tools.map((one) => one.function.name).join(", ");
  $("use-tools").checked = conversation.tools;
  $("use-tools").onchange = () => { conversation.tools = $("use-tools").checked; keepIt(); };
  $("reset-settings").onclick = () => { Object.assign(conversation, { sampling: {}, system: "", thinking: true, tools: true }); keepIt(); $("settings").close(); };
  $("settings").showModal();
}

function setTheme(theme) {
  if (theme) localStorage.setItem("theme", theme); else localStorage.removeItem("theme");
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-label", `Color theme: ${theme || "as the system"}. Change it.`);
}

// ---------------------------------------------------------------- look inside

let inspected = null, opener = null;
function closeInspector() {
  $("inspector").hidden = true;
  inspected = null;
  if (opener?.isConnected) opener.focus();
  opener = null;
}

async function inspect(message, button) {
  inspected = message.id;
  opener = button;
  $("inspector").hidden = false;
  $("inspector-body").replaceChildren(el("p", { className: "note" }, "Computing …"));
  $("close-inspector").focus();
  try {
    const ids = [...(message.promptIds || []), ...message.tokenIds];
    const found = await send("/v1/completions", { model: message.model, prompt: ids, echo: true, logprobs: TOP, max_tokens: 0 });
    if (inspected !== message.id) return;
    drawTokens(message, found.choices[0].logprobs);
  } catch (error) {
    if (inspected === message.id) $("inspector-body").replaceChildren(el("p", { className: "problem" }, error.message));
  }
}

const percent = (logprob) => { const p = Math.exp(logprob) * 100; return p >= 99.95 ? "100 %" : p >= 0.1 ? `${p.toFixed(1)} %` : p >= 0.001 ? `${p.toFixed(3)} %` : "< 0.001 %"; };
const bucket = (logprob) => { const p = Math.exp(logprob); return p >= 0.8 ? 4 : p >= 0.5 ? 3 : p >= 0.2 ? 2 : p >= 0.05 ? 1 : 0; };
const named = (token) => token === "" ? "(empty)" : visible(token).replace(/^bytes:/, "").replace(/\n/g, "⏎").replace(/\t/g, "⇥");

function drawTokens(message, logprobs) {
  const split = (message.promptIds || []).length, detail = el("div", { role: "status", "aria-live": "polite" });
  const make = (index) => {
    const logprob = logprobs.token_logprobs[index], name = logprobs.tokens[index];
    return el("button", {
      className: "token", type: "button", "data-index": index, "data-p": logprob === null ? null : bucket(logprob), "aria-pressed": "false", tabindex: "-1",
      title: logprob === null ? "the first token" : percent(logprob), "aria-label": `${named(name)}${logprob === null ? "" : `, ${percent(logprob)}`}`,
    }, named(name), name.includes("\n") ? "\n" : "");
  };
  const group = (from, to, label) => {
    const box = el("div", { className: "tokens", role: "group", "aria-label": label }, Array.from({ length: to - from }, (_, i) => make(from + i)));
    const pick = (node) => {
      for (const other of document.querySelectorAll('.token[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
      box.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
      node.setAttribute("aria-pressed", "true");
      node.tabIndex = 0;
      node.focus();
      drawAlternatives(detail, logprobs, Number(node.dataset.index), (message.promptIds || []).concat(message.tokenIds));
    };
    if (box.firstElementChild) box.firstElementChild.tabIndex = 0;
    box.addEventListener("click", (event) => { const node = event.target.closest(".token"); if (node) pick(node); });
    box.addEventListener("keydown", (event) => {
      const node = event.target.closest(".token");
      const next = node && { ArrowRight: node.nextElementSibling, ArrowLeft: node.previousElementSibling, Home: box.firstElementChild, End: box.lastElementChild }[event.key];
      if (next) { event.preventDefault(); pick(next); }
    });
    return box;
  };
  const total = logprobs.tokens.length, from = Math.max(0, split - SHOWN_TOKENS);
  const sum = logprobs.token_logprobs.slice(split).reduce((a, b) => a + (b || 0), 0);
  const answerBox = group(split, total, "Tokens of the answer");
  $("inspector-body").replaceChildren(
    el("p", { className: "note" }, `${message.model}: ${total - split} tokens, perplexity ${Math.exp(-sum / Math.max(1, total - split)).toFixed(2)}. Choose a token to see its alternatives. Probabilities are those of the model itself, before temperature, top p and top k.`),
    el("div", { className: "legend", "aria-hidden": "true" }, [[4, "≥ 80 %"], [3, "≥ 50 %"], [2, "≥ 20 %"], [1, "≥ 5 %"], [0, "less"]].map(([p, label]) => el("span", { className: "token", "data-p": p }, label))),
    el("h3", {}, "Answer"), answerBox, detail,
    fold(`What the template sent: ${split} tokens`, from ? el("p", { className: "note" }, `The first ${from} tokens are not shown.`) : null, group(from, split, "Tokens of the prompt")),
  );
}

function drawAlternatives(target, logprobs, index, ids) {
  const own = logprobs.tokens[index], logprob = logprobs.token_logprobs[index];
  if (logprob === null) { target.replaceChildren(el("p", { className: "note" }, "The first token has no probability: nothing is before it.")); return; }
  const rows = Object.entries(logprobs.top_logprobs[index]).sort((a, b) => b[1] - a[1]);
  target.replaceChildren(el("table", { className: "data", id: "alternatives" }, el("caption", { className: "hidden-text" }, `Alternatives to ${named(own)}`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Token"), el("th", { scope: "col", className: "number" }, "Probability"), el("th", { scope: "col" }, el("span", { className: "hidden-text" }, "Bar")))),
    el("tbody", {}, rows.map(([name, value]) => el("tr", { className: name === own ? "chosen" : "" }, el("td", {}, el("code", {}, named(name)), name === own ? " ←" : ""), el("td", { className: "number" }, percent(value)), el("td", {}, el("meter", { min: 0, max: 1, value: Math.exp(value), "aria-label": percent(value) })))))),
  el("p", { className: "note" }, `Token id ${ids[index]}, log-probability ${logprob.toFixed(4)}`));
}

// ---------------------------------------------------------------- compare

const sides = [{ sampling: {} }, { sampling: {} }];
let comparison = null, comparing = null;

async function setUpSides() {
  document.querySelectorAll("#compare-form fieldset").forEach((box, index) => {
    const select = el("select", { className: "models", "aria-label": `Model of side ${index + 1}` });
    const grid = el("div", { className: "grid" });
    fillModels(select, sides[index].model);
    if (!sides[index].model && server.models.length > 1) select.selectedIndex = Math.min(index, server.models.length - 1);
    const fields = () => {
      sides[index].model = select.value;
      const defaults = described.get(select.value)?.defaults || {};
      grid.replaceChildren(...samplingFields(sides[index].sampling, defaults, () => {}));
    };
    select.addEventListener("change", fields);
    fields();
    box.replaceChildren(box.querySelector("legend"), select, fold("Sampling", grid));
  });
}

async function compare() {
  const prompt = $("compare-text").value;
  if (!prompt.trim() || comparing) return;
  const same = sides[0].model === sides[1].model && JSON.stringify(sides[0].sampling) === JSON.stringify(sides[1].sampling);
  if (same && (sides[0].sampling.temperature === 0 || sides[0].sampling.seed !== undefined)) { $("compare-note").textContent = "Both sides would answer the same. Choose two models, or other settings."; return; }
  comparing = new AbortController();
  const order = crypto.getRandomValues(new Uint8Array(1))[0] % 2 ? [0, 1] : [1, 0];
  const turns = [...($("compare-system").value ? [{ role: "system", content: $("compare-system").value }] : []), { role: "user", content: prompt }];
  comparison = { turns, order, blind: $("blind").checked, vote: null, same, answers: order.map((side) => ({ model: sides[side].model, sampling: { ...sides[side].sampling }, content: "", reasoning: "", calls: [], tokenIds: [], live: true })) };
  $("compare-run").disabled = true; $("compare-stop").hidden = false; $("votes").hidden = true; $("tally").replaceChildren();
  const absent = sides.map((side) => side.model).filter((name) => !server.loaded.includes(name) && !described.has(name));
  $("compare-note").textContent = absent.length ? `Both are answering; ${[...new Set(absent)].join(" and ")} may have to be loaded first …` : "Both are answering …";
  const draw = throttled(drawComparison);
  drawComparison();
  const own = comparison, signal = comparing.signal;
  await Promise.all(own.answers.map(async (one) => {
    try { await stream(one, { model: one.model, messages: turns, ...one.sampling }, signal, draw); } catch (error) {
      if (error.name === "AbortError") one.finish = "stopped"; else one.error = error.message;
    }
    one.live = false;
  }));
  comparing = null;
  $("compare-run").disabled = false; $("compare-stop").hidden = true;
  drawComparison();
  const failed = own.answers.some((one) => one.error || one.finish === "stopped");
  $("votes").hidden = failed;
  $("compare-note").textContent = failed ? "An answer is not complete, so there is no vote." : same ? "Both sides have the same model and settings, so a vote is not kept." : "Which answer is better?";
}

function drawComparison() {
  const hidden = comparison.blind && comparison.vote === null;
  $("answers").replaceChildren(...comparison.answers.map((one, index) => {
    const letter = "AB"[index], body = el("div", { className: "body", dir: "auto" });
    if (one.content) body.append(rendered(one.content));
    if (one.live) (body.lastElementChild || body).classList.add("cursor");
    const settings = Object.entries(one.sampling).map(([name, value]) => `${name} ${value}`).join(", ");
    return el("section", { className: `answer${comparison.vote === index ? " best" : ""}`, "aria-label": `Answer ${letter}` },
      el("h3", {}, hidden ? `Answer ${letter}` : `${letter}: ${visible(one.model)}${settings ? ` (${settings})` : ""}`),
      one.reasoning ? fold("Thoughts", plain(one.reasoning)) : null, body, one.error ? el("p", { className: "problem" }, visible(one.error)) : null,
      one.finish === "length" ? el("p", { className: "note" }, "stopped at the maximum length") : null);
  }));
}

async function vote(value) {
  if (!comparison || comparison.vote !== null || comparing || $("votes").hidden) return;
  const own = comparison;
  own.vote = value === "tie" ? "tie" : Number(value);
  $("votes").hidden = true;
  drawComparison();
  const rater = $("rater").value.trim() || "me";
  localStorage.setItem("rater", rater);
  if (own.same) { $("compare-note").textContent = "The same model and settings: the vote is not kept."; return; }
  if (!server.votes) { $("compare-note").textContent = "This vote is not kept: start the server with --page.votes=FOLDER to keep votes."; return; }
  try {
    const found = await send("/page/votes", {
      rater, messages: own.turns, ranking: own.vote === "tie" ? [[0, 1]] : own.vote === 0 ? [[0], [1]] : [[1], [0]],
      answers: own.answers.map((one) => ({ model: one.model, text: one.content, finish: one.finish, sampling: one.sampling })),
    });
    $("compare-note").textContent = `The vote is kept. Votes so far: ${found.votes}.`;
    $("tally").replaceChildren(el("table", { className: "data" }, el("caption", { className: "hidden-text" }, "Votes"),
      el("thead", {}, el("tr", {}, ["Model", "Wins", "Ties", "Losses"].map((name, index) => el("th", { scope: "col", className: index ? "number" : "" }, name)))),
      el("tbody", {}, Object.entries(found.wins).map(([name, row]) => el("tr", {}, el("td", {}, visible(name)), ["wins", "ties", "losses"].map((kind) => el("td", { className: "number" }, String(row[kind]))))))));
  } catch (error) { $("compare-note").textContent = `The vote could not be kept: ${error.message}`; }
}

// ---------------------------------------------------------------- runs

let runName = null, runToken = "", runTimer = null;

async function pollRuns() {
  clearTimeout(runTimer);
  if (document.body.dataset.view !== "runs") return;
  if (!document.hidden) {
    try {
      const { runs, folder } = await read("/page/runs");
      if (!runName && runs.length) runName = runs[0].name;
      drawRuns(runs, folder);
      if (runName) {
        const found = await read(`/page/run?name=${encodeURIComponent(runName)}&since=${encodeURIComponent(runToken)}`);
        if (!found.unchanged && found.name === runName) { runToken = found.token; drawRun(found); }
      }
    } catch (error) { if (error.code !== "away") say(error.message); }
  }
  runTimer = setTimeout(pollRuns, 2000);
}

function ago(seconds) {
  return seconds < 60 ? "just now" : seconds < 3600 ? `${Math.round(seconds / 60)} min ago` : seconds < 86400 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
}

function selectRun(name) { runName = name; runToken = ""; $("run").replaceChildren(el("p", { className: "note" }, "Loading …")); pollRuns(); }

function drawRuns(runs, folder) {
  if (!runs.length) { $("run-list").replaceChildren(el("p", {}, `${folder} has no runs yet. Train one: make quickstart.`)); return; }
  const focused = document.activeElement?.dataset?.run;
  $("run-list").replaceChildren(el("ul", {}, runs.map((run) => el("li", {}, el("button", { "data-run": run.name, "aria-current": run.name === runName ? "true" : null, onclick: () => selectRun(run.name) },
    visible(run.name), el("span", { className: "note" }, run.active ? el("span", { className: "live" }, "training") : "", run.active ? " · " : "", [run.stage, run.step === null ? "" : `step ${run.step.toLocaleString("en")}${run.steps ? ` of ${run.steps.toLocaleString("en")}` : ""}`, ago(run.age)].filter(Boolean).join(" · ")))))));
  if (focused) $("run-list").querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
}

const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const short = (value) => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));

function drawCurve(name, [x, y]) {
  const width = 320, height = 150, left = 42, bottom = 18, top = 8;
  let low = Math.min(...y), high = Math.max(...y);
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const first = x[0], last = x[x.length - 1];
  const px = (v) => left + (first === last ? 0.5 : (v - first) / (last - first)) * (width - left - 6), py = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  const points = x.map((v, i) => `${px(v).toFixed(1)},${py(y[i]).toFixed(1)}`).join(" ");
  return el("figure", { className: "curve" }, el("figcaption", {}, el("b", {}, visible(name)), el("span", {}, short(y[y.length - 1]))),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name}: ${x.length} points, step ${first} to ${last}, from ${short(y[0])} to ${short(y[y.length - 1])}` },
      svg("line", { class: "axis", x1: left, y1: height - bottom, x2: width, y2: height - bottom }), svg("line", { class: "axis", x1: left, y1: top, x2: left, y2: height - bottom }),
      ...[low, high].map((v) => svg("text", { x: left - 4, y: py(v) + 4, "text-anchor": "end" }, short(v))),
      svg("text", { x: left, y: height - 4 }, String(first)), svg("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, `step ${last}`),
      x.length > 1 ? svg("polyline", { class: "line", points }) : svg("circle", { cx: px(first), cy: py(y[0]), r: 3, fill: "currentColor" })));
}

function dataTable(rows, caption) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value) => value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : typeof value === "number" ? (Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(6)))) : String(value);
  const number = new Set(columns.filter((name) => rows.every((row) => row[name] === undefined || typeof row[name] === "number")));
  return el("div", { className: "tablebox", tabindex: "0", role: "region", "aria-label": caption }, el("table", { className: "data" }, el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col", className: number.has(name) ? "number" : "" }, visible(name.replaceAll("_", " ") || "name"))))),
    el("tbody", {}, rows.map((row) => el("tr", {}, columns.map((name) => el("td", { className: number.has(name) ? "number" : "" }, visible(cell(row[name])))))))));
}

function drawRun(run) {
  const opened = new Set([...$("run").querySelectorAll("details[open] > summary")].map((node) => node.textContent));
  const section = (title, ...content) => el("section", {}, el("h3", {}, title), ...content);
  const parts = [el("div", { className: "bar" }, el("h2", {}, visible(run.name)), run.model ? el("button", { className: "primary", onclick: () => chatWith(run.model) }, `Chat with step ${run.checkpoint}`) : el("span", { className: "note" }, run.why || "no checkpoint yet"))];
  for (const [title, names] of Object.entries(run.groups)) parts.push(section(title, el("div", { className: "curves" }, names.map((name) => drawCurve(name, run.curves[name])))));
  if (!Object.keys(run.groups).length) parts.push(el("p", { className: "note" }, "No step has been logged yet."));
  for (const [title, rows] of Object.entries(run.tables)) parts.push(section(title, dataTable(rows, title)));
  for (const sample of run.samples) parts.push(fold(`Sample${sample.step === undefined ? "" : ` at step ${sample.step}`}: ${visible(String(sample.prompt || "(from the start)")).slice(0, 80)}`, plain(`${sample.prompt || ""}${sample.text || ""}`)));
  if (run.events.length) parts.push(fold(`Events: ${run.events.length}`, dataTable(run.events.slice().reverse(), "Events")));
  if (Object.keys(run.config).length) parts.push(fold("Configuration", dataTable(Object.entries(run.config).map(([name, value]) => ({ name, value })), "Configuration")));
  for (const problem of run.problems) parts.push(el("p", { className: "problem" }, visible(problem)));
  $("run").replaceChildren(...parts);
  for (const node of $("run").querySelectorAll("details > summary")) if (opened.has(node.textContent)) node.parentElement.open = true;
}

async function chatWith(name) {
  await loadServer();
  newConversation();
  $("model").value = name;
  current.model = name;
  redraw();
  showModel();
  location.hash = "#chat";
  $("composer-text").focus();
}

// ---------------------------------------------------------------- frame

function closeSidebar() { $("sidebar").classList.remove("open"); $("open-sidebar").setAttribute("aria-expanded", "false"); }

function show() {
  const wanted = location.hash.slice(1), view = ["compare", "runs"].includes(wanted) ? wanted : "chat";
  document.body.dataset.view = view;
  for (const name of ["chat", "compare", "runs"]) $(`${name}-view`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) { if (link.dataset.to === view) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current"); }
  $("open-sidebar").hidden = view !== "chat";
  document.title = { chat: "Chat", compare: "Compare", runs: "Runs" }[view] + " · qwen_jax";
  if (view === "compare") setUpSides();
  if (view === "runs") pollRuns();
}

const liveElsewhere = new Set(); // conversations that another tab is answering
tabs.onmessage = async ({ data }) => {
  if (data && data.live) { liveElsewhere.add(data.live); return; }
  liveElsewhere.delete(data);
  await listConversations();
  if (current && data === current.id && !running.has(data)) await openConversation(data);
};

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const area = $("composer-text"), content = area.value;
    if (!content.trim() || running.has(current.id) || !server.models.length) return;
    area.value = "";
    const all = path();
    ask(content, all.length ? all[all.length - 1].id : "");
  });
  $("composer-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("composer").requestSubmit(); }
    if (event.key === "ArrowUp" && !event.target.value) { const last = path().filter((one) => one.role === "user").pop(); if (last && nodes.has(last.id) && !running.has(current.id)) { event.preventDefault(); edit(last); } }
  });
  $("stop").addEventListener("click", () => running.get(current.id)?.controller.abort());
  $("new-chat").addEventListener("click", () => { newConversation(); closeSidebar(); $("composer-text").focus(); });
  $("search").addEventListener("input", listConversations);
  $("model").addEventListener("change", () => { current.model = $("model").value; if (current.title) put("conversations", current); if (!path().length) redraw(); showModel(); });
  $("open-settings").addEventListener("click", openSettings);
  $("close-inspector").addEventListener("click", closeInspector);
  $("export-all").addEventListener("click", async () => exportConversations(await done(store("conversations").getAll())));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async (event) => { for (const file of event.target.files) await importConversations(file); event.target.value = ""; });
  $("delete-all").addEventListener("click", async () => {
    if (!await confirmed("Delete all conversations?", "They are only in this browser, and cannot be brought back.")) return;
    for (const one of await done(store("conversations").getAllKeys())) await erase(one);
    tabs.postMessage("");
    newConversation();
  });
  $("theme").addEventListener("click", () => { const now = localStorage.getItem("theme"); setTheme(now === null ? "dark" : now === "dark" ? "light" : null); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(localStorage.getItem("theme")));
  $("open-sidebar").addEventListener("click", () => { const open = $("sidebar").classList.toggle("open"); $("open-sidebar").setAttribute("aria-expanded", String(open)); if (open) $("new-chat").focus(); });
  $("compare-form").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
  $("compare-text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); compare(); } });
  $("compare-stop").addEventListener("click", () => comparing?.abort());
  $("votes").addEventListener("click", (event) => { const button = event.target.closest("[data-vote]"); if (button) vote(button.dataset.vote); });
  $("rater").value = localStorage.getItem("rater") || "me";
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (document.querySelector("dialog[open]")) return;
      if ($("sidebar").classList.contains("open")) { closeSidebar(); $("open-sidebar").focus(); }
      else if (!$("inspector").hidden) closeInspector();
      else running.get(current.id)?.controller.abort();
    }
    if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); location.hash = "#chat"; newConversation(); $("composer-text").focus(); }
    if (document.body.dataset.view === "compare" && !/INPUT|TEXTAREA|SELECT/.test(event.target.tagName) && !event.ctrlKey && !event.metaKey) {
      const chosen = { 1: "0", 0: "tie", 2: "1" }[event.key];
      if (chosen) vote(chosen);
    }
  });
  window.addEventListener("hashchange", show);
  window.addEventListener("beforeunload", () => { for (const one of running.values()) one.controller.abort(); });
}

async function start() {
  setTheme(localStorage.getItem("theme"));
  try { database = await open(); } catch (error) { say(`This browser keeps no conversations (${error.message}); allow storage for this address, and reload.`); return; }
  await loadServer();
  const last = localStorage.getItem("current");
  listen();
  if (last) await openConversation(last); else newConversation();
  showModel();
  show();
  document.body.dataset.ready = "true";
}
start();
})();
