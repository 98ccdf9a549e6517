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

function layoutOf(figure) {
  const layout = structuredClone(figure.layout);
  const narrow = matchMedia("(max-width: 40rem)").matches;
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = { ...layout.font, color: colour("text"), size: narrow ? 12 : 14 };
  layout.margin = { ...layout.margin, l: 60, t: 40, r: 15 };
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
  return layout;
}

function drawFigures() {
  for (const place of document.querySelectorAll(".plot")) {
    const source = document.querySelector(`script[data-of="${place.dataset.figure}"]`);
    const figure = JSON.parse(source.textContent);
    Plotly.react(place, figure.data.map(recoloured), layoutOf(figure), {
      responsive: true, displaylogo: false,
    });
  }
}

drawFigures();
darkness.addEventListener("change", drawFigures);

// The browser of answers. What models wrote is only ever set as textContent.
function element(tag, { text, kind, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  made.append(...children);
  return made;
}

const SIGNS = { win: "▲ win", loss: "▼ loss", tie: "= tie", invalid: "? could not be read" };

function said(judgement) {
  return element("details", {}, element("summary", { text: judgement.title }),
    element("p", { kind: "written", text: judgement.text }));
}

function textOf(part, alone) {
  const facts = element("p", { kind: "facts", text: part.facts.join(" · ") });
  const written = element("p", { kind: "written", text: part.text || "(empty)" });
  if (alone) return [facts, written];
  const sign = part.right ? "✓ right" : "✗ wrong";
  const title = element("summary", {},
    element("span", { kind: part.right ? "right" : "wrong", text: sign }),
    ` ${part.title}: ${part.facts[0]}`);
  return [element("details", { kind: "attempt", open: part.title.startsWith("Greedy") }, title, facts, written)];
}

function answerOf(answer) {
  const made = element("section", { kind: "answer" }, element("h4", { text: answer.model }));
  const alone = answer.texts.length === 1 && !answer.texts[0].title;
  for (const part of answer.texts) made.append(...textOf(part, alone));
  if (answer.statements.length) {
    made.append(element("ul", { kind: "statements" }, ...answer.statements.map((statement) =>
      element("li", {},
        element("span", {
          kind: statement.followed ? "right" : "wrong",
          text: statement.followed ? "✓ follows " : "✗ does not follow ",
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

function startBrowser() {
  const source = document.getElementById("answers-data");
  if (!source) return;
  const { questions, matches } = JSON.parse(source.textContent);
  const control = (id) => document.getElementById(id);
  const [category, match, judge, result] = ["category", "match", "judge", "result"]
    .map((name) => control(`filter-${name}`));
  const [question, previous, next] = ["question", "previous", "next"].map(control);
  const closed = new Set();
  let found = [];

  function isChosen(verdict) {
    const [model, opponent] = matches[match.value] ?? [];
    return verdict.model === model && verdict.opponent === opponent
      && (!judge.value || verdict.judge === judge.value)
      && (!result.value || verdict.outcome === result.value);
  }

  function show() {
    const index = found.findIndex((one) => one.id === question.value);
    const one = found[index];
    control("position").textContent = one
      ? `Question ${index + 1} of ${found.length}` : "No question has such an outcome.";
    previous.disabled = index <= 0;
    next.disabled = index < 0 || index === found.length - 1;
    control("shown").replaceChildren(...(one ? one.settings.map((setting) => settingOf(one, setting)) : []));
  }

  function settingOf(one, setting) {
    const chosen = setting.verdicts.filter(isChosen);
    const open = result.value ? chosen.length > 0 : !closed.has(setting.title);
    const made = element("details", { open },
      element("summary", { text: setting.title }),
      element("p", { kind: "written asked", text: setting.asked }));
    if (setting.constitution) {
      made.append(element("h4", { text: "Constitution" }),
        element("p", { kind: "written asked", text: setting.constitution }));
    }
    if (setting.reference) {
      made.append(element("details", {}, element("summary", { text: "Reference" }),
        element("p", { kind: "written asked", text: setting.reference })));
    }
    made.append(
      element("ul", { kind: "verdicts" },
        ...setting.verdicts.map((verdict) => verdictOf(verdict, chosen.includes(verdict)))),
      element("div", { kind: "side-by-side" }, ...setting.answers.map(answerOf)));
    made.addEventListener("toggle", (event) => {
      if (event.target !== made || result.value) return;
      if (made.open) closed.delete(setting.title); else closed.add(setting.title);
    });
    return made;
  }

  function filter() {
    const before = question.value;
    found = questions.filter((one) => (!category.value || one.category === category.value)
      && ((!result.value && !judge.value)
        || one.settings.some((setting) => setting.verdicts.some(isChosen))));
    question.replaceChildren(...found.map((one) => {
      const start = one.asked.replace(/\s+/g, " ").slice(0, 80);
      return element("option", { value: one.id, text: `${one.id} (${one.category}): ${start}` });
    }));
    if (found.some((one) => one.id === before)) question.value = before;
    show();
  }

  function choose() {
    show();
    history.replaceState(null, "", `#question=${encodeURIComponent(question.value)}`);
  }

  function step(by) {
    const index = found.findIndex((one) => one.id === question.value) + by;
    if (index < 0 || index >= found.length) return;
    question.value = found[index].id;
    choose();
  }

  for (const select of [category, match, judge, result]) select.addEventListener("change", filter);
  question.addEventListener("change", choose);
  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    // A select and whatever scrolls sideways have their own use for the arrows.
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("select, .scroll")) return;
    if (event.target !== document.body && !event.target.closest("#answers")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });

  const wanted = new URLSearchParams(location.hash.slice(1)).get("question");
  filter();
  if (questions.some((one) => one.id === wanted)) {
    question.value = wanted;
    show();
  }
}

startBrowser();
