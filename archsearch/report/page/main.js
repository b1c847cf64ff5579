// The page: its sections in order, what is selected, the preview, the theme, printing.

function headerOf(app, payload) {
  const { document: report, sentences } = app.run, { comparison } = payload;
  const toggle = el("button", { type: "button", class: "icon", onclick: () => app.turnTheme() });
  app.onTheme.push(() => replace(toggle, isDark() ? "Light" : "Dark"));
  return el("header", {}, el("div", { class: "top" }, el("p", { class: "over" }, "archsearch report"), el("div", { class: "buttons" }, toggle, el("button", { type: "button", class: "icon", onclick: () => print() }, "Print"))),
    el("h1", {}, comparison ? comparison.runs.map((run) => run.run).join(", ") : report.run),
    comparison ? null : [sentences.headline.map((line) => el("p", { class: "lead" }, line)), el("p", { class: "faint" }, sentences.conditions[0])],
    report.noisy ? el("p", { class: "alert" }, sentence(sentences.caveats.find((line) => line.startsWith("The order by speed")) || "")) : null);
}

function navigation(sections) {
  const names = { compared: "Compared", one: "One run", picks: "Which one", front: "Front", selected: "Selected", choices: "Choices", common: "In common", progress: "Progress", curves: "Curves", sure: "How sure", trials: "Trials" };
  return el("nav", { "aria-label": "Sections" }, sections.map((section) => el("a", { href: `#${section.id}` }, names[section.id])));
}

// The audit, what is not resolved, what to know of the figures, and the conditions.
function sureSection({ run }) {
  const { document: report, sentences } = run, open = run.front.filter((row) => row.unresolved_by.length), chances = run.front.filter((row) => row.front_chance !== null);
  const list = (lines) => el("ul", {}, lines.map((line) => el("li", {}, sentence(line))));
  const block = (title, ...children) => el("div", {}, el("h3", {}, title), children);
  return el("section", { id: "sure", class: "card" }, el("h2", {}, "How sure is it?"), el("div", { class: "columns" },
    block("The score", el("p", {}, report.score.meaning), sentences.audit.map((line) => el("p", {}, sentence(line))), report.score.training_sd === null ? null : el("p", {}, `Scores of one architecture differ from seed to seed by a standard deviation of ${report.score.training_sd.toFixed(3)}.`)),
    block("The front", el("p", {}, open.length ? `${open.length} of ${run.front.length} members may be dominated within measurement noise:` : `No member of the front may be dominated within measurement noise.`),
      open.length ? list(open.slice(0, 8).map((row) => `${run.name(row.place)} by ${listed(row.unresolved_by)}`)) : null,
      open.length > 8 ? el("p", { class: "faint" }, `and ${open.length - 8} more; each selected trial says so too`) : null,
      chances.length ? el("p", {}, `The chance to be on the front, by the noise of the scores alone, is ${percent(Math.min(...chances.map((row) => row.front_chance)))} to ${percent(Math.max(...chances.map((row) => row.front_chance)))}.`) : null,
      run.near.size ? el("p", {}, `Beside the front, but no less likely to be on it than its least likely member: ${plural(run.near.size, "trial")} (${listed([...run.near.values()].map((row) => row.trial))}).`) : null),
    sentences.fixed.length ? block("Beside papers and included networks", list(sentences.fixed)) : null,
    sentences.caveats.length || sentences.training.length ? block("To know", list([...sentences.caveats, ...sentences.training])) : null,
    block("Conditions", sentences.conditions.map((line) => el("p", {}, sentence(line))), el("p", { class: "mono faint" }, `proxy_id: ${report.score.proxy_id || "–"}`), el("p", { class: "mono faint" }, `throughput_id: ${report.throughput_id || "–"}`))));
}

const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

class App {
  constructor(run) {
    Object.assign(this, { run, selected: null, tipScroll: 0, onSelect: [], onTheme: [], onPrint: [], onReady: [], whenPlotly: [] });
    this.tip = el("div", { id: "tip", role: "tooltip", hidden: true });
  }

  mark(place) {
    this.selected = place;
    this.hideTip();
    this.onSelect.forEach((each) => each());
  }

  // Marked, and brought into view where it is not.
  select(place, isFar = false) {
    this.mark(place);
    const panel = byId("selected");
    if (place !== null && panel && (isFar || panel.getBoundingClientRect().top > innerHeight - 120)) panel.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "start" });
  }

  showTip(place, x, y) {
    replace(this.tip, preview(this.run, place));
    this.tip.hidden = false;
    this.tipScroll = scrollY; // a focus scrolls before it shows
    const { width, height } = this.tip.getBoundingClientRect();
    this.tip.style.left = `${Math.max(8, Math.min(x + 16, innerWidth - width - 8))}px`;
    this.tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 14) : y + 18}px`;
  }

  showTipBeside(place, node) {
    const box = node.getBoundingClientRect();
    this.showTip(place, box.left, box.bottom - 8);
  }

  hideTip() {
    this.tip.hidden = true;
  }

  turnTheme() {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    this.themed();
  }

  themed() {
    this.onTheme.forEach((each) => each());
    this.drawCharts();
  }

  // Paper is light and narrower than a screen; charts do not follow the style of print by themselves.
  print(isPrinting) {
    const root = document.documentElement;
    if (isPrinting) this.themeBefore = root.dataset.theme;
    root.dataset.theme = isPrinting ? "light" : this.themeBefore || "";
    if (!root.dataset.theme) delete root.dataset.theme;
    chartWidth = isPrinting ? 660 : undefined;
    this.onPrint.forEach((each) => each(isPrinting));
    this.drawCharts();
  }

  drawCharts() {
    if (window.Plotly) charts.forEach(({ draw }) => draw());
  }
}

function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!shown.tip.hidden) shown.hideTip();
    else if (shown.selected !== null && !event.target.closest("input, select")) shown.select(null);
  });
  addEventListener("scroll", () => Math.abs(scrollY - shown.tipScroll) > 4 && shown.hideTip(), { passive: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown.themed());
  addEventListener("beforeprint", () => shown.print(true));
  addEventListener("afterprint", () => shown.print(false));
}

let shown; // the app of the run that the page shows

// The whole page with one of its runs.
function showRun(payload, place) {
  charts.length = 0;
  const run = new Run(payload.runs[place]), app = new App(run), page = byId("page");
  const compared = payload.comparison ? [comparisonSection(payload), chosenRunSection(payload, place, (other) => showRun(payload, other))] : [];
  const beside = el("div", { class: "beside" }, [frontSection(app), detailsSection(app)]), picks = picksSection(app);
  const others = [choicesSection(app), commonSection(app), progressSection(run), curvesSection(run), sureSection(app), tableSection(app)].filter(Boolean);
  const words = payload.comparison ? payload.runs.map((each) => each.shell.folder).join(" ") : run.shell.folder;
  replace(page, headerOf(app, payload), navigation([...compared, picks, ...beside.children, ...others]), el("main", {}, compared, picks, beside, others),
    el("footer", {}, `Made by archsearch ${payload.version} at ${payload.made_at}. Every number is that of `, el("code", {}, `archsearch report ${words} --json`), " and of trials.parquet. This page loads nothing from a network."), app.tip);
  shown = app;
  app.onTheme.forEach((each) => each());
  app.onReady.forEach((each) => each());
  const chosen = run.document.picks.map((pick) => run.placeOf.get(pick.trial)).find((place) => place !== undefined);
  if (chosen !== undefined) app.mark(chosen);
  if (window.Plotly) drawCharts(app);
}

function drawCharts(app) {
  app.drawCharts();
  app.whenPlotly.forEach((each) => each());
}

async function begin() {
  const payload = JSON.parse(await unpack("data"));
  showRun(payload, 0);
  listen();
  document.documentElement.dataset.shown = Math.round(performance.now());
  document.head.append(el("script", {}, await unpack("plotly")));
  drawCharts(shown);
  byId("page").removeAttribute("aria-busy");
  document.documentElement.dataset.ready = Math.round(performance.now());
}

begin().catch((error) => {
  replace(byId("page"), el("p", { class: "loading" }, `This page could not be shown: ${error.message}. A browser of 2023 or later is needed.`));
  throw error;
});
