"use strict";
/* Starts the page: unpacks the data, draws the figures, then the episodes; CSV files, tables, colours, print. */
(() => {
  const PRINT_WIDTH = 680;

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(plain).text());
  }

  // -- figures -----------------------------------------------------------------------------------------------------------

  let data = null;
  const objects = ({ columns, rows }) => rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));

  const figures = () => [...document.querySelectorAll("[data-figure]")];
  const pause = () => new Promise((resume) => setTimeout(resume)); // lets the browser paint

  function draw(figure, width) {
    const id = figure.dataset.figure, place = figure.querySelector(".drawing");
    const every = (data.figures[id].objects ??= objects(data.figures[id]));
    const onTheWay = document.getElementById("stages")?.checked ?? true;
    const rows = onTheWay ? every : every.filter((d) => d.final !== false);
    const style = charts.styleOf(data.series);
    try {
      charts.draw[id]({ rows, place, style, key: figure.querySelector(".legend"), width: width ?? Math.max(240, place.clientWidth) });
    } catch (error) { // one failing figure must not stop the others and the episodes
      place.replaceChildren("This figure could not be drawn. Its data is in the table below.");
      console.error(error);
    }
  }
  const drawAll = (width) => figures().forEach((figure) => draw(figure, width));

  function redrawOnResize() {
    let width = document.body.clientWidth, waiting = 0;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        if (document.body.clientWidth === width) return; // phones change the height while scrolling
        width = document.body.clientWidth;
        drawAll();
      }, 150);
    });
  }

  // -- the data of figures and tables --------------------------------------------------------------------------------------

  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const csv = (lines) => lines.map((line) => line.map((x) => quoted(x === null ? "" : String(x))).join(",")).join("\r\n") + "\r\n";

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function cells(table) {
    const words = (cell) => cell.dataset.name ?? [...cell.childNodes].map((node) => node.textContent.trim()).filter(Boolean).join(" ");
    return [...table.querySelectorAll("tr:not(.groups)")].map((row) => [...row.cells].map(words));
  }

  function buttons() {
    for (const button of document.querySelectorAll("button[data-csv]")) {
      const { columns, rows } = data.figures[button.dataset.csv];
      button.addEventListener("click", () => save(button.dataset.csv, csv([columns, ...rows])));
    }
    for (const button of document.querySelectorAll("button[data-table]")) {
      button.addEventListener("click", () => save(button.dataset.table, csv(cells(document.querySelector(`#${button.dataset.table} table`)))));
    }
    for (const details of document.querySelectorAll("details.values")) {
      details.addEventListener("toggle", () => fill(details), { once: true });
    }
  }

  const MOST = 400;
  function fill(details) {
    const { columns, rows } = data.figures[details.closest("[data-figure]").dataset.figure];
    const table = document.createElement("table"), place = details.querySelector(".scroll");
    const head = table.createTHead().insertRow(), body = table.createTBody();
    for (const name of columns) head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: name }));
    for (const row of rows.slice(0, MOST)) {
      const line = body.insertRow();
      for (const value of row) line.insertCell().textContent = value === null ? "" : typeof value === "number" ? String(+value.toPrecision(5)) : String(value);
    }
    place.append(table);
    if (rows.length > MOST) place.append(`The first ${MOST} of ${rows.length.toLocaleString("en")} rows; the CSV file has all of them.`);
  }

  // -- colours and print ---------------------------------------------------------------------------------------------------

  const THEMES = { auto: "follow the system", light: "light", dark: "dark" };
  function themes() {
    const button = document.getElementById("theme"), names = Object.keys(THEMES);
    let now = "auto";
    button.addEventListener("click", () => {
      now = names[(names.indexOf(now) + 1) % names.length];
      show(now);
    });
    const show = (name) => {
      if (name === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = name;
      button.textContent = name[0].toUpperCase() + name.slice(1);
      button.setAttribute("aria-label", `${button.textContent}: colours ${THEMES[name]}`);
    };
    addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; if (data) drawAll(PRINT_WIDTH); });
    addEventListener("afterprint", () => { show(now); if (data) drawAll(); });
  }

  async function start() {
    themes();
    data = await unpack("data");
    for (const figure of figures()) {
      draw(figure);
      await pause();
    }
    buttons();
    redrawOnResize();
    document.getElementById("stages")?.addEventListener("change", () => document.querySelectorAll("#results [data-figure]").forEach((figure) => draw(figure)));
    if (document.getElementById("filters")) episodes.start(await unpack("packed"));
    document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds since navigation started
  }
  start().catch((error) => {
    document.querySelector(".lead").insertAdjacentHTML("afterend", '<p class="warning">This browser cannot show the figures; browsers from 2023 or later can. The tables below work in any browser.</p>');
    throw error;
  });
})();
