// Draws the page: curves, panels and the table of samples. report_numbers.js computes the numbers.

// Creates an element with attributes and children. Text is inserted as text, never as markup.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "title", "clipPath", "rect"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.map((child) => child instanceof Node ? child : String(child)));
  return element;
}

// Methods are told apart by colour (for light and for dark pages, see the style sheet), by the dashes of their line and
// by the shape of their point.
const COLOURS = 8, DASHES = ["", "8 4", "2 3", "10 3 2 3", "5 2", "14 4"];
const SHAPES = ["M-7 0a7 7 0 1 0 14 0a7 7 0 1 0-14 0Z", "M-6.5-6.5H6.5V6.5H-6.5Z", "M0-8.5L8 6H-8Z", "M0-9L9 0L0 9L-9 0Z", "M0 8.5L8-6H-8Z",
  "M-3-8H3V-3H8V3H3V8H-3V3H-8V-3H-3Z", "M0-8L7.5-4V4L0 8L-7.5 4V-4Z"];
const colourOf = (index) => `var(--m${index % COLOURS})`;
const dashOf = (index) => DASHES[index % DASHES.length], shapeOf = (index) => SHAPES[index % SHAPES.length];
const FIXED = "M-6-6L6 6M-6 6L6-6"; // a model without exits

const METRIC_NAMES = { f1: "F1", matthews_correlation: "Matthews correlation", pearson: "Pearson correlation",
  spearmanr: "Spearman correlation", f1_micro: "micro F1", f1_macro: "macro F1" };
const METRIC = METRIC_NAMES[data.metric] || data.metric;
const percent = (value, digits = 1) => value === null ? "not defined" : (100 * value).toFixed(digits) + " %";
const bandText = (band, digits = 1) => band ? `${percent(band[0], digits)} to ${percent(band[1], digits)}` : "";
// In a sentence the sign stays with its number.
const inText = (text) => text.replaceAll(" %", "\u00a0%");
const noBetter = (score) => data.majority !== null && score !== null && score <= data.majority;
// All thresholds and scores of a method have equally many decimals: none if they are whole numbers, and otherwise four, or
// as many more as tell the thresholds apart.
data.methods.forEach((method) => {
  const thresholds = [...new Set(method.thresholds.flat().filter((value) => value !== null && Math.abs(value) < 1e6))];
  const apart = (decimals) => new Set(thresholds.map((value) => value.toFixed(decimals))).size === thresholds.length;
  const whole = [...thresholds, ...method.scores.flat()].every((value) => value === null || Number.isInteger(value));
  method.decimals = whole ? 0 : [4, 5, 6, 7].find(apart) || 8;
});
const number = (value, method) => value === null ? "none" : Array.isArray(value) ? value.map((each) => number(each, method)).join(", ") :
  Math.abs(value) < 1e6 ? value.toFixed(method.decimals) : value.toExponential(1);
const thresholdName = (threshold, method) => threshold === null ? "full depth" : number(threshold, method);
const setName = (set) => data.labels.filter((_, label) => set[label] === "1").join(", ") || "none";
const className = (value) => value === null ? "not finite" : data.label_sets ? setName(value) :
  data.labels ? data.labels[value] : Number(value.toFixed(3)).toString();
const id = (index, what) => `m${index}-${what}`;

const symbol = (index, dashed) => make("svg", { viewBox: dashed ? "-24 -10 48 20" : "-10 -10 20 20", class: "symbol", "aria-hidden": "true" },
  ...(dashed ? [make("path", { d: "M-24 0H24", stroke: colourOf(index), "stroke-width": 3, "stroke-dasharray": dashOf(index) })] : []),
  make("path", { d: shapeOf(index), fill: colourOf(index), stroke: "var(--page)", "stroke-width": 1.5 }));

// What a point of the chart says when the mouse is on it, or the keyboard.
function pointText(method, point) {
  const where = point.threshold === null ? "full depth" : `threshold ${thresholdName(point.threshold, method)}`;
  const band = point.band ? ` (95 %: ${bandText(point.band)})` : "", low = noBetter(point.score) ? ", no better than the majority" : "";
  return [`${method.name}, ${where}`, `${METRIC} ${percent(point.score)}${band}${low}`, `${point.mean_layers.toFixed(2)} layers, ${percent(point.saving)} saved`];
}

function drawCurves() {
  const place = document.getElementById("curves"), pad = { left: 62, right: 20, top: 14, bottom: 46 };
  const width = Math.max(320, place.clientWidth), height = Math.min(400, Math.max(280, width / 2));
  const points = data.methods.flatMap((method) => method.curve).filter((point) => point.score !== null);
  if (!points.length) {
    place.replaceChildren(make("p", {}, `${METRIC} is not defined for these labels and predictions.`));
    return;
  }
  const depth = Math.max(...data.fixed.map((model) => model.layers), ...data.methods.map((method) => method.exit_layers[method.exit_layers.length - 1]));
  const shown = [...points.map((point) => point.score), ...points.flatMap((point) => point.band || []), ...data.fixed.map((model) => model.score)];
  let low = Math.min(...shown), high = Math.max(...shown);
  // The majority is shown in its place, unless that would press the curves together.
  const span = Math.max(high - low, .05), majorityFits = data.majority !== null && data.majority > low - span && data.majority < high + span;
  if (majorityFits) { low = Math.min(low, data.majority); high = Math.max(high, data.majority); }
  const room = Math.max((high - low) * .08, .005);
  low -= room; high += room;
  const x = (layers) => pad.left + (layers - 1) / Math.max(depth - 1, 1) * (width - pad.left - pad.right);
  const y = (score) => height - pad.bottom - (score - low) / (high - low) * (height - pad.top - pad.bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", tabindex: -1,
    "aria-label": `${METRIC} against mean layers run. The arrow keys go from point to point; Enter moves the slider of the method to it.` });
  const tip = make("div", { class: "tip", hidden: "" });
  const step = [.001, .002, .005, .01, .02, .05, .1, .2, .5].find((size) => (high - low) / size <= 6) || 1;
  for (let score = Math.ceil(low / step) * step; score <= high; score += step) {
    svg.append(make("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(score), y2: y(score) }),
      make("text", { x: pad.left - 8, y: y(score) + 5, "text-anchor": "end" }, (100 * score).toFixed(step < .01 ? 1 : 0)));
  }
  const every = Math.ceil(depth / ((width - pad.left - pad.right) / 26));
  for (let layer = 1; layer <= depth; layer += every)
    svg.append(make("text", { x: x(layer), y: height - pad.bottom + 20, "text-anchor": "middle" }, layer));
  svg.append(make("line", { class: "axis", x1: pad.left, x2: width - pad.right, y1: height - pad.bottom, y2: height - pad.bottom }),
    make("text", { x: (pad.left + width - pad.right) / 2, y: height - 6, "text-anchor": "middle" }, `mean layers run, of ${depth}`),
    make("text", { x: -(height - pad.bottom) / 2, y: 15, "text-anchor": "middle", transform: "rotate(-90)" }, `${METRIC} (%)`));
  const legend = make("ul", { class: "legend" }), hits = [], marks = [];
  const key = (sign, text) => legend.append(make("li", {}, sign, text));
  const sign = (...parts) => make("svg", { viewBox: "-24 -10 48 20", class: "symbol", "aria-hidden": "true" }, ...parts);
  if (data.majority !== null) {
    if (majorityFits) svg.append(make("line", { class: "majority", x1: pad.left, x2: width - pad.right, y1: y(data.majority), y2: y(data.majority) }));
    else svg.append(make("text", { class: "note", x: pad.left + 4, y: data.majority < low ? height - pad.bottom - 6 : pad.top + 4 },
      `${data.majority < low ? "below" : "above"} this range: the majority, ${percent(data.majority)}`));
  }
  data.methods.forEach((method, index) => {
    const curve = method.curve.filter((point) => point.score !== null), banded = curve.filter((point) => point.band);
    const at = (point, score) => `${x(point.mean_layers).toFixed(1)} ${y(score).toFixed(1)}`;
    if (banded.length > 1) svg.append(make("path", { class: "band", fill: colourOf(index), stroke: colourOf(index), "stroke-dasharray": dashOf(index),
      d: `M${[...banded.map((point) => at(point, point.band[1])), ...banded.slice().reverse().map((point) => at(point, point.band[0]))].join("L")}Z` }));
  });
  data.methods.forEach((method, index) => {
    const curve = method.curve.filter((point) => point.score !== null), full = curve.find((point) => point.threshold === null);
    if (full) svg.append(make("line", { class: "full", x1: pad.left, x2: width - pad.right, y1: y(full.score), y2: y(full.score), stroke: colourOf(index) }));
    svg.append(make("path", { fill: "none", stroke: colourOf(index), "stroke-width": 2.5, "stroke-dasharray": dashOf(index),
      d: curve.map((point, i) => `${i ? "L" : "M"}${x(point.mean_layers).toFixed(1)} ${y(point.score).toFixed(1)}`).join("") }));
    curve.forEach((point) => hits.push({ x: x(point.mean_layers), y: y(point.score), text: pointText(method, point),
      choose: () => { document.getElementById(id(index, "slider")).value = method.curve.indexOf(point); moved(index, method.curve.indexOf(point)); } }));
    // One exit for all texts needs no threshold: with one method there is room to show how each exit would do.
    if (data.methods.length === 1) method.exit_layers.forEach((layer, k) => {
      const score = method.layer_scores[k];
      if (score === null || score < low || score > high) return;
      svg.append(make("path", { d: "M-4 0H4M0-4V4", transform: `translate(${x(layer)} ${y(score)})`, class: "alone", stroke: colourOf(index) }));
      marks.push({ x: x(layer), y: y(score) });
      hits.push({ x: x(layer), y: y(score), text: [`all texts leave after layer ${layer}`, `${METRIC} ${percent(score)}${noBetter(score) ? ", no better than the majority" : ""}`] });
    });
    key(symbol(index, true), method.name);
  });
  data.fixed.forEach((model) => {
    svg.append(make("path", { d: FIXED, class: "fixed", transform: `translate(${x(model.layers)} ${y(model.score)})` }));
    marks.push({ x: x(model.layers), y: y(model.score) });
    hits.push({ x: x(model.layers), y: y(model.score), text: [`${model.name}, without exits`, `${METRIC} ${percent(model.score)}`, `${model.layers} layers`] });
  });
  if (data.methods.length === 1) key(sign(make("path", { d: "M-6 0H6M0-6V6", class: "alone", stroke: colourOf(0) })), "one exit for all texts");
  if (data.fixed.length) key(sign(make("path", { d: FIXED, class: "fixed" })), `without exits: ${data.fixed.map((model) => model.name).join(", ")}`);
  if (data.methods.some((method) => method.bands.some(Boolean))) key(sign(make("rect", { x: -24, y: -8, width: 48, height: 16, class: "band", fill: colourOf(0), stroke: colourOf(0) })), inText("95 % of resamples"));
  key(sign(make("line", { x1: -24, x2: 24, y1: 0, y2: 0, class: "full", stroke: colourOf(0) })), "full depth");
  if (majorityFits) key(sign(make("line", { x1: -24, x2: 24, y1: 0, y2: 0, class: "majority" })), inText(`majority (always the most frequent answer): ${percent(data.majority)}`));
  const dots = data.methods.map((method, index) => {
    const leader = make("line", { class: "leader", stroke: colourOf(index) });
    const dot = make("path", { id: id(index, "dot"), d: shapeOf(index), fill: colourOf(index), stroke: "var(--page)", "stroke-width": 2 });
    svg.append(leader, dot);
    return { method, index, leader, dot, at: null };
  });
  // A point that would lie on another one is shown beside it, with a line to its place.
  data.placeDots = () => {
    const taken = marks.slice();
    dots.forEach((drawn) => {
      const { method, leader, dot } = drawn;
      const visible = method.now.score === null ? "hidden" : "visible", left = x(method.now.layers), top = y(method.now.score);
      dot.setAttribute("visibility", visible);
      leader.setAttribute("visibility", visible);
      drawn.at = null;
      if (visible === "hidden") return;
      const free = (a, b) => taken.every((other) => Math.hypot(other.x - a, other.y - b) >= 17) &&
        a >= pad.left - 2 && a <= width - 8 && b >= 8 && b <= height - pad.bottom - 4;
      const ways = [[0, 0]];
      for (let far = 18; far <= 90; far += 9) for (let turn = 0; turn < 12; turn++) ways.push([far * Math.cos(turn * Math.PI / 6), -far * Math.sin(turn * Math.PI / 6)]);
      const [dx, dy] = ways.find(([a, b]) => free(left + a, top + b)) || [0, 0];
      drawn.at = { x: left + dx, y: top + dy };
      taken.push(drawn.at);
      dot.setAttribute("transform", `translate(${(left + dx).toFixed(1)} ${(top + dy).toFixed(1)})`);
      for (const [name, value] of Object.entries({ x1: left, y1: top, x2: left + dx, y2: top + dy })) leader.setAttribute(name, value.toFixed(1));
    });
  };
  data.placeDots();
  // Values: of the filled shape or of the nearest point under the mouse, or of the point that has the focus.
  const show = (hit) => {
    tip.replaceChildren(...hit.text.map((line) => make("div", {}, inText(line))));
    tip.hidden = false;
    const scale = svg.clientWidth / width, half = tip.offsetWidth / 2;
    tip.style.left = `${Math.min(Math.max(hit.x * scale, half), place.clientWidth - half)}px`;
    tip.style.top = `${hit.y * scale + (hit.y < 90 ? 14 : -14)}px`;
    tip.classList.toggle("below", hit.y < 90);
  };
  const ring = (hit, k) => make("path", { class: "hit", d: SHAPES[0], transform: `translate(${hit.x.toFixed(1)} ${hit.y.toFixed(1)})`, role: hit.choose ? "button" : "img",
    tabindex: k ? -1 : 0, "aria-label": inText(hit.text.join(", ")), onfocus: () => show(hit), onblur: () => { tip.hidden = true; },
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) rings[(k + step + rings.length) % rings.length].focus();
      else if (["Enter", " "].includes(event.key) && hit.choose) hit.choose();
      else return;
      event.preventDefault();
    } });
  const rings = hits.map(ring);
  svg.append(...rings);
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), scale = width / box.width;
    const far = (hit) => Math.hypot(hit.x - (event.clientX - box.left) * scale, hit.y - (event.clientY - box.top) * scale);
    const dot = dots.find(({ at }) => at && far(at) < 9);
    if (dot) return { ...dot.at, text: pointText(dot.method, dot.method.curve[state.at[dot.index]]) };
    const hit = hits.reduce((best, other) => far(other) < far(best) ? other : best);
    return far(hit) < 30 ? hit : null;
  };
  svg.addEventListener("pointermove", (event) => { const hit = nearest(event); if (hit) show(hit); else tip.hidden = true; });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  svg.addEventListener("click", (event) => { const hit = nearest(event); if (hit && hit.choose) hit.choose(); });
  place.replaceChildren(make("div", { class: "chart" }, svg, tip), legend);
}

function makePanels() {
  document.getElementById("methods").replaceChildren(...data.methods.map((method, index) => {
    const slider = make("input", { type: "range", id: id(index, "slider"), min: 0, max: method.curve.length - 1, step: 1,
      style: `accent-color:${colourOf(index)}`, value: state.at[index], oninput: (event) => moved(index, Number(event.target.value)) });
    const depth = method.exit_layers[method.exit_layers.length - 1];
    const names = { threshold: "threshold", score: METRIC, layers: `mean layers run, of ${depth}`, saving: "layers saved",
      ...(method.flops ? { flops: "FLOPs saved" } : {}) };
    const figures = make("dl", { class: "figures" }, ...Object.entries(names).map(([key, name]) => make("div", {},
      make("dt", {}, name), make("dd", { id: id(index, key) }), ...(key === "score" ? [make("dd", { class: "small", id: id(index, "band") })] : []))),
      make("div", {}, make("dt", {}, `${METRIC} at full depth`), make("dd", {}, percent(method.layer_scores[method.layer_scores.length - 1], 2))),
      ...(data.majority === null ? [] : [make("div", {}, make("dt", {}, "majority baseline"), make("dd", {}, percent(data.majority, 2)))]));
    return make("article", { class: "panel", "aria-labelledby": id(index, "name") },
      make("h3", { id: id(index, "name") }, symbol(index), method.name), make("p", {}, method.rule),
      make("label", { for: id(index, "slider") }, "fewer layers \u2194 more layers"), slider, figures, make("p", { class: "warning", id: id(index, "warning"), role: "status" }),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `exits of ${method.name}` }, exitsTable(method, index)));
  }));
}

function exitsTable(method, index) {
  method.bars = method.exit_layers.map(() => ({ count: make("td"), share: make("span", { class: "share" }), bar: make("span", { class: "bar", style: `background:${colourOf(index)}` }) }));
  const low = method.layer_scores.some(noBetter) ? " \u25bc: no better than the majority." : "";
  return make("table", { id: id(index, "exits") }, make("caption", {}, `Samples that leave at each exit, and the score of each exit on all samples.${low}`),
    make("thead", {}, make("tr", {}, ...[["layer"], ["samples", 2], [`${METRIC} on all samples`]].map(([name, colspan]) => make("th", { scope: colspan ? "colgroup" : "col", colspan }, name)))),
    make("tbody", {}, ...method.exit_layers.map((layer, k) => make("tr", {}, make("th", { scope: "row" }, layer), method.bars[k].count,
      make("td", { class: "wide" }, make("div", {}, method.bars[k].bar, method.bars[k].share)), make("td", {}, percent(method.layer_scores[k]) + (noBetter(method.layer_scores[k]) ? "\u00a0\u25bc" : ""))))));
}

function fillPanel(method, index) {
  const now = method.now, point = method.curve[state.at[index]];
  const show = { threshold: thresholdName(point.threshold, method), score: percent(now.score, 2), band: point.band ? `95 %: ${bandText(point.band)}` : "",
    layers: now.layers.toFixed(2), saving: percent(now.saving), warning: warningOf(method), ...(method.flops ? { flops: percent(now.flops) } : {}) };
  for (const [key, value] of Object.entries(show)) document.getElementById(id(index, key)).textContent = value;
  document.getElementById(id(index, "slider")).setAttribute("aria-valuetext",
    `threshold ${show.threshold}: ${METRIC} ${show.score}, ${show.layers} layers. ${show.warning}`);
  method.bars.forEach(({ count, share, bar }, k) => {
    count.textContent = now.counts[k];
    share.textContent = percent(now.counts[k] / data.truth.length);
    bar.style.width = `calc((100% - 4rem) * ${now.counts[k] / data.truth.length})`;
  });
}

// What is wrong with the chosen threshold, if anything is.
function warningOf(method) {
  if (noBetter(method.now.score)) return inText(`This is no better than always giving the most frequent answer (${percent(data.majority, 2)}).`);
  const same = method.exit_layers.filter((_, k) => method.now.counts[k] && data.truth.length > 1 && constant(method.answers.map((row) => row[k])));
  return same.length ? `The exit after layer ${same.join(" and layer ")} gives the same answer to all texts.` : "";
}

function choice(name, label, values, chosen) {
  const select = make("select", { id: `filter-${name}`, onchange: (event) => { state[name] = name === "method" ? Number(event.target.value) : event.target.value;
    if (name === "method") { state.layer = "all"; state.explain = "none"; makeFilters(); } filtered(); } },
    ...values.map(([value, text]) => make("option", String(value) === String(chosen) ? { value, selected: "" } : { value }, text)));
  return make("div", {}, make("label", { for: `filter-${name}` }, label), select);
}

// Values that exist at several layers can be shown at the exit layer of each sample.
const AT_LAYER = / at layer \d+$/;
function makeFilters() {
  const method = data.methods[state.method], explained = method.attributions ? method.attributions.names : [];
  const everywhere = new Set(explained.filter((name) => AT_LAYER.test(name)).map((name) => name.replace(AT_LAYER, "")));
  const values = [...[...everywhere].map((name) => [name, `${name} at the exit of each sample`]), ...explained.map((name) => [name, name])];
  const parts = [choice("layer", "exit layer", [["all", "any"], ...method.exit_layers.map((layer) => [layer, layer])], state.layer)];
  if (data.methods.length > 1) parts.unshift(choice("method", "method", data.methods.map(({ name }, index) => [index, name]), state.method));
  if (data.labels) parts.push(choice("right", "prediction", [["all", "any"], ["right", "correct"], ["wrong", "wrong"],
    ["lost", "wrong, but correct at full depth"], ["won", "correct, but wrong at full depth"]], state.right));
  if (explained.length) parts.push(choice("explain", "colour tokens by", [["none", "nothing"], ...values], state.explain));
  if (data.texts) parts.push(make("div", {}, make("label", { for: "filter-search" }, "text contains"), make("input", { type: "search",
    id: "filter-search", value: state.search, oninput: (event) => { state.search = event.target.value; filtered(); } })));
  document.getElementById("filters").replaceChildren(...parts);
}

// Tokens of a sample with the values chosen in the filter; null if the sample has none.
function explanation(method, sample, layer) {
  const { names, samples } = method.attributions || { names: [], samples: [] }, explained = samples[sample];
  const name = names.includes(state.explain) ? state.explain : `${state.explain} at layer ${layer}`;
  const row = explained && explained.rows[names.indexOf(name)];
  if (!row) return null;
  const [step, digits] = row, zero = (data.digits.length - 1) / 2;
  const text = data.texts && [].concat(data.texts[sample]).join("\n");
  let start = 0;
  return [...digits].map((digit, i) => {
    let token = explained.tokens[i];
    if (typeof token === "number") { // the length of the token in the text
      token = text.slice(start, start + token);
      start += token.length + explained.separator.length;
    }
    return { token, value: step * (data.digits.indexOf(digit) - zero) };
  });
}

const signed = (value) => (value < 0 ? "\u2212" : "+") + Number(Math.abs(value).toPrecision(2));

// Coloured tokens, and below them the largest values as text, for readers who cannot see the colours or use a mouse.
function explainedCell(tokens, separator) {
  const most = Math.max(...tokens.map(({ value }) => Math.abs(value))) || 1;
  const strongest = tokens.filter(({ token, value }) => value && token.trim()).sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 5);
  return make("td", { class: "text explained" }, ...tokens.flatMap(({ token, value }) => {
    const [, before, word, after] = token.match(/^(\s*)(.*?)(\s*)$/s); // spaces are not coloured
    return [before, make("span", { class: "token", title: signed(value),
      style: `background:rgba(var(--${value < 0 ? "minus" : "plus"}),${(.75 * Math.abs(value) / most).toFixed(3)})` }, word), after + separator];
  }), make("div", { class: "strongest" }, "largest effect: ", strongest.map(({ token, value }) => `${token.trim()} ${signed(value)}`).join(" \u00b7 ") || "none"));
}

function textCell(method, sample, layer) {
  const tokens = explanation(method, sample, layer);
  if (tokens) return explainedCell(tokens, method.attributions.samples[sample].separator);
  const text = data.texts ? data.texts[sample] : `sample ${sample}`;
  if (!Array.isArray(text)) return make("td", { class: "text" }, text);
  return make("td", { class: "text" }, make("div", {}, text[0]), make("div", { class: "pair" }, text[1]));
}

function fillConfusion(samples, now) {
  const table = document.getElementById("confusion");
  table.parentElement.hidden = !data.labels || data.labels.length > 20;
  if (table.parentElement.hidden) return;
  if (data.label_sets) {
    const has = (set, label) => set !== null && set[label] === "1";
    const heads = ["label", "given", "predicted", "both"];
    table.replaceChildren(
      make("caption", {}, "Labels of the samples below: how often each is given, predicted, and both."),
      make("thead", {}, make("tr", {}, ...heads.map((name, k) => make("th", { scope: "col", class: k ? "" : "name" }, name)))),
      make("tbody", {}, ...data.labels.map((name, label) => make("tr", {}, make("th", { scope: "row", class: "name" }, name),
        make("td", {}, samples.filter((i) => has(data.truth[i], label)).length),
        make("td", {}, samples.filter((i) => has(now.answers[i], label)).length),
        make("td", { class: "right" }, samples.filter((i) => has(data.truth[i], label) && has(now.answers[i], label)).length)))));
    return;
  }
  const count = (truth, answer) => samples.filter((i) => data.truth[i] === truth && now.answers[i] === answer).length;
  table.replaceChildren(
    make("caption", {}, "Confusion matrix of the samples below: rows are labels, columns are predictions."),
    make("thead", {}, make("tr", {}, make("th", { scope: "col", class: "name" }, "label"),
      ...data.labels.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...data.labels.map((name, truth) => make("tr", {}, make("th", { scope: "row", class: "name" }, name),
      ...data.labels.map((_, answer) => make("td", { class: truth === answer ? "right" : "" }, count(truth, answer)))))));
}

// Another choice of samples starts with the first ones again.
function filtered() {
  state.rows = data.most_rows;
  fillSamples();
}

function fillSamples() {
  const method = data.methods[state.method], now = method.now;
  const last = method.exit_layers.length - 1, search = state.search.toLowerCase();
  const samples = data.truth.map((_, i) => i).filter((i) => {
    const right = now.answers[i] === data.truth[i], full = method.answers[i][last] === data.truth[i];
    return (state.layer === "all" || method.exit_layers[now.exits[i]] === Number(state.layer)) &&
      ({ all: true, right, wrong: !right, lost: !right && full, won: right && !full })[state.right] &&
      (!search || String(data.texts[i]).toLowerCase().includes(search));
  });
  const shown = samples.slice(0, state.rows), rest = samples.length - shown.length;
  document.getElementById("shown").textContent = `${samples.length} of ${data.truth.length} samples` +
    (rest ? `, the first ${shown.length} are shown` : "");
  const more = document.getElementById("more");
  more.hidden = !rest;
  more.textContent = `Show ${Math.min(rest, data.most_rows)} more of ${rest}`;
  document.getElementById("colours").hidden = state.explain === "none";
  const explained = method.attributions ? method.attributions.samples.length : 0;
  document.getElementById("explained").textContent = explained < data.truth.length ? `Only the first ${explained} samples have such values.` : "";
  fillConfusion(samples, now);
  const rows = shown.map((i) => {
    const key = `${now.exits[i]} ${state.explain}`;
    if (!method.rows[i] || method.rows[i].key !== key) method.rows[i] = { key, row: sampleRow(method, i, now.exits[i]) };
    return method.rows[i].row;
  });
  // Replace only the rows that changed, so that the browser lays out only those again.
  const table = document.getElementById("table"), same = `${state.method}: ${shown}`;
  if (table.dataset.shown === same) {
    rows.forEach((row, k) => { if (table.tBodies[0].rows[k] !== row) table.tBodies[0].rows[k].replaceWith(row); });
    return;
  }
  table.dataset.shown = same;
  // On a narrow screen the table is a list of cards. The roles keep it a table for screen readers there, too.
  table.replaceChildren(make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...columnsOf(method).map(([name, kind]) =>
    make("th", { scope: "col", role: "columnheader", class: kind }, name)))), make("tbody", { role: "rowgroup" }, ...rows));
}

const columnsOf = (method) => [["sample", ""], ["text", "text"], ["label", "name"], ["prediction", "name"], ["exit layer", ""], [method.criterion, ""],
  ["at full depth", "name"]];

function sampleRow(method, i, exit) {
  const answer = method.answers[i][exit], score = method.scores[i][exit], layer = method.exit_layers[exit];
  const right = answer === data.truth[i], mark = data.labels ? (right ? "\u00a0\u2713" : "\u00a0\u2717") : "";
  const cells = [make("td", {}, i), textCell(method, i, layer), make("td", { class: "name" }, className(data.truth[i])),
    make("td", { class: data.labels ? `name ${right ? "right" : "wrong"}` : "name" }, className(answer) + mark),
    make("td", {}, layer), make("td", {}, score === null ? "not finite" : number(score, method)),
    make("td", { class: "name" }, className(method.answers[i][method.exit_layers.length - 1]))];
  columnsOf(method).forEach(([name], k) => { cells[k].dataset.name = name; cells[k].setAttribute("role", "cell"); });
  return make("tr", { role: "row" }, ...cells);
}

// A slider moved: update its panel and dot immediately, and the table with the next frame.
let waiting = false;
function moved(index, place) {
  const method = data.methods[index];
  choose(index, place);
  fillPanel(method, index);
  if (data.placeDots) data.placeDots();
  if (waiting || index !== state.method) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; fillSamples(); });
}

document.getElementById("summary").textContent = `${data.truth.length} samples, ${data.methods.length} ` +
  `${data.methods.length === 1 ? "method" : "methods"}, ${METRIC}. ${data.note}`;
makePanels();
makeFilters();
drawCurves();
data.methods.forEach(fillPanel);
fillSamples();
document.getElementById("more").addEventListener("click", () => { state.rows += data.most_rows; fillSamples(); });
window.addEventListener("resize", drawCurves);
