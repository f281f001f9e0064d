// The QC page reads without this script; it sorts the table of pairs and enlarges the pictures.
"use strict";

function sortBy(heading) {
  const row = heading.parentElement;
  const body = heading.closest("table").tBodies[0];
  const column = [...row.children].indexOf(heading);
  const rising = heading.getAttribute("aria-sort") !== "ascending";
  const key = (line) => line.cells[column].dataset.value ?? line.cells[column].textContent.trim();
  const lines = [...body.rows].map((line) => [key(line), line]);
  lines.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what has no value stays below
    const order = heading.classList.contains("number") ? a - b : a < b ? -1 : a > b ? 1 : 0;
    return rising ? order : -order;
  });
  for (const other of row.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...lines.map(([, line]) => line));
}

for (const heading of document.querySelectorAll(".pairs thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => sortBy(heading));
}

for (const button of document.querySelectorAll(".larger")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const large = button.getAttribute("aria-pressed") !== "true";
    for (const cards of document.querySelectorAll(".cards")) cards.classList.toggle("large", large);
    for (const each of document.querySelectorAll(".larger")) each.setAttribute("aria-pressed", large);
  });
}
