"use strict";
const rows = [...document.querySelectorAll(".view tbody tr")];
const buttons = [...document.querySelectorAll("[data-filter]")];
const name = document.getElementById("name");
let wanted = "";

function show() {
  const text = name.value.toLowerCase();
  let count = 0;
  for (const row of rows) {
    const flagged = wanted === "" || row.dataset.flags.split("|").includes(wanted);
    row.hidden = !(flagged && row.querySelector("th").textContent.toLowerCase().includes(text));
    count += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = count + " of " + rows.length + " shown";
}

function sort(heading, place) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  document.querySelectorAll(".view thead th").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.children[place].firstChild ? row.children[place].innerText.split("\n")[0].trim() : "";
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    const [n, m] = [parseFloat(x), parseFloat(y)];
    if (isNaN(n) !== isNaN(m) && (x === "" || y === "" || x === "–" || y === "–")) return isNaN(n) ? 1 : -1;
    return (down ? -1 : 1) * (isNaN(n) || isNaN(m) ? x.localeCompare(y, undefined, { numeric: true }) : n - m);
  };
  document.querySelector(".view tbody").append(...rows.sort(order));
}

buttons.forEach((button) => button.addEventListener("click", () => {
  wanted = button.dataset.filter;
  buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
  show();
}));
document.querySelectorAll(".view thead th").forEach((heading, place) => {
  if ("still" in heading.dataset) return;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => sort(heading, place));
});
name.addEventListener("input", show);
document.querySelector(".filters").hidden = false;
show();
