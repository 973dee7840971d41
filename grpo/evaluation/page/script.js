"use strict";
// Everything comes from a model or a dataset, so that it is shown as text and never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const COLORS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"];
const PAGE = 20; // cards shown at a time

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "color") element.style.setProperty("--color", `var(${value})`);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const number = (value, digits = 2) =>
  value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + value.toFixed(digits);
const plain = (value) => (value === null ? "–" : Number(value.toPrecision(3)).toString());

// ------------------------------------------------------------------------------------------ SQL

const TOKEN = /'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|[\p{L}_][\p{L}\p{M}\p{N}_]*|\d+(?:\.\d+)?|\s+|<=|>=|<>|!=|\|\||./gsu;
const KEYWORDS = new Set(data.keywords);
const NEW_LINE = new Set(["FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "UNION", "INTERSECT", "EXCEPT", "JOIN", "LEFT"]);
const SET_OPERATION = new Set(["UNION", "INTERSECT", "EXCEPT", "ALL"]);

const tokens = (sql) => (sql || "").match(TOKEN)?.filter((token) => token.trim()) || [];
const folded = (token) => (/^['"`]/.test(token) ? token : token.toUpperCase());

/** Which tokens of `ours` are in a longest common subsequence with `gold`, case aside. */
function inGold(ours, gold) {
  const a = ours.map(folded), b = gold.map(folded);
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const common = new Array(a.length).fill(false);
  for (let i = 0, j = 0; i < a.length && j < b.length; )
    if (a[i] === b[j]) { common[i] = true; i++; j++; }
    else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  return common;
}

/** SQL over several lines, with colours; with gold, what is not in gold is marked. */
function sqlBlock(sql, gold) {
  const block = el("pre");
  const ours = tokens(sql);
  const common = gold && ours.length * gold.length < 250000 ? inGold(ours, tokens(gold)) : null;
  let depth = 0;
  ours.forEach((token, i) => {
    const upper = token.toUpperCase(), previous = i ? ours[i - 1] : "";
    const glued = /^[.,;)]$/.test(token) || /[.(]$/.test(previous) || (token === "(" && /^[\p{L}_]/u.test(previous) && !KEYWORDS.has(previous.toUpperCase())) || (token === "(" && /^(COUNT|SUM|AVG|MIN|MAX)$/i.test(previous));
    const breaks = NEW_LINE.has(upper) && previous.toUpperCase() !== "LEFT" || SET_OPERATION.has(previous.toUpperCase());
    if (i && breaks) block.append("\n" + "  ".repeat(depth));
    else if (i && !glued) block.append(" ");
    depth = Math.max(0, depth + (token === "(") - (token === ")"));
    const kind = /^'/.test(token) ? "s" : /^\d/.test(token) ? "n" : KEYWORDS.has(upper) ? "k" : null;
    const shown = el(common && !common[i] ? "ins" : "span", { class: kind }, token);
    block.append(shown);
  });
  return block;
}

function resultTable(rows, count) {
  if (!count) return el("p", { class: "soft" }, "no rows");
  const table = el("table", { class: "result" });
  for (const row of rows) table.append(el("tr", {}, ...row.map((value) => el("td", {}, value))));
  const more = count > rows.length ? el("p", { class: "soft" }, `… ${count} rows in all`) : null;
  return el("div", { class: "scroll" }, ...[table, more].filter(Boolean));
}

// ------------------------------------------------------------------------------- tables, curves

/** The interval of a difference in `+9.2 (+7.1 to +11.4)` includes 0. */
const includesZero = (text) => {
  const [, low, high] = /\(([-+\d.]+) to ([-+\d.]+)\)/.exec(text) || [];
  return low !== undefined && Number(low) <= 0 && Number(high) >= 0;
};

function table({ title, rows }) {
  const [head, ...body] = rows;
  const cell = (value, i) => el("td", { class: (i > 1 ? "number" : "") + (includesZero(value) ? " soft" : "") }, value);
  return el("div", { class: "scroll" }, title ? el("h3", {}, title) : null,
    el("table", {},
      el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...body.map((row) => el("tr", {}, ...row.map(cell))))));
}

function runningMean(values) {
  const size = Math.max(1, Math.floor(values.length / 12));
  return values.map((_, i) => {
    const window = values.slice(Math.max(0, i - size + 1), i + 1).filter((v) => v !== null);
    return window.length ? window.reduce((a, b) => a + b, 0) / window.length : null;
  });
}

function path(steps, values, x, y) {
  let drawn = "", pen = "M";
  values.forEach((value, i) => {
    if (value === null) pen = "M";
    else { drawn += `${pen}${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; }
  });
  return drawn;
}

/** A round number, about a third of a range: 1, 2 or 5 times a power of 10. */
function roundStep(range) {
  const power = 10 ** Math.floor(Math.log10(range / 3));
  return [1, 2, 5, 10].map((n) => n * power).find((step) => step >= range / 3);
}

function chart({ title, note, keys }) {
  const series = [];
  runs.forEach((run, r) => keys.forEach((key, k) => {
    const points = run.metrics.filter((row) => row[key] !== undefined);
    if (!points.length) return;
    series.push({
      name: (keys.length > 1 ? key.replace(/^(reward|eval)\//, "").replace("_seconds", "") : "") + (runs.length > 1 ? ` ${"AB"[r]}` : ""),
      color: COLORS[(keys.length > 1 ? k : r) % COLORS.length], dash: keys.length > 1 && r ? "5 4" : "",
      steps: points.map((row) => row.step), values: points.map((row) => row[key]),
    });
  }));
  const all = series.flatMap((one) => one.values).filter((value) => value !== null);
  if (!all.length) return null;
  const W = 400, H = 170, left = 44, bottom = 20;
  const last = Math.max(...series.flatMap((one) => one.steps));
  let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
  if (low > 0 && low < high / 2) low = 0;
  if (low === high) { low -= 0.5; high += 0.5; }
  const unit = roundStep(high - low);
  [low, high] = [Math.floor(low / unit) * unit, Math.ceil(high / unit) * unit];
  const ticks = Array.from({ length: Math.round((high - low) / unit) + 1 }, (_, i) => low + i * unit);
  const x = (step) => left + ((step - 1) / Math.max(1, last - 1)) * (W - left - 6);
  const y = (value) => 8 + (1 - (value - low) / (high - low)) * (H - bottom - 14);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}, from ${plain(all[0])} at first to ${plain(all[all.length - 1])} in the end` });
  for (const value of ticks)
    drawing.append(svg("line", { x1: left, x2: W - 6, y1: y(value), y2: y(value), stroke: "var(--line)" }),
      svg("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, plain(value)));
  drawing.append(svg("text", { x: left, y: H - 4 }, "step 1"), svg("text", { x: W - 6, y: H - 4, "text-anchor": "end" }, String(last)));
  for (const one of series) {
    const line = { fill: "none", stroke: `var(${one.color})`, "stroke-dasharray": one.dash };
    if (series.length === 1) drawing.append(svg("path", { ...line, d: path(one.steps, one.values, x, y), opacity: 0.3 }));
    drawing.append(svg("path", { ...line, d: path(one.steps, runningMean(one.values), x, y), "stroke-width": 2 }));
  }
  const cursor = svg("line", { y1: 4, y2: H - bottom, stroke: "var(--soft)", visibility: "hidden" });
  drawing.append(cursor);
  const legend = el("div", { class: "legend" });
  const say = (step) => legend.replaceChildren(...series.map((one) => {
    const value = step ? ` ${plain(one.values[one.steps.indexOf(step)] ?? null)}` : "";
    return one.name || step ? el("span", { class: "key", color: one.color }, (one.name || "value") + value) : "";
  }), step ? `step ${step}` : "");
  say(0);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * W;
    const step = Math.min(last, Math.max(1, Math.round(1 + ((at - left) / (W - left - 6)) * (last - 1))));
    cursor.setAttribute("x1", x(step)); cursor.setAttribute("x2", x(step)); cursor.setAttribute("visibility", "visible");
    say(step);
  });
  drawing.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); say(0); });
  return el("figure", {}, el("figcaption", {}, title), el("p", { class: "soft" }, note), drawing, legend);
}

// --------------------------------------------------------------------------------------- groups

const RIGHT = ["test_suite", "execution"]; // the terms that say whether SQL is right

const isRight = (completion) => {
  const name = RIGHT.find((term) => completion.terms[term] !== undefined && completion.terms[term] !== null);
  return name === undefined ? null : completion.terms[name] === 1;
};

const disagrees = (c) => {
  const score = c.terms.semantic ?? null;
  return score !== null && c.status === "ok" && isRight(c) !== null && (score > 0.5) !== isRight(c);
};

const OUTCOMES = {
  "some right": (group) => group.right > 0 && group.right < group.completions.length,
  "none right": (group) => group.judged && group.right === 0,
  "all right": (group) => group.right === group.completions.length,
  "semantic disagrees with execution": (group) => group.completions.some(disagrees),
  "truncated": (group) => group.completions.some((c) => !c.finished),
  "some do not run": (group) => group.completions.some((c) => c.status !== "ok"),
};

const TEACHES = {
  something: (group) => group.completions.some((c) => c.advantage !== 0),
  nothing: (group) => group.completions.every((c) => c.advantage === 0),
};

/** A bar as long as the value's share of the largest reward on the page. */
function bar(name, value, color, said) {
  const width = Math.min(1, Math.abs(value ?? 0) / most.reward) * 100;
  return el("div", { class: "bar" }, el("span", {}, name), el("span", {}, el("i", { style: `width:${width}%`, color })), el("b", {}, value === null ? "–" : said));
}

/** What a reward term adds to the reward. */
function termBar(name, value, weight, color) {
  return bar(name, value === null ? null : weight * value, color, value === null ? "–" : `${plain(weight)} × ${value.toFixed(2)}`);
}

function advantageBar(value) {
  const width = most.advantage ? (Math.abs(value) / most.advantage) * 50 : 0;
  const fill = el("i", { style: `width:${width}%;left:${value < 0 ? 50 - width : 50}%`, color: value < 0 ? "--bad" : "--good" });
  return el("div", { class: "bar" }, el("span", {}, "advantage"), el("span", { class: "axis" }, fill), el("b", { class: value > 0 ? "good" : value < 0 ? "bad" : "" }, number(value)));
}

/** Equal completions with equal rewards as one, with how many there are. */
function merged(ranked) {
  const byKey = new Map();
  for (const completion of ranked) {
    const key = JSON.stringify([completion.text, completion.reward]);
    if (byKey.has(key)) byKey.get(key).times++;
    else byKey.set(key, { ...completion, times: 1 });
  }
  return [...byKey.values()];
}

function completionRow(completion, group, rank) {
  const right = isRight(completion);
  const said = right === null ? completion.status : right ? "right" : completion.status === "ok" ? "wrong result" : completion.status.replace("_", " ");
  const times = completion.times > 1 ? `${completion.times} times, ` : "";
  const drawn = completion.logprob === null ? "gold, not sampled" : `log-probability ${completion.logprob.toFixed(1)}`;
  const facts = `${times}${completion.tokens} tokens, ${drawn}${completion.finished ? "" : ", truncated"}`;
  const text = completion.text !== completion.sql ? el("details", {}, el("summary", {}, "whole completion"), el("pre", {}, completion.text)) : null;
  const result = completion.status === "ok"
    ? el("details", {}, el("summary", {}, "result"), resultTable(completion.rows, completion.num_rows))
    : completion.error ? el("p", { class: "bad" }, completion.error) : null;
  const bars = Object.entries(completion.terms).map(([name, value], i) => termBar(name, value, runs[group.run].weights[name] ?? 1, COLORS[i % COLORS.length]));
  return el("div", { class: "completion" },
    el("div", {}, el("span", { class: right ? "good" : "bad" }, `${rank}. ${said}`), " ", el("span", { class: "soft" }, facts), " ", disagrees(completion) ? el("span", { class: "tag" }, "semantic disagrees") : null,
      completion.sql ? sqlBlock(completion.sql, group.gold) : null, text, result),
    el("div", { class: "bars" }, ...bars, el("div", { class: "total" }, bar("reward", completion.reward, "--c5", completion.reward.toFixed(2)), advantageBar(completion.advantage))));
}

function groupCard(group) {
  const ranked = [...group.completions].sort((a, b) => b.advantage - a.advantage || b.reward - a.reward);
  const right = group.judged ? `${group.right} of ${ranked.length} right` : "";
  const nothing = TEACHES.nothing(group) ? el("span", { class: "tag" }, "teaches nothing: all rewards equal") : null;
  return el("article", { tabindex: 0 },
    el("div", {}, runs.length > 1 ? el("span", { class: "tag" }, "AB"[group.run]) : null, el("span", { class: "tag" }, `step ${group.step}`), el("span", { class: "tag" }, group.lang),
      el("span", { class: "tag" }, group.db_id), right ? el("span", { class: "tag" }, right) : null, nothing),
    el("h3", { lang: group.lang, dir: "auto" }, group.question),
    group.gold ? el("details", {}, el("summary", {}, "gold and its result"), sqlBlock(group.gold), resultTable(group.gold_rows, group.gold_num_rows)) : null,
    ...merged(ranked).map((completion, i) => completionRow(completion, group, i + 1)));
}

// ------------------------------------------------------------------------ before/after, question

const CHANGES = {
  "became right": (q) => !q.before.right && q.after.right,
  "became wrong": (q) => q.before.right && !q.after.right,
  "stayed wrong": (q) => !q.before.right && !q.after.right,
  "stayed right": (q) => q.before.right && q.after.right,
};

function answer(label, side, gold) {
  const said = side.right ? "right" : side.status === "ok" ? "wrong result" : side.status.replace("_", " ");
  return el("div", {}, el("span", { class: side.right ? "good" : "bad" }, `${label}: ${said}`), side.sql ? sqlBlock(side.sql, gold) : null,
    side.error ? el("p", { class: "bad" }, side.error) : null);
}

function questionCard(q) {
  return el("article", { tabindex: 0 },
    el("div", {}, runs.length > 1 ? el("span", { class: "tag" }, "AB"[q.run]) : null, el("span", { class: "tag" }, q.lang), el("span", { class: "tag" }, q.db_id), q.part ? el("span", { class: "tag" }, q.part) : null),
    el("h3", { lang: q.lang, dir: "auto" }, q.question), answer("before", q.before, q.gold), answer("after", q.after, q.gold),
    el("details", {}, el("summary", {}, "gold"), sqlBlock(q.gold)));
}

// ----------------------------------------------------------------------------- filters and lists

/** A form with one select per filter, a list of cards, its count, and a button for more of them. */
function browse(name, items, filters, card) {
  const form = document.getElementById(`${name}-filter`), list = document.getElementById(`${name}-list`);
  const count = document.getElementById(`${name}-count`), more = document.getElementById(`${name}-more`);
  let matching = [], shown = 0;
  const show = () => {
    list.append(...matching.slice(shown, shown + PAGE).map(card));
    shown = Math.min(matching.length, shown + PAGE);
    more.hidden = shown === matching.length;
  };
  const apply = () => {
    const chosen = filters.map((filter, i) => [filter, selects[i].value]).filter(([, value]) => value);
    matching = items.filter((item) => chosen.every(([filter, value]) => filter.test(item, value)));
    shown = 0; list.replaceChildren(); show();
    count.textContent = `${matching.length} of ${items.length} ${name}s` + (matching.length ? "" : ": none matches all filters");
  };
  filters = filters.filter(({ values }) => values.length > 1);
  const selects = filters.map((filter) => {
    const matches = (value) => items.filter((item) => filter.test(item, String(value))).length;
    const options = filter.values.map((value) => el("option", { value, selected: value === filter.chosen && matches(value) > 0 }, filter.counted ? `${value} (${matches(value)})` : String(value)));
    const select = el("select", { name: filter.name }, el("option", { value: "" }, "all"), ...options);
    form.append(el("label", {}, filter.name, select));
    select.addEventListener("change", apply);
    return select;
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", show);
  apply();
}

const distinct = (items, key) => [...new Set(items.map((item) => item[key]))].sort((a, b) => (a > b ? 1 : a < b ? -1 : 0));
const by = (items, key, name = key) => ({ name, values: distinct(items, key), test: (item, value) => String(item[key]) === value });
const among = (name, kinds, chosen) => ({ name, chosen, counted: true, values: Object.keys(kinds), test: (item, value) => kinds[value](item) });

// ------------------------------------------------------------------------------------- the page

document.title = runs.map((run) => run.name).join(" and ");
document.getElementById("title").textContent = runs.length > 1 ? runs.map((run, r) => `${"AB"[r]}: ${run.name}`).join("   ") : runs[0].name;

runs.forEach((run, r) => {
  const tables = document.getElementById("tables");
  if (runs.length > 1) tables.append(el("h3", {}, `${"AB"[r]}: ${run.name}`));
  if (!run.tables.length) tables.append(el("p", { class: "soft" }, "The run is not finished: there is no measurement after it yet."));
  tables.append(...run.tables.map(table));
  const rows = [["setting", "value"], ...run.settings];
  document.getElementById("configs").append(table({ title: run.name, rows }));
});

document.getElementById("charts").append(...data.charts.map(chart).filter(Boolean));

const groups = runs.flatMap((run, r) => run.groups.map((group) => {
  const verdicts = group.completions.map(isRight);
  return { ...group, run: r, judged: verdicts.every((verdict) => verdict !== null), right: verdicts.filter(Boolean).length };
}));
// The largest on the page, so that all bars have the same scale.
const most = { reward: 1e-9, advantage: 0 };
for (const completion of groups.flatMap((group) => group.completions)) {
  most.reward = Math.max(most.reward, Math.abs(completion.reward));
  most.advantage = Math.max(most.advantage, Math.abs(completion.advantage));
}
document.getElementById("formula").textContent = runs
  .map((run) => Object.entries(run.weights).map(([name, weight]) => `${plain(weight)} × ${name}`).join(" + ")).join("; of B ");
const runFilter = (items) => (runs.length > 1 ? [{ name: "run", values: ["A", "B"], test: (item, value) => "AB"[item.run] === value }] : []);
if (groups.length)
  browse("group", groups, [...runFilter(groups), among("outcome", OUTCOMES, "some right"), among("teaches", TEACHES), by(groups, "lang", "language"), by(groups, "db_id", "database"), by(groups, "step")], groupCard);
else document.getElementById("groups").append(el("p", { class: "soft" }, "This run keeps no groups (--keep-rollouts 0)."));
const left = runs.map((run) => run.groups_left_out).reduce((a, b) => a + b, 0);
if (left) document.getElementById("groups").insertBefore(el("p", { class: "soft" }, `${left} further groups, evenly spaced, are left out of this page; rollouts.jsonl has them.`), document.getElementById("group-filter"));

const questions = runs.flatMap((run, r) => run.questions.map((q) => ({ ...q, run: r })));
if (questions.length)
  browse("question", questions, [...runFilter(questions), among("change", CHANGES), by(questions, "lang", "language"), by(questions, "db_id", "database")], questionCard);
else document.getElementById("questions").hidden = true;
document.getElementById("group-more").hidden ||= !groups.length;

// j and k move between cards.
document.addEventListener("keydown", (event) => {
  if (!["j", "k"].includes(event.key) || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const cards = [...document.querySelectorAll("article")], at = cards.indexOf(document.activeElement.closest?.("article"));
  const next = cards[Math.max(0, Math.min(cards.length - 1, at + (event.key === "j" ? 1 : -1)))];
  next?.focus(); next?.scrollIntoView({ block: "start" });
});
document.documentElement.dataset.ready = "yes";
