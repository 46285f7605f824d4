// Sort and filter the results table. The table is complete without this file.
(() => {
  "use strict";
  const table = document.getElementById("gh-results");
  const form = document.getElementById("gh-filter");
  if (!table || !form) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const count = form.querySelector("output");

  const value = (row, index) => {
    const cell = row.cells[index];
    if (!("v" in cell.dataset)) return cell.textContent.trim().toLowerCase();
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };

  // Rows without a value stay at the end, whichever way the rest is sorted.
  const compare = (index, direction) => (a, b) => {
    const [x, y] = [value(a, index), value(b, index)];
    if (x === null || y === null) return (x === null) - (y === null);
    return direction * (typeof x === "number" ? x - y : x.localeCompare(y));
  };

  Array.from(table.tHead.rows[0].cells).forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "gh-sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows.sort(compare(index, up ? 1 : -1)));
    });
  });

  // A word is found where one begins: "verified" is not in "unverified", and "7b" is in "Qwen2.5 7B".
  const beginning = (word) => {
    const kind = /^\p{L}/u.test(word) ? "\\p{L}" : /^\p{N}/u.test(word) ? "\\p{N}" : "";
    const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp((kind && `(?<!${kind})`) + escaped, "u");
  };

  const filter = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean).map(beginning);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const hit =
        words.every((word) => word.test(text)) &&
        (!form.elements.tier.value || row.dataset.tier === form.elements.tier.value) &&
        (!form.elements.status.value || row.dataset.status === form.elements.status.value);
      row.hidden = !hit;
      shown += hit;
    }
    count.textContent = shown ? `${shown} of ${rows.length} rows` : `no row of ${rows.length} matches`;
  };

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
