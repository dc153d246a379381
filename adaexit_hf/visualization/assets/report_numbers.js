"use strict";
// Computes the result of early exit at any threshold from the predictions and scores of every exit (a trace).
const data = JSON.parse(document.getElementById("data").textContent);
const state = { at: [], method: 0, layer: "all", right: "all", search: "", explain: "none", rows: data.most_rows };

const READY = { lt: (s, t) => s < t, le: (s, t) => s <= t, gt: (s, t) => s > t, ge: (s, t) => s >= t };
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Index of the exit that a sample takes. A score that is not a number (null) is never ready; the last exit always is.
function exitOf(method, sample, threshold) {
  const scores = method.scores[sample], last = method.exit_layers.length - 1;
  if (threshold === null) return last;
  const exit = scores.findIndex((score, k) => k < last && score !== null &&
    READY[method.ready](score, Array.isArray(threshold) ? threshold[k] : threshold));
  return exit < 0 ? last : exit;
}

function correlation(a, b) {
  const x = mean(a), y = mean(b);
  let top = 0, left = 0, right = 0;
  a.forEach((value, i) => { top += (value - x) * (b[i] - y); left += (value - x) ** 2; right += (b[i] - y) ** 2; });
  return top / Math.sqrt(left * right);
}

const constant = (values) => values.every((value) => value === values[0]);
// Not defined (null) if all labels are equal or a prediction is not finite (null); 0 if all predictions are equal.
const whereDefined = (measure) => (answers, truth) =>
  constant(truth) || answers.includes(null) ? null : constant(answers) ? 0 : measure(answers, truth);

function ranks(values) {
  const order = values.map((value, i) => i).sort((a, b) => values[a] - values[b]), ranked = new Array(values.length);
  for (let i = 0, j; i < order.length; i = j) {
    for (j = i; j < order.length && values[order[j]] === values[order[i]];) j++;
    for (let k = i; k < j; k++) ranked[order[k]] = (i + j - 1) / 2;
  }
  return ranked;
}

// Of label sets, texts such as "101": for each label how often it is both given and predicted, and the sum of how often
// it is given and how often it is predicted; null if no label is given to any sample.
function labelCounts(answers, truth) {
  if (!truth.some((set) => set.includes("1"))) return null;
  return [...truth[0]].map((_, label) => {
    let right = 0, total = 0;
    answers.forEach((answer, i) => { const said = answer[label] === "1", given = truth[i][label] === "1"; right += said && given; total += said + given; });
    return { right, total };
  });
}

// The same as compute_score in Python; null where that raises an error or returns NaN.
const METRICS = {
  accuracy: (answers, truth) => mean(answers.map((answer, i) => answer === truth[i] ? 1 : 0)),
  f1: (answers, truth) => {
    let hits = 0, predicted = 0, actual = 0;
    answers.forEach((answer, i) => { hits += answer === 1 && truth[i] === 1; predicted += answer === 1; actual += truth[i] === 1; });
    return actual ? 2 * hits / (predicted + actual) : null;
  },
  matthews_correlation: whereDefined((answers, truth) => { // covariances of one-hot answers and labels (Gorodkin, 2004)
    const n = answers.length, predicted = {}, actual = {};
    let right = 0;
    answers.forEach((answer, i) => { right += answer === truth[i];
      predicted[answer] = (predicted[answer] || 0) + 1; actual[truth[i]] = (actual[truth[i]] || 0) + 1; });
    const dot = (a, b) => Object.keys(a).reduce((sum, key) => sum + a[key] * (b[key] || 0), 0);
    return (right * n - dot(predicted, actual)) /
      Math.sqrt(n * n - dot(predicted, predicted)) / Math.sqrt(n * n - dot(actual, actual));
  }),
  pearson: whereDefined(correlation),
  spearmanr: whereDefined((answers, truth) => correlation(ranks(answers), ranks(truth))),
  f1_micro: (answers, truth) => {
    const counts = labelCounts(answers, truth), sum = (name) => counts.reduce((total, count) => total + count[name], 0);
    return counts && 2 * sum("right") / sum("total");
  },
  f1_macro: (answers, truth) => {
    const counts = labelCounts(answers, truth);
    return counts && mean(counts.map(({ right, total }) => total ? 2 * right / total : 0));
  },
};

// A class predicted from logits that are not finite (null) counts as wrong, and a label set as wrong in every label, as
// in `scored_answers` in Python.
const wrongFor = (truth) => data.label_sets ? [...truth].map((flag) => flag === "1" ? "0" : "1").join("") : (truth + 1) % data.labels.length;
const scoreOf = (answers) => METRICS[data.metric](data.labels === null ? answers : answers.map((answer, i) =>
  answer === null ? wrongFor(data.truth[i]) : answer), data.truth);

const meanFlops = (method, exits) => mean(exits.map((exit, sample) => method.flops.costs[method.flops.which[sample]][exit]));

function run(method, threshold) {
  const exits = data.truth.map((_, sample) => exitOf(method, sample, threshold));
  const answers = exits.map((exit, sample) => method.answers[sample][exit]);
  const layers = exits.map((exit) => method.exit_layers[exit]), depth = method.exit_layers[method.exit_layers.length - 1];
  return { exits, answers, score: scoreOf(answers), layers: mean(layers),
    flops: method.flops && 1 - meanFlops(method, exits) / meanFlops(method, exits.map(() => method.exit_layers.length - 1)),
    saving: 1 - mean(layers) / depth, counts: method.exit_layers.map((_, k) => exits.filter((exit) => exit === k).length) };
}

// Compute the curve of each method (every threshold once, the cheapest first, full depth last among equal costs) and
// the numbers that do not depend on the threshold.
data.methods.forEach((method, index) => {
  method.rows = []; // table rows, kept until their content changes
  method.layer_scores = method.exit_layers.map((_, k) => scoreOf(method.answers.map((row) => row[k])));
  const distinct = new Map(method.thresholds.map((threshold, k) => [JSON.stringify(threshold), { threshold, band: method.bands[k] }]));
  method.curve = [...distinct.values()].map(({ threshold, band }) => {
    const { score, layers, saving } = run(method, threshold);
    return { threshold, score, mean_layers: layers, saving, band };
  }).sort((a, b) => a.mean_layers - b.mean_layers || (a.threshold === null) - (b.threshold === null));
  const start = JSON.stringify(method.start);
  choose(index, method.curve.findIndex((point) => JSON.stringify(point.threshold) === start));
});

function choose(index, place) {
  const method = data.methods[index];
  state.at[index] = place;
  method.now = run(method, method.curve[place].threshold);
}
