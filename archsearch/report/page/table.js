// All trials: sorted, filtered, as CSV; only the rows in view are in the page, so that ten thousand scroll well.

const ROW_HEIGHT = 36;
const OVERSCAN = 8;
const MOST_PRINTED = 60;
const STATES = { all: "all trials", front: "the front", near: "near the front", fixed: "fixed trials", complete: "complete", stopped: "stopped early", failed: "failed", running: "at work" };
const ALIASES = { score: "proxy_score", speed: "throughput_img_s", throughput: "throughput_img_s", "img/s": "throughput_img_s", latency: "latency_ms", "ms/batch": "latency_ms", memory: "peak_memory_bytes" };
const PREFIXES = { k: 1e3, m: 1e6, g: 1e9, t: 1e12 };
// A number's unit as elsewhere: 25M, 4.5GFLOPs, 800 MMACs, 2GB, 2GiB, 8ms, 900 img/s.
const UNIT = String.raw`[kmgt]?(?:flops?|macs?)|[kmgt]?i?b|[kmgt]|us|ms|s|img/s|images/s`;
const COMPARISON = new RegExp(String.raw`^([a-z_/]+)(<=|>=|<|>|=)(-?(?:\d+(?:\.\d*)?|\.\d+))(${UNIT})?$`);
const COMPARE = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };

function tableColumns(run) {
  const has = (name) => run.places.some((place) => run.at(name, place) !== null);
  const figures = ["proxy_score", "throughput_img_s", "params", "macs", "latency_ms", "peak_memory_bytes"].filter(has);
  return [
    { name: "trial", label: "trial", text: (place) => [run.inFront.has(place) ? el("span", { class: "badge" }, "front") : null, run.at("trial", place)] },
    ...figures.map((name) => ({ name, label: labelOf(name), text: name === "proxy_score" ? (place) => scoreText(run, place) : (place) => textOf(name, run.at(name, place)) })),
    { name: "state", label: "state", text: (place) => run.at("state", place), isText: true },
    { name: "architecture", label: "architecture", text: (place) => (run.at("is_fixed", place) && run.at("paper", place) ? `${run.at("paper", place)}: ` : "") + run.at("architecture", place), isText: true, isWide: true },
  ];
}

function tableSection(app) {
  const { run } = app, columns = tableColumns(run), hay = new Map();
  const view = { places: [], unread: [], sort: run.front.length && run.axes.proxy_score ? "proxy_score" : "trial", isDown: Boolean(run.front.length && run.axes.proxy_score), active: 0 };
  const filter = el("input", { id: "filter", type: "search", placeholder: "hilo params<25M score>0.7", autocomplete: "off", spellcheck: "false", oninput: () => apply(), "aria-describedby": "filter-help" });
  const state = el("select", { id: "state", onchange: () => apply() }, Object.entries(STATES).map(([name, label]) => el("option", { value: name }, label)));
  const number = el("p", { class: "note", role: "status", id: "table-count" }), body = el("tbody", {}), above = el("tr", { class: "space" }), below = el("tr", { class: "space" });
  const heads = columns.map((column) => el("th", { scope: "col", class: column.isText ? "text" : "" }, el("button", { type: "button", onclick: () => sortBy(column.name) }, column.label)));
  const table = el("table", { class: "trials", "aria-rowcount": run.rows + 1 }, el("caption", { class: "hidden" }, "Trials"), el("thead", {}, el("tr", {}, heads)), body);
  const box = el("div", { class: "rows", onscroll: () => render() }, table);

  const words = (place) => {
    if (!hay.has(place)) hay.set(place, ["trial", "arch_id", "state", "paper", "architecture", "reason"].map((name) => run.at(name, place) ?? "").join(" ").toLowerCase());
    return hay.get(place);
  };
  const inState = { all: () => true, front: (place) => run.inFront.has(place), near: (place) => run.near.has(place), fixed: (place) => run.at("is_fixed", place) };

  function apply() {
    const tests = [];
    view.unread = [];
    for (const word of filterWords(filter.value)) {
      const test = wordTest(run, word, words);
      if (test) tests.push(test);
      else view.unread.push(word);
    }
    const isIn = inState[state.value] || ((place) => run.at("state", place) === state.value);
    view.places = run.places.filter((place) => isIn(place) && tests.every((test) => test(place)));
    sort();
  }

  const countWords = () => `${whole(view.places.length)} of ${whole(run.rows)} trials` + (view.unread.length ? `; not read: ${view.unread.join(" ")} (a comparison is a figure, a sign and a number, such as params<25M)` : "");

  function sort() {
    const column = run.columns[view.sort] || [], sign = view.isDown ? -1 : 1;
    view.places.sort((one, other) => {
      const [a, b] = [column[one] ?? null, column[other] ?? null];
      if (a === null || b === null) return (a === null) - (b === null) || one - other; // empty ones last, both ways
      return sign * (a < b ? -1 : a > b ? 1 : 0) || one - other;
    });
    heads.forEach((head, index) => head.setAttribute("aria-sort", columns[index].name === view.sort ? (view.isDown ? "descending" : "ascending") : "none"));
    number.textContent = countWords();
    view.active = 0;
    box.scrollTop = 0;
    render();
  }

  function sortBy(name) {
    view.isDown = view.sort === name ? !view.isDown : ["proxy_score", "throughput_img_s"].includes(name);
    view.sort = name;
    sort();
  }

  function render(limits) {
    const first = limits ? 0 : Math.max(0, Math.floor(box.scrollTop / ROW_HEIGHT) - OVERSCAN);
    const last = limits || Math.min(view.places.length, first + Math.ceil((box.clientHeight || 560) / ROW_HEIGHT) + 2 * OVERSCAN);
    const hadFocus = body.contains(document.activeElement);
    above.style.height = `${first * ROW_HEIGHT}px`;
    below.style.height = `${Math.max(0, view.places.length - last) * ROW_HEIGHT}px`;
    body.replaceChildren(above, ...view.places.slice(first, last).map((place, index) => rowOf(place, first + index)), below);
    if (hadFocus) body.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
  }

  const rowOf = (place, index) => el("tr", { tabindex: index === view.active ? 0 : -1, "data-index": index, "aria-rowindex": index + 2, "aria-selected": String(place === app.selected), class: run.inFront.has(place) ? "member" : "" },
    columns.map((column) => el("td", { class: column.isText ? "text" : "", title: column.isWide ? column.text(place) : null }, column.text(place))));

  const indexOf = (event) => Number(event.target.closest("tr[data-index]")?.dataset.index ?? -1);
  body.addEventListener("click", (event) => {
    if (indexOf(event) < 0) return;
    view.active = indexOf(event);
    app.select(view.places[view.active]);
  });
  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Enter" && indexOf(event) >= 0) app.select(view.places[indexOf(event)], true);
    if (step === undefined) return;
    event.preventDefault();
    view.active = Math.min(view.places.length - 1, Math.max(0, view.active + step));
    const top = view.active * ROW_HEIGHT, room = box.clientHeight - 2 * ROW_HEIGHT;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top > box.scrollTop + room) box.scrollTop = top - room;
    render();
  });
  app.onSelect.push(() => render());
  app.onPrint.push((isPrinting) => {
    number.textContent = countWords() + (isPrinting && view.places.length > MOST_PRINTED ? `, the first ${MOST_PRINTED} of them here` : "");
    render(isPrinting ? Math.min(view.places.length, MOST_PRINTED) : undefined);
  });
  app.onReady.push(apply);
  return el("section", { id: "trials", class: "card" }, el("h2", {}, "Trials"),
    el("p", { class: "controls" }, el("label", {}, "show ", state), el("label", { class: "grow" }, "filter ", filter), el("button", { type: "button", id: "csv", onclick: () => download(`${run.document.run}.csv`, "text/csv", toCsv(run, view.places)) }, "Download CSV")),
    el("p", { class: "note", id: "filter-help" }, "Words that a trial's architecture, paper, state, reason or arch_id has, and comparisons such as score>0.7, params<25M, speed>=900, memory<2GB. Arrow keys move, Enter selects."),
    number, box);
}

// The words of a filter; a comparison is one word, with blanks around its sign and before its unit too.
const filterWords = (text) => text.toLowerCase().replace(/\s*(<=|>=|<|>|=)\s*/g, "$1").replace(new RegExp(String.raw`([<>=]-?[\d.]+)\s+(${UNIT})(?=\s|$)`, "g"), "$1$2").split(/\s+/).filter(Boolean);

// A word of the filter: a comparison of a column of numbers, or a text that the row has; null for a comparison that cannot be read.
function wordTest(run, word, words) {
  const [, name, sign, figure, unit] = word.match(COMPARISON) || [];
  const column = run.columns[ALIASES[name] || name];
  if (column && column.every((value) => value === null || typeof value === "number")) {
    const limit = Number(figure) * scaleOf(unit || "");
    return (place) => column[place] !== null && COMPARE[sign](column[place], limit);
  }
  const isText = !/[<>=]/.test(word) || run.places.some((place) => words(place).includes(word));
  return isText ? (place) => words(place).includes(word) : null;
}

function scaleOf(unit) {
  const ofLatency = { us: 1e-3, ms: 1, s: 1e3 }[unit]; // whose column is in ms
  const prefix = unit.replace(/(flops?|macs?|i?b|img\/s|images\/s)$/, "");
  return ofLatency || (unit.endsWith("ib") ? 1024 ** " kmgt".indexOf(prefix) : PREFIXES[prefix] || 1);
}

function toCsv(run, places) {
  const names = Object.keys(run.columns);
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "boolean" ? (value ? "True" : "False") : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return [names.join(","), ...places.map((place) => names.map((name) => cell(run.at(name, place))).join(",")), ""].join("\n");
}
