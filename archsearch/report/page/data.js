// The data of the page: unpacking, columns, rows, fronts of two columns.

async function unpack(id) {
  const node = byId(id), text = node.textContent.trim();
  node.remove();
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function unpackColumn(column, number) {
  if ("same" in column) return new Array(number).fill(column.same);
  if ("words" in column) return column.codes.map((code) => column.words[code]);
  return column.values;
}

const DEVICE_COLUMNS = ["throughput_img_s", "latency_ms", "peak_memory_bytes"];

// One run: its document, its columns by name, and what is asked of its rows by their place.
class Run {
  constructor(payload) {
    Object.assign(this, payload);
    this.columns = Object.fromEntries(Object.entries(payload.columns).map(([name, column]) => [name, unpackColumn(column, payload.rows)]));
    this.places = [...Array(payload.rows).keys()];
    this.placeOf = new Map(this.columns.trial ? this.columns.trial.map((trial, place) => [trial, place]) : []);
    this.front = this.known(this.document.front);
    this.inFront = new Map(this.front.map((row) => [row.place, row]));
    this.near = new Map(this.known(this.document.near_front).map((row) => [row.place, row]));
    this.fixed = this.places.filter((place) => this.at("is_fixed", place));
    this.candidates = this.places.filter((place) => !this.at("is_fixed", place) && this.at("reused_from", place) === null);
  }

  known(rows) {
    return rows.filter((row) => this.placeOf.has(row.trial)).map((row) => ({ ...row, place: this.placeOf.get(row.trial) }));
  }

  at(name, place) {
    const column = this.columns[name];
    return column ? column[place] : null;
  }

  name(place) {
    return (this.at("is_fixed", place) && this.at("paper", place)) || `trial ${this.at("trial", place)}`;
  }

  // The stages of a row, or null for a network without an architecture.
  arch(place) {
    const { stages, sides, heads, archs, costs } = this.networks, own = archs[place];
    if (!own) return null;
    const maps = sides[own[1]], priced = costs[this.at("trial", place)] || null;
    return {
      stages: own[0].map((number, index) => ({ ...stages[number], kinds: String(stages[number].block).split("/"), map: maps && maps[index] })),
      head: heads[own[2]],
      costs: priced,
    };
  }

  curve(place) {
    const number = this.curves.of[place];
    return number === null || number === undefined ? null : { steps: this.curves.steps[number], scores: this.curves.scores[place] };
  }

  // As the report ranks: complete, inside all limits, no repeat, and for figures of a device of the run's own identity.
  isRanked(place, names) {
    return this.at("state", place) === "complete" && !this.at("outside", place) && this.at("reused_from", place) === null
      && names.every((name) => this.at(name, place) !== null)
      && this.isOneIdentity(place, names);
  }

  // Whether figures of these columns may stand beside the ranked ones: what depends on the device only where it was timed as they were.
  isOneIdentity(place, names) {
    return !names.some((name) => DEVICE_COLUMNS.includes(name)) || this.at("throughput_id", place) === this.document.throughput_id;
  }

  // The front of two columns as places, along the first one; empty where one has no better direction.
  staircase(first, second) {
    const [signX, signY] = [first, second].map((name) => ({ maximize: -1, minimize: 1 })[this.axes[name]] || 0);
    if (!signX || !signY || first === second) return [];
    return staircaseOf(this.places.filter((place) => this.isRanked(place, [first, second])).map((place) => [place, signX * this.at(first, place), signY * this.at(second, place)]));
  }
}

// Of points `[place, x, y]`, less being better in both, the places of those that no other one dominates, along x.
function staircaseOf(points) {
  const sorted = points.sort((one, other) => one[1] - other[1] || one[2] - other[2]), members = [];
  let least = Infinity, at = null;
  for (const [place, x, y] of sorted) {
    if (y < least || (y === least && x === at)) {
      members.push(place);
      least = y;
      at = x;
    }
  }
  return members;
}

// At most `most` of the places: sparse regions are kept, dense ones thinned evenly.
function thinned(places, xs, ys, most) {
  if (places.length <= most) return places;
  const cell = (values) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    return (value) => Math.floor((48 * (value - low)) / (high - low || 1));
  };
  const column = cell(xs), row = cell(ys), seen = new Map();
  const ranks = places.map((_, index) => {
    const key = 64 * column(xs[index]) + row(ys[index]);
    seen.set(key, (seen.get(key) || 0) + 1);
    return seen.get(key);
  });
  const order = [...places.keys()].sort((one, other) => ranks[one] - ranks[other] || one - other);
  return order.slice(0, most).sort((one, other) => one - other).map((index) => places[index]);
}
