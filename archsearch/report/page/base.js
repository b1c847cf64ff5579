// Making elements, numbers as text, colours. Text of a run becomes text nodes alone, never HTML.

const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);
const replace = (node, ...children) => node.replaceChildren(...children.flat(Infinity).filter(Boolean));

// Numbers as the terminal's report writes them.

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "K"]];

function count(value) {
  if (value === null || value === undefined) return "–";
  const [scale, unit] = UNITS.find(([least]) => Math.abs(value) >= least) || [1, ""];
  return scale === 1 ? value.toFixed(0) : (value / scale).toFixed(2) + unit;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const step = Math.min(4, Math.floor(Math.log2(Math.max(1, value)) / 10));
  return step ? `${(value / 2 ** (10 * step)).toFixed(2)} ${["", "KiB", "MiB", "GiB", "TiB"][step]}` : `${value.toFixed(0)} B`;
}

const fixed = (digits) => (value) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)}%`);
// A sentence in which the report marks commands by backquotes.
const sentence = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
const plural = (number, word) => `${whole(number)} ${word}${number === 1 ? "" : "s"}`;

// What a column is called, and how its values are written.
const COLUMNS = {
  proxy_score: { label: "score", long: "proxy score", text: fixed(3) },
  throughput_img_s: { label: "img/s", long: "images per second", text: fixed(1) },
  params: { label: "params", long: "parameters", text: count },
  macs: { label: "MACs", long: "MACs of one image", text: count },
  latency_ms: { label: "ms/batch", long: "ms per batch", text: fixed(1) },
  peak_memory_bytes: { label: "memory", long: "peak memory, bytes", text: bytes },
  activations: { label: "activations", long: "activations of one image", text: count },
  train_memory_bytes: { label: "train memory", long: "training memory, bytes", text: bytes },
  trial: { label: "trial", long: "trial", text: String },
};
const labelOf = (name) => (COLUMNS[name] ? COLUMNS[name].label : name);
const longOf = (name) => (COLUMNS[name] ? COLUMNS[name].long : name);
const textOf = (name, value) => (value === null || value === undefined ? "–" : COLUMNS[name] ? COLUMNS[name].text(value) : String(value));

// Colours: block kinds keep theirs on every page; others take the next free one.

const BLOCK_COLOURS = {
  mlp: "#8b919c", sda: "#3f6fb0", lda: "#86aede", lsa: "#3f9a63", gsa: "#92cfa4", hilo: "#e08a2b",
  window: "#9a6bb0", channel: "#d3a9dc", lka: "#d4574f",
};
const SPARE_COLOURS = ["#2a9d9d", "#d9b310", "#9d755d", "#e377a2", "#6a7fd6", "#7f9c2f", "#b56a3a", "#4aa3c7"];
const givenColours = new Map();

function blockColour(kind) {
  if (Object.hasOwn(BLOCK_COLOURS, kind)) return BLOCK_COLOURS[kind];
  if (!givenColours.has(kind)) givenColours.set(kind, SPARE_COLOURS[givenColours.size % SPARE_COLOURS.length]);
  return givenColours.get(kind);
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// From low to high, readable on white and on black.
const SCALE = [[68, 74, 160], [47, 116, 183], [38, 154, 160], [86, 184, 110], [214, 190, 50]];

function scaleColour(share) {
  const place = Math.min(1, Math.max(0, share)) * (SCALE.length - 1), low = Math.min(SCALE.length - 2, Math.floor(place));
  return `rgb(${SCALE[low].map((from, index) => Math.round(from + (place - low) * (SCALE[low + 1][index] - from))).join(",")})`;
}

// plotly takes some HTML in its labels.
const plotlyText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function download(name, type, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
