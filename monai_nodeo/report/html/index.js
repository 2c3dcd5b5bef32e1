"use strict";
{
  const table = document.getElementById("pairs");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const find = document.getElementById("find");
  const grade = document.getElementById("grade");
  const shown = document.getElementById("shown");
  // Read once: asking the document for the text of a thousand rows at every key is slow.
  const rows = [...body.rows].map((element) => ({
    element,
    text: element.textContent.toLowerCase(),
    grade: element.dataset.grade,
    keys: [...element.cells].map((cell) => cell.dataset.sort),
  }));
  const isNumber = heads.map((_, i) => rows.every((row) => row.keys[i] === "" || !Number.isNaN(Number(row.keys[i]))));

  const compare = (column, sign) => (one, other) => {
    const a = one.keys[column];
    const b = other.keys[column];
    if (a === "" || b === "") return (a === "") - (b === ""); // pairs without the figure stay last
    return sign * (isNumber[column] ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  };
  const sort = (column) => {
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : ascending ? "ascending" : "descending"));
    rows.sort(compare(column, ascending ? 1 : -1));
    body.append(...rows.map((row) => row.element));
  };
  const filter = () => {
    const words = find.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.element.hidden = !row.text.includes(words) || (grade.value !== "" && row.grade !== grade.value);
      count += !row.element.hidden;
    }
    shown.value = `${count} of ${rows.length}`;
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));
  find.addEventListener("input", filter);
  grade.addEventListener("input", filter);
}
