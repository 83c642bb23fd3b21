"use strict";
// Shows one image after another. The next ones are claimed and loaded ahead; decisions are written in the background and
// repeated until the server has answered, which writes each only once. All data is inserted as text, never as HTML.
const AHEAD = 3; // images that are ready besides the shown one
const RENEW_SECONDS = 100, POLL_SECONDS = 15, REQUEST_SECONDS = 20, LONGEST_PAUSE_SECONDS = 15;
const KEYS = "123456789abcdefghijklmnopqrstuvwxyz0"; // for labels; with more labels than keys, one is found by typing
const MOST_SKIPPED = 1000;
const byId = (id) => document.getElementById(id);
const session = crypto.randomUUID(); // of this page alone: a second tab has its own claims
const store = `unsaved ${document.body.dataset.table} `;

let current = null; // {review, image, error}: the shown one
let ahead = [];
let labels = [], keys = new Map(); // label -> key
let counts = { left: 0, taken: 0, by_label: {}, by_reason: {} };
let skipped = []; // IDs, which come last
let history = []; // {item, decision} or {item, skipped: true}, for undo
let unsaved = new Set(); // decisions without an answer
let undoing = new Set(); // IDs
let changes = 0; // of the number left by this page: a number that was asked for before the last one is too old
let filling = false, fillAgain = false, epoch = 0, poll = null, started = false;

const seconds = (number) => new Promise((done) => setTimeout(done, number * 1000));
const named = (error) => `${error.code}: ${error.message}`;
const nameOf = (review) => review.s3_key.split("/").pop() || review.s3_key;
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1%" : `${(share * 100).toFixed(1)}%`);

function ageOf(age) {
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const [unit, length] = units.find(([, length]) => age >= length) ?? ["minute", 60];
  const number = Math.floor(age / length);
  return number ? `${number} ${unit}${number === 1 ? "" : "s"}` : "less than a minute";
}

class RequestError extends Error {
  constructor({ code, message, retry, ...more }) {
    super(message);
    Object.assign(this, { code, retry, ...more });
  }
}

async function answerOf(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new RequestError({ code: "ConnectionLostError", message: "The server does not respond. If make review has ended, start it again: this page then goes on.", retry: true });
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new RequestError(error ?? { code: "ServerError", message: `The server failed (${response.status}).`, retry: true });
}

async function post(path, body, options = {}) {
  const response = await answerOf(fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ session, ...body }),
    signal: AbortSignal.timeout(REQUEST_SECONDS * 1000),
    ...options,
  }));
  return response.json();
}

// Repeats the request until there is an answer that a repetition would not change.
async function persist(path, body, onFailure) {
  for (let pause = 0.5; ; pause = Math.min(pause * 2, LONGEST_PAUSE_SECONDS)) {
    try {
      return await post(path, body);
    } catch (error) {
      if (!(error instanceof RequestError)) error.retry = true; // the connection broke within the answer
      if (!error.retry) throw error;
      onFailure(error);
    }
    const online = new Promise((done) => addEventListener("online", done, { once: true }));
    await Promise.race([online, seconds(pause * (0.75 + Math.random() / 2))]);
  }
}

// Images

function prepare(review) {
  const item = { review, image: null, error: null, painted: false };
  load(item);
  return item;
}

async function load(item) {
  for (let pause = 0.5; !item.dropped; pause = Math.min(pause * 2, LONGEST_PAUSE_SECONDS)) {
    try {
      const response = await answerOf(fetch(`image/${item.review.id}`, { signal: AbortSignal.timeout(60000) }));
      const image = new Image();
      item.url = image.src = URL.createObjectURL(await response.blob());
      image.alt = `Image to review: ${item.review.s3_key}`;
      await image.decode();
      image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= 256);
      item.image = image;
      item.error = null;
    } catch (error) {
      const broken = { code: "ImageUnreadableError", message: "The browser cannot show this image: choose not usable, or skip.", retry: false };
      item.error = error.name === "EncodingError" ? broken : error instanceof RequestError ? error : { code: "ConnectionLostError", message: "The image did not arrive.", retry: true };
    }
    if (item === current) showImage();
    if (!item.error?.retry) break;
    await seconds(pause);
  }
  if (item.dropped) drop(item);
}

function drop(item) {
  item.dropped = true;
  if (item.url) URL.revokeObjectURL(item.url);
}

function showImage() {
  const frame = byId("frame");
  if (!current) return frame.replaceChildren();
  const item = current;
  if (item.image) {
    frame.replaceChildren(item.image);
    requestAnimationFrame(() => requestAnimationFrame(() => { item.painted = true; })); // no decision on an unseen image
  } else {
    frame.replaceChildren(item.error ? named(item.error) : "Loading");
  }
  for (const button of document.querySelectorAll("#choices button, #none")) button.disabled = !item.image;
}

// What is shown

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function bar(share) {
  const [svg, rect] = ["svg", "rect"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("aria-hidden", "true");
  for (const [name, value] of Object.entries({ width: `${share * 100}%`, height: "100%" })) rect.setAttribute(name, value);
  svg.append(rect);
  return svg;
}

// A label keeps its key, even if a label is found later that would come before it. One that is a character has its own.
function giveKeys() {
  const fresh = labels.filter((label) => !keys.has(label));
  const own = (label) => (KEYS.includes(label.toLowerCase()) && label.length === 1 ? label.toLowerCase() : null);
  const taken = () => new Set(keys.values());
  for (const label of fresh) if (own(label) && !taken().has(own(label))) keys.set(label, own(label));
  for (const label of fresh.filter((label) => !keys.has(label))) {
    const reserved = new Set(labels.map(own));
    keys.set(label, [...KEYS].find((key) => !taken().has(key) && !reserved.has(key)) ?? null);
  }
}

const areMany = () => labels.length > KEYS.length;

function choice(label, key) {
  const share = current.review.predictions.find((each) => each.label === label)?.probability;
  const best = label === current.review.label;
  const spoken = [label, share === undefined ? "not predicted" : percent(share), best ? "the model's label" : "", key ? `key ${key}` : ""];
  const button = element("button", { type: "button", "aria-label": spoken.filter(Boolean).join(", ") });
  if (key) {
    button.setAttribute("aria-keyshortcuts", key);
    button.append(element("kbd", {}, key === "Enter" ? "↵" : key));
  } else {
    button.append(element("span"));
  }
  button.classList.toggle("best", best);
  button.append(element("span", { class: "label", title: label }, label));
  button.append(element("span", { class: "share" }, share === undefined ? "" : percent(share)), bar(share ?? 0));
  button.disabled = !current.image;
  button.addEventListener("click", () => decide("label", label));
  button.dataset.label = label;
  return button;
}

// The labels that have a button now, with their keys.
function offered() {
  if (!areMany()) return [...keys];
  const query = byId("query").value.trim().toLowerCase();
  const likely = current.review.predictions.map((each) => each.label).filter((label) => labels.includes(label));
  const found = query ? labels.filter((label) => label.toLowerCase().includes(query)) : likely;
  const starts = (label) => !label.toLowerCase().startsWith(query);
  return found.sort((a, b) => (query ? starts(a) - starts(b) : 0)).slice(0, query ? 18 : 9).map((label, at) => [label, query ? (at ? "" : "Enter") : `${at + 1}`]);
}

function showChoices() {
  byId("search").hidden = !current || !areMany();
  const focused = document.activeElement?.dataset?.label;
  byId("choices").replaceChildren(...(current ? offered().map(([label, key]) => choice(label, key)) : []));
  if (focused) [...byId("choices").children].find((button) => button.dataset.label === focused)?.focus();
}

function show() {
  const review = current?.review;
  document.body.classList.toggle("empty", !review);
  document.body.classList.toggle("audit", review?.reason === "audit");
  byId("actions").querySelectorAll("button").forEach((button) => { button.disabled = !review; });
  byId("undo").disabled = !history.length;
  byId("name").textContent = review ? `${review.s3_key}, waiting for ${ageOf(review.age)}` : "";
  byId("query").value = "";
  if (review) {
    byId("question").textContent = `${review.label}?`;
    const audit = review.reason === "audit";
    const why = audit
      ? `: accepted as ${review.label} with confidence ${review.confidence.toFixed(3)}, and drawn at random (${percent(review.selection_probability)} of accepted images are).`
      : `: ${review.label} has confidence ${review.confidence.toFixed(3)}, and the threshold is ${review.threshold}.`;
    byId("why").replaceChildren(element("strong", audit ? { class: "audit" } : {}, audit ? "Audit" : "Below the threshold"), why);
  } else {
    const none = isFiltered() ? "Nothing is left with these filters" : "Nothing waits for review";
    const why = counts.taken
      ? "Images of a page that was closed come back within five minutes, or when make review is started again."
      : "Images come here when their confidence is below the threshold, or as audits.";
    byId("question").textContent = !started ? "Connecting" : counts.taken ? "Other pages show what is left" : none;
    byId("why").textContent = started ? `${why} This page looks again every ${POLL_SECONDS} seconds.` : "";
  }
  showChoices();
  showImage();
  showCounts();
}

function showCounts() {
  byId("left").textContent = !started ? "Connecting" : `${counts.left.toLocaleString("en")} left${isFiltered() ? " with these filters" : ""}`;
  byId("unsaved").hidden = !unsaved.size;
  byId("unsaved").textContent = `${unsaved.size} not saved yet`;
  const select = byId("by-label"), chosen = select.value;
  const names = [...new Set([...Object.keys(counts.by_label), ...(chosen ? [chosen] : [])])].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const options = names.map((name) => Object.assign(element("option", {}, `${name} (${counts.by_label[name] ?? 0})`), { value: name }));
  if (document.activeElement !== select) {
    select.replaceChildren(Object.assign(element("option", {}, "all"), { value: "" }), ...options);
    select.value = chosen;
  }
}

function say(text) {
  byId("said").textContent = text;
}

// One problem of each kind and image. `waiting`: it is retried, and its message leaves when that has succeeded.
function report(key, text, waiting = false) {
  let line = [...byId("problems").children].find((each) => each.dataset.key === key);
  if (!line) {
    line = element("li", { "data-key": key }, element("span"));
    const close = element("button", { type: "button" }, "Dismiss");
    close.addEventListener("click", () => { line.remove(); byId("question").focus(); });
    line.append(close);
    byId("problems").append(line);
  }
  line.classList.toggle("waiting", waiting);
  if (line.firstChild.textContent !== text) line.firstChild.textContent = text;
}

// The same for whatever is repeated, so that a lost connection is one problem.
function reportRetry(error) {
  report("connection", `${named(error).replace(/\.?$/, ".")}${unsaved.size ? " Decisions are kept." : ""}`, true);
}

function resolve(key) {
  [...byId("problems").children].find((each) => each.dataset.key === key)?.remove();
}

// The queue of images

const isFiltered = () => ["by-label", "by-reason", "by-age"].some((id) => byId(id).value);

function filters() {
  const [label, reason, age] = ["by-label", "by-reason", "by-age"].map((id) => byId(id).value || null);
  return { label, reason, min_age: age && Number(age) };
}

function heldIds() {
  return [current, ...ahead].filter(Boolean).map((item) => item.review.id);
}

async function fill() {
  if (filling) {
    fillAgain = true;
    return;
  }
  filling = true;
  clearTimeout(poll);
  const now = epoch;
  try {
    do {
      fillAgain = false;
      while (ahead.length < AHEAD && now === epoch) {
        const before = changes;
        const deciding = [...unsaved].map((each) => each.body.id);
        const held = [...heldIds(), ...deciding], uncounted = [...deciding, ...undoing];
        const answer = await post("next", { held, skipped, uncounted, ...filters() });
        if (!unsaved.size) resolve("connection");
        started = true;
        const { image, labels: all, ...rest } = answer;
        if (changes === before) counts = rest;
        if (all.length !== labels.length) {
          labels = all;
          giveKeys();
        }
        if (now !== epoch) {
          if (image) release([image.id]);
        } else if (image && !heldIds().includes(image.id)) {
          ahead.push(prepare(image));
          if (!current) advance();
          else if (current.review.predictions.length && !byId("choices").children.length) show();
        } else {
          if (!current) show();
          break;
        }
        showCounts();
      }
    } while (fillAgain);
  } catch (error) {
    reportRetry(error);
    poll = setTimeout(fill, 3000);
    return;
  } finally {
    filling = false;
    if (now !== epoch) fill();
  }
  if (ahead.length < AHEAD) poll = setTimeout(fill, POLL_SECONDS * 1000);
}

function advance() {
  current = ahead.shift() ?? null;
  show();
}

function release(ids) {
  if (ids.length) post("release", { ids }, { keepalive: true }).catch(() => {}); // otherwise the claim expires
}

function restart() {
  epoch += 1;
  const items = [current, ...ahead].filter(Boolean);
  release(items.map((item) => item.review.id));
  items.forEach(drop);
  current = null;
  ahead = [];
  show();
  fill();
}

async function renew() {
  const ids = heldIds();
  if (!ids.length) return;
  try {
    const { lost } = await post("claim", { ids });
    for (const { id, error } of lost) {
      const item = [current, ...ahead].find((each) => each?.review.id === id);
      if (!item) continue;
      drop(item);
      ahead = ahead.filter((each) => each !== item);
      if (item === current) {
        report(`lost ${id}`, `${named(error)}. The next image is shown.`);
        advance();
      }
    }
    fill();
  } catch {
    // fill() and the decisions say that the connection is lost
  }
}

// Decisions

const decided = (body) => body.label ?? { none_of_these: "none of these", not_usable: "not usable" }[body.decision];

function decide(decision, label = null) {
  const item = current;
  if (!item || (decision !== "not_usable" && !item.painted)) return;
  const { id, revision } = item.review;
  const entry = { item, decision: save({ session, id, revision, decision, label }, nameOf(item.review)) };
  history.push(entry);
  drop(item);
  advance();
  say(`${nameOf(item.review)}: ${decided({ decision, label })}. ${current ? `Next: ${current.review.label}?` : ""}`);
  fill();
}

// Writes a decision in the background. Until it is written, it is in localStorage too, for a browser that crashes.
function save(body, name) {
  const entry = { body, name, revision: null };
  const place = `${store}${body.id} ${body.revision}`;
  const problem = `save ${body.id}`;
  unsaved.add(entry);
  changes += 1;
  counts.left = Math.max(0, counts.left - 1);
  localStorage.setItem(place, JSON.stringify({ body, name }));
  showCounts();
  entry.done = persist("decide", body, (error) => {
    if (error.code !== "AlreadyClaimedError") reportRetry(error);
    else report(problem, `${name}: ${decided(body)} is not saved yet. ${named(error)}. It is kept and repeated.`, true);
  }).then(
    (answer) => { entry.revision = answer.revision; },
    (error) => {
      const disagree = error.reviewer ? `. If you disagree, ask ${error.reviewer} to undo it.` : "";
      report(`lost ${body.id}`, `${name}: your decision, ${decided(body)}, was not written. ${named(error)}${disagree}`);
    },
  ).finally(() => {
    unsaved.delete(entry);
    localStorage.removeItem(place);
    resolve(problem);
    resolve("connection");
    showCounts();
  });
  return entry;
}

function skip() {
  if (!current) return;
  const item = current;
  skipped = [...skipped.filter((id) => id !== item.review.id), item.review.id].slice(-MOST_SKIPPED);
  release([item.review.id]);
  history.push({ item });
  drop(item);
  advance();
  say(`${nameOf(item.review)}: skipped. It comes back at the end.`);
  fill();
}

// Shows the last image again: after a decision was put back, or, after a skip, once it is claimed again.
async function undo() {
  const last = history.pop();
  if (!last) return say("There is nothing to undo.");
  const { id } = last.item.review, name = nameOf(last.item.review);
  say(`${name}: undoing.`);
  if (last.decision) undoing.add(id);
  changes += 1;
  showCounts();
  try {
    let review;
    if (last.decision) {
      await last.decision.done;
      if (last.decision.revision === null) return say(`${name}: there is nothing to undo, since nothing was written.`);
      const { revision } = last.decision;
      ({ image: review } = await persist("undo", { id, revision }, reportRetry));
      counts.left += 1;
    } else {
      skipped = skipped.filter((each) => each !== id);
      const answer = await persist("claim", { ids: [id] }, reportRetry);
      if (answer.lost.length) throw new RequestError(answer.lost[0].error);
      [review] = answer.claimed;
    }
    ahead = ahead.filter((item) => item.review.id !== id || drop(item));
    if (current) ahead.unshift(current);
    current = prepare(review);
    show();
    say(`${name}: undone. ${review.label}?`);
  } catch (error) {
    report(`lost ${id}`, `${name} cannot be shown again. ${named(error)}`);
  } finally {
    undoing.delete(id);
    changes += 1;
    resolve("connection");
    byId("undo").disabled = !history.length;
  }
}

// Keys

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !byId("keys").checked) return;
  if (event.target === byId("query")) {
    if (event.key === "Enter") byId("choices").firstElementChild?.click();
    else if (event.key === "Escape") byId("query").value = "";
    else return;
    byId("query").blur();
    showChoices();
    event.preventDefault();
    return;
  }
  if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) && event.target.type !== "checkbox") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = { "-": "none", ".": "unusable", ArrowRight: "skip", ArrowLeft: "undo", Backspace: "undo" }[key];
  const label = current && offered().find(([, own]) => own === key)?.[0];
  if (action) byId(action).click();
  else if (label) decide("label", label);
  else if (current && areMany() && /^[\p{L}\p{N}/]$/u.test(key)) {
    byId("query").focus(); // and the character goes there
    if (key !== "/") return;
  } else return;
  event.preventDefault();
}

// What earlier pages could not save, unless they are still open and do it themselves.
async function adopt() {
  for (const place of Object.keys(localStorage).filter((each) => each.startsWith(store))) {
    const { body, name } = JSON.parse(localStorage.getItem(place));
    await navigator.locks.request(`review ${body.session}`, { ifAvailable: true }, (lock) => {
      if (lock) save(body, name);
    });
  }
}

byId("none").addEventListener("click", () => decide("none_of_these"));
byId("unusable").addEventListener("click", () => decide("not_usable"));
byId("skip").addEventListener("click", skip);
byId("undo").addEventListener("click", undo);
byId("query").addEventListener("input", showChoices);
byId("filters").addEventListener("change", restart);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("keys").addEventListener("change", (event) => document.body.classList.toggle("no-keys", !event.target.checked));
document.addEventListener("keydown", press);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && renew());
addEventListener("beforeunload", (event) => { if (unsaved.size) event.preventDefault(); });
addEventListener("pagehide", () => release(heldIds()));
addEventListener("pageshow", (event) => event.persisted && location.reload());
setInterval(renew, RENEW_SECONDS * 1000);
navigator.locks.request(`review ${session}`, () => new Promise(() => {})); // as long as this page is open
show();
adopt().then(fill);
