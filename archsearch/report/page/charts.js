// What all charts share, and the two plain ones: learning curves and progress.

const coarse = matchMedia("(pointer: coarse)");
let chartWidth; // pixels, on paper; as wide as there is room otherwise
const charts = []; // functions that draw a chart anew, in the colours of the theme

function baseLayout(more) {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: false, ticks: "", tickfont: { size: 12 } };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 12, color: colour("muted") },
    margin: { l: 66, r: 14, t: 10, b: 46 }, showlegend: false, hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("ink") }, dragmode: coarse.matches ? false : "zoom",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    ...more, ...(chartWidth ? { width: chartWidth, height: 300 } : {}), autosize: !chartWidth, xaxis: { ...axis, ...(more.xaxis || {}) }, yaxis: { ...axis, ...(more.yaxis || {}) },
  };
}

const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };

const plot = (node, traces, layout) => Plotly.react(node, traces, layout, CONFIG);

const titled = (text) => ({ title: { text: plotlyText(text), font: { size: 12 }, standoff: 8 } });

// Learning curves: the front's members by name, up to 300 others faint.
const MOST_CURVES = 300;

function curvesSection(run) {
  const places = run.places.filter((place) => (run.curve(place)?.scores.length || 0) > 1);
  if (!places.length) return null;
  const others = places.filter((place) => !run.inFront.has(place)), step = Math.max(1, others.length / MOST_CURVES);
  const shown = others.filter((_, index) => Math.floor(index / step) !== Math.floor((index - 1) / step));
  const node = el("div", { class: "plot", role: "img", "aria-label": "Learning curves: score over training steps" });
  const faint = { x: [], y: [] };
  for (const place of shown) {
    const curve = run.curve(place);
    faint.x.push(...curve.steps, null);
    faint.y.push(...curve.scores, null);
  }
  const many = run.front.length > 40, steps = [...new Set(run.curves.steps.flat())];
  const draw = () => plot(node, [
    { ...faint, mode: "lines", line: { color: colour("faint"), width: 1 }, opacity: 0.5, hoverinfo: "skip" },
    ...run.front.filter((row) => run.curve(row.place)).map((row) => ({
      x: run.curve(row.place).steps, y: run.curve(row.place).scores, mode: "lines+markers", line: { color: colour("accent"), width: many ? 1 : 1.6 }, marker: { size: many ? 3 : 5 }, opacity: many ? 0.4 : 1,
      hovertemplate: `${plotlyText(run.name(row.place))}: %{y:.3f} after %{x} steps<extra></extra>`,
    })),
  ], baseLayout({ xaxis: { ...titled("training steps"), type: "log", tickvals: steps, ticktext: steps.map(String) }, yaxis: titled("score at the rung") }));
  charts.push({ node, draw });
  return el("section", { id: "curves", class: "card" }, el("h2", {}, "Learning curves"),
    el("p", { class: "note" }, `Blue: members of the front. Grey: ${whole(shown.length)} of ${whole(others.length)} other trials; a curve that ends early was stopped at that rung.`), node);
}

// The hypervolume after each trial that changed the front.
function progressSection(run) {
  const { progress } = run;
  if (!progress) return null;
  const node = el("div", { class: "plot", role: "img", "aria-label": "Progress: hypervolume of the front" });
  const over = el("select", { id: "over", onchange: () => draw() }, el("option", { value: "trials" }, "trials that ended"),
    progress.images ? el("option", { value: "images" }, "images trained on") : null);
  const draw = () => {
    const name = over.value, last = progress.points.at(-1);
    const points = [...progress.points, { ...last, trials: progress.trials, images: progress.images }];
    return plot(node, [{
      x: points.map((point) => point[name]), y: points.map((point) => point.hypervolume), mode: "lines", line: { shape: "hv", color: colour("accent"), width: 2 },
      fill: "tozeroy", fillcolor: colour("wash"), hovertemplate: `%{y:.4f} after %{x} ${name}<extra></extra>`,
    }], baseLayout({ xaxis: { ...titled(name === "trials" ? "trials that ended" : "images trained on"), rangemode: "tozero", tickformat: "~s" }, yaxis: { ...titled("hypervolume"), rangemode: "tozero" } }));
  };
  charts.push({ node, draw });
  return el("section", { id: "progress", class: "card" }, el("h2", {}, "Progress: is it worth searching longer?"),
    el("p", {}, progressWords(progress)), el("p", { class: "controls" }, el("label", {}, "over ", over)), node,
    el("p", { class: "note" }, `Hypervolume: ${run.document.hypervolume.normalisation}.`));
}

const SHARES = { 0.5: "Half of the trials gave", 0.75: "three quarters gave" };

function progressWords({ points, reached, trials, changes }) {
  const last = points.at(-1), quiet = trials - last.trials;
  const parts = reached.map((mark) => `${SHARES[mark.share]} ${percent(mark.hypervolume / last.hypervolume, 1)}`);
  const gave = parts.length ? ` ${parts.join(", ")} of its present hypervolume.` : "";
  return `The front changed ${plural(changes, "time")} in ${plural(trials, "trial")}.${gave} It last changed at ${whole(last.trials)} of ${whole(trials)} trials${quiet ? `, ${plural(quiet, "trial")} ago` : ""}.`;
}
