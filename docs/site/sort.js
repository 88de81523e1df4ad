/* Tables inside an element of class `sortable` can be sorted by clicking a column title, or pressing Enter on it:
   numbers by value, largest first, and text alphabetically. A second click reverses the order. */
document.addEventListener("DOMContentLoaded", () => {
  const key = (row, column) => row.cells[column].textContent.trim();
  const value = (text) => (/^-?[\d.]+/.test(text) ? parseFloat(text) : NaN);
  for (const table of document.querySelectorAll(".sortable table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const sort = () => {
        const downwards = head.getAttribute("aria-sort") !== "descending";
        const rows = [...table.tBodies[0].rows];
        const numeric = rows.some((row) => !Number.isNaN(value(key(row, column))));
        const order = (a, b) =>
          numeric
            ? (value(key(b, column)) || 0) - (value(key(a, column)) || 0)
            : key(b, column).localeCompare(key(a, column));
        rows.sort((a, b) => (downwards ? order(a, b) : order(b, a)));
        table.tBodies[0].append(...rows);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", downwards ? "descending" : "ascending");
      };
      head.tabIndex = 0;
      head.setAttribute("role", "button");
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  }
});
