"use strict";
/* The episode browser. Episodes stay packed; list entries and the opened episode are built when they are shown.
   Completions reach the page as text only, never as markup. */
const episodes = (() => {
  const PAGE = 100;
  const FLIPS = { i2c: ["✗ → ✓", "corrected"], c2i: ["✓ → ✗", "regressed"], cc: ["✓ → ✓", "correct twice"], ii: ["✗ → ✗", "incorrect twice"] };
  const PARTS = { attempts: "main attempts", sampled: "sampled", swap: "swapped draft (control)", train: "training samples" };
  const FILTERS = ["method", "model", "seed", "part"];
  const WORDY = 4;
  const at = (id) => document.getElementById(id);
  let all = [], problems = [], outcomes = [], chosen = [], page = 0, opened = null, flip = "", form;

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  /** Reads the packed episodes and shows the first ones, or those that the address asks for. */
  function start(packed) {
    ({ problems, outcomes } = packed);
    for (const problem of problems) problem.search = `${problem[0]}\n${problem[1]}\n${problem[2]}`.toLowerCase();
    for (const source of packed.sources) for (const raw of source.episodes) all.push({ source, raw, flip: flipOf(raw) });
    form = at("filters");
    for (const name of FILTERS) fill(form.elements[name], [...new Set(packed.sources.map((source) => String(source[name])))], name);
    form.addEventListener("input", () => { page = 0; choose(); remember(null); });
    form.addEventListener("submit", (event) => event.preventDefault());
    at("earlier").addEventListener("click", () => turn(-1));
    at("later").addEventListener("click", () => turn(1));
    addEventListener("hashchange", follow);
    if (follow()) return;
    choose();
    const telling = correction(packed.sources) ?? chosen[0];
    if (telling) open(telling);
  }

  /** A corrected episode of the first method's last model, to open first. */
  function correction(sources) {
    const trained = sources.filter((source) => source.method !== "base" && source.part === "attempts");
    const last = trained.filter((source) => source.method === trained[0].method && source.seed === trained[0].seed).at(-1);
    return all.find((e) => e.source === last && e.flip === "i2c");
  }

  function flipOf(raw) {
    if (raw.length < 5) return "";
    const [first, second] = [raw[3][1] === 0, raw[4][1] === 0];
    return first ? (second ? "cc" : "c2i") : second ? "i2c" : "ii";
  }

  function fill(select, values, name) {
    if (values.length > 1) select.append(new Option("all", ""));
    for (const value of values) select.append(new Option(name === "part" ? PARTS[value] ?? value : value, value));
    if (name === "part" && values.includes("attempts")) select.value = "attempts";
  }

  // -- choosing -----------------------------------------------------------------------------------------------------

  function choose() {
    const wanted = FILTERS.map((name) => [name, form.elements[name].value]).filter(([, value]) => value);
    const q = form.elements.q.value.trim().toLowerCase();
    const fits = new Map();
    const sourceFits = (source) => wanted.every(([name, value]) => String(source[name]) === value);
    const found = all.filter(({ source, raw }) => {
      if (!fits.has(source)) fits.set(source, sourceFits(source));
      return fits.get(source) && (!q || problems[raw[0]].search.includes(q));
    });
    const counts = d3.rollup(found, (of) => of.length, (e) => e.flip);
    chips(counts, found.length);
    chosen = flip ? found.filter((e) => e.flip === flip) : found;
    at("found").textContent = `${chosen.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} episodes`;
    list();
  }

  function chips(counts, total) {
    const chip = (value, [mark, words], count) => {
      const made = element("button", { type: "button" }, `${mark} ${words} `, element("span", {}, count.toLocaleString("en")));
      made.dataset.flip = value;
      made.setAttribute("aria-pressed", String(flip === value));
      made.addEventListener("click", () => {
        flip = value;
        page = 0;
        choose();
        remember(null);
        at("flips").querySelector(`[data-flip="${value}"]`)?.focus();
      });
      return made;
    };
    at("flips").replaceChildren(chip("", ["", "all"], total), ...Object.entries(FLIPS).map(([value, words]) => chip(value, words, counts.get(value) ?? 0)));
  }

  function list() {
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE));
    page = Math.min(page, pages - 1);
    at("list").replaceChildren(...chosen.slice(page * PAGE, (page + 1) * PAGE).map(entry));
    at("list").scrollTop = 0;
    at("page").textContent = chosen.length ? `page ${page + 1} of ${pages}` : "none found";
    at("earlier").disabled = page === 0;
    at("later").disabled = page >= pages - 1;
  }

  function entry(episode) {
    const [problem, sample] = episode.raw, { method, model, seed } = episode.source;
    const [mark, words] = FLIPS[episode.flip] ?? ["", ""];
    const button = element("button", { type: "button" },
      element("span", { className: `mark ${episode.flip}`, title: words }, mark),
      element("span", { className: "text" }, problems[problem][1].replace(/\s+/g, " ").slice(0, 160)),
      element("small", {}, [method === model ? method : `${method} · ${model}`, `seed ${seed}`, ...(sample ? [`sample ${sample}`] : [])].join(" · ")));
    button.setAttribute("aria-current", String(episode === opened));
    button.addEventListener("click", () => { open(episode); remember(episode); reveal(); });
    episode.entry = button;
    return element("li", {}, button);
  }

  function turn(by) {
    page += by;
    list();
  }

  // -- one episode -----------------------------------------------------------------------------------------------------

  function open(episode) {
    if (opened?.entry) opened.entry.setAttribute("aria-current", "false");
    opened = episode;
    if (episode.entry) episode.entry.setAttribute("aria-current", "true");
    const [number, sample, step, ...turns] = episode.raw, [id, prompt, reference, difficulty] = problems[number];
    const { method, model, seed, part } = episode.source;
    const given = (name, text) => [element("dt", {}, name), element("dd", { className: "text" }, text)];
    at("episode").replaceChildren(
      element("div", { className: "head" },
        element("h3", {}, FLIPS[episode.flip] ? `${FLIPS[episode.flip][0]}  ${FLIPS[episode.flip][1]}` : "One attempt"),
        element("div", {}, step_button("Previous", -1), step_button("Next", 1), copy_button(episode))),
      element("p", { className: "origin" }, [method === model ? method : `${method}, model ${model}`, `seed ${seed}`, PARTS[part] ?? part, `step ${step}`, ...(sample ? [`sample ${sample}`] : []), `problem ${id}`, ...(difficulty === null ? [] : [`difficulty ${difficulty}`])].join(" · ")),
      element("dl", { className: "given" }, ...given("Problem", prompt), ...given("Reference", reference)),
      element("div", { className: "turns" }, ...turns.map((_, k) => attempt(turns, k))));
  }

  function attempt(turns, k) {
    const [text, outcome, extracted = 0, truncated = 0, detail = 0, checks = 0, feedback = 0] = turns[k];
    const right = outcome === 0, body = element("p", { className: "text" });
    if (!text) body.append(element("em", {}, "(empty)"));
    else if (k > 0) body.append(...marked(turns[k - 1][0], text, "added"));
    else if (turns.length > 1) body.append(...marked(text, turns[1][0], "removed"));
    else body.append(text);
    const program = checks && extracted, answer = program ? "" : extracted === null ? "no answer extracted" : extracted === 0 ? "" : `answer ${extracted}`;
    const notes = [answer, truncated === 2 ? "not asked for: the attempt before stands" : truncated ? "truncated at the token limit" : "", detail || "", k > 0 && truncated !== 2 && turns[k - 1][0] === text ? "same text as before" : ""];
    return element("section", { className: `turn ${right ? "correct" : "incorrect"}` },
      element("h4", {}, `Attempt ${k + 1}`, element("span", { className: "verdict" }, `${right ? "✓" : "✗"} ${outcomes[outcome].replaceAll("_", " ")}`)),
      ...(feedback || []).map((said) => Array.isArray(said)
        ? element("details", {}, element("summary", {}, `Verification ${said[2] ?? "before"} this attempt: says ${said[1]}`), element("pre", {}, said[0]))
        : element("details", {}, element("summary", {}, "Feedback before this attempt"), element("pre", {}, said))),
      body, ...(program ? [element("details", {}, element("summary", {}, "Extracted program"), element("pre", {}, program))] : []),
      ...(checks ? [tests(checks)] : []),
      ...(notes.some(Boolean) ? [element("p", { className: "notes" }, notes.filter(Boolean).join(" · "))] : []));
  }

  const CHECKED = { passed: "✓", failed: "✗" };
  /** The outcome of each test of a program. */
  function tests(checks) {
    const counted = d3.rollups(checks, (found) => found.length, ([, outcome]) => outcome).map(([outcome, n]) => `${n} ${outcome}`);
    return element("details", { className: "checks", open: true },
      element("summary", {}, `Tests: ${counted.join(", ")}`),
      element("ul", {}, ...checks.map(([label, outcome, detail]) => element("li", { className: outcome.replace(" ", "-") },
        element("span", { className: "verdict" }, `${CHECKED[outcome] ?? "–"} ${outcome}`), element("code", {}, label),
        ...(detail ? [element("small", {}, detail)] : [])))));
  }

  const REWRITTEN = 0.25;
  /** Whether two long texts have too little in common for marks to help. */
  function rewritten(parts, before, after) {
    const common = d3.sum(parts, (part) => (part.added || part.removed ? 0 : part.value.length));
    return common < REWRITTEN * Math.max(before.length, after.length);
  }

  const EDITS = 1500;
  /** One of two texts with the differences marked: deletions in `before`, additions in `after`.
   *  The time grows with the square of the number of edits, so texts that differ in more than EDITS places have no marks. */
  function marked(before, after, kind) {
    const words = Math.min(before.split(/\s+/).length, after.split(/\s+/).length) >= WORDY;
    const differ = words ? Diff.diffWordsWithSpace : Diff.diffChars;
    const parts = differ(before, after, { maxEditLength: EDITS });
    if (!parts || (words && rewritten(parts, before, after))) return [kind === "added" ? after : before];
    return parts.filter((part) => part[kind] || !(part.added || part.removed))
      .map((part) => (part[kind] ? element(kind === "added" ? "ins" : "del", {}, part.value) : part.value));
  }

  function step_button(name, by) {
    const next = chosen[chosen.indexOf(opened) + by];
    const button = element("button", { type: "button", disabled: !next || !chosen.includes(opened) }, name);
    button.addEventListener("click", () => {
      page = Math.floor(chosen.indexOf(next) / PAGE);
      if (!next.entry?.isConnected) list();
      open(next);
      remember(next);
      next.entry?.scrollIntoView({ block: "nearest" });
      const again = [...at("episode").querySelectorAll(".head button")]; // the buttons were rebuilt: restore the focus
      (again.find((other) => other.textContent === name && !other.disabled) ?? again.find((other) => !other.disabled))?.focus();
    });
    return button;
  }

  function copy_button(episode) {
    const link = element("a", { href: `#${address(episode)}`, className: "link" }, "Link");
    link.setAttribute("aria-label", "Link to this episode");
    return link;
  }

  const narrow = () => matchMedia("(max-width: 46rem)").matches;
  function reveal() {
    if (narrow()) at("episode").scrollIntoView();
    at("episode").focus({ preventScroll: true });
  }

  // -- addresses ---------------------------------------------------------------------------------------------------------

  function address(episode) {
    const words = new URLSearchParams();
    for (const name of [...FILTERS, "q"]) if (form.elements[name].value) words.set(name, form.elements[name].value);
    if (flip) words.set("flip", flip);
    if (episode) words.set("episode", [episode.source.key, problems[episode.raw[0]][0], episode.raw[1], episode.raw[2]].join("|"));
    return `episodes?${words}`;
  }

  function remember(episode) {
    history.replaceState(null, "", `#${address(episode)}`);
  }

  /** Applies the address's filters and episode; returns false if it names none. */
  function follow() {
    if (!location.hash.startsWith("#episodes?")) return false;
    const words = new URLSearchParams(location.hash.slice("#episodes?".length));
    for (const name of [...FILTERS, "q"]) form.elements[name].value = words.get(name) ?? "";
    for (const name of FILTERS) if (form.elements[name].selectedIndex < 0) form.elements[name].selectedIndex = 0;
    flip = words.get("flip") in FLIPS ? words.get("flip") : "";
    choose();
    const key = words.get("episode");
    const found = key && all.find(({ source, raw }) => key === [source.key, problems[raw[0]][0], raw[1], raw[2]].join("|"));
    if (key && !found) at("found").textContent = "This page does not contain the episode in the address.";
    if (found) {
      page = Math.max(0, Math.floor(chosen.indexOf(found) / PAGE));
      list();
    }
    if (found ?? chosen[0]) open(found ?? chosen[0]);
    (found && narrow() ? at("episode") : at("episodes")).scrollIntoView();
    return true;
  }

  return { start };
})();
