// The page of `searchphase explore`: controls make an address, the server answers with numbers, figures are filled with them.

const REST = 400; // milliseconds without a change after which what takes long is computed
const LOG_LINES = 12;

const CONTROLS = [
  { name: "activation", label: "link", usual: "erf", link: true },
  { name: "teacher", label: "teacher's link", usual: "", hint: "as the student", link: true },
  { name: "strength", label: "strength ρ", usual: "0.5", low: 0.02, high: 2, step: 0.005 },
  { name: "alignment", label: "alignment c", usual: "1", low: -1, high: 1, step: 0.01 },
  { name: "mixture", label: "mixture μ for both", usual: "", hint: "none", low: 0, high: 1, step: 0.01 },
  { name: "rank", label: "rank r", usual: "1", low: 1, high: 16, step: 1 },
  { name: "scale", label: "scale α (κ = α/r)", usual: "", hint: "r, so κ = 1", low: 0.1, high: 64, log: true, without: () => fields.rank.text.value },
  { name: "lr_ratio", label: "lr ratio χ", usual: "1", low: 0.1, high: 32, log: true },
  { name: "free_rows", label: "free rows", usual: "", check: true },
  { name: "batch_size", label: "batch size B", usual: "500", low: 1, high: 1e6, log: true },
  { name: "learning_rate", label: "learning rate η", usual: "0.2", low: 0.001, high: 2, log: true },
  { name: "label_noise", label: "label noise Δ", usual: "0", low: 0, high: 2, step: 0.01 },
  { name: "dimension", label: "dimension d", usual: "1000", low: 10, high: 1e7, log: true },
];

const byId = (id) => document.getElementById(id);
const say = (id, words) => (byId(id).textContent = words);
const shown = (value) => (value === null || value === undefined ? "none" : Number(value.toPrecision(4)).toString());
const whole = (values) => (values ?? []).map((value) => (value === null ? NaN : value));
const fields = {};
let fast = true;
let latest = {};
let regions = {};
let resting = 0;
let changed = performance.now();

function log(words) {
  say("status", words);
  const line = document.createElement("li");
  line.textContent = words;
  byId("log").prepend(line);
  while (byId("log").children.length > LOG_LINES) byId("log").lastChild.remove();
}

function control({ name, label, usual, hint, link, check, low, high, step, log, without = () => low }) {
  const box = document.createElement("label");
  const text = Object.assign(document.createElement("input"), { type: check ? "checkbox" : "text", name, placeholder: hint ?? usual });
  box.append(label, text);
  if (check) {
    Object.defineProperty(text, "value", { get: () => (text.checked ? "true" : ""), set: (word) => (text.checked = word === "true") });
    text.addEventListener("change", moved);
    fields[name] = { text, usual, follow: () => {} };
  } else if (link) {
    box.className = "link";
    text.setAttribute("list", "links");
    text.addEventListener("change", moved);
    fields[name] = { text, usual, follow: () => {} };
  } else {
    const [into, from] = log ? [Math.log10, (x) => Number((10 ** x).toPrecision(3))] : [Number, Number];
    const slider = Object.assign(document.createElement("input"), { type: "range", min: into(low), max: into(high), step: log ? 0.01 : step });
    slider.setAttribute("aria-label", label);
    const follow = () => {
      const value = Number(text.value || usual || without());
      if (Number.isFinite(value)) slider.value = into(value);
    };
    slider.addEventListener("input", () => {
      text.value = from(Number(slider.value));
      moved();
    });
    text.addEventListener("input", () => {
      follow();
      moved();
    });
    box.append(slider);
    fields[name] = { text, usual, follow, slider };
  }
  byId("controls").append(box);
}

const mixed = () => fields.mixture.text.value.trim() !== "";
const byMixture = () => [fields.strength, fields.alignment];

function query() {
  const words = new URLSearchParams();
  for (const [name, field] of Object.entries(fields)) {
    const value = field.text.value.trim();
    if (value && value !== field.usual && !(mixed() && byMixture().includes(field))) words.set(name, value);
  }
  for (const [name, value] of Object.entries(unknown)) words.set(name, value);
  return words.toString();
}

// Names in the address that no control has, or that a mixture takes the place of, are sent too, so that the server says what is wrong with them.
let unknown = {};

function restore() {
  const words = new URLSearchParams(location.search);
  const shadowed = (name) => words.get("mixture") && byMixture().includes(fields[name]);
  unknown = Object.fromEntries([...words].filter(([name]) => !(name in fields) || shadowed(name)));
  for (const [name, field] of Object.entries(fields)) {
    field.text.value = words.get(name) ?? field.usual;
    field.follow();
  }
  yieldToMixture();
}

// A mixture sets strength and alignment: their controls show its values and cannot be moved.
function yieldToMixture(place) {
  for (const [n, { text, slider, follow }] of byMixture().entries()) {
    text.disabled = slider.disabled = mixed();
    if (mixed() && place) {
      text.value = shown(place[n]);
      follow();
    }
  }
}

function moved() {
  unknown = {};
  yieldToMixture();
  changed = performance.now();
  history.replaceState(null, "", query() ? `?${query()}` : location.pathname);
  for (const section of document.querySelectorAll("section[data-part]")) section.classList.add("old");
  for (const name of ["seeds", "escapes", "diagram"]) empty(name);
  clearTimeout(resting);
  resting = setTimeout(rested, REST);
  if (fast) ask("search", changed);
}

async function rested() {
  if (!fast) await ask("search", changed);
  await ask("law");
  await ask("region");
}

// One question of a kind at a time: what changed meanwhile is asked for when the answer is there.
const asking = {};

async function ask(part, since = performance.now()) {
  const mine = query();
  if (asking[part]) {
    asking[part].again = since;
    return;
  }
  asking[part] = {};
  const button = byId(`ask-${part}`);
  if (button) button.disabled = true;
  const patience = setTimeout(() => log(`${part}: computing (the first time for a link, its programs are compiled)`), 300);
  try {
    const answer = await (await fetch(`numbers/${part}?${mine}`)).json();
    clearTimeout(patience);
    if (mine === query()) {
      if (answer.error) wrong(answer, part);
      else {
        draw[part](answer);
        for (const section of document.querySelectorAll(`section[data-part=${part}]`)) section.classList.remove("old");
      }
      await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
      log(`${part}: answered in ${Math.round(performance.now() - since)} ms`);
    } else if (part === "search" && !answer.error) {
      draw.search(answer); // on the way of a slider that still moves
    }
  } catch (failure) {
    clearTimeout(patience);
    log(`${part}: no answer (${failure.message}); the terminal may say why`);
  }
  if (button) button.disabled = false;
  const { again } = asking[part];
  delete asking[part];
  if (again !== undefined && mine !== query()) await ask(part, again);
}

function wrong({ error, name }, part) {
  if (part !== "search" && part !== "flow") say(`${part}-words`, error);
  else {
    byId("error").hidden = false;
    say("error", error);
    fields[name]?.text.setAttribute("aria-invalid", "true");
  }
}

function fill(name, columns) {
  for (const doc of Bokeh.documents) {
    const source = doc.get_model_by_name(name);
    if (source) source.data = columns;
  }
}

function empty(name) {
  for (const doc of Bokeh.documents) {
    const source = doc.get_model_by_name(name);
    if (source) source.data = Object.fromEntries([...source.data.keys?.() ?? Object.keys(source.data)].map((key) => [key, []]));
  }
}

// The logarithmic axis ends seven decades below the largest loss, where the errors of the integrator are.
function seen(losses) {
  const floor = 1e-7 * Math.max(...losses.filter((value) => value !== null));
  return losses.map((value) => (value === null || value < floor ? NaN : value));
}

function drawFlow(flow) {
  const t = whole(flow.t);
  fill("flow", { t, loss: seen(flow.loss), overlap: whole(flow.target_overlap) });
  fill("up", { t: flow.u.map(() => t), overlap: flow.u.map(whole) });
  fill("learnt", { t: flow.m.map(() => t), overlap: flow.m.map(whole) });
  fill("escape", { t: flow.escape_time === null ? [] : [flow.escape_time] });
  byId("ask-flow").hidden = !flow.words.includes("slider");
  const escape = flow.escape_time === null ? "no escape within 20 τ" : `escape at t = ${shown(flow.escape_time)} (red)`;
  say("flow-words", `From the typical start: ${escape}. ${flow.words}`);
}

const draw = {
  search(answer) {
    fast = answer.fast;
    latest = answer;
    byId("error").hidden = true;
    for (const { text } of Object.values(fields)) text.removeAttribute("aria-invalid");
    fill("curve", { strength: answer.strength, tau: whole(answer.curve) });
    const [strength, alignment] = answer.place;
    yieldToMixture(answer.place);
    fill("here", { strength: [strength], tau: whole([answer.tau]) });
    fill("place", { strength: [strength], alignment: [alignment] });
    fill("critical", { strength: answer.critical });
    const numbers = ["C", "D", "G", "noise", "loss", "rate", "tau", "theta"].map((name) => `${name} ${name === "tau" && answer.tau === null ? "infinite" : shown(answer[name])}`);
    const zeros = answer.critical.length ? `The gradient vanishes at strength ${answer.critical.map(shown).join(", ")}.` : "The gradient vanishes nowhere here.";
    say("search-words", `${numbers.join(", ")}. ${zeros}`);
    drawFlow(answer.flow);
    say("command", answer.command);
    say("python", answer.python);
    if (!fast) say("flow-words", `${byId("flow-words").textContent} This link has no closed formulas: it is computed when the sliders rest.`);
  },
  flow: drawFlow,
  law(answer) {
    fill("law", { t: answer.t, level: answer.level });
    if (answer.words) return say("law-words", `No law of the escape time: ${answer.words}.`);
    const quantiles = Object.entries(answer.quantiles).map(([level, time]) => `${level}: ${shown(time)}`);
    say("law-words", `Mean ${shown(answer.mean)} (± ${shown(answer.mean_error)}), spread ${shown(answer.std)}; quantiles ${quantiles.join(", ")}.`);
  },
  region(answer) {
    const slope = answer.slope === null ? "" : ` (slope in the strength ${shown(answer.slope)})`;
    const time = answer.time === null ? "" : ` Mean time to leading order ${shown(answer.time)}${slope}.`;
    const doubt = answer.words ? ` Not to be trusted: ${answer.words}.` : "";
    say("region-words", `This place: ${answer.name} (${answer.meaning}).${time}${doubt}`);
  },
  diagram(answer) {
    const size = (n) => answer.region.map(() => answer.size[n]);
    const colour = answer.region.map((name) => regions[name].colour);
    fill("diagram", { strength: answer.strength, alignment: answer.alignment, region: answer.region, colour, width: size(0), height: size(1) });
    byId("diagram-words").replaceChildren(
      ...[...new Set(answer.region)].flatMap((name) => {
        const swatch = Object.assign(document.createElement("span"), { className: "swatch", title: regions[name].meaning });
        swatch.style.background = regions[name].colour;
        return [swatch, name];
      }),
    );
  },
  chain(answer) {
    if (answer.words) return say("chain-words", `Nothing is simulated: ${answer.words}.`);
    const [t, loss, overlap] = [answer.loss.map(() => answer.t), answer.loss.map(seen), answer.target_overlap.map(whole)];
    fill("seeds", { t, loss, overlap });
    const times = answer.escape_times.filter((time) => time !== null).sort((a, b) => a - b);
    const count = answer.escape_times.length;
    fill("escapes", { t: [0, ...times], level: [0, ...times.map((_, n) => (n + 1) / count)] });
    const mean = times.length ? `, on average at t = ${shown(times.reduce((a, b) => a + b) / times.length)}` : "";
    say("chain-words", `${times.length} of ${count} seeds escaped${mean}. They are drawn in grey, their escape times in the plot of the law.`);
  },
};

// Plots take the colours of the page, which follow the browser's preference for light or dark.
function paint() {
  const style = getComputedStyle(document.documentElement);
  const [text, ground, quiet, grid, accent] = ["--text", "--card", "--quiet", "--grid", "--accent"].map((name) => style.getPropertyValue(name).trim());
  for (const plot of Bokeh.documents.flatMap((doc) => doc.roots())) {
    plot.setv({ background_fill_color: ground, border_fill_color: ground, outline_line_color: ground });
    plot.title.text_color = text;
    for (const axis of [...plot.below, ...plot.left]) {
      axis.setv({ axis_label_text_color: text, major_label_text_color: text, axis_line_color: quiet, major_tick_line_color: quiet, minor_tick_line_color: quiet });
    }
    for (const { name, glyph } of plot.renderers) {
      if (name === "theory") glyph.line_color = { value: accent };
      if (name === "cross") glyph.line_color = { value: text };
    }
    for (const part of plot.center) {
      if (part.type === "Grid") part.grid_line_color = grid;
      if (part.type === "Legend") part.setv({ label_text_color: text, background_fill_color: ground, border_line_color: grid });
    }
  }
}

async function copy(words, what) {
  try {
    await navigator.clipboard.writeText(words);
    log(`${what} is copied`);
  } catch {
    log(`the browser does not let the page copy: ${what} is written below`);
  }
}

CONTROLS.forEach(control);
restore();
const start = await (await fetch("start")).json();
regions = start.regions;
for (const name of start.links) byId("links").append(Object.assign(document.createElement("option"), { value: name }));
for (const [name, item] of Object.entries(start.figures)) await Bokeh.embed.embed_item(item, name);
paint();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
say("ask-chain", `Simulate ${start.seeds} seeds`);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
for (const part of ["flow", "diagram", "chain"]) byId(`ask-${part}`).addEventListener("click", () => ask(part));
byId("copy-address").addEventListener("click", () => copy(location.href, "the address"));
byId("copy-command").addEventListener("click", () => copy(latest.command, "the command"));
byId("copy-python").addEventListener("click", () => copy(latest.python, "the Python code"));
addEventListener("popstate", () => {
  restore();
  rested();
});
await ask("search");
await ask("law");
await ask("region");
