// An architecture as a drawing: a block's height is its width, a stage's length is its depth; stem, downsamples and head are marked.

const DRAWING = {
  full: { height: 112, unit: 15, most: 330, entry: 14, least: 10, letter: 6.7, labels: true },
  narrow: { height: 96, unit: 8, most: 118, entry: 8, least: 8, letter: 5.9, labels: true },
  small: { height: 46, unit: 8, most: 190, entry: 7, least: 5, letter: 0, labels: false },
};

function describe(arch) {
  return arch.stages.map((stage) => `${stage.block} ${stage.width}x${stage.depth}`).join(" - ");
}

function stageLabels(stage, index, size) {
  if (size === "narrow") return [stage.block, `${stage.width} × ${stage.depth}`, stage.map ? `${stage.map[0]} × ${stage.map[1]} px` : "", String(stage.entry || "")];
  const entry = `${index === 0 ? "stem" : "↓"} ${stage.entry || ""}`;
  return [stage.block, `${stage.width} wide × ${stage.depth}`, stage.map ? `${stage.map[0]} × ${stage.map[1]} px` : "", entry].map(String);
}

function fieldsText(stage) {
  return Object.entries(stage.fields).map(([kind, fields]) => `${kind}: ${Object.entries(fields).map(([name, value]) => `${name} ${value}`).join(", ")}`).join("; ");
}

function drawArch(arch, size) {
  const how = DRAWING[size], widest = Math.max(...arch.stages.map((stage) => stage.width));
  const depth = arch.stages.reduce((sum, stage) => sum + stage.depth, 0);
  const unit = Math.min(how.unit, how.most / depth), middle = how.height / 2 + (how.labels ? 22 : 2);
  const high = (width) => Math.max(how.least, (how.height * width) / widest);
  const parts = [];
  let x = 2, before = how.least;
  arch.stages.forEach((stage, index) => {
    const height = high(stage.width), labels = stageLabels(stage, index, size), start = x;
    parts.push(entryShape(x, how.entry, middle, before, height, `${index === 0 ? "stem" : "downsample"} ${stage.entry || ""}`));
    x += how.entry + 2;
    for (let block = 0; block < stage.depth; block += 1) {
      const kind = stage.kinds[block % stage.kinds.length];
      parts.push(svg("rect", { x, y: middle - height / 2, width: Math.max(1, unit - 2), height, rx: Math.min(2.5, unit / 4), fill: blockColour(kind) },
        svg("title", {}, `stage ${index + 1}, block ${block + 1}: ${kind}, width ${stage.width}`)));
      x += unit;
    }
    if (how.labels) {
      const [name, ...below] = labels;
      parts.push(svg("text", { x: start, y: 12, class: "name" }, name));
      below.forEach((line, place) => parts.push(svg("text", { x: start, y: middle + how.height / 2 + 18 + 14 * place, class: place === 2 ? "faint" : "" }, line)));
      x = Math.max(x, start + how.letter * Math.max(...labels.map((label) => label.length)) + (size === "narrow" ? 0 : 4));
    }
    before = height;
    x += how.labels ? 8 : 3;
  });
  const headHeight = Math.max(how.least, high(widest) * 0.3);
  parts.push(svg("rect", { x, y: middle - headHeight / 2, width: how.entry, height: headHeight, rx: 3, class: "entry" }, svg("title", {}, `head: ${arch.head || ""}`)));
  if (how.labels) {
    parts.push(svg("text", { x, y: 12, class: "name" }, "head"));
    parts.push(svg("text", { x, y: middle + how.height / 2 + 18 }, arch.head || ""));
  }
  const width = x + (how.labels ? 34 : how.entry + 2), height = how.labels ? middle + how.height / 2 + 52 : how.height + 4;
  const shape = { viewBox: `0 0 ${Math.ceil(width)} ${Math.ceil(height)}`, class: `drawing ${size}`, role: "img", "aria-label": `Drawing: ${describe(arch)}` };
  return svg("svg", { ...shape, ...(how.labels ? { style: `max-width:${Math.ceil(width * 1.15)}px;min-width:${Math.ceil(Math.min(width, 400))}px` } : { width: Math.ceil(width), height: Math.ceil(height) }) }, parts);
}

// From the height of what comes before to that of what follows.
function entryShape(x, width, middle, from, to, title) {
  const points = [[x, middle - from / 2], [x + width, middle - to / 2], [x + width, middle + to / 2], [x, middle + from / 2]];
  return svg("polygon", { points: points.map((point) => point.map((each) => each.toFixed(1)).join(",")).join(" "), class: "entry" }, svg("title", {}, title));
}

function legend(archs) {
  const kinds = [...new Set(archs.flatMap((arch) => arch.stages.flatMap((stage) => stage.kinds)))];
  return el("ul", { class: "legend" }, kinds.map((kind) => el("li", {}, el("i", { style: `background:${blockColour(kind)}` }), kind)), el("li", {}, el("i", { class: "entry" }), "stem, ↓ downsample, head"));
}

// What is shown beside a point: the drawing, small, with the figures that matter most.
function preview(run, place) {
  const arch = run.arch(place);
  return [
    el("strong", {}, run.name(place)),
    arch ? drawArch(arch, "small") : el("p", { class: "faint" }, "a network without an architecture"),
    el("p", {}, run.at("architecture", place)),
    el("p", { class: "figures" }, figureWords(run, place).join(" · ")),
  ];
}

function scoreText(run, place) {
  const score = run.at("proxy_score", place), error = run.at("proxy_score_se", place);
  return score === null ? "–" : score.toFixed(3) + (error === null ? "" : ` ± ${error.toFixed(3)}`);
}

function figureWords(run, place) {
  const names = ["throughput_img_s", "params", "macs"].filter((name) => run.at(name, place) !== null);
  const figures = names.map((name) => `${textOf(name, run.at(name, place))} ${labelOf(name)}`);
  return run.at("proxy_score", place) === null ? figures : [`score ${scoreText(run, place)}`, ...figures];
}
