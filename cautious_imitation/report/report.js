"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    const numeric = heading.classList.contains("number") || column === 0;
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const number = (text) => (text === "inf" ? Infinity : Number(text));
      const rows = [...body.rows].sort((first, second) => {
        const [a, b] = [value(first), value(second)];
        if (a === "" || b === "") return (a === "") - (b === ""); // no value: last either way
        if (a === b) return 0;
        const order = numeric ? (number(a) < number(b) ? -1 : 1) : a.localeCompare(b);
        return up ? order : -order;
      });
      body.append(...rows);
    });
  });
}
for (const hint of document.querySelectorAll(".scripted")) hint.hidden = false;
