// Draws the page: curves, panels and the table of samples. report_numbers.js computes the numbers.

// Creates an element with attributes and children. Text is inserted as text, never as markup.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.map((child) => child instanceof Node ? child : String(child)));
  return element;
}

const percent = (value, digits = 1) => value === null ? "not defined" : (100 * value).toFixed(digits) + " %";
const number = (value) => value === null ? "none" : Array.isArray(value) ? value.map(number).join(", ") : Number(value.toPrecision(5)).toString();
const thresholdName = (threshold) => threshold === null ? "full depth" : number(threshold);
const setName = (set) => data.labels.filter((_, label) => set[label] === "1").join(", ") || "none";
const className = (value) => value === null ? "not finite" : data.label_sets ? setName(value) :
  data.labels ? data.labels[value] : Number(value.toFixed(3)).toString();
const id = (index, what) => `m${index}-${what}`;

function drawCurves() {
  const place = document.getElementById("curves"), pad = { left: 62, right: 16, top: 14, bottom: 46 };
  const width = Math.max(320, place.clientWidth), height = Math.min(380, Math.max(260, width / 2));
  const points = data.methods.flatMap((method) => method.curve).filter((point) => point.score !== null);
  if (!points.length) {
    place.replaceChildren(make("p", {}, `${data.metric} is not defined for these labels and predictions.`));
    return;
  }
  const depth = Math.max(...data.methods.map((method) => method.exit_layers[method.exit_layers.length - 1]));
  let low = Math.min(...points.map((point) => point.score)), high = Math.max(...points.map((point) => point.score));
  const room = Math.max((high - low) * .08, .005);
  low -= room; high += room;
  const x = (layers) => pad.left + (layers - 1) / Math.max(depth - 1, 1) * (width - pad.left - pad.right);
  const y = (score) => height - pad.bottom - (score - low) / (high - low) * (height - pad.top - pad.bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${data.metric} against mean layers run; the panels below show the same numbers` });
  const step = [.001, .002, .005, .01, .02, .05, .1, .2, .5].find((size) => (high - low) / size <= 6) || 1;
  for (let score = Math.ceil(low / step) * step; score <= high; score += step) {
    svg.append(make("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(score), y2: y(score) }),
      make("text", { x: pad.left - 8, y: y(score) + 5, "text-anchor": "end" }, (100 * score).toFixed(step < .01 ? 1 : 0)));
  }
  for (let layer = 1; layer <= depth; layer += depth > 14 ? 2 : 1)
    svg.append(make("text", { x: x(layer), y: height - pad.bottom + 20, "text-anchor": "middle" }, layer));
  svg.append(make("line", { class: "axis", x1: pad.left, x2: width - pad.right, y1: height - pad.bottom, y2: height - pad.bottom }),
    make("text", { x: (pad.left + width - pad.right) / 2, y: height - 6, "text-anchor": "middle" }, "mean layers run"),
    make("text", { x: -(height - pad.bottom) / 2, y: 15, "text-anchor": "middle", transform: "rotate(-90)" }, `${data.metric} (%)`));
  const legend = make("ul", { class: "legend" });
  data.methods.forEach((method, index) => {
    const colour = COLOURS[index % COLOURS.length], dash = DASHES[index % DASHES.length];
    const curve = method.curve.filter((point) => point.score !== null);
    const full = curve.find((point) => point.threshold === null);
    const line = curve.map((point, i) => `${i ? "L" : "M"}${x(point.mean_layers).toFixed(1)} ${y(point.score).toFixed(1)}`).join("");
    if (full) svg.append(make("line", { x1: pad.left, x2: width - pad.right, y1: y(full.score), y2: y(full.score),
      stroke: colour, "stroke-dasharray": "2 4" }));
    svg.append(make("path", { d: line, fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash }));
    const dot = make("circle", { id: id(index, "dot"), r: 7, fill: colour, stroke: "var(--page)", "stroke-width": 2 });
    svg.append(dot);
    method.moveDot = () => {
      dot.setAttribute("visibility", method.now.score === null ? "hidden" : "visible");
      dot.setAttribute("cx", x(method.now.layers));
      dot.setAttribute("cy", y(method.now.score));
    };
    method.moveDot();
    legend.append(make("li", {}, make("svg", { viewBox: "0 0 44 10", "aria-hidden": "true" }, make("path",
      { d: "M0 5H44", stroke: colour, "stroke-width": 3, "stroke-dasharray": dash })), method.name));
  });
  place.replaceChildren(svg, legend);
}

function makePanels() {
  document.getElementById("methods").replaceChildren(...data.methods.map((method, index) => {
    const slider = make("input", { type: "range", id: id(index, "slider"), min: 0, max: method.curve.length - 1, step: 1,
      value: state.at[index], oninput: (event) => moved(index, Number(event.target.value)) });
    const names = { threshold: "threshold", score: data.metric, layers: "mean layers run", saving: "layers saved",
      ...(method.flops ? { flops: "FLOPs saved" } : {}) };
    const figures = make("dl", { class: "figures" }, ...Object.entries(names).map(([key, name]) => make("div", {},
      make("dt", {}, name), make("dd", { id: id(index, key) }))));
    const dot = make("span", { style: `background:${COLOURS[index % COLOURS.length]}`, "aria-hidden": "true" });
    return make("article", { class: "panel", "aria-labelledby": id(index, "name") },
      make("h3", { id: id(index, "name") }, dot, method.name), make("p", {}, `Exits after layers ${method.exit_layers.join(", ")}; a sample leaves at the first exit where its ${method.criterion} is ${method.leaves} the threshold.`),
      make("label", { for: id(index, "slider") }, "fewer layers \u2194 more layers"), slider, figures,
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `exits of ${method.name}` }, exitsTable(method, index)));
  }));
}

function exitsTable(method, index) {
  method.bars = method.exit_layers.map(() => ({ count: make("td"), bar: make("div", { class: "bar" }) }));
  return make("table", { id: id(index, "exits") }, make("caption", {}, "Samples that leave at each exit, and the score of each exit on all samples"),
    make("thead", {}, make("tr", {}, ...["layer", "samples", "", `${data.metric} on all samples`].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...method.exit_layers.map((layer, k) => make("tr", {}, make("th", { scope: "row" }, layer), method.bars[k].count,
      make("td", { class: "wide" }, method.bars[k].bar), make("td", {}, percent(method.layer_scores[k]))))));
}

function fillPanel(method, index) {
  const now = method.now;
  const show = { threshold: thresholdName(method.curve[state.at[index]].threshold), score: percent(now.score, 2), layers: now.layers.toFixed(2), saving: percent(now.saving),
    ...(method.flops ? { flops: percent(now.flops) } : {}) };
  for (const [key, value] of Object.entries(show)) document.getElementById(id(index, key)).textContent = value;
  document.getElementById(id(index, "slider")).setAttribute("aria-valuetext",
    `threshold ${show.threshold}: ${data.metric} ${show.score}, ${show.layers} layers`);
  method.bars.forEach(({ count, bar }, k) => {
    count.textContent = now.counts[k];
    bar.style.width = `${100 * now.counts[k] / data.truth.length}%`;
  });
}

function choice(name, label, values, chosen) {
  const select = make("select", { id: `filter-${name}`, onchange: (event) => { state[name] = name === "method" ? Number(event.target.value) : event.target.value;
    if (name === "method") { state.layer = "all"; state.explain = "none"; makeFilters(); } fillSamples(); } },
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
    id: "filter-search", value: state.search, oninput: (event) => { state.search = event.target.value; fillSamples(); } })));
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

function fillSamples() {
  const method = data.methods[state.method], now = method.now;
  const last = method.exit_layers.length - 1, search = state.search.toLowerCase();
  const samples = data.truth.map((_, i) => i).filter((i) => {
    const right = now.answers[i] === data.truth[i], full = method.answers[i][last] === data.truth[i];
    return (state.layer === "all" || method.exit_layers[now.exits[i]] === Number(state.layer)) &&
      ({ all: true, right, wrong: !right, lost: !right && full, won: right && !full })[state.right] &&
      (!search || String(data.texts[i]).toLowerCase().includes(search));
  });
  const shown = samples.slice(0, data.most_rows);
  document.getElementById("shown").textContent = `${samples.length} of ${data.truth.length} samples` +
    (shown.length < samples.length ? `, the first ${shown.length} are shown` : "");
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
  const names = [["#", ""], ["text", "text"], ["label", "name"], ["prediction", "name"], ["exit layer", ""], [method.criterion, ""], ["at full depth", "name"]];
  table.replaceChildren(make("thead", {}, make("tr", {}, ...names.map(([name, kind]) => make("th", { scope: "col", class: kind }, name)))),
    make("tbody", {}, ...rows));
}

function sampleRow(method, i, exit) {
  const answer = method.answers[i][exit], score = method.scores[i][exit], layer = method.exit_layers[exit];
  const right = answer === data.truth[i], mark = data.labels ? (right ? "\u00a0\u2713" : "\u00a0\u2717") : "";
  return make("tr", {}, make("td", {}, i), textCell(method, i, layer), make("td", { class: "name" }, className(data.truth[i])),
    make("td", { class: data.labels ? `name ${right ? "right" : "wrong"}` : "name" }, className(answer) + mark),
    make("td", {}, layer), make("td", {}, score === null ? "not finite" : number(score)),
    make("td", { class: "name" }, className(method.answers[i][method.exit_layers.length - 1])));
}

// A slider moved: update its panel and dot immediately, and the table with the next frame.
let waiting = false;
function moved(index, place) {
  const method = data.methods[index];
  choose(index, place);
  fillPanel(method, index);
  if (method.moveDot) method.moveDot();
  if (waiting || index !== state.method) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; fillSamples(); });
}

document.getElementById("summary").textContent = `${data.truth.length} samples, ${data.methods.length} ` +
  `${data.methods.length === 1 ? "method" : "methods"}, ${data.metric}. ${data.note}`;
makePanels();
makeFilters();
drawCurves();
data.methods.forEach(fillPanel);
fillSamples();
window.addEventListener("resize", drawCurves);
