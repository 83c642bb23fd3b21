"use strict";
// Shows the execution named by #execution-<n>; sorts and filters the table. All data is inserted as text, never as HTML.
const executions = JSON.parse(document.getElementById("details").textContent);
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const rows = all(".sortable tbody tr");
for (const row of rows) {
  row.dataset.execution = row.id.slice("execution-".length);
  row.removeAttribute("id"); // the target of the links when this script does not run
}
const titleOfAll = byId("execution-title").textContent;

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("--")) made.style.setProperty(key, value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// As breakable() in render.py: the text with the places where a name can wrap.
const WORD_BREAKS = /(?<=[a-z])(?=[A-Z])|(?<=[/_:])(?=[^/_:\s])|(?<=\.)(?=[^./\s]+[./_])/;
const breakable = (text) => text.split(WORD_BREAKS).flatMap((part, at) => (at ? [element("wbr"), part] : [part]));

const time = (seconds) =>
  seconds === null ? "" : seconds < 1 ? `${(seconds * 1000).toFixed(0)} ms` : `${seconds.toFixed(2)} s`;

const numbers = new Set(["probability", "start", "duration"]);
const head = (...names) =>
  element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col", class: numbers.has(name) ? "n" : "" }, name))));

function drawPath(chosen) {
  const visits = chosen ? chosen.path : [];
  const steps = new Set(visits.slice(1).map(([name], at) => `${visits[at][0]} ${name}`));
  for (const state of all(".drawing .state")) {
    const figure = state.querySelector(".figure");
    const visited = visits.filter(([name]) => name === state.dataset.state);
    state.dataset.on ??= state.classList.contains("on");
    state.dataset.error ??= state.classList.contains("error");
    state.classList.toggle("on", chosen ? visited.length > 0 : state.dataset.on === "true");
    state.classList.toggle("error", chosen ? visited.some(([, , error]) => error) : state.dataset.error === "true");
    figure.textContent = chosen ? visited.map(([, seconds]) => time(seconds)).join(" + ") : figure.dataset.all;
  }
  for (const transition of all(".drawing .transition")) {
    const { dataset, classList } = transition;
    dataset.on ??= classList.contains("on");
    classList.toggle("on", chosen ? steps.has(`${dataset.from} ${dataset.to}`) : dataset.on === "true");
  }
}

function result(chosen, index) {
  const image = document.querySelector(`.card[href="#execution-${index}"] img`);
  const verdicts = { accepted: "accepted", review: "sent to review", error: "failed" };
  const shown = image
    ? element("img", { src: image.src, alt: `The image ${chosen.name}` })
    : element("span", { class: "no-image" }, "no image");
  const text = element("div");
  const decision = chosen.label === null ? chosen.error ?? "no result" : `${chosen.label}, confidence ${chosen.confidence.toFixed(3)}`;
  text.append(element("p", { class: `verdict ${chosen.outcome}` }, ...breakable(`${decision}: ${verdicts[chosen.outcome]}`)));
  const right = chosen.truth === null || chosen.label === null ? "" : chosen.truth === chosen.label ? "The label is correct. " : `The label is wrong: it should be ${chosen.truth}. `;
  const threshold = chosen.threshold === null ? "" : `Threshold ${chosen.threshold}. `;
  text.append(element("p", {}, `${right}${threshold}${chosen.duration ? `Duration ${chosen.duration}.` : ""}`));
  if (chosen.cause) text.append(element("p", {}, ...breakable(`Cause: ${chosen.cause}`)));
  text.append(element("p", { class: "mono" }, ...breakable(chosen.key)));
  return element("div", { class: "result" }, shown, text);
}

function probabilities(chosen) {
  if (!chosen.predictions.length) return null;
  const rows = chosen.predictions.map(({ label, probability }) => {
    const bars = element("div", { class: "bars", "aria-hidden": "true" }, element("i", { "--p": probability }));
    if (chosen.threshold !== null) bars.style.setProperty("--t", chosen.threshold);
    return element("tr", {}, element("th", { scope: "row" }, ...breakable(label)), element("td", { class: "n" }, probability.toFixed(3)), element("td", { class: chosen.outcome }, bars));
  });
  const table = element("table", { class: "probabilities" }, element("caption", {}, "Probability of each label"), head("label", "probability", chosen.threshold === null ? "" : "with the threshold"));
  table.append(element("tbody", {}, ...rows));
  return table;
}

function waterfall(chosen) {
  if (!chosen.rows.length) return element("p", {}, "There is no history of this execution.");
  const end = Math.max(...chosen.rows.map(([, , , start, seconds]) => start + (seconds ?? 0))) || 1;
  const rows = chosen.rows.map(([depth, kind, name, start, seconds, error]) => {
    const bar = element("i", { "--s": start / end, "--w": (seconds ?? 0) / end });
    const failed = error ? `: ${error}` : "";
    const review = kind === "execution" && chosen.outcome === "review";
    return element(
      "tr", { class: `${kind}${review ? " for-review" : error ? " failed" : ""}` },
      element("th", { scope: "row", "--depth": depth }, ...breakable(name + failed)),
      element("td", { class: "n" }, time(start)), element("td", { class: "n" }, time(seconds)),
      element("td", { "aria-hidden": "true" }, element("div", { class: "span" }, bar)),
    );
  });
  const table = element("table", { class: "waterfall" });
  table.append(element("caption", {}, "The states of the execution, with the segments that the functions traced. Calls to AWS are made by the functions."));
  table.append(head("step", "start", "duration", "timeline"), element("tbody", {}, ...rows));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Waterfall" }, table);
}

function ids(chosen) {
  const list = element("dl", { class: "ids" });
  list.append(element("dt", {}, "execution"), element("dd", { class: "mono" }, ...breakable(chosen.execution_arn ?? "not found")));
  for (const [name, id] of chosen.traces) list.append(element("dt", {}, `trace${name}`), element("dd", { class: "mono" }, id));
  if (!chosen.traces.length) list.append(element("dt", {}, "trace"), element("dd", {}, "not collected"));
  return list;
}

function choose(index) {
  const chosen = executions[index] ?? null;
  drawPath(chosen);
  for (const marked of all("[aria-current], .dot.chosen")) {
    marked.removeAttribute("aria-current");
    marked.classList.remove("chosen");
  }
  byId("execution-title").replaceChildren(...breakable(chosen ? `State machine: ${chosen.name}` : titleOfAll));
  byId("all-states").hidden = Boolean(chosen);
  byId("chosen").hidden = byId("trace").hidden = byId("clear").hidden = byId("to-image").hidden = !chosen;
  byId("previous").disabled = !chosen || index === 0;
  byId("next").disabled = chosen && index === executions.length - 1;
  if (!chosen) return;
  for (const card of all(`.card[href="#execution-${index}"]`)) card.setAttribute("aria-current", "true");
  rows.find((row) => row.dataset.execution === String(index)).setAttribute("aria-current", "true");
  for (const dot of all(`.dot[data-execution="${index}"]`)) dot.classList.add("chosen");
  byId("chosen").replaceChildren(result(chosen, index), ...[probabilities(chosen)].filter(Boolean));
  const log = chosen.log
    ? [element("pre", { class: "mono" }, ...breakable(JSON.stringify(chosen.log, null, 2)))]
    : [element("p", {}, "There is no line for this execution.")];
  byId("trace").replaceChildren(
    element("h3", {}, "Waterfall"), waterfall(chosen), ids(chosen),
    element("details", {}, element("summary", {}, "Line in the prediction log"), ...log),
  );
}

const fromAddress = () => /^#execution-(\d+)$/.exec(location.hash)?.[1];

function go(index) {
  history.pushState(null, "", index === null ? "#execution" : `#execution-${index}`);
  choose(index);
}

function show() {
  byId("execution").scrollIntoView();
  byId("execution-title").focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const target = event.target.closest('a[href^="#execution-"], .dot');
  if (!target || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(Number(target.dataset.execution ?? target.hash.slice("#execution-".length)));
  show();
});
const current = () => Number(fromAddress() ?? -1);
byId("previous").addEventListener("click", () => go(current() - 1));
byId("next").addEventListener("click", () => go(current() + 1));
byId("clear").addEventListener("click", () => go(null));
byId("to-image").addEventListener("click", (event) => {
  event.preventDefault();
  const card = document.querySelector(`.card[href="#execution-${current()}"]`);
  card.closest("details")?.setAttribute("open", "");
  card.scrollIntoView({ block: "center" });
  card.focus({ preventScroll: true });
});
addEventListener("popstate", () => choose(fromAddress() === undefined ? null : Number(fromAddress())));
for (const controls of all(".controls")) controls.hidden = false;
choose(fromAddress() === undefined ? null : Number(fromAddress()));
if (fromAddress() !== undefined) show();

// The table
const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
all(".sortable thead th").forEach((header, column) => {
  const button = element("button", { type: "button" }, header.textContent);
  header.replaceChildren(button);
  button.addEventListener("click", () => {
    const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of all(".sortable thead th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const compare = new Intl.Collator("en", { numeric: !header.classList.contains("n") }).compare;
    rows.sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (x === "" || y === "") return (x === "") - (y === ""); // empty values last in both directions
      return direction * (header.classList.contains("n") ? x - y : compare(x, y));
    });
    rows[0]?.parentNode.append(...rows);
  });
});
byId("filter").addEventListener("input", () => {
  const wanted = byId("filter").value.toLowerCase();
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  byId("shown").textContent = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
});
