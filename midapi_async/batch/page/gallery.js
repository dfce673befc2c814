"use strict";
// Everything that comes from the batch is put into the page as text or as a checked attribute, never as
// HTML: prompts are written by anybody.

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
const groups = JSON.parse($("groups").textContent);
const main = $("main");
const number = new Intl.NumberFormat("en");
const count = (n, one, many = one + "s") => `${number.format(n)} ${n === 1 ? one : many}`;

const KINDS = {
  TextToImage: "", ImageToImage: "From pictures", StyleReference: "In a style", OmniReference: "Omni reference",
  ImageToVideo: "Video", Upscale: "Upscaled", Vary: "Variations", ExtendVideo: "Extended video",
};
const NAMES = {
  aspectRatio: "aspect ratio", fileUrls: "pictures", waterMark: "water mark", enableTranslation: "translation",
  videoBatchSize: "videos", ow: "omni weight",
};
const STATES = [
  ["all", "All"], ["succeeded", "Succeeded"], ["failed", "Failed"], ["unknown", "Unknown"], ["starred", "Starred"],
];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// ─── the model: groups (a prompt) of tasks of items (a picture, or a task that has none) ───────────────

const byTask = new Map();
for (const group of groups) {
  group.tasks.forEach((task) => {
    task.group = group;
    task.prompt ??= group.prompt;
    task.settings ??= {};
    task.metadata ??= {};
    task.error ??= {};
    task.show = task.state === "succeeded" || task.state === "unknown" ? task.state : "failed";
    if (task.task) byTask.set(task.task, task);
    const pictures = task.pictures ?? (task.show === "succeeded" ? [[0, null, null]] : []);
    task.items = pictures.map(([index, file, url], at) => ({ task, index, file, url, at, of: pictures.length }));
    if (!task.items.length) task.items = [{ task, at: 0, of: 0 }];
    task.text = [
      task.prompt, task.key, task.task, task.state, task.kind, KINDS[task.kind], ...Object.entries(task.settings).flat(),
      ...Object.entries(task.metadata).flat(), ...Object.values(task.error),
    ].join("\n").toLowerCase();
  });
}
const tasks = groups.flatMap((group) => group.tasks);
for (const task of tasks) {
  const origin = task.parent && byTask.get(task.parent[0]);
  if (origin && origin !== task) {
    task.origin = origin.items.find((item) => item.index === task.parent[1]) ?? origin.items[0];
    (task.origin.derived ??= []).push(task);
  }
}
const isPicture = (item) => item.of > 0;
const nameOf = (item) => (isPicture(item) && item.task.task ? `${item.task.task}/${item.index}` : null);
const isVideo = (item) => /\.(mp4|webm|mov|m4v)$/i.test(item.file ?? "");
const urlOf = (item) => (item.file ? item.file.split("/").map(encodeURIComponent).join("/") : null);
const cut = (text, most) => (text.length > most ? text.slice(0, most) + "…" : text);
const label = (item) => {
  const kind = item.task.origin && KINDS[item.task.kind];
  const prompt = (kind ? `${kind}: ` : "") + cut(item.task.prompt || "no prompt", 200);
  return item.of > 1 ? `${prompt}, ${isVideo(item) ? "video" : "picture"} ${item.at + 1} of ${item.of}` : prompt;
};
function duration(seconds) {
  if (seconds < 99.5) return `${seconds < 9.95 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
}
function setting([name, value]) {
  if (name === "fileUrls") {
    try { value = String(JSON.parse(value).length); } catch { /* shown as it is */ }
  }
  return [NAMES[name] ?? name, value === "true" ? "yes" : value === "false" ? "no" : value];
}
function short(pair) {
  const [name, value] = setting(pair);
  if (pair[0] === "speed" || pair[0] === "aspectRatio") return cut(value, 60);
  return pair[0] === "version" && /^\d/.test(value) ? `v${cut(value, 60)}` : `${name} ${cut(value, 60)}`;
}
function failure(task) {
  const { code, message, type } = task.error;
  const word = task.state[0].toUpperCase() + task.state.slice(1).replaceAll("_", " ");
  const reason = message ?? type ?? (task.show === "unknown" ? "It may have been paid." : "No reason is known.");
  return [word, code ? `${code}: ${reason}` : reason];
}

// ─── stars, kept by the browser under a name of this folder ─────────────────────────────────────────────

const STORE = `midapi-gallery-${document.documentElement.dataset.folder}`;
let stars = new Set();
let keeps = true;

function readStars() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    stars = new Set(Array.isArray(kept) ? kept.filter((name) => typeof name === "string") : []);
  } catch (error) {
    keeps = error instanceof SyntaxError; // what is stored is not ours, or nothing can be stored
  }
}
function changeStars(change) {
  if (keeps) readStars(); // another tab may have changed them
  change();
  try {
    localStorage.setItem(STORE, JSON.stringify([...stars]));
    keeps = true;
  } catch {
    keeps = false;
  }
  showStars();
}
function toggle(item) {
  const name = nameOf(item);
  if (name === null) return;
  const wanted = !stars.has(name);
  changeStars(() => (wanted ? stars.add(name) : stars.delete(name)));
}
const starredItems = () => tasks.flatMap((task) => task.items.filter((item) => stars.has(nameOf(item))));
function showStars() {
  const picked = starredItems();
  $("picks").hidden = picked.length === 0;
  $("picked").textContent = `${number.format(picked.length)} starred`;
  for (const item of filled()) item.star?.setAttribute("aria-pressed", stars.has(nameOf(item)));
  if (large) $("view-star").setAttribute("aria-pressed", stars.has(nameOf(large)));
  showStates(picked.length);
  showNotes();
}
function picksFile() {
  return starredItems().map((item) => JSON.stringify({
    task_id: item.task.task, index: item.index, file: item.file, prompt: item.task.prompt ?? null, key: item.task.key ?? null,
  }) + "\n").join("");
}
function folderPath() {
  if (location.protocol !== "file:") return facts.folder;
  let path = location.pathname.replace(/\/[^/]*$/, "");
  try { path = decodeURIComponent(path); } catch { /* shown as it is */ }
  return /^\/[A-Za-z]:/.test(path) ? path.slice(1) : path || "/";
}
function quoted(text) {
  if (/^[\w@%+=:,./-]+$/.test(text)) return text;
  return /^[A-Za-z]:/.test(text) ? `"${text}"` : `'${text.replaceAll("'", "'\\''")}'`; // Windows, or a shell
}
async function copy(source, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(source.value ?? source.textContent);
  } catch {
    if (source.select) source.select();
    else getSelection().selectAllChildren(source);
    copied = document.execCommand("copy"); // where it is not allowed either, the text is selected now
  }
  const before = button.dataset.text ??= button.textContent;
  button.textContent = copied ? "Copied" : "Selected";
  setTimeout(() => { button.textContent = before; }, 1500);
}

// ─── filter ─────────────────────────────────────────────────────────────────────────────────────────────

let words = [];
let state = "all";
let shown = []; // groups, each with `shows`: its items, by task
let items = []; // of all of these, in order
let current = null; // the item that Tab leads to, and that the arrows move from

function matches(item) {
  if (state === "starred") return stars.has(nameOf(item));
  return state === "all" || item.task.show === state;
}
function applyFilter({ place }) {
  measure();
  shown = [];
  items = [];
  for (const group of groups) {
    const shows = [];
    for (const task of group.tasks) {
      if (!words.every((word) => task.text.includes(word))) continue;
      const found = task.items.filter(matches);
      if (found.length) shows.push(found);
    }
    empty(group);
    group.shows = shows;
    group.element.hidden = shows.length === 0;
    if (shows.length) {
      setHeight(group);
      shown.push(group);
      items.push(...shows.flat());
    }
  }
  items.forEach((item, at) => { item.position = at; });
  if (current && items[current.position] !== current) current = null;
  const pictures = items.filter(isPicture).length;
  const rows = shown.reduce((sum, group) => sum + group.shows.length, 0); // as in the buttons of the states
  const of = rows === tasks.length ? "" : `${number.format(rows)} of `;
  $("count").textContent = `${of}${count(tasks.length, "row")}, ${count(pictures, "picture")}`;
  $("empty").hidden = shown.length > 0;
  $("empty").textContent = groups.length ? "Nothing fits this filter." : "No row has ended yet. Reload this page later.";
  showStates();
  goTo(place);
}
function showStates(starred = starredItems().length) {
  const totals = { all: tasks.length, starred };
  for (const task of tasks) totals[task.show] = (totals[task.show] ?? 0) + 1;
  for (const [name, button] of stateButtons) {
    button.querySelector("span").textContent = ` ${number.format(totals[name] ?? 0)}`;
    button.setAttribute("aria-pressed", name === state);
    const needed = name === "succeeded" ? totals.succeeded !== totals.all : totals[name];
    button.hidden = !needed && !["all", "starred"].includes(name) && name !== state;
  }
}
const stateButtons = STATES.map(([name, text]) => {
  const button = make("button", { type: "button" }, text, make("span"));
  button.addEventListener("click", () => filterChanged(name));
  $("states").append(button);
  return [name, button];
});
let home = null; // the place where the filter began; without the filter one is there again
const isFiltered = () => words.length > 0 || state !== "all";
function filterChanged(wanted = state) {
  const place = placeInView();
  if (!isFiltered()) home = place;
  state = wanted;
  words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  applyFilter({ place: place ?? (isFiltered() ? null : home) });
  remember();
}

// ─── the place in the page, and the filter, outlive a reload ────────────────────────────────────────────

const idOf = (group) => group.tasks[0].key ?? group.tasks[0].task ?? group.prompt;
const barBottom = () => document.querySelector(".bar").getBoundingClientRect().bottom;

function firstInView(from) {
  let low = 0, high = shown.length; // the first group whose end is below `from`
  while (low < high) {
    const middle = (low + high) >> 1;
    if (shown[middle].element.getBoundingClientRect().bottom > from) high = middle; else low = middle + 1;
  }
  return low;
}
function placeInView() {
  if (scrollY < 5 || !shown.length) return null;
  const group = shown[Math.min(firstInView(barBottom()), shown.length - 1)];
  return { id: idOf(group), top: group.element.getBoundingClientRect().top };
}
function goTo(place) {
  const group = place && shown.find((each) => idOf(each) === place.id);
  scrollTo(0, group ? scrollY + group.element.getBoundingClientRect().top - place.top : 0);
  draw();
}
function remember() {
  const hash = new URLSearchParams();
  if ($("filter").value) hash.set("q", $("filter").value);
  if (state !== "all") hash.set("show", state);
  const text = String(hash);
  try {
    history.replaceState({ place: placeInView() }, "", text ? `#${text}` : location.pathname + location.search);
  } catch { /* a browser that forbids it forgets the filter at a reload */ }
}
function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  $("filter").value = hash.get("q") ?? "";
  words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  state = STATES.some(([name]) => name === hash.get("show")) ? hash.get("show") : "all";
}

// ─── drawing: only groups near the window have anything in them ─────────────────────────────────────────

// The others are empty, without a class, and as high as they would be: a browser lays out 5,000 such
// elements in no time. (With content-visibility in their place, Chromium takes a minute for a Tab.)

const drawn = new Set();
const filled = () => [...drawn].flatMap((group) => group.shows.flat());

let sizes = null; // of the parts of a group, in pixels, at the window's width

function measure() {
  const strip = make("ul", { className: "strip" }, make("li", { className: "tile" }));
  const task = make("div", { className: "task" }, strip, make("p", { className: "caption" }, "-"));
  task.style.cssText = "--span2:1;--span4:1;--ratio:1";
  const bad = make("div", { className: "bad" });
  const about = make("div", { className: "about" }, make("h2", {}, ...Array(9).fill(0).flatMap(() => ["-", make("br")])));
  const parts = make("div", { className: "tasks" }, task, bad);
  const probe = make("article", { className: "group probe" }, about, parts);
  main.prepend(probe);
  const height = (element) => element.getBoundingClientRect().height;
  const style = getComputedStyle(parts);
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const above = parts.getBoundingClientRect().top - about.getBoundingClientRect().top;
  sizes = {
    columns: style.gridTemplateColumns.split(" ").length, tile: height(strip), caption: height(task.lastChild), bad: height(bad),
    gap: parseFloat(style.columnGap), row: parseFloat(style.rowGap), above, least: height(about), padding: 1.75 * rem,
  };
  probe.remove();
}
function setHeight(group) {
  const { columns, tile, gap } = sizes;
  const lines = [];
  let used = columns, bad = 0;
  for (const shows of group.shows) {
    if (!isPicture(shows[0])) {
      bad += 1;
      used = columns; // it has a line for itself
      continue;
    }
    const span = Math.min(columns, shows.length);
    const rows = Math.ceil(shows.length / span);
    if (used + span > columns) {
      lines.push(0);
      used = 0;
    }
    used += span;
    const height = (rows * tile) / (shows[0].task.ratio ?? 1) + (rows - 1) * gap;
    lines[lines.length - 1] = Math.max(lines.at(-1), height);
  }
  const pictures = lines.reduce((sum, line) => sum + line + sizes.caption + sizes.row, 0);
  const tasksHeight = pictures + bad * (sizes.bad + sizes.row);
  const height = sizes.padding + (lines.length ? Math.max(sizes.above + tasksHeight, sizes.least) : sizes.above + tasksHeight);
  if (group.height === height) return;
  group.height = height;
  group.element.style.minHeight = `${height}px`;
}
function fill(group) {
  if (drawn.has(group)) return;
  drawn.add(group);
  const prompt = group.prompt ?? (KINDS[group.tasks[0].kind] || "No prompt");
  group.element.className = group.shows.some((shows) => isPicture(shows[0])) ? "group" : "group bare";
  group.element.append(
    make("div", { className: "about" }, make("h2", { dir: "auto" }, cut(prompt, 600))),
    make("div", { className: "tasks" }, ...group.shows.map(drawTask)));
}
function empty(group) {
  if (!drawn.delete(group)) return;
  group.element.replaceChildren();
  group.element.className = "";
  for (const item of group.shows.flat()) item.element = item.star = undefined;
}
function drawTask(shows) {
  const { task } = shows[0];
  if (!isPicture(shows[0])) return drawFailure(shows[0]);
  const strip = make("ul", { className: "strip" }, ...shows.map(drawTile));
  const element = make("div", { className: "task" }, strip, make("p", { className: "caption" }, ...caption(task)));
  for (const columns of [2, 4]) element.style.setProperty(`--span${columns}`, Math.min(columns, shows.length));
  element.style.setProperty("--ratio", task.ratio ?? 1);
  return element;
}
function caption(task) {
  const kind = KINDS[task.kind] ?? task.kind;
  const word = task.kind === "Vary" ? "of" : "from";
  const from = task.origin && task.origin.of > 1 ? ` ${word} picture ${task.origin.at + 1}` : "";
  const parts = [
    isPicture(task.items[0]) && task.show !== "succeeded" && make("b", { className: task.show }, failure(task)[0]),
    kind && make("b", {}, kind + from),
    ...Object.entries(task.settings).map(short),
    task.seconds === undefined ? null : duration(task.seconds),
    ...Object.entries(task.metadata).map(([name, value]) => `${name}: ${cut(value, 80)}`),
    task.task,
  ].filter(Boolean);
  return parts.flatMap((part, at) => (at ? [" · ", part] : [part]));
}
function drawTile(item) {
  const { task } = item;
  const url = urlOf(item);
  const open = make("a", { className: "open", href: url ?? item.url ?? "#" });
  open.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // a new tab, as with any link
    event.preventDefault();
    show(item);
  });
  if (url) open.append(media(item, () => open.replaceChildren(absent(item, "The file is missing or cannot be shown"))));
  else open.append(absent(item, item.url ? "Not downloaded" : "No picture"));
  const tile = make("li", { className: isVideo(item) ? "tile plays" : "tile" }, open);
  item.element = open;
  item.star = nameOf(item) === null ? null : drawStar(item);
  if (item.star) tile.append(item.star);
  made(item);
  return tile;
}
function media(item, failed) {
  const url = urlOf(item);
  const element = isVideo(item)
    ? make("video", { muted: true, playsInline: true, preload: "metadata", ariaLabel: label(item) })
    : make("img", { loading: "lazy", decoding: "async", alt: label(item), draggable: false });
  if (isVideo(item)) element.setAttribute("muted", "");
  element.addEventListener("error", failed, { once: true });
  element.src = url;
  return element;
}
const absent = (item, text) => make("span", { className: "absent" }, text, make("span", { className: "unseen" }, `: ${label(item)}`));
function drawStar(item) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", "M12 3.2l2.7 5.6 6.1.8-4.5 4.2 1.1 6.1L12 17l-5.4 2.9 1.1-6.1L3.2 9.6l6.1-.8z");
  svg.append(path);
  const button = make("button", { type: "button", className: "star", tabIndex: -1, ariaLabel: `Star: ${label(item)}` }, svg);
  button.setAttribute("aria-pressed", stars.has(nameOf(item)));
  button.addEventListener("click", () => toggle(item));
  button.addEventListener("focus", () => setCurrent(item));
  return button;
}
function drawFailure(item) {
  const { task } = item;
  const [word, reason] = failure(task);
  const open = make("button", { type: "button", className: "open" },
    make("span", { className: "reason" }, make("b", {}, word), " ", make("bdi", {}, cut(reason, 500))),
    make("span", { className: "caption" }, ...caption(task)));
  open.addEventListener("click", () => show(item));
  item.element = open;
  made(item);
  return make("div", { className: `bad ${task.show}` }, open);
}
function made(item) {
  item.element.tabIndex = item === current ? 0 : -1;
  item.element.addEventListener("focus", () => setCurrent(item));
}
function setCurrent(item) {
  if (current?.element) current.element.tabIndex = -1;
  current = item;
  if (item?.element) item.element.tabIndex = 0;
}
function draw() {
  const reach = innerHeight * 1.5;
  const near = new Set();
  for (let at = firstInView(-reach); at < shown.length; at += 1) {
    const group = shown[at];
    if (group.element.getBoundingClientRect().top > innerHeight + reach) break;
    near.add(group);
    fill(group);
  }
  const focused = main.contains(document.activeElement) && document.activeElement !== main;
  for (const group of drawn) {
    if (!near.has(group) && !(focused && current?.task.group === group)) empty(group);
  }
  if (!focused && shown.length) {
    // Tab leads to what is on the screen.
    const group = shown[Math.min(firstInView(barBottom()), shown.length - 1)];
    if (current?.task.group !== group) setCurrent(group.shows[0][0]);
  }
  document.body.classList.toggle("scrolled", scrollY > 60);
}

// ─── moving ─────────────────────────────────────────────────────────────────────────────────────────────

function focusItem(item) {
  fill(item.task.group);
  setCurrent(item);
  item.element.focus({ preventScroll: true });
  item.element.scrollIntoView({ block: "nearest", inline: "nearest" });
  draw();
}
function rectangle(item) {
  fill(item.task.group);
  return item.element.getBoundingClientRect();
}
function move(across, down) {
  if (!items.length) return;
  if (!current) return focusItem(items[0]);
  if (across) return focusItem(items[Math.max(0, Math.min(items.length - 1, current.position + across))]);
  // The nearest of the next line up or down.
  const from = rectangle(current);
  const centre = (from.left + from.right) / 2;
  let best = null, bestDistance = Infinity, line = null;
  for (let at = current.position + down; at >= 0 && at < items.length; at += down) {
    const here = rectangle(items[at]);
    if (down > 0 ? here.top < from.bottom - 1 : here.bottom > from.top + 1) continue; // of the same line
    line ??= here;
    if (down > 0 ? here.top > line.bottom - 1 : here.bottom < line.top + 1) break; // of the line after the next
    const distance = Math.abs((here.left + here.right) / 2 - centre);
    if (distance < bestDistance) [best, bestDistance] = [items[at], distance];
  }
  if (best) focusItem(best);
}

// ─── the large view ─────────────────────────────────────────────────────────────────────────────────────

let large = null;
const positionOf = (item) => (item && items[item.position] === item ? item.position : null); // in the filter
function show(item) {
  large = item;
  const { task } = item;
  const at = positionOf(item);
  const url = urlOf(item);
  $("stage").replaceChildren(...stageOf(item));
  $("previous").disabled = at === null || at === 0;
  $("next").disabled = at === null || at === items.length - 1;
  $("view-star").hidden = nameOf(item) === null;
  $("view-star").setAttribute("aria-pressed", stars.has(nameOf(item)));
  const link = url ?? item.url;
  $("view-file").hidden = !link;
  if (link) $("view-file").href = link;
  $("view-file").textContent = url ? "Open the file" : "Open at MidAPI";
  $("view-place").textContent = isPicture(item) && item.of > 1
    ? `${isVideo(item) ? "Video" : "Picture"} ${item.at + 1} of ${item.of}` : KINDS[task.kind] || "";
  $("view-prompt").textContent = task.prompt ?? KINDS[task.kind] ?? "No prompt";
  $("view-error").replaceChildren();
  if (task.show !== "succeeded") {
    const [word, reason] = failure(task);
    $("view-error").append(make("p", { className: "failure" }, make("b", {}, word), " ", make("bdi", {}, reason)));
  }
  $("view-facts").replaceChildren(...details(item));
  if (!$("view").open) {
    $("view").showModal();
    (nameOf(item) === null ? $("view-close") : $("view-star")).focus({ focusVisible: false });
  }
  $("panel").scrollTop = $("view").scrollTop = 0;
}
function stageOf(item) {
  if (!isPicture(item)) return [make("p", {}, "No picture")];
  const missing = () => $("stage").replaceChildren(make("p", {}, "The file is missing or cannot be shown"));
  if (!item.file) return [make("p", {}, item.url ? "Not downloaded" : "No picture")];
  const element = media(item, missing);
  if (isVideo(item)) element.controls = true;
  else element.loading = "eager";
  return [element];
}
function jump(item, text) {
  const button = make("button", { type: "button", className: "link" }, text);
  button.addEventListener("click", () => {
    show(item);
    $("view-close").focus();
  });
  return button;
}
function details(item) {
  const { task } = item;
  const rows = [];
  const row = (name, ...values) => rows.push(make("dt", {}, name), make("dd", {}, ...values));
  const kind = KINDS[task.kind] ?? task.kind;
  if (kind) row("kind", kind);
  if (task.origin) row("made from", jump(task.origin, `picture ${task.origin.at + 1} of task ${task.parent[0]}`));
  else if (task.parent) row("made from", `task ${task.parent[0]}`);
  for (const derived of item.derived ?? []) row(KINDS[derived.kind] || "made from it", jump(derived.items[0], derived.task ?? derived.state));
  for (const each of Object.entries(task.settings)) row(...setting(each));
  if (task.task) {
    const button = make("button", { type: "button", ariaLabel: "Copy the task id" }, "Copy");
    const code = make("code", {}, task.task);
    button.addEventListener("click", () => copy(code, button));
    row("task", code, button);
  }
  if (task.key) row("key", make("code", {}, task.key));
  if (task.seconds !== undefined) row("took", duration(task.seconds));
  if (task.completed) row("completed", time(task.completed));
  for (const [name, value] of Object.entries(task.metadata)) row(name, value);
  if (item.file) row("file", make("code", {}, item.file));
  return rows;
}
function time(iso) {
  const date = new Date(iso);
  return isNaN(date) ? iso : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
function step(by) {
  const at = positionOf(large);
  if (at !== null && items[at + by]) show(items[at + by]);
}
function leave() {
  const item = large;
  large = null;
  $("stage").replaceChildren(); // a video stops
  $("view").close(); // this focuses the picture that was opened; the one that was shown last is better
  if (positionOf(item) !== null) focusItem(item);
}
$("view").addEventListener("cancel", (event) => {
  event.preventDefault();
  leave();
});
$("view").addEventListener("close", () => large && leave()); // a browser may leave out the cancel
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("view-close").addEventListener("click", leave);
$("view-star").addEventListener("click", () => toggle(large));
$("view").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("video")) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  else if (event.key === "s" || (event.key === " " && !event.target.closest("button, a"))) toggle(large);
  else return;
  event.preventDefault();
});
let touch = null; // a swipe on the picture shows the next one
$("stage").addEventListener("pointerdown", (event) => { touch = event.pointerType === "touch" && event.isPrimary ? event : null; });
$("stage").addEventListener("pointerup", (event) => {
  const across = touch && event.pointerId === touch.pointerId ? event.clientX - touch.clientX : 0;
  touch = null;
  if (Math.abs(across) > 50 && (visualViewport?.scale ?? 1) === 1) step(across > 0 ? -1 : 1);
});

// ─── the rest of the page ───────────────────────────────────────────────────────────────────────────────

function showNotes() {
  const notes = [];
  if (facts.rows && facts.done < facts.rows) {
    notes.push(`${number.format(facts.done)} of ${number.format(facts.rows)} rows have ended, as of ${time(facts.written)}. Reload for more.`);
  }
  for (const [name, lines] of Object.entries(facts.unreadable)) notes.push(`${count(lines, "line")} of ${name} cannot be read.`);
  if (!keeps) notes.push("This browser does not keep the stars: download picks.jsonl before you close or reload the page.");
  $("notes").textContent = notes.join(" ");
}
function showHelp() {
  if ($("help").open) return;
  $("help").showModal();
  $("help-close").focus();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("view").open || $("help").open) return;
  const typing = event.target.closest("input");
  if (typing) {
    if (event.key === "Escape" && typing.value) {
      typing.value = "";
      filterChanged();
      event.preventDefault();
    } else if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      if (current ?? items[0]) focusItem(current ?? items[0]);
    }
    return;
  }
  const inPictures = event.target.closest("main") || event.target === document.body;
  const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.key === "/") $("filter").focus();
  else if (event.key === "?") showHelp();
  else if (arrow && event.target.closest("main > *") && !event.shiftKey) move(...arrow);
  else if ((event.key === "s" || (event.key === " " && event.target.closest("a.open"))) && inPictures && current) {
    if (!event.target.closest("main > *")) return;
    toggle(current);
  } else return;
  event.preventDefault();
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  if (current ?? items[0]) focusItem(current ?? items[0]);
  else main.focus();
});
$("filter").addEventListener("input", () => filterChanged());
$("help-button").addEventListener("click", showHelp);
$("help-close").addEventListener("click", () => $("help").close());
$("export").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([picksFile()], { type: "application/jsonl" }));
  make("a", { href: url, download: "picks.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
});
$("import").addEventListener("change", async () => {
  const text = await $("import").files[0]?.text() ?? "";
  changeStars(() => {
    for (const line of text.split("\n")) {
      try {
        const pick = JSON.parse(line);
        const item = byTask.get(pick.task_id)?.items.find((each) => each.index === pick.index);
        if (item && nameOf(item)) stars.add(nameOf(item));
      } catch { /* no line of ours */ }
    }
  });
  $("import").value = "";
});
const command = `midapi batch picks.jsonl --upscale --output ${quoted(folderPath())}`;
$("command").value = command;
$("command").size = command.length;
$("copy-command").addEventListener("click", () => copy($("command"), $("copy-command")));
addEventListener("storage", (event) => {
  if (event.key === STORE || event.key === null) {
    readStars();
    showStars();
  }
});

for (const group of groups) {
  group.shows = [];
  group.element = make("article", { hidden: true });
}
main.append(...groups.map((group) => group.element));
readStars();
document.title = `${facts.folder} – gallery`;
$("title").textContent = facts.folder;
readHash();
history.scrollRestoration = "manual";
applyFilter({ place: history.state?.place ?? null });
showStars();

let waiting = false, settled = 0;
function later() {
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }
  clearTimeout(settled);
  settled = setTimeout(() => {
    last = placeInView();
    remember();
  }, 200);
}
let last = placeInView(); // where the page was before its width changed
addEventListener("scroll", later, { passive: true });
addEventListener("resize", later);
let width = main.clientWidth;
new ResizeObserver(() => {
  if (main.clientWidth === width) return;
  width = main.clientWidth;
  measure();
  shown.forEach(setHeight);
  goTo(last);
}).observe(main);
addEventListener("hashchange", () => {
  readHash();
  applyFilter({ place: placeInView() });
});
addEventListener("pagehide", remember);
