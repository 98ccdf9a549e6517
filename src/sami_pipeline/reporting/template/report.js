"use strict";

// Figures: drawn in the colours of the page, and again when those change.
const darkness = matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function readable(value) {
  // Figures are made for white paper: what is nearly black there is the text's colour here.
  return ["#000000", "#444444", "#666666"].includes(value) ? colour("text") : value;
}

function recoloured(trace) {
  const copy = structuredClone(trace);
  for (const part of [copy.marker, copy.line, copy.error_x, copy.error_y]) {
    if (part && typeof part.color === "string") part.color = readable(part.color);
  }
  return copy;
}

const NARROW = matchMedia("(max-width: 40rem)");

const titlesOf = (layout) => (layout.annotations ?? [])
  .filter((one) => one.xref === "paper" && one.yref === "paper");

// Panels that stand side by side are put below each other, each no higher than a screen.
function stacked(layout) {
  const numbers = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name))
    .map((name) => name.slice(5)).sort((a, b) => a - b);
  if (numbers.length < 2) return;
  const lines = new Set(numbers.map((n) => JSON.stringify(layout[`yaxis${n}`]?.domain))).size;
  const [top, bottom, gap] = [50, 120, 70];
  const whole = ((layout.height ?? 460) - 190) / lines;
  const panel = Math.max(180, Math.min(whole, 0.7 * innerHeight));
  const inner = numbers.length * (panel + gap) - gap;
  layout.height = inner + top + bottom;
  Object.assign(layout.margin, { t: top, b: bottom });
  const titles = titlesOf(layout);
  numbers.forEach((n, i) => {
    const high = 1 - i * (panel + gap) / inner;
    layout[`xaxis${n}`].domain = [0, 1];
    Object.assign(layout[`yaxis${n}`], { domain: [Math.max(0, high - panel / inner), high], showticklabels: true });
    if (titles[i]) Object.assign(titles[i], { y: high, yanchor: "bottom" });
  });
  if (layout.legend?.y < 0) layout.legend.y = -60 / inner;
}

function layoutOf(figure) {
  const layout = structuredClone(figure.layout);
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = { ...layout.font, color: colour("text"), size: NARROW.matches ? 11 : 14 };
  layout.margin = { ...layout.margin, l: NARROW.matches ? 10 : 60, t: 40, r: 15 };
  // A legend above the plot starts at the left, where a narrow screen begins.
  if (layout.legend?.y >= 1) Object.assign(layout.legend, { x: 0, xanchor: "left", y: 1 });
  layout.height = layout.height ?? 460;
  // Plotly takes the paper's colour at half strength, which is grey where the paper is transparent.
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("text") };
  layout.hoverlabel = { bgcolor: colour("raised"), font: { color: colour("text") } };
  layout.xaxis = layout.xaxis ?? {};
  layout.yaxis = layout.yaxis ?? {};
  for (const [name, axis] of Object.entries(layout)) {
    if (!/^[xy]axis\d*$/.test(name)) continue;
    Object.assign(axis, { automargin: true, gridcolor: colour("grid"), zerolinecolor: colour("line") });
  }
  for (const shape of layout.shapes ?? []) shape.line.color = readable(shape.line.color);
  for (const note of layout.annotations ?? []) {
    note.font = { ...note.font, size: NARROW.matches ? 11 : 15 };
  }
  if (NARROW.matches) {
    stacked(layout);
    for (const title of titlesOf(layout)) {
      const text = title.text.length > 28 ? title.text.replace(/, (?=[^,]*$)/, ",<br>") : title.text;
      Object.assign(title, { x: 0, xanchor: "left", align: "left", text });
    }
  }
  return layout;
}

function drawFigures() {
  for (const place of document.querySelectorAll(".plot")) {
    const source = document.querySelector(`script[data-of="${place.dataset.figure}"]`);
    const figure = JSON.parse(source.textContent);
    const layout = layoutOf(figure);
    place.style.minHeight = `${layout.height}px`; // so that what follows stays in its place
    Plotly.react(place, figure.data.map(recoloured), layout, {
      responsive: true, displaylogo: false, displayModeBar: NARROW.matches ? false : "hover",
    });
  }
}

drawFigures();
darkness.addEventListener("change", drawFigures);
NARROW.addEventListener("change", drawFigures);
// Paper is white, whatever the screen is.
addEventListener("beforeprint", () => {
  document.documentElement.dataset.paper = "";
  drawFigures();
});
addEventListener("afterprint", () => {
  delete document.documentElement.dataset.paper;
  drawFigures();
});

// The browser of answers. What models wrote is only ever set as textContent.
function element(tag, { text, kind, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  made.append(...children);
  return made;
}

const SIGNS = { win: "▲ win", loss: "▼ loss", tie: "= tie", invalid: "? could not be read" };

// Text with each place of what is searched for marked.
function marked(text, sought) {
  if (!sought) return [text];
  const pieces = [];
  const low = text.toLowerCase();
  let from = 0;
  for (let at = low.indexOf(sought); at >= 0; at = low.indexOf(sought, from)) {
    pieces.push(text.slice(from, at), element("mark", { text: text.slice(at, at + sought.length) }));
    from = at + sought.length;
  }
  return [...pieces, text.slice(from)];
}

// A text as it was written, with code and list items set as such; its characters all stay.
function written(blocks, sought) {
  const kinds = { code: "pre", item: "div", text: "p" };
  const made = blocks.filter(([kind, text]) => kind !== "text" || text.trim()).map(([kind, text]) =>
    element(kinds[kind], { kind }, ...marked(kind === "text" ? text.replace(/^\n+|\n+$/g, "") : text, sought)));
  return element("div", { kind: "written" }, ...(made.length ? made : [element("p", { kind: "facts", text: "(empty)" })]));
}

function said(judgement) {
  return element("details", {}, element("summary", { text: judgement.title }),
    element("p", { kind: "written", text: judgement.text }));
}

function textOf(part, alone, sought) {
  const facts = element("p", { kind: "facts", text: part.facts.join(" · ") });
  const body = written(part.blocks, sought);
  if (alone) return [facts, body];
  const sign = part.right ? "✓ right" : "✗ wrong";
  const title = element("summary", {},
    element("span", { kind: part.right ? "right" : "wrong", text: sign }),
    ` ${part.title}: ${part.facts[0]}`);
  return [element("details", { kind: "attempt", open: part.title.startsWith("Greedy") }, title, facts, body)];
}

function nameOf(model, colours) {
  const swatch = element("span", { kind: "swatch" });
  swatch.style.background = colours[model.replace(/, seed .*/, "")] ?? "currentColor";
  return [swatch, model];
}

function answerOf(answer, colours, sought) {
  const made = element("section", { kind: "answer" }, element("h4", {}, ...nameOf(answer.model, colours)));
  const alone = answer.texts.length === 1 && !answer.texts[0].title;
  for (const part of answer.texts) made.append(...textOf(part, alone, sought));
  if (answer.statements.length) {
    made.append(element("ul", { kind: "statements" }, ...answer.statements.map((statement) =>
      element("li", {},
        element("span", {
          kind: statement.followed ? "right" : "wrong",
          text: statement.followed ? "✓ counts as following: " : "✗ does not count as following: ",
        }), statement.text, element("span", { kind: "facts", text: ` (${statement.evidence})` })))));
  }
  made.append(...answer.judgements.map(said));
  return made;
}

function verdictOf(verdict, chosen) {
  const detail = verdict.detail ? `, ${verdict.detail}` : "";
  return element("li", { kind: chosen ? "chosen" : "" },
    element("strong", { text: `${verdict.model} against ${verdict.opponent}: ` }),
    element("span", { kind: verdict.outcome, text: SIGNS[verdict.outcome] }),
    ` (${verdict.judge}${detail})`,
    ...verdict.judgements.map(said));
}

function asked(text, kind = "asked") {
  return element("p", { kind: `written ${kind}`, text });
}

const FILTERS = ["category", "match", "judge", "result", "constitution", "turn", "principle", "fault"];

function startBrowser() {
  const source = document.getElementById("answers-data");
  if (!source) return;
  const { questions, matches, pair, colours, examples } = JSON.parse(source.textContent);
  const control = (id) => document.getElementById(id);
  const controls = Object.fromEntries([
    ...FILTERS.map((name) => [name, control(`filter-${name}`)]),
    ["order", control("order")], ["search", control("search")],
  ]);
  const preset = { match: matches.length ? String(pair) : "all" };
  const [question, previous, next] = ["question", "previous", "next"].map(control);
  const closed = new Set();
  let found = [];

  const sought = () => controls.search.value.trim().toLowerCase();
  const pairOf = () => matches[controls.match.value];
  const isShown = (model) => !pairOf() || pairOf().includes(model);
  const textsOf = (answer) => answer.texts.map((part) => part.blocks.map(([, text]) => text).join("\n"));

  function isChosen(verdict) {
    const [model, opponent] = pairOf() ?? [verdict.model, verdict.opponent];
    return verdict.model === model && verdict.opponent === opponent
      && (!controls.judge.value || verdict.judge === controls.judge.value)
      && (!controls.result.value || verdict.outcome === controls.result.value);
  }

  function fits(one, setting) {
    const { constitution, turn, principle, fault, judge, result } = controls;
    if (constitution.value && setting.under !== constitution.value) return false;
    if (turn.value && setting.turn !== turn.value) return false;
    if (principle.value && !setting.principles.includes(principle.value)) return false;
    if ((judge.value || result.value) && !setting.verdicts.some(isChosen)) return false;
    const answers = setting.answers.filter((answer) => isShown(answer.model));
    const faults = answers.flatMap((answer) => answer.faults);
    if (fault.value === "none" ? faults.length : fault.value && !faults.includes(fault.value)) return false;
    return !sought() || [one.id, one.asked, setting.asked, ...answers.flatMap(textsOf)]
      .some((text) => text.toLowerCase().includes(sought()));
  }

  function marginOf(one) {
    const margins = one.settings.filter((setting) => fits(one, setting))
      .flatMap((setting) => setting.verdicts.filter(isChosen).map((verdict) => verdict.margin));
    return margins.length ? margins.reduce((sum, each) => sum + each, 0) / margins.length : 0;
  }

  function state() {
    const values = Object.entries(controls).filter(([name, { value }]) => value !== (preset[name] ?? ""))
      .map(([name, { value }]) => [name, value]);
    return new URLSearchParams([["question", question.value], ...values]);
  }

  function show() {
    const index = found.findIndex((one) => one.id === question.value);
    const one = found[index];
    control("position").textContent = one
      ? `Question ${index + 1} of ${found.length}` : "No question fits these filters.";
    previous.disabled = index <= 0;
    next.disabled = index < 0 || index === found.length - 1;
    control("shown").replaceChildren(...(one ? one.settings.filter((setting) => fits(one, setting))
      .map((setting) => settingOf(one, setting)) : []));
  }

  function settingOf(one, setting) {
    const made = element("details", { open: !closed.has(setting.title) },
      element("summary", { text: setting.title }), asked(setting.asked));
    if (setting.constitution) {
      made.append(element("h4", { text: "Constitution" }), asked(setting.constitution));
    }
    if (setting.reference) {
      made.append(element("details", {}, element("summary", { text: "Reference" }), asked(setting.reference)));
    }
    const verdicts = setting.verdicts.filter((verdict) => isShown(verdict.model) && isShown(verdict.opponent));
    made.append(
      element("ul", { kind: "verdicts" },
        ...verdicts.map((verdict) => verdictOf(verdict, isChosen(verdict)))),
      element("div", { kind: "side-by-side" }, ...setting.answers
        .filter((answer) => isShown(answer.model)).map((answer) => answerOf(answer, colours, sought()))));
    const place = state();
    for (const [name, value] of [["constitution", setting.under], ["turn", setting.turn]]) {
      if (value && controls[name].options.length > 2) place.set(name, value);
    }
    made.append(element("p", { kind: "facts" },
      element("a", { href: `#${place}`, text: "Link to these answers" })));
    made.addEventListener("toggle", (event) => {
      if (event.target !== made) return;
      if (made.open) closed.delete(setting.title); else closed.add(setting.title);
    });
    return made;
  }

  function filter() {
    const before = question.value;
    found = questions.filter((one) => (!controls.category.value || one.category === controls.category.value)
      && one.settings.some((setting) => fits(one, setting)));
    const direction = { ahead: -1, behind: 1 }[controls.order.value];
    if (direction) {
      const margins = new Map(found.map((one) => [one.id, marginOf(one)]));
      found.sort((a, b) => direction * (margins.get(a.id) - margins.get(b.id)));
    }
    question.replaceChildren(...found.map((one) => {
      const start = one.asked.replace(/\s+/g, " ").slice(0, 80);
      return element("option", { value: one.id, text: `${one.id} (${one.category}): ${start}` });
    }));
    if (found.some((one) => one.id === before)) question.value = before;
    show();
  }

  const remember = () => history.replaceState(null, "", `#${state()}`);

  function choose() {
    show();
    remember();
  }

  // Follow an address: what it does not name is as at first.
  function follow() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (!wanted.has("question")) return false;
    for (const [name, field] of Object.entries(controls)) {
      field.value = wanted.get(name) ?? preset[name] ?? "";
      if (field.selectedIndex === -1) field.value = preset[name] ?? "";
    }
    closed.clear();
    filter();
    question.value = wanted.get("question");
    if (question.selectedIndex === -1) question.selectedIndex = 0;
    show();
    control("answers").scrollIntoView({ behavior: "instant" });
    return true;
  }

  function step(by) {
    const index = found.findIndex((one) => one.id === question.value) + by;
    if (index < 0 || index >= found.length) return;
    question.value = found[index].id;
    choose();
  }

  for (const field of Object.values(controls)) {
    field.addEventListener(field === controls.search ? "input" : "change", () => { filter(); remember(); });
  }
  control("filters").addEventListener("submit", (event) => event.preventDefault());
  question.addEventListener("change", choose);
  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    // A select, a field and whatever scrolls sideways have their own use for the arrows.
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("select, input, .scroll")) return;
    if (event.target !== document.body && !event.target.closest("#answers")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });

  function exampleOf({ why, question: id, setting: place }) {
    const one = questions.find((each) => each.id === id);
    const setting = one.settings[place];
    const address = new URLSearchParams({ question: id });
    if (setting.under && controls.constitution.options.length > 2) address.set("constitution", setting.under);
    if (controls.turn.options.length > 2) address.set("turn", setting.turn);
    return element("article", { kind: "example" },
      element("h4", { text: `${why}: question ${id} (${one.category})` }), asked(setting.asked),
      ...(setting.constitution ? [asked(setting.constitution)] : []),
      element("div", { kind: "side-by-side" }, ...setting.answers
        .filter((answer) => matches[pair].includes(answer.model)).map((answer) => answerOf(answer, colours))),
      element("p", {}, element("a", { href: `#${address}`, text: "Open it among all answers" })));
  }

  control("examples")?.append(...examples.map(exampleOf));
  if (!follow()) filter();
}

startBrowser();
