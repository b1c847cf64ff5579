// The front in two columns: chart, staircase, papers' stars, error bars, band; hover and arrow keys preview, click and Enter select.

const MOST_DOMINATED = 1500;

function frontSection(app) {
  const { run } = app, names = Object.keys(run.axes), goals = Object.keys(run.document.objectives);
  const first = (...wanted) => wanted.find((name) => names.includes(name)) || names[0];
  const choose = (id, chosen) => el("select", { id, onchange: () => draw() }, names.map((name) => el("option", { value: name, selected: name === chosen }, longOf(name))));
  const y = choose("y-column", first("proxy_score", goals[0], "params"));
  const x = choose("x-column", first(...goals.filter((name) => name !== y.value), "trial"));
  const node = el("div", { class: "plot tall", tabindex: 0, role: "group", "aria-describedby": "front-note front-keys", "aria-label": "Chart of the front" });
  const note = el("p", { class: "note", id: "front-note" });
  const members = el("div", { class: "members", role: "group", "aria-label": "Members of the front" });
  let order = [], at = null; // the front along the first column, and the place that the keyboard is at

  function draw() {
    const view = frontView(run, x.value, y.value, app.selected);
    order = view.order;
    replace(note, view.note);
    if (!window.Plotly) return null;
    return plot(node, view.traces, view.layout).then(() => labelStars(node, run, view));
  }

  function step(by) {
    if (!order.length) return;
    const from = order.indexOf(at), to = from < 0 && by < 0 ? order.length - 1 : from + by;
    at = order[Math.min(order.length - 1, Math.max(0, to))];
    const { xaxis, yaxis } = node._fullLayout, box = node.getBoundingClientRect();
    app.showTip(at, box.left + xaxis._offset + xaxis.d2p(run.at(x.value, at)), box.top + yaxis._offset + yaxis.d2p(run.at(y.value, at)));
  }

  node.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by && window.Plotly) step(by);
    else if (event.key === "Enter" && at !== null) app.select(at);
    else return;
    event.preventDefault();
  });
  node.addEventListener("blur", () => app.hideTip());
  app.onSelect.push(() => {
    requestAnimationFrame(draw); // after what was selected is drawn
    members.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", Number(button.dataset.place) === app.selected));
  });
  app.whenPlotly.push(() => {
    node.on("plotly_hover", ({ points, event }) => points[0].customdata !== undefined && app.showTip(points[0].customdata, event.clientX, event.clientY));
    node.on("plotly_unhover", () => app.hideTip());
    node.on("plotly_click", ({ points }) => points[0].customdata !== undefined && app.select(points[0].customdata));
  });
  charts.push({ node, draw });
  members.append(...run.front.map((row) => memberButton(app, row)));
  return el("section", { id: "front", class: "card" }, el("h2", {}, `Front of ${run.front.length}`),
    el("p", { class: "controls" }, el("label", {}, "across ", x), el("label", {}, "up ", y)),
    names.length ? node : null, note, el("p", { class: "note", id: "front-keys" }, "Click a point to see it drawn. With the keyboard: Tab to the chart, arrow keys along the front, Enter to select."),
    run.front.length ? members : el("p", {}, nothingWords(run)));
}

function nothingWords({ document: { trials } }) {
  if (trials.complete) return "No complete trial keeps the limits, so there is no front.";
  return trials.failed ? `No trial is complete, so there is no front: ${plural(trials.failed, "trial")} failed.` : "No trial is complete yet, so there is no front.";
}

function memberButton(app, row) {
  const { run } = app, mark = row.unresolved_by.length ? "?" : "";
  return el("button", {
    type: "button", "data-place": row.place, "aria-pressed": "false", onclick: () => app.select(row.place),
    onfocus: (event) => event.target.matches(":focus-visible") && app.showTipBeside(row.place, event.target), onblur: () => app.hideTip(),
    onmouseenter: (event) => app.showTipBeside(row.place, event.target), onmouseleave: () => app.hideTip(),
  }, el("b", {}, run.name(row.place)), el("span", {}, run.at("proxy_score", row.place) === null ? figureWords(run, row.place)[0] : `${run.at("proxy_score", row.place).toFixed(3)}${mark}`));
}

function frontView(run, x, y, selected) {
  const stairs = run.staircase(x, y), isStair = new Set(stairs);
  const shownAlways = (place) => isStair.has(place) || run.inFront.has(place) || run.at("is_fixed", place);
  const known = run.places.filter((place) => run.at("state", place) !== "failed" && run.at(x, place) !== null && run.at(y, place) !== null && run.at("reused_from", place) === null);
  const there = known.filter((place) => run.isOneIdentity(place, [x, y]));
  const dominated = there.filter((place) => !shownAlways(place) && place !== selected);
  const values = (name, places) => places.map((place) => run.at(name, place));
  const shown = thinned(dominated, values(x, dominated), values(y, dominated), MOST_DOMINATED);
  const front = there.filter((place) => run.inFront.has(place) && !run.at("is_fixed", place));
  const onlyHere = stairs.filter((place) => !run.inFront.has(place) && !run.at("is_fixed", place));
  const stars = there.filter((place) => run.at("is_fixed", place));
  const points = (places, marker, more = {}) => ({ x: values(x, places), y: values(y, places), customdata: places, mode: "markers", hoverinfo: "none", marker, ...more });
  const bars = (name, places) => ({ type: "data", array: values(name, places).map((value, index) => half(run, name, places[index], value)), thickness: 1, width: 0, color: colour("bar") });
  const traces = [
    points(shown, { size: 5, color: colour("faint"), opacity: 0.55 }),
    { x: values(x, stairs), y: values(y, stairs), mode: "lines", hoverinfo: "skip", line: { color: colour("accent"), width: 1.5, shape: "hv" } }, // from the best in x to the worst: a corner is worse in both columns than the points beside it
    points(onlyHere, { size: 7, color: colour("card"), line: { color: colour("accent"), width: 1.5 } }),
    points(front, { size: 9, color: colour("accent"), line: { color: colour("card"), width: 1 } }, { error_x: bars(x, front), error_y: bars(y, front) }),
    points(stars, { size: 13, symbol: "star", color: colour("star"), line: { color: colour("card"), width: 1 } },
      { error_x: bars(x, stars), error_y: bars(y, stars) }),
  ];
  if (selected !== null && there.includes(selected)) traces.push(points([selected], { size: 18, symbol: "circle-open", color: colour("ink"), line: { width: 2 } }, { hoverinfo: "skip", customdata: undefined }));
  const ordered = [...new Set([...stairs, ...front])].sort((one, other) => run.at(x, one) - run.at(x, other));
  return { traces, stars, front, x, y, order: ordered, note: frontNote(run, x, y, { shown: shown.length, all: dominated.length, stars: stars.length, stairs: stairs.length, hollow: onlyHere.length, otherwise: known.length - there.length }), layout: frontLayout(run, x, y) };
}

// Half the length of an error bar: the standard error of a score, half the spread of a speed.
function half(run, name, place, value) {
  if (name === "proxy_score") return run.at("proxy_score_se", place) || 0;
  const spread = run.at("throughput_iqr", place);
  return ["throughput_img_s", "latency_ms"].includes(name) && spread ? (value * spread) / 2 : 0;
}

function frontLayout(run, x, y) {
  const axis = (name) => ({ ...titled(longOf(name) + ({ maximize: " (more is better)", minimize: " (less is better)" }[run.axes[name]] || "")), tickformat: ["params", "macs", "activations", "peak_memory_bytes", "train_memory_bytes"].includes(name) ? "~s" : "" });
  const { band } = run.document, shapes = [];
  const span = { type: "rect", line: { width: 0 }, fillcolor: colour("band"), layer: "below" };
  if (band && x === "macs") shapes.push({ ...span, xref: "x", yref: "paper", x0: band[0], x1: band[1], y0: 0, y1: 1 });
  if (band && y === "macs") shapes.push({ ...span, xref: "paper", yref: "y", x0: 0, x1: 1, y0: band[0], y1: band[1] });
  return baseLayout({ xaxis: axis(x), yaxis: axis(y), shapes, uirevision: `${x} ${y}` }); // a zoom stays until other columns are chosen
}

function frontNote(run, x, y, { shown, all, stars, stairs, hollow, otherwise }) {
  const words = [shown < all ? `Shown: ${whole(shown)} of ${whole(all)} other trials (dense regions thinned), and every member of the front.` : `Shown: all ${whole(all)} other trials.`];
  words.unshift("Blue: the run's front" + (stairs ? `, the line joins the ${stairs} best in these two columns${hollow ? " (hollow: best here, not on the run's front)" : ""}` : "") + ".");
  if (otherwise) words.push(`Not shown: ${plural(otherwise, "trial")} that ${otherwise === 1 ? "was" : "were"} timed otherwise than the ranked ones.`);
  if (run.front.some((row) => row.unresolved_by.length && run.at("proxy_score", row.place) !== null)) words.push("Below, ? behind a score: another trial may dominate it within noise.");
  if (stars) words.push("Stars: papers' models and included networks.");
  const names = [x, y];
  if (names.includes("proxy_score")) words.push("Bars of a score: one standard error each way.");
  if (names.includes("throughput_img_s") || names.includes("latency_ms")) words.push("Bars of a speed: half the interquartile range of its blocks each way.");
  if (run.document.band && names.includes("macs")) words.push(`Shaded: the budget's band, ${count(run.document.band[0])} to ${count(run.document.band[1])}.`);
  return words.join(" ");
}

// Names beside the stars, clear of each other and of the stars, and where there is room of the front's points too.
function labelStars(node, run, { stars, front, x, y }) {
  const { xaxis, yaxis } = node._fullLayout, annotations = [];
  const pixel = (place) => [xaxis.d2p(run.at(x, place)), yaxis.d2p(run.at(y, place))];
  const square = (place, side) => pixel(place).flatMap((each) => [each - side, each + side]);
  const taken = stars.map((place) => square(place, 6)), points = front.map((place) => square(place, 4));
  const overlap = (one, other) => one[0] < other[1] && one[1] > other[0] && one[2] < other[3] && one[3] > other[2];
  for (const place of stars) {
    const name = run.at("paper", place) || run.name(place), [left, top] = pixel(place), width = 6.4 * name.length + 6;
    const spots = [[0, -15], [0, 15], [width / 2 + 9, 0], [-width / 2 - 9, 0]].map(([dx, dy]) => ({ dx, dy, box: [left + dx - width / 2, left + dx + width / 2, top + dy - 7, top + dy + 7] }));
    const inside = spots.filter(({ box }) => box[0] > -30 && box[1] < xaxis._length + 12 && box[2] > -6 && !taken.some((other) => overlap(box, other)));
    const spot = inside.find(({ box }) => !points.some((other) => overlap(box, other))) || inside[0];
    if (!spot) continue;
    taken.push(spot.box);
    annotations.push({ x: run.at(x, place), y: run.at(y, place), xshift: spot.dx, yshift: -spot.dy, text: plotlyText(name), showarrow: false, font: { size: 11, color: colour("star") } });
  }
  return Plotly.relayout(node, { annotations });
}
