// Several runs: their fronts in one chart, the tables and sentences of their comparison, and which run the rest of the page shows.

const RUN_COLOURS = ["#2f5bd3", "#d4574f", "#2a9d6e", "#e08a2b", "#9a6bb0", "#2a9d9d", "#b59410", "#7a6f66"];
const comparedColumns = {}; // what the selects of the chart say, kept where another run is shown

function comparisonSection(payload) {
  const { parts, axes, runs } = payload.comparison, names = Object.keys(axes);
  const known = runs.map((run) => ({ ...run, columns: Object.fromEntries(Object.entries(run.columns).map(([name, column]) => [name, unpackColumn(column, run.rows)])) }));
  const choose = (id, wanted) => el("select", { id, onchange: () => { comparedColumns[id] = byId(id).value; draw(); } }, names.map((name) => el("option", { value: name, selected: name === (comparedColumns[id] || wanted) }, longOf(name))));
  const y = choose("compared-y", names[0]), x = choose("compared-x", names[1] || names[0]);
  const node = el("div", { class: "plot tall", role: "img", "aria-label": "Chart of the fronts of all runs" });
  const draw = () => plot(node, known.flatMap((run, place) => comparedTraces(run, axes, x.value, y.value, RUN_COLOURS[place % RUN_COLOURS.length])),
    baseLayout({ xaxis: comparedAxis(axes, x.value), yaxis: comparedAxis(axes, y.value), showlegend: true, legend: { orientation: "h", y: 1.12 }, uirevision: `${x.value} ${y.value}` }));
  charts.push({ node, draw });
  return el("section", { id: "compared", class: "card compared" }, el("h2", {}, `${runs.length} runs compared`),
    el("p", { class: "controls" }, el("label", {}, "across ", x), el("label", {}, "up ", y)), node,
    el("p", { class: "note" }, "A line joins the best of a run in these two columns, large points; small ones are its other complete trials, stars its papers' models and included networks."),
    parts.map(comparedPart));
}

function comparedTraces(run, axes, x, y, color) {
  const places = [...Array(run.rows).keys()], at = (name, place) => run.columns[name][place];
  const signs = [x, y].map((name) => (axes[name] === "maximize" ? -1 : 1));
  const stairs = x === y ? [] : staircaseOf(places.map((place) => [place, signs[0] * at(x, place), signs[1] * at(y, place)]));
  const isStair = new Set(stairs), others = places.filter((place) => !isStair.has(place));
  const shown = thinned(others, others.map((place) => at(x, place)), others.map((place) => at(y, place)), MOST_DOMINATED);
  const label = (place) => `${plotlyText(run.label)}:${at("trial", place)} ${plotlyText(at("paper", place) || at("architecture", place))}<br>${[y, x].map((name) => `${labelOf(name)} ${textOf(name, at(name, place))}`).join(", ")}`;
  const points = (from, marker, more) => ({ x: from.map((place) => at(x, place)), y: from.map((place) => at(y, place)), text: from.map(label), hovertemplate: "%{text}<extra></extra>", legendgroup: run.label, marker: { color, symbol: from.map((place) => (at("is_fixed", place) ? "star" : "circle")), ...marker }, ...more });
  return [
    points(shown, { size: 5, opacity: 0.35 }, { mode: "markers", showlegend: false }),
    points(stairs, { size: 9 }, { mode: "lines+markers", name: `${plotlyText(run.label)} ${plotlyText(run.run)}`, line: { color, width: 1.5, shape: "hv" } }),
  ];
}

const comparedAxis = (axes, name) => ({ ...titled(longOf(name) + { maximize: " (more is better)", minimize: " (less is better)" }[axes[name]]), tickformat: ["params", "macs", "peak_memory_bytes"].includes(name) ? "~s" : "" });

function comparedPart({ lines, title, columns, left, rows }) {
  if (lines) return lines.map((line) => el("p", {}, sentence(line)));
  const cell = (tag) => (text, place) => el(tag, { class: left[place] ? "left" : "" }, text);
  return [title ? el("h3", {}, title) : null, el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, columns.map(cell("th")))), el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell("td")))))))];
}

// The run that the sections below show.
function chosenRunSection(payload, place, show) {
  const { runs } = payload.comparison, { sentences } = payload.runs[place];
  const choice = el("select", { id: "run", onchange: (event) => show(Number(event.target.value)) }, runs.map((run, index) => el("option", { value: index, selected: index === place }, `${run.label} ${run.run}`)));
  return el("section", { id: "one", class: "card" }, el("h2", {}, "One of them"), el("p", { class: "controls" }, el("label", {}, "below is ", choice)),
    sentences.headline.map((line) => el("p", {}, line)), el("p", { class: "faint" }, sentences.conditions[0]));
}
