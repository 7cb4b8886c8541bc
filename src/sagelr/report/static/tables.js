// Tables sort by a click on a heading, and are saved as CSV.
(() => {
  "use strict";

  const cellOf = (row, column) => row.cells[column];
  const valueOf = (cell) => cell.dataset.value ?? cell.textContent.trim();

  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a.localeCompare(b, "en", { numeric: true });
  };

  // Cells that hold nothing go last, whichever way the rest is sorted.
  const isEmpty = (value) => value === "" || value === "–";

  const sort = (heading) => {
    const table = heading.closest("table");
    const body = table.tBodies[0];
    const column = heading.cellIndex;
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) {
      other.setAttribute("aria-sort", "none");
    }
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [valueOf(cellOf(row, column)), row]);
    rows.sort(([a], [b]) => {
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      return up ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([, row]) => row));
  };

  // A spreadsheet would run a text that begins like a formula.
  const field = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };

  const csv = (table) => {
    const heading = (cell) => {
      const name = cell.querySelector(".sort").textContent.trim();
      return cell.dataset.unit ? `${name} (${cell.dataset.unit})` : name;
    };
    const exported = (cell) => {
      const value = cell.dataset.exact ?? valueOf(cell);
      return isEmpty(value) ? "" : value;
    };
    const lines = [[...table.tHead.rows[0].cells].map(heading)];
    for (const row of table.tBodies[0].rows) lines.push([...row.cells].map(exported));
    return lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
  };

  const save = (button) => {
    const id = button.dataset.csv;
    const text = csv(document.querySelector(`[data-table="${id}"]`));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
    link.download = `${id}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  };

  document.addEventListener("click", (event) => {
    const sorted = event.target.closest(".sort");
    if (sorted) sort(sorted.closest("th"));
    const saved = event.target.closest("[data-csv]");
    if (saved) save(saved);
  });
})();
