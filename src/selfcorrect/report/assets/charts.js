"use strict";
/* One drawing function per figure: from the rows of the figure's table to SVG by Observable Plot.
   Colours are CSS variables, so light, dark and print need no redrawing. */
const charts = (() => {
  const COLOURS = 8;
  const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "wye", "cross", "hexagon"];
  const DASHES = ["none", "7,4", "2,3", "9,3,2,3"];
  const FONT = { fontSize: "13px", fontFamily: "inherit", background: "none", color: "var(--text)" };
  const minus = (text) => text.replace("-", "−");
  const percent = (x) => (x === null ? "–" : minus((100 * x).toFixed(1)));
  const signed = (x) => (x !== null && x >= 0 ? "+" : "") + percent(x);
  const range = (low, high) => (low === null ? "" : ` [${percent(low)}, ${percent(high)}]`);

  /** Maps a series to its {colour, symbol, dash}; when the colours are used up, the dashes distinguish series. */
  function styleOf(series) {
    return (name) => {
      const n = series[name] ?? 0;
      if (n === 0) return { colour: "var(--c0)", symbol: "circle", dash: "none" };
      return { colour: `var(--c${((n - 1) % COLOURS) + 1})`, symbol: SYMBOLS[(n - 1) % COLOURS], dash: DASHES[Math.floor((n - 1) / COLOURS) % DASHES.length] };
    };
  }

  function legend(place, entries, toggled) {
    place.replaceChildren();
    place.hidden = entries.length === 0;
    for (const entry of entries) {
      const item = document.createElement(toggled ? "button" : "span");
      if (toggled) {
        item.type = "button";
        item.setAttribute("aria-pressed", String(entry.on));
        item.addEventListener("click", () => {
          toggled(entry);
          [...place.children].find((other) => other.textContent === entry.name)?.focus(); // the item was redrawn: restore the focus
        });
      }
      item.append(key(entry), entry.name);
      place.append(item);
    }
  }

  /** The sample of a line, a dot or a bar in a legend. */
  function key({ colour, dash = "none", shape = "line", hollow = false, symbol = "circle" }) {
    const svg = d3.create("svg").attr("viewBox", "0 0 26 12").attr("aria-hidden", "true");
    if (shape === "bar") svg.append("rect").attr("x", 4).attr("width", 18).attr("height", 12).attr("rx", 2).attr("fill", colour);
    if (shape === "line") svg.append("line").attr("x2", 26).attr("y1", 6).attr("y2", 6).attr("stroke", colour).attr("stroke-width", 2.5).attr("stroke-dasharray", dash);
    if (shape === "tick") svg.append("line").attr("x1", 13).attr("x2", 13).attr("y2", 12).attr("stroke", colour).attr("stroke-width", 3);
    if (shape !== "bar" && shape !== "tick" && symbol) {
      const path = d3.symbol(d3[`symbol${symbol[0].toUpperCase()}${symbol.slice(1)}`] ?? d3.symbolCircle, 46)();
      svg.append("path").attr("d", path).attr("transform", "translate(13,6)").attr("fill", hollow ? "var(--panel)" : colour).attr("stroke", colour).attr("stroke-width", 1.8);
    }
    return svg.node();
  }

  const tip = { fill: "var(--panel)", stroke: "var(--line)", fontSize: 12.5, lineHeight: 1.35 };

  // -- one line per model, with the label above its marks, so that long names fit a narrow screen ---------------------

  const LINE = 52;
  /** Marks of row i lie between y = i and i + 1. */
  function lines(rows, width, x, marks) {
    const order = new Map(rows.map((d, i) => [d, i]));
    const at = (part) => (d) => order.get(d) + part;
    return Plot.plot({
      width, height: LINE * rows.length + 54, marginLeft: 8, marginRight: 52, marginTop: 4, marginBottom: 42, style: FONT,
      x: { grid: true, ...x },
      y: { axis: null, type: "linear", domain: [rows.length, 0] },
      marks: [
        ...marks(at),
        Plot.text(rows, { y: at(0.19), text: "label", frameAnchor: "left", textAnchor: "start", fill: (d) => (d.final ? "var(--text)" : "var(--soft)"), fontWeight: 600, stroke: "var(--panel)", strokeWidth: 4 }),
      ],
    });
  }
  /** A fraction as drawn, in %, clamped, because a t-interval may exceed 0 and 1. */
  const within = (x) => (x === null ? NaN : 100 * Math.min(1, Math.max(0, x)));

  function attempts({ rows, place, key: keys, style, width }) {
    const colour = (d) => style(d.series).colour;
    const described = (d) => `${d.label}\nfirst ${percent(d.acc_t1)}${range(d.acc_t1_low, d.acc_t1_high)}\nsecond ${percent(d.acc_t2)}${range(d.acc_t2_low, d.acc_t2_high)}\ndelta ${signed(d.delta)}${range(d.delta_low, d.delta_high)}`;
    const ends = rows.flatMap((d) => ["acc_t1", "acc_t2"].flatMap((name) => [d[name], d[`${name}_low`], d[`${name}_high`]])).filter((x) => x !== null).map(within);
    const right = (d) => d3.max([d.acc_t1, d.acc_t2, d.acc_t2_high].filter((x) => x !== null).map(within));
    legend(keys, [{ name: "first attempt", colour: "var(--soft)", shape: "dot", hollow: true }, { name: "second attempt", colour: "var(--soft)", shape: "dot" }]);
    place.replaceChildren(lines(rows, width, { label: "Accuracy, % →", domain: [Math.max(0, d3.min(ends) - 2), Math.min(100, d3.max(ends) + 2)] }, (at) => {
      const first = at(0.5), second = at(0.74);
      const interval = (name, y) => Plot.link(rows, { y1: y, y2: y, x1: (d) => within(d[`${name}_low`]), x2: (d) => within(d[`${name}_high`]), stroke: colour, strokeOpacity: 0.35, strokeWidth: 5, strokeLinecap: "round" });
      return [
        interval("acc_t1", first), interval("acc_t2", second),
        Plot.link(rows, { x1: (d) => within(d.acc_t1), x2: (d) => within(d.acc_t2), y1: first, y2: second, stroke: colour, strokeWidth: 2 }),
        Plot.dot(rows, { x: (d) => within(d.acc_t1), y: first, r: 5.5, fill: "var(--panel)", stroke: colour, strokeWidth: 2 }),
        Plot.dot(rows, { x: (d) => within(d.acc_t2), y: second, r: 6, fill: colour, stroke: "var(--panel)" }),
        Plot.text(rows, { x: right, y: second, text: (d) => signed(d.delta), dx: 12, textAnchor: "start", fontWeight: 600, fill: "var(--text)", stroke: "var(--panel)", strokeWidth: 3 }),
        Plot.tip(rows, Plot.pointerY({ x: (d) => within(d.acc_t2), y: second, title: described, ...tip })),
      ];
    }));
  }

  function flips({ rows, place, key: keys, width }) {
    const described = (d) => `${d.label}\ncorrected, i→c ${percent(d.i_to_c)}${range(d.i_to_c_low, d.i_to_c_high)}\nregressed, c→i ${percent(d.c_to_i)}${range(d.c_to_i_low, d.c_to_i_high)}\ndelta ${signed(d.delta)}${range(d.delta_low, d.delta_high)}`;
    const bar = (at, name, sign, fill) => [
      Plot.rect(rows, { y1: at(0.42), y2: at(0.82), x1: 0, x2: (d) => sign * within(d[name]), fill, rx: 2 }),
      ...[["var(--panel)", 4], ["var(--text)", 1.5]].map(([stroke, strokeWidth]) => Plot.link(rows, { y1: at(0.62), y2: at(0.62), x1: (d) => sign * within(d[`${name}_low`]), x2: (d) => sign * within(d[`${name}_high`]), stroke, strokeWidth })),
      Plot.text(rows, { y: at(0.62), x: (d) => sign * within(d[`${name}_high`] ?? d[name]), text: (d) => percent(d[name]), dx: sign * 6, textAnchor: sign > 0 ? "start" : "end", fill: "var(--text)" }),
    ];
    legend(keys, [
      { name: "c→i, regressed", colour: "var(--bad)", shape: "bar" }, { name: "i→c, corrected", colour: "var(--good)", shape: "bar" }, { name: "delta", colour: "var(--text)", shape: "tick" },
    ]);
    const left = d3.max(rows, (d) => within(d.c_to_i_high ?? d.c_to_i)), right = d3.max(rows, (d) => within(d.i_to_c_high ?? d.i_to_c));
    const room = (left + right) * (44 / Math.max(200, width - 60)) + 0.1; // for the number beyond the longest bar
    place.replaceChildren(lines(rows, width, { label: "% of all problems", labelAnchor: "center", labelArrow: "none", domain: [-left - room, right], tickFormat: (x) => String(Math.abs(x)) }, (at) => [
      ...bar(at, "i_to_c", 1, "var(--good)"), ...bar(at, "c_to_i", -1, "var(--bad)"),
      Plot.ruleX([0], { stroke: "var(--text)" }),
      ...[["var(--panel)", 6], ["var(--text)", 3]].map(([stroke, strokeWidth]) => Plot.ruleX(rows, { x: (d) => 100 * d.delta, y1: at(0.36), y2: at(0.88), stroke, strokeWidth })),
      Plot.tip(rows, Plot.pointerY({ x: (d) => within(d.i_to_c), y: at(0.62), title: described, ...tip })),
    ]));
  }

  const TERMS = [["re_answering", "re-answering", "var(--c0)"], ["keep", "keep", "var(--c3)"], ["repair", "repair", "var(--c1)"], ["reading", "reading: keep + repair", "var(--c4)"]];

  /** The terms of a row as segments of one bar: gains to the right of 0, losses to the left. */
  function segments(d) {
    const ends = { gains: 0, losses: 0 };
    return TERMS.filter(([name]) => d[name] !== null && (name !== "reading" || d.keep === null)).map(([name, , fill]) => {
      const side = d[name] < 0 ? "losses" : "gains", from = ends[side];
      ends[side] += 100 * d[name];
      return { d, fill, from, to: ends[side] };
    });
  }

  function made_of({ rows, place, key: keys, width }) {
    const parts = rows.flatMap(segments), shown = new Set(parts.map((part) => part.fill));
    const described = (d) => [d.label, ...TERMS.filter(([name]) => d[name] !== null).map(([name, words]) => `${words} ${signed(d[name])}${range(d[`${name}_low`], d[`${name}_high`])}`), `delta ${signed(d.delta)}${range(d.delta_low, d.delta_high)}`].join("\n");
    legend(keys, [...TERMS.filter(([, , fill]) => shown.has(fill)).map(([, name, colour]) => ({ name, colour, shape: "bar" })), { name: "delta", colour: "var(--text)", shape: "tick" }]);
    const ends = [0, ...parts.map((part) => part.to), ...rows.flatMap((d) => [d.delta, d.delta_low, d.delta_high].filter((x) => x !== null).map((x) => 100 * x))];
    const right = (d) => d3.max([0, 100 * (d.delta_high ?? d.delta), ...segments(d).map((part) => part.to)]);
    place.replaceChildren(lines(rows, width, { label: "percentage points", labelAnchor: "center", labelArrow: "none", domain: d3.extent(ends), nice: true, tickFormat: (x) => minus(String(x)) }, (at) => [
      Plot.rect(parts, { y1: (part) => at(0.42)(part.d), y2: (part) => at(0.82)(part.d), x1: "from", x2: "to", fill: "fill", insetLeft: 0.5, insetRight: 0.5 }),
      Plot.ruleX([0], { stroke: "var(--text)" }),
      ...[["var(--panel)", 4], ["var(--text)", 1.5]].map(([stroke, strokeWidth]) => Plot.link(rows, { y1: at(0.62), y2: at(0.62), x1: (d) => 100 * (d.delta_low ?? d.delta), x2: (d) => 100 * (d.delta_high ?? d.delta), stroke, strokeWidth })),
      ...[["var(--panel)", 6], ["var(--text)", 3]].map(([stroke, strokeWidth]) => Plot.ruleX(rows, { x: (d) => 100 * d.delta, y1: at(0.36), y2: at(0.88), stroke, strokeWidth })),
      Plot.text(rows, { x: right, y: at(0.62), text: (d) => signed(d.delta), dx: 8, textAnchor: "start", fontWeight: 600, fill: "var(--text)", stroke: "var(--panel)", strokeWidth: 3 }),
      Plot.tip(rows, Plot.pointerY({ x: (d) => 100 * d.delta, y: at(0.62), title: described, ...tip })),
    ]));
  }

  // -- small multiples -------------------------------------------------------------------------------------------------

  /** A grid of small charts in one place; `draw(width)` is called once the width of a cell is known. */
  const MANY = 4;
  function panels(place, entries, compact = true) {
    const grid = document.createElement("div");
    grid.className = entries.length > MANY && compact ? "grid many" : "grid";
    place.replaceChildren(grid);
    const cells = entries.map(({ title }) => {
      const cell = document.createElement("div"), head = document.createElement("h4");
      head.textContent = title;
      cell.append(head);
      grid.append(cell);
      return cell;
    });
    const width = cells[0]?.clientWidth ?? 0;
    entries.forEach(({ draw }, i) => cells[i].append(draw(Math.max(140, width))));
  }

  const small = (width, options) => Plot.plot({ width, height: 190, marginLeft: 40, marginRight: 14, marginBottom: 34, marginTop: 12, style: FONT, ...options });
  const perLabel = (rows, draw) => Array.from(d3.group(rows, (d) => d.label), ([title, own]) => ({ title, draw: (width) => draw(own, width) }));

  const CURVES = {
    r1: ["Reward of the first attempt, r1", true], r2: ["Reward of the second attempt, r2", true], r3: ["Reward of the third attempt, r3", true], delta: ["Delta, r2 − r1", true],
    kl_t1: ["KL of the first attempt, nats", false], kl_t2: ["KL of the second attempt, nats", false], kl_t3: ["KL of the third attempt, nats", false],
    answer_change_rate: ["Changed answers", true],
  };
  const SHOWN_AT_FIRST = 6;
  let shown = null;

  function curves(context) {
    const { rows, place, key: keys, style } = context;
    const methods = [...new Set(rows.map((d) => d.method))];
    shown ??= new Set(methods.slice(0, SHOWN_AT_FIRST));
    const entries = methods.map((name) => ({ name, on: shown.has(name), symbol: null, ...pick(style(name)) }));
    legend(keys, entries, methods.length > 1 ? (entry) => { shown.has(entry.name) ? shown.delete(entry.name) : shown.add(entry.name); curves(context); } : null);
    const visible = rows.filter((d) => shown.has(d.method));
    const begins = new Set(d3.rollups(visible, (of) => d3.min(of, (d) => d.step), (d) => d.method, (d) => d.stage).flatMap(([, stages]) => stages.slice(1).map(([, first]) => first - 0.5)));
    panels(place, Object.entries(CURVES).filter(([name]) => visible.some((d) => d[name] !== null)).map(([name, [title, share]]) => ({
      title: share ? `${title}, %` : title,
      draw: (width) => curve(visible.filter((d) => d[name] !== null), name, share ? 100 : 1, begins, style, width),
    })), false);
  }
  const pick = ({ colour, dash }) => ({ colour, dash });

  /** The range of the values, widened if they are all equal. */
  function spread(values) {
    const [low, high] = d3.extent(values);
    return low === high ? [low - 1, high + 1] : [low, high];
  }

  function curve(points, name, scale, begins, style, width) {
    const mean = d3.rollups(points, (of) => d3.mean(of, (d) => d[name]), (d) => d.method, (d) => d.step)
      .flatMap(([method, steps]) => steps.map(([step, value]) => ({ method, step, value: scale * value })));
    const seeds = d3.rollup(points, (of) => new Set(of.map((d) => d.seed)).size, (d) => d.method);
    const colour = (d) => style(d.method).colour;
    return small(width, {
      x: { label: "step →", ticks: Math.max(3, width / 80) }, y: { domain: spread(points.map((d) => scale * d[name])), grid: true, ticks: 4, label: null, nice: true },
      marks: [
        Plot.ruleX([...begins], { stroke: "var(--soft)", strokeDasharray: "1,4" }),
        Plot.line(points.filter((d) => seeds.get(d.method) > 1), { x: "step", y: (d) => scale * d[name], z: (d) => `${d.method} ${d.seed}`, stroke: colour, strokeOpacity: 0.33, strokeWidth: 1 }),
        ...d3.groups(mean, (d) => d.method).map(([method, own]) => Plot.line(own, { x: "step", y: "value", stroke: style(method).colour, strokeWidth: 2.2, strokeDasharray: style(method).dash })),
        Plot.tip(mean, Plot.pointer({ x: "step", y: "value", title: (d) => `${d.method}\nstep ${d.step}: ${minus(d.value.toPrecision(3))}`, ...tip })),
      ],
    });
  }

  function edits({ rows, place, style }) {
    const right = Math.max(0.2, d3.max(rows, (d) => d.ratio_up_to)), same = right * 0.09;
    const from = (d) => (d.ratio_up_to === 0 ? -same : d.ratio_above), to = (d) => (d.ratio_up_to === 0 ? -same * 0.2 : d.ratio_up_to);
    const ticks = (width) => d3.ticks(0, right, width < 220 ? 2 : 4).slice(1);
    const top = 100 * d3.max(rows, (d) => d.share);
    panels(place, perLabel(rows, (own, width) => small(width, {
      x: { domain: [-same * 1.15, right], ticks: [-same * 0.6, ...ticks(width)], tickFormat: (x) => (x < 0 ? "same" : String(x)), label: null },
      y: { domain: [0, top], grid: true, ticks: 4, label: null, tickFormat: (y) => `${y}%` }, marginLeft: 46,
      marks: [
        Plot.rectY(own, { x1: from, x2: to, y: (d) => 100 * d.share, fill: style(own[0].series).colour, insetLeft: 0.5, insetRight: 0.5 }),
        Plot.ruleY([0], { stroke: "var(--soft)" }),
        Plot.tip(own, Plot.pointerX({ x1: from, x2: to, y: (d) => 100 * d.share, title: (d) => `${d.ratio_up_to === 0 ? "unchanged" : `ratio ${d.ratio_above} to ${d.ratio_up_to}`}\n${percent(d.share)}% of ${d.n}`, ...tip })),
      ],
    })));
  }

  const FEW = 20;
  function difficulty({ rows: every, place, key: keys }) {
    const enough = every.filter((d) => d.n >= FEW); // a level of a few problems says nothing but would set the scale
    const rows = enough.length ? enough : every;
    const levels = [...new Set(every.map((d) => d.level))].filter((level) => rows.some((d) => d.level === level)), prefix = shared(levels);
    const top = 100 * d3.max(rows, (d) => Math.max(d.i_to_c_high, d.c_to_i_high));
    const kinds = [["i_to_c", "var(--good)", "circle", "none", "i→c, corrected"], ["c_to_i", "var(--bad)", "square", "6,3", "c→i, regressed"]];
    legend(keys, kinds.map(([, colour, symbol, dash, name]) => ({ name, colour, symbol, dash })));
    const longest = d3.max(levels, (name) => name.length) - prefix.length;
    const turned = (width) => longest * levels.length * 8 > width - 60;
    panels(place, perLabel(rows, (own, width) => small(width, {
      x: { type: "point", domain: levels, label: `${prefix.trim() || "difficulty"} →`, tickFormat: (name) => name.slice(prefix.length), tickRotate: turned(width) ? -35 : 0 },
      y: { domain: [0, top], grid: true, ticks: 4, label: null, tickFormat: (y) => `${y}%` }, marginLeft: 46, marginBottom: turned(width) ? 42 + 5 * longest : 42, height: turned(width) ? 200 + 5 * longest : 200,
      marks: [
        ...kinds.flatMap(([name, colour, symbol, dash], i) => [
          Plot.ruleX(own, { x: "level", y1: (d) => 100 * d[`${name}_low`], y2: (d) => 100 * d[`${name}_high`], stroke: colour, strokeOpacity: 0.6, strokeWidth: 1.6, dx: 3 * i - 1.5 }),
          Plot.line(own, { x: "level", y: (d) => 100 * d[name], stroke: colour, strokeWidth: 1.8, strokeDasharray: dash, dx: 3 * i - 1.5 }),
          Plot.dot(own, { x: "level", y: (d) => 100 * d[name], fill: colour, symbol, r: 3.6, dx: 3 * i - 1.5 }),
        ]),
        Plot.tip(own, Plot.pointerX({ x: "level", y: (d) => 100 * d.i_to_c, title: (d) => `difficulty ${d.level}, n = ${d.n}\ni→c ${percent(d.i_to_c)}${range(d.i_to_c_low, d.i_to_c_high)}\nc→i ${percent(d.c_to_i)}${range(d.c_to_i_low, d.c_to_i_high)}`, ...tip })),
      ],
    })));
  }

  /** The words that all names begin with, with the trailing blank. */
  function shared(names) {
    let length = 0;
    while (names.every((name) => length < name.length && name[length] === names[0][length])) length += 1;
    return names[0].slice(0, names[0].slice(0, length).lastIndexOf(" ") + 1);
  }

  // -- lines with bands --------------------------------------------------------------------------------------------------

  function more_attempts({ rows, place, key: keys, style, width }) {
    const labels = d3.groups(rows, (d) => d.label);
    const seen = {};
    const looks = new Map(labels.map(([label, own]) => {
      const base = style(own[0].series), again = (seen[own[0].series] = (seen[own[0].series] ?? -1) + 1);
      return [label, { ...base, dash: DASHES[(DASHES.indexOf(base.dash) + again) % DASHES.length] }];
    }));
    legend(keys, labels.map(([name]) => ({ name, ...looks.get(name) })));
    place.replaceChildren(Plot.plot({
      width, height: Math.min(340, 220 + width / 8), marginLeft: 46, marginRight: 14, marginBottom: 42, style: FONT,
      x: { label: "attempt →", labelAnchor: "center", ticks: d3.range(1, d3.max(rows, (d) => d.attempt) + 1), tickFormat: "d" },
      y: { grid: true, nice: true, label: "Accuracy, %", ticks: 5 },
      marks: [
        ...labels.flatMap(([label, own]) => [
          Plot.areaY(own.filter((d) => d.low !== null), { x: "attempt", y1: (d) => 100 * d.low, y2: (d) => 100 * d.high, fill: looks.get(label).colour, fillOpacity: 0.13 }),
          Plot.line(own, { x: "attempt", y: (d) => 100 * d.accuracy, stroke: looks.get(label).colour, strokeWidth: 2.2, strokeDasharray: looks.get(label).dash }),
          Plot.dot(own, { x: "attempt", y: (d) => 100 * d.accuracy, fill: looks.get(label).colour, symbol: looks.get(label).symbol, r: 4 }),
        ]),
        Plot.tip(rows, Plot.pointer({ x: "attempt", y: (d) => 100 * d.accuracy, title: (d) => `${d.label}\nattempt ${d.attempt}: ${percent(d.accuracy)}${range(d.low, d.high)}`, ...tip })),
      ],
    }));
  }

  function votes({ rows, place, key: keys, style }) {
    legend(keys, [{ name: "sequential: half as many first attempts, each corrected once", colour: "var(--soft)" }, { name: "parallel: first attempts only", colour: "var(--soft)", dash: "5,4", hollow: true, symbol: "square" }]);
    const low = d3.min(rows, (d) => 100 * (d.low ?? d.accuracy)), high = d3.max(rows, (d) => 100 * (d.high ?? d.accuracy));
    panels(place, perLabel(rows, (own, width) => {
      const { colour } = style(own[0].series);
      return small(width, {
        height: 220, marginLeft: 46, marginBottom: 38,
        x: { type: "point", domain: [...new Set(rows.map((d) => d.responses))], label: "responses per problem →" },
        y: { domain: [low, high], nice: true, grid: true, ticks: 5, label: null, tickFormat: (y) => `${y}%` },
        marks: [
          ...["parallel", "sequential"].flatMap((kind) => {
            const line = own.filter((d) => d.kind === kind), hollow = kind === "parallel";
            return [
              Plot.areaY(line.filter((d) => d.low !== null), { x: "responses", y1: (d) => 100 * d.low, y2: (d) => 100 * d.high, fill: colour, fillOpacity: 0.12 }),
              Plot.line(line, { x: "responses", y: (d) => 100 * d.accuracy, stroke: colour, strokeWidth: 2, strokeDasharray: hollow ? "5,4" : "none" }),
              Plot.dot(line, { x: "responses", y: (d) => 100 * d.accuracy, symbol: hollow ? "square" : "circle", r: 4, fill: hollow ? "var(--panel)" : colour, stroke: colour, strokeWidth: 1.6 }),
            ];
          }),
          Plot.tip(own, Plot.pointer({ x: "responses", y: (d) => 100 * d.accuracy, title: (d) => `${d.kind}, ${d.responses} responses\n${percent(d.accuracy)}${range(d.low, d.high)}`, ...tip })),
        ],
      });
    }));
  }

  return { styleOf, draw: { attempts, flips, made_of, curves, edits, difficulty, more_attempts, votes } };
})();
