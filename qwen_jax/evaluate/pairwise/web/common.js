// Parts of both pages: elements whose text is never HTML, storage in the browser, files.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange" || name === "oninput") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);  // strings become text nodes
  return made;
}

function byId(id) { return document.getElementById(id); }

function stored(key) {
  try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
}

function store(key, value) {
  try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
}

function lines(rows) { return rows.map(row => JSON.stringify(row) + "\n").join(""); }

function download(name, text) {
  const link = element("a", {download: name});
  link.href = URL.createObjectURL(new Blob([text], {type: "application/jsonl"}));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function rowsOf(file) {
  const text = await file.text();
  return text.split("\n").filter(line => line.trim()).map(line => JSON.parse(line));
}

function typing(event) {  // the key belongs to a field, or to the browser
  return event.ctrlKey || event.metaKey || event.altKey ||
    /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement && document.activeElement.tagName);
}
