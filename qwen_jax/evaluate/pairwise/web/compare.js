// The blind page: a rater ranks the answers to each question.

// FNV-1a of a string, 32 bits.
function hashOf(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash;
}

// Random numbers in [0, 1) that depend on the seed only (mulberry32).
function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, random) {
  const made = [...list];
  for (let i = made.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [made[i], made[j]] = [made[j], made[i]];
  }
  return made;
}

// Orders of n answers among which each answer has each position equally often.
function balanced(n, random) {
  const first = shuffled([...Array(n).keys()], random);
  const rotated = first.map((_, shift) => first.map((_, i) => first[(i + shift) % n]));
  return n > 3 ? rotated : n === 2 ? rotated : [...rotated, ...rotated.map(o => [...o].reverse())];
}

// question index -> the order in which this rater sees the answers. Within a category the orders
// are balanced: of two answers, each is first for half of the questions.
function ordersOf(questions, rater, seed) {
  const groups = new Map();
  questions.forEach((question, index) => {
    const name = question.category + "/" + question.answers.length;
    groups.set(name, [...(groups.get(name) || []), index]);
  });
  const found = [];
  for (const [name, indices] of groups) {
    const random = randomOf(hashOf(seed + "/" + rater + "/" + name));
    const orders = shuffled(balanced(questions[indices[0]].answers.length, random), random);
    const used = shuffled(indices.map((_, i) => orders[i % orders.length]), random);
    indices.forEach((index, i) => { found[index] = used[i]; });
  }
  return found;
}

// A ranking after a key: groups of positions, best first. A number puts its answer into the next
// group, or with `join` into the last one; "tie" puts all that are left into one group.
function ranked(groups, total, key, join = false) {
  const placed = groups.flat(), rest = [...Array(total).keys()].filter(i => !placed.includes(i));
  if (key === "tie") return rest.length ? [...groups, rest] : groups;
  if (!rest.includes(key)) return groups;
  const next = join && groups.length
    ? [...groups.slice(0, -1), [...groups[groups.length - 1], key]] : [...groups, [key]];
  const left = rest.filter(i => i !== key);
  return left.length === 1 ? [...next, left] : next;
}

function complete(groups, total) { return groups.flat().length === total; }

// The row of a vote file; votes.py reads it.
function voteRow(data, question, rater, order, groups, seconds, time) {
  const codes = order.map(index => question.answers[index][0]);
  return {page: data.page, rater, question: question.id, category: question.category,
    shown: codes, ranking: groups.map(group => group.map(position => codes[position])),
    seconds, time};
}

function startCompare(data) {
  const questions = data.questions, raterField = byId("rater"), categories = byId("category");
  let rater = "", votes = {}, orders = [], current = 0, groups = [], since = Date.now();
  const storeName = () => "votes-" + data.page + "-" + rater;

  for (const name of new Set(questions.map(question => question.category)))
    categories.append(element("option", {value: name}, name));

  function inCategory(index) {
    return !categories.value || questions[index].category === categories.value;
  }

  function setRater(name) {
    rater = name.trim();
    store("rater-" + data.page, rater);
    votes = (rater && stored(storeName())) || {};
    orders = ordersOf(questions, rater, data.seed);
    current = questions.findIndex((question, index) => inCategory(index) && !votes[question.id]);
    if (current < 0) current = Math.max(questions.findIndex((_, index) => inCategory(index)), 0);
    show();
  }

  function go(step, undecided = false) {
    for (let i = current + step; i >= 0 && i < questions.length; i += step)
      if (inCategory(i) && !(undecided && votes[questions[i].id])) { current = i; break; }
    show();
  }

  function show() {
    const question = questions[current], order = orders[current], vote = votes[question.id];
    groups = vote
      ? vote.ranking.map(group => group.map(code => vote.shown.indexOf(code))) : [];
    since = Date.now();
    byId("question").replaceChildren(
      ...question.turns.map(([role, text]) => element("section", {class: "card"},
        element("header", {}, element("span", {}, role), element("span", {},
          question.category + " · " + (current + 1) + " of " + questions.length)),
        element("div", {class: "text"}, text))),
      ...(question.reference ? [element("section", {class: "card"},
        element("header", {}, "reference"), element("div", {class: "text"}, question.reference))]
        : []));
    byId("answers").replaceChildren(...order.map((index, position) =>
      element("article", {class: "card"},
        element("header", {}, element("span", {}, "answer " + (position + 1)),
          element("span", {class: "rank"}), element("button",
            {onclick: () => press(position)}, (position + 1) + " is better")),
        element("div", {class: "text"}, question.answers[index][1]))));
    mark();
  }

  function mark() {
    [...byId("answers").children].forEach((card, position) => {
      const rank = groups.findIndex(group => group.includes(position)) + 1;
      card.dataset.rank = rank;
      card.querySelector(".rank").textContent = !rank ? "" :
        rank + "." + (groups[rank - 1].length > 1 ? " (tie)" : "");
    });
    const shown = questions.filter((_, index) => inCategory(index));
    const done = shown.filter(question => votes[question.id]).length;
    byId("progress").max = shown.length;
    byId("progress").value = done;
    byId("count").textContent = done + " of " + shown.length;
    byId("note").textContent = rater ? "" : "Enter your name first.";
  }

  function press(key, join = false) {
    if (!rater) { raterField.focus(); mark(); return; }
    const question = questions[current], total = question.answers.length;
    if (complete(groups, total)) groups = [];  // a new ranking replaces the old one
    groups = ranked(groups, total, key, join);
    if (!complete(groups, total)) { mark(); return; }
    votes[question.id] = voteRow(data, question, rater, orders[current], groups,
      Math.round((Date.now() - since) / 100) / 10, new Date().toISOString());
    if (!store(storeName(), votes))
      byId("note").textContent = "This browser stores nothing: save the votes before you leave.";
    go(1, true);
  }

  raterField.addEventListener("change", () => { setRater(raterField.value); raterField.blur(); });
  categories.addEventListener("change", () => { categories.blur(); setRater(rater); });
  byId("tie").onclick = () => press("tie");
  byId("previous").onclick = () => go(-1);
  byId("next").onclick = () => go(1);
  byId("save").onclick = () => {
    const rows = questions.map(question => votes[question.id]).filter(Boolean);
    if (rows.length) download("votes-" + rater + ".jsonl", lines(rows));
    else byId("note").textContent = "There are no votes yet.";
  };
  byId("load").addEventListener("change", async event => {
    try {
      const rows = await rowsOf(event.target.files[0]);
      const known = new Map(questions.map((question, index) => [question.id, index]));
      const bad = rows.filter(row => row.page !== data.page || !known.has(row.question));
      const name = rows.length && rows[0].rater;
      if (bad.length || !name || rows.some(row => row.rater !== name))
        throw new Error("these are not the votes of one rater on this page");
      raterField.value = name;
      setRater(name);
      for (const row of rows) votes[row.question] = row;
      store(storeName(), votes);
      setRater(name);
    } catch (error) { byId("note").textContent = "Not loaded: " + error.message; }
  });
  document.addEventListener("keydown", event => {
    if (typing(event)) return;
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code || "");
    const number = digit ? Number(digit[1]) : Number(event.key);
    if (number >= 1 && number <= questions[current].answers.length) press(number - 1, event.shiftKey);
    else if (event.key === "0" || event.key === "t") press("tie");
    else if (event.key === "Backspace") { groups = []; mark(); }
    else if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "ArrowRight") go(1);
    else return;
    event.preventDefault();
  });
  raterField.value = stored("rater-" + data.page) || "";
  setRater(raterField.value);
}
