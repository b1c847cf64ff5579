// The picks, and the selected architecture: drawn, priced by stage, with its figures, its learning curve and its export.

function badges(run, place) {
  const words = [run.inFront.has(place) && "front", run.near.has(place) && "near the front", run.at("is_fixed", place) && "fixed", run.at("state", place) !== "complete" && run.at("state", place),
    run.at("outside", place) && `outside ${run.at("outside", place)}`, run.at("reused_from", place) !== null && `repeats trial ${run.at("reused_from", place)}`];
  return words.filter(Boolean).map((word) => el("span", { class: "badge" }, word));
}

function picksSection(app) {
  const { run } = app, picks = run.document.picks;
  if (!picks.length) return el("section", { id: "picks", class: "card" }, el("h2", {}, "Which one?"), el("p", {}, nothingWords(run)));
  return el("section", { id: "picks" }, el("h2", {}, "Which one?"), el("div", { class: "cards" }, byTrial(picks).map((group) => pickCard(app, group))));
}

// One card for a trial that several rules pick.
function byTrial(picks) {
  const groups = new Map();
  for (const pick of picks) {
    const key = pick.trial ?? pick.name;
    groups.set(key, [...(groups.get(key) || []), pick]);
  }
  return [...groups.values()];
}

// A sentence of the report without the name that stands above it.
const withoutName = (pick) => {
  const start = `${pick.name}: `, text = pick.sentence;
  const rest = text.toLowerCase().startsWith(start.toLowerCase()) ? text.slice(start.length) : text;
  return rest.slice(0, 1).toUpperCase() + rest.slice(1);
};

function pickCard(app, group) {
  const { run } = app, pick = group[0], place = run.placeOf.get(pick.trial), arch = place === undefined ? null : run.arch(place);
  if (place === undefined) return el("article", { class: "card pick none" }, el("h3", {}, pick.name), el("p", {}, withoutName(pick)), el("p", { class: "faint rule" }, pick.rule));
  const beats = group.flatMap((each) => each.beats), known = new Map(beats.map((each) => [each.paper, each]));
  return el("article", { class: "card pick" }, el("h3", {}, group.map((each) => el("span", {}, each.name))),
    el("button", { type: "button", class: "show", onclick: () => app.select(place, true), "aria-label": `Show ${run.name(place)}` }, el("b", {}, run.name(place)), arch ? drawArch(arch, "small") : null),
    withoutName(pick).split(/ (?=Not resolved: )/).map((part, index) => el("p", { class: index ? "faint" : "" }, part)),
    known.size ? el("details", {}, el("summary", {}, `Beats ${plural(known.size, "network")}`), el("ul", {}, [...known.values()].map((each) => el("li", {}, beatWords(each))))) : null,
    el("p", { class: "faint rule" }, group.map((each) => each.rule).join(" ")));
}

// What is not known of one of the two, a score or a comparable timing, is left out.
function beatWords({ paper, score_difference: score, is_score_tie: isTie, ...ratios }) {
  const signed = score === null ? "" : `score ${score >= 0 ? "+" : "−"}${Math.abs(score).toFixed(3)}${isTie ? " (a tie)" : ""}`;
  const times = [["throughput_ratio", "speed"], ["params_ratio", "parameters"], ["macs_ratio", "MACs"]].filter(([name]) => ratios[name] !== null);
  return `${paper}: ${[signed, ...times.map(([name, what]) => `${ratios[name].toFixed(2)}× the ${what}`)].filter(Boolean).join(", ")}`;
}

function detailsSection(app) {
  const body = el("div", { "aria-live": "polite" });
  app.onSelect.push(() => replace(body, app.selected === null ? el("p", { class: "faint" }, "Nothing is selected: click a point, a line or a row.") : detailsOf(app, app.selected)));
  return el("section", { id: "selected", class: "card" }, el("h2", {}, "Selected"), body);
}

function detailsOf(app, place) {
  const { run } = app, arch = run.arch(place);
  return [
    el("h3", {}, run.name(place), " ", badges(run, place)),
    el("p", { class: "faint mono" }, `arch_id ${run.at("arch_id", place)}${run.at("is_fixed", place) ? `, trial ${run.at("trial", place)}` : ""}`),
    run.at("reason", place) ? el("p", { class: "reason" }, run.at("reason", place)) : null,
    arch ? [el("div", { class: "scroll" }, drawArch(arch, matchMedia("(max-width: 560px)").matches ? "narrow" : "full")), legend([arch])] : el("p", {}, `${run.at("architecture", place)}: a network without an architecture, so there is no drawing.`),
    arch ? costTable(run, arch, place) : null, figureList(run, place), curveOf(run, place), arch ? exportLine(run, place) : null,
  ].flat();
}

function costTable(run, arch, place) {
  if (!arch.costs) return el("p", { class: "note" }, run.networks.note || "Costs by stage are on this page for the picks, the front, fixed trials and those near the front; ", run.networks.note ? null : el("code", {}, run.shell.cost.join(run.at("trial", place))), run.networks.note ? null : " has them for any.");
  const rows = [...arch.stages.map((stage, index) => ({ name: `${index + 1}`, what: `${stage.block} ${stage.width}×${stage.depth}`, title: fieldsText(stage), ...arch.costs.stages[index], map: arch.costs.stages[index].map.join("×") })), { name: "head", what: arch.head || "", map: "", ...arch.costs.head }];
  const total = (name) => rows.reduce((sum, row) => sum + row[name], 0), macs = total("macs"), params = total("params");
  const cell = (value, all) => el("td", { class: "meter" }, el("i", { style: `width:${((100 * value) / (all || 1)).toFixed(1)}%` }), el("span", {}, count(value)), el("small", {}, percent(value / (all || 1))));
  return el("table", { class: "costs" }, el("caption", { class: "hidden" }, "Costs by stage"),
    el("thead", {}, el("tr", {}, ["stage", "blocks", "map", "MACs", "params"].map((name) => el("th", { scope: "col", class: name }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", { title: row.title }, el("th", { scope: "row" }, row.name), el("td", {}, row.what), el("td", { class: "map" }, row.map), cell(row.macs, macs), cell(row.params, params)))),
    el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "all"), el("td", {}, ""), el("td", { class: "map" }, ""), el("td", {}, count(macs)), el("td", {}, count(params)))));
}

function figureList(run, place) {
  const at = (name) => run.at(name, place), member = run.inFront.get(place) || run.near.get(place), list = [];
  const add = (name, value, more) => value !== null && value !== undefined && list.push(el("div", {}, el("dt", {}, name), el("dd", {}, value, more ? el("small", {}, more) : null)));
  if (at("proxy_score") !== null) add("score", scoreText(run, place), "the proxy's, ± its standard error");
  if (at("proxy_score_mean") !== null) add("mean over seeds", at("proxy_score_mean").toFixed(3), `${at("proxy_seeds")} seeds, sd ${at("proxy_score_sd").toFixed(3)}`);
  if (member && member.front_chance !== null) add("chance on the front", percent(member.front_chance), "by the noise of the scores alone");
  if (member && (member.score_ties || []).length) add("ties in score with", `${member.score_ties.length} of the front`, listed(member.score_ties));
  if (member && (member.unresolved_by || []).length) add("may be dominated by", `${plural(member.unresolved_by.length, "trial")}`, `${listed(member.unresolved_by)}, within noise`);
  if (at("throughput_img_s") !== null) add("img/s", at("throughput_img_s").toFixed(1), [at("throughput_iqr") !== null && `spread ${percent(at("throughput_iqr"), 1)}`, at("throughput_noisy") && "noisy", at("throughput_change") !== null && `again ${(100 * at("throughput_change")).toFixed(1)}%`].filter(Boolean).join(", "));
  if (at("latency_ms") !== null) add("ms/batch", textOf("latency_ms", at("latency_ms")), `batch ${at("batch_size")}, ${at("dtype")}, ${at("mode")}, ${at("device_name") || at("device")}`);
  for (const name of ["params", "macs", "activations", "peak_memory_bytes", "train_memory_bytes"]) add(labelOf(name), at(name) === null ? null : textOf(name, at(name)), ["params", "macs"].includes(name) ? whole(at(name)) : "");
  const against = run.document.fixed.find((each) => each.trial === at("trial"));
  if (against) add("dominated by", plural(against.num_dominated_by, "candidate"), listed(against.dominated_by.map((each) => each.trial)));
  if (against && against.published && against.published.top1) add("paper's top-1", `${against.published.top1}%`, "ImageNet-1K, published");
  return el("dl", { class: "list" }, list);
}

const listed = (trials) => trials.slice(0, 6).join(", ") + (trials.length > 6 ? ` and ${trials.length - 6} more` : "");

// A learning curve, small, with its values written beside it.
function curveOf(run, place) {
  const curve = run.curve(place);
  if (!curve || curve.scores.length < 2) return null;
  const scores = curve.scores.map((score) => score ?? 0), low = Math.min(...scores), high = Math.max(...scores), width = 220, height = 56;
  const points = scores.map((score, index) => [10 + (index * (width - 20)) / (scores.length - 1), 8 + (height - 16) * (1 - (score - low) / (high - low || 1))]);
  const words = scores.map((score, index) => `${score.toFixed(3)} after ${curve.steps[index]} steps`).join(", ");
  return el("figure", { class: "curve" }, svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Learning curve: ${words}` },
    svg("polyline", { points: points.map((point) => point.join(",")).join(" "), class: "line" }), points.map(([x, y]) => svg("circle", { cx: x, cy: y, r: 3 }))), el("figcaption", {}, `Learning curve: ${words}`));
}

function exportLine(run, place) {
  const trial = run.at("trial", place), line = run.shell.export.join(trial), said = el("span", { role: "status", class: "hidden" });
  const button = el("button", { type: "button", class: "copy", onclick: async () => {
    await copy(line);
    button.firstChild.data = "Copied";
    said.textContent = "The command is copied.";
    setTimeout(() => (button.firstChild.data = "Copy"), 1600);
  } }, "Copy");
  return el("div", { class: "export" }, el("span", { class: "faint" }, "Export it"), el("code", {}, line), button, said);
}

// The clipboard of a page from a file: by permission where there is one, else by a selection.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
