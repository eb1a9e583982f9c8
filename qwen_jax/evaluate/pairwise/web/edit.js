// The second page: write, correct, keep or drop conversations.

// Why a conversation cannot be trained on; "" if it can.
function problemOf(messages) {
  const turns = messages[0] && messages[0].role === "system" ? messages.slice(1) : messages;
  if (messages.some(message => !message.content.trim())) return "a turn is empty";
  if (!turns.length || turns[turns.length - 1].role !== "assistant")
    return "the last turn is not the assistant's";
  let before = "assistant";
  for (const {role} of turns) {
    if (role === "system") return "a system message after the first turn";
    if ((role === "assistant") === (before === "assistant") && !(role === "tool" && before === "tool"))
      return "turns of user and assistant do not alternate";
    before = role;
  }
  return "";
}

// The row of a file of conversations. A dropped one has the weight 0, so that training skips it.
function conversationRow(data, row, editor, time) {
  const changed = JSON.stringify(row.messages) !== JSON.stringify(row.original);
  const decision = row.decision === "drop" ? "dropped" : !row.original ? "written" :
    changed ? "corrected" : "kept";
  return {id: row.id, messages: row.messages, decision, editor, page: data.page, time,
    ...(decision === "dropped" ? {weight: 0} : {})};
}

function startEdit(data) {
  const key = "conversations-" + data.page, editorField = byId("rater");
  const loaded = data.conversations.map(one => ({...one, original: one.messages}));
  const saved = stored(key) || {editor: "", rows: {}, written: []};
  const rows = [...loaded.map(row => ({...row, ...(saved.rows[row.id] || {})})), ...saved.written];
  let current = Math.max(rows.findIndex(row => !row.decision), 0);
  editorField.value = saved.editor;

  function save() {
    const changed = rows.filter(row => row.original && (row.decision ||
      row.messages !== row.original));
    const kept = store(key, {editor: editorField.value.trim(), written: rows.filter(r => !r.original),
      rows: Object.fromEntries(changed.map(row =>
        [row.id, {messages: row.messages, decision: row.decision, time: row.time}]))});
    if (!kept) byId("note").textContent = "This browser stores nothing: save before you leave.";
    const counts = {};
    for (const row of rows.filter(row => row.decision)) {
      const {decision} = conversationRow(data, row, "", "");
      counts[decision] = (counts[decision] || 0) + 1;
    }
    const done = rows.filter(row => row.decision).length;
    byId("progress").max = Math.max(rows.length, 1);
    byId("progress").value = done;
    byId("count").textContent = done + " of " + rows.length + " decided" +
      Object.entries(counts).map(([name, n]) => ", " + n + " " + name).join("");
  }

  function change(messages) {
    rows[current].messages = messages;
    delete rows[current].decision;
    save();
    pressed();
  }

  function pressed() {
    const decision = rows[current] && rows[current].decision;
    byId("keep").setAttribute("aria-pressed", String(decision === "keep"));
    byId("drop").setAttribute("aria-pressed", String(decision === "drop"));
  }

  function show() {
    const row = rows[current];
    byId("note").textContent = "";
    byId("turns").replaceChildren(...(row ? row.messages.map((message, index) => {
      const edit = part => change(row.messages.map((m, i) => i === index ? {...m, ...part} : m));
      const role = element("select", {onchange: event => { edit({role: event.target.value}); show(); }},
        ...["system", "user", "assistant", "tool"].map(name => element("option", {value: name}, name)));
      role.value = message.role;
      const text = element("textarea", {rows: Math.min(24, 2 + message.content.split("\n").length +
        Math.floor(message.content.length / 110)), oninput: event =>
        change(rows[current].messages.map((m, i) =>
          i === index ? {...m, content: event.target.value} : m))});
      text.value = message.content;
      return element("section", {class: "card turn", "data-role": message.role},
        element("header", {}, role, element("button", {onclick: () => {
          change(row.messages.filter((_, i) => i !== index)); show(); }}, "remove turn")), text);
    }) : [element("p", {}, "There is no conversation yet: press “new conversation”.")]));
    byId("position").textContent = row ? row.id + " · " + (current + 1) + " of " + rows.length : "";
    pressed();
    save();
  }

  function decide(decision) {
    const row = rows[current];
    if (!row) return;
    const problem = decision === "keep" ? problemOf(row.messages) : "";
    if (problem) { byId("note").textContent = "Not kept: " + problem + "."; return; }
    row.decision = decision;
    row.time = new Date().toISOString();
    save();
    go(1);
  }

  function go(step) {
    if (rows[current + step]) current += step;
    show();
  }

  function addTurn() {
    if (!rows.length) return;
    const messages = rows[current].messages, last = messages[messages.length - 1];
    change([...messages, {role: last && last.role === "user" ? "assistant" : "user", content: ""}]);
    show();
    const fields = byId("turns").querySelectorAll("textarea");
    fields[fields.length - 1].focus();
  }

  byId("keep").onclick = () => decide("keep");
  byId("drop").onclick = () => decide("drop");
  byId("turn").onclick = addTurn;
  byId("new").onclick = () => {
    const used = new Set(rows.map(row => row.id));
    let number = 1;
    while (used.has("written-" + number)) number++;
    rows.push({id: "written-" + number,
      messages: [{role: "user", content: ""}, {role: "assistant", content: ""}]});
    current = rows.length - 1;
    show();
    byId("turns").querySelector("textarea").focus();
  };
  byId("previous").onclick = () => go(-1);
  byId("next").onclick = () => go(1);
  editorField.addEventListener("change", save);
  byId("save").onclick = () => {
    const editor = editorField.value.trim();
    const decided = rows.filter(row => row.decision);
    if (!editor) byId("note").textContent = "Enter your name first.";
    else if (!decided.length) byId("note").textContent = "Nothing is decided yet.";
    else download("conversations-" + editor + ".jsonl",
      lines(decided.map(row => conversationRow(data, row, editor, row.time))));
  };
  document.addEventListener("keydown", event => {
    if (typing(event)) return;
    const action = {k: () => decide("keep"), d: () => decide("drop"), a: addTurn,
      n: byId("new").onclick, ArrowLeft: () => go(-1), ArrowRight: () => go(1)}[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  show();
}
