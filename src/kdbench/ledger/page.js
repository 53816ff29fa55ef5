// Filters and sorting of the results page. Their state is the fragment of the address, so that a link
// shows what its sender saw: #pair=...&method=...&protocol=...&q=...&run=1&sort=gain&order=desc
"use strict";
(() => {
  const form = document.getElementById("filters");
  const sections = [...document.querySelectorAll("section.table")];
  const rows = sections.flatMap((section) => [...section.querySelectorAll("tbody tr")]);
  const original = new Map(rows.map((row, i) => [row, i]));
  const choices = ["pair", "protocol", "method"];
  const sorting = { key: "", order: "" };

  const number = (cell) => parseFloat(cell.textContent.replace(/\u2212/g, "-").replace(/^[[+]/, ""));

  function sort() {
    for (const table of document.querySelectorAll("table.board")) {
      const heads = [...table.tHead.rows[0].cells];
      const at = heads.findIndex((head) => head.dataset.key === sorting.key);
      heads.forEach((head, i) => {
        head.setAttribute("aria-sort", i !== at ? "none" : sorting.order === "asc" ? "ascending" : "descending");
      });
      const text = at >= 0 && heads[at].dataset.kind === "text";
      const sign = sorting.order === "asc" ? 1 : -1;
      const value = (row) => (text ? row.cells[at].textContent.replace(/^\W+/, "") : number(row.cells[at]));
      const missing = (v) => (text ? v === "" : Number.isNaN(v));
      const compare = (a, b) => {
        const [x, y] = at < 0 ? [0, 0] : [value(a), value(b)];
        if (missing(x) !== missing(y)) return missing(x) ? 1 : -1; // nothing to compare: last, either way
        const difference = missing(x) ? 0 : text ? x.localeCompare(y, "en") : x - y;
        return sign * difference || original.get(a) - original.get(b);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    }
  }

  function filter() {
    const wanted = Object.fromEntries(choices.map((name) => [name, form.elements[name].value]));
    const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const only = form.elements.run.checked;
    let shown = 0;
    for (const section of sections) {
      const { pair, protocol } = section.dataset;
      const inside = (!wanted.pair || pair === wanted.pair) && (!wanted.protocol || protocol === wanted.protocol);
      let left = 0;
      for (const row of section.querySelectorAll("tbody tr")) {
        const text = `${pair} ${protocol} ${row.dataset.method} ${row.textContent}`.toLowerCase();
        row.hidden = !inside || (wanted.method && row.dataset.method !== wanted.method) ||
          (only && row.classList.contains("idle")) || !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      for (const folded of section.querySelectorAll("details.waiting")) {
        folded.hidden = ![...folded.querySelectorAll("tbody tr")].some((row) => !row.hidden);
        folded.open = !folded.hidden && Boolean(wanted.method || words.length); // what is looked for is shown
      }
      section.hidden = left === 0;
      const entry = document.querySelector(`#contents tr[data-section="${CSS.escape(section.id)}"]`);
      if (entry) entry.hidden = section.hidden;
      shown += left;
    }
    document.getElementById("count").textContent = shown === rows.length
      ? `All ${rows.length} rows`
      : `${shown} of ${rows.length} rows`;
  }

  function write() {
    const state = new URLSearchParams();
    for (const name of [...choices, "q"]) if (form.elements[name].value) state.set(name, form.elements[name].value);
    if (form.elements.run.checked) state.set("run", "1");
    if (sorting.key) {
      state.set("sort", sorting.key);
      state.set("order", sorting.order);
    }
    const fragment = state.toString();
    history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  }

  function read() {
    const state = new URLSearchParams(location.hash.slice(1));
    if (location.hash && !location.hash.includes("=")) return; // a link to a place on the page
    for (const name of choices) {
      const options = [...form.elements[name].options].map((option) => option.value);
      form.elements[name].value = options.includes(state.get(name)) ? state.get(name) : "";
    }
    form.elements.q.value = state.get("q") ?? "";
    form.elements.run.checked = state.get("run") === "1";
    sorting.key = state.get("sort") ?? "";
    sorting.order = state.get("order") === "asc" ? "asc" : "desc";
    sort();
    filter();
  }

  for (const head of document.querySelectorAll("table.board thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const again = sorting.key === head.dataset.key;
      sorting.order = again ? (sorting.order === "asc" ? "desc" : "asc") : head.dataset.order;
      sorting.key = head.dataset.key;
      sort();
      write();
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { filter(); write(); });
  form.addEventListener("reset", () => setTimeout(() => {
    sorting.key = "";
    sort();
    filter();
    write();
  }));
  addEventListener("hashchange", read);
  form.hidden = false;
  filter();
  read();
})();
