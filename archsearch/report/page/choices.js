// What was chosen: parallel coordinates of the stages, and what the front's members have in common.

const MOST_LINES = 1500;
const FEATURES = { block: "block", width: "width", depth: "depth", entry: "stem or downsample" };

const distinct = (values) => [...new Set(values)].sort((one, other) => (typeof one === "number" ? one - other : String(one).localeCompare(String(other))));

// The rows whose networks have as many stages as most do.
function alike(run) {
  const groups = new Map();
  for (const place of run.candidates) {
    const arch = run.arch(place);
    if (arch) groups.set(arch.stages.length, [...(groups.get(arch.stages.length) || []), place]);
  }
  return [...groups.values()].sort((one, other) => other.length - one.length)[0] || [];
}

function choicesSection(app) {
  const { run } = app, all = alike(run), scored = all.filter((place) => run.at("proxy_score", place) !== null && run.at("state", place) === "complete");
  const places = scored.length ? scored : all;
  if (places.length < 2) return null;
  const axes = choiceAxes(run, places, scored.length > 0);
  if (axes.length < 2) return null;
  const figures = places.map((place) => run.at("proxy_score", place) ?? 0);
  const others = places.filter((place) => !run.inFront.has(place));
  const shown = thinned(others, others.map((place) => run.at("proxy_score", place) ?? 0), others.map((place) => run.at("params", place)), MOST_LINES);
  const front = places.filter((place) => run.inFront.has(place));
  const low = figures.reduce((one, other) => Math.min(one, other)), high = figures.reduce((one, other) => Math.max(one, other));
  const shade = (place) => (scored.length ? scaleColour(((run.at("proxy_score", place) ?? low) - low) / (high - low || 1)) : colour("accent"));
  const node = coordinates(app, axes, [...shown, ...front], shade);
  return el("section", { id: "choices", class: "card" }, el("h2", {}, "Choices"),
    el("p", { class: "note" }, `A line is a candidate: ${whole(shown.length)} of ${whole(others.length)} beside the front, and the front's ${front.length} (thick). Click a value to see the lines that go through it, a line to select its trial.`),
    scored.length ? el("p", { class: "scale" }, `score ${low.toFixed(3)} `, el("i", { style: `background:linear-gradient(90deg,${[0, 0.25, 0.5, 0.75, 1].map(scaleColour).join(",")})` }), ` ${high.toFixed(3)}`) : null,
    el("div", { class: "scroll" }, node));
}

function choiceAxes(run, places, hasScores) {
  const archs = new Map(places.map((place) => [place, run.arch(place)])), axes = [];
  for (let stage = 0; stage < archs.get(places[0]).stages.length; stage += 1) {
    for (const feature of ["block", "width", "depth"]) {
      const value = (place) => archs.get(place).stages[stage][feature], values = distinct(places.map(value));
      if (values.length > 1) axes.push({ stage: stage + 1, feature, value, values });
    }
  }
  if (hasScores && axes.length) {
    const scores = places.map((place) => run.at("proxy_score", place));
    axes.push({ feature: "score", value: (place) => run.at("proxy_score", place), low: scores.reduce((a, b) => Math.min(a, b)), high: scores.reduce((a, b) => Math.max(a, b)) });
  }
  return axes;
}

function coordinates(app, axes, places, shade) {
  const { run } = app, width = Math.max(1100, 84 * axes.length), top = 46, height = 300;
  const xOf = (index) => 48 + (index * (width - 96)) / (axes.length - 1);
  const yOf = (axis, value) => {
    const share = axis.values ? (axis.values.length === 1 ? 0.5 : axis.values.indexOf(value) / (axis.values.length - 1)) : (value - axis.low) / (axis.high - axis.low || 1);
    return top + height * (1 - share);
  };
  const lines = places.map((place, order) => {
    const shift = ((order * 7) % 15) - 7; // so that equal lines lie side by side
    const points = axes.map((axis, index) => `${xOf(index).toFixed(1)},${(yOf(axis, axis.value(place)) + (axis.values ? shift : 0)).toFixed(1)}`);
    return svg("polyline", { points: points.join(" "), stroke: shade(place), class: run.inFront.has(place) ? "line member" : "line", "data-place": place });
  });
  const members = places.filter((place) => run.inFront.has(place)).length;
  let chosen = null;
  const choose = (axis, value) => {
    chosen = chosen && chosen[0] === axis && chosen[1] === value ? null : [axis, value];
    lines.forEach((line) => line.classList.toggle("dim", chosen !== null && axis.value(Number(line.dataset.place)) !== value));
    root.querySelectorAll(".value").forEach((each) => each.setAttribute("aria-pressed", chosen !== null && each.axis === axis && each.value === value));
  };
  const heads = axes.map((axis, index) => {
    const x = xOf(index), is = { x, "text-anchor": "middle" };
    return [
      svg("line", { x1: x, x2: x, y1: top - 12, y2: top + height + 12, class: "axis" }),
      svg("text", { ...is, y: 14, class: "name" }, axis.stage ? `stage ${axis.stage}` : ""), svg("text", { ...is, y: 28 }, axis.feature),
      axis.values ? axis.values.map((value) => valueButton(axis, value, x, yOf(axis, value), choose))
        : [axis.low, axis.high].map((value) => svg("text", { ...is, y: yOf(axis, value) + (value === axis.low ? 16 : -6), class: "tick" }, value.toFixed(3))),
    ];
  });
  const place = (event) => (event.target.dataset && event.target.dataset.place ? Number(event.target.dataset.place) : null);
  const root = svg("svg", {
    viewBox: `0 0 ${width} ${top + height + 22}`, class: "coordinates", role: "group", "aria-label": "Parallel coordinates of the choices", style: `min-width:${72 * axes.length}px;--others:${opacityOf(places.length - members, 40)};--member:${opacityOf(members, 60)}`,
    onclick: (event) => place(event) !== null && app.select(place(event)), onmouseover: (event) => place(event) !== null && app.showTip(place(event), event.clientX, event.clientY), onmouseout: () => app.hideTip(),
  }, lines, heads);
  return root;
}

// How opaque lines are: the more there are, the less.
const opacityOf = (number, full) => Math.min(0.95, Math.max(0.08, full / Math.max(1, number))).toFixed(2);

function valueButton(axis, value, x, y, choose) {
  const label = String(value), width = 6.2 * label.length + 10;
  const node = svg("g", { class: "value", role: "button", tabindex: 0, "aria-pressed": "false", "aria-label": `${axis.stage ? `stage ${axis.stage} ` : ""}${axis.feature} ${label}`, onclick: () => choose(axis, value),
    onkeydown: (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), choose(axis, value)) },
  svg("rect", { x: x - width / 2, y: y - 9, width, height: 18, rx: 9 }), svg("text", { x, y: y + 4, "text-anchor": "middle" }, label));
  return Object.assign(node, { axis, value });
}

// Shares of the front against all candidates, stage by stage.
function commonSection(app) {
  const { run } = app, all = alike(run), front = all.filter((place) => run.inFront.has(place));
  if (!front.length) return null;
  const archs = new Map(all.map((place) => [place, run.arch(place)]));
  const body = el("div", { class: "shares" });
  const feature = el("select", { id: "feature", onchange: () => draw() }, Object.entries(FEATURES).map(([name, label]) => el("option", { value: name }, label)));
  const draw = () => replace(body, archs.get(all[0]).stages.map((_, stage) => shareTable(archs, front, all, stage, feature.value)));
  draw();
  const little = front.length < 10 ? " With so few members a difference of one or two is no sign of anything." : "";
  return el("section", { id: "common", class: "card" }, el("h2", {}, "What the front has in common"),
    el("p", { class: "note" }, `Blue: the front's ${plural(front.length, "candidate")}. Grey: all ${whole(all.length)} that were sampled.${little} The sampler prefers what did well, so the grey bars are no uniform draw of the space.`),
    el("p", { class: "controls" }, el("label", {}, "of each stage the ", feature)), body);
}

function shareTable(archs, front, all, stage, feature) {
  const value = (place) => archs.get(place).stages[stage][feature];
  const number = (places, wanted) => places.reduce((sum, place) => sum + (value(place) === wanted), 0);
  const rows = distinct(all.map(value)).map((each) => ({ each, own: number(front, each), of: number(all, each) })).sort((one, other) => other.own - one.own || other.of - one.of);
  const bar = (share, name) => el("span", { class: `bar ${name}` }, el("i", { style: `width:${(100 * share).toFixed(1)}%` }));
  return el("table", {}, el("caption", {}, `stage ${stage + 1}`),
    el("thead", { class: "hidden" }, el("tr", {}, ["value", "share", "on the front", "of all sampled"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map(({ each, own, of }) => el("tr", {}, el("th", { scope: "row" }, feature === "block" ? el("i", { class: "dot", style: `background:${blockColour(String(each).split("/")[0])}` }) : null, String(each)),
      el("td", { class: "bars" }, bar(own / front.length, "front"), bar(of / all.length, "all")),
      el("td", {}, `${own} of ${front.length}`), el("td", { class: "faint" }, `${whole(of)} of ${whole(all.length)}`)))));
}
